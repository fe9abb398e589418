"""Published models from the hub: fetched whole, and from then on read at the commit that was fetched."""

import json
import os
import shutil
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vidiff import files
from vidiff.errors import CheckpointError, ConfigError, ResourceError, UserError
from vidiff.resuming import OnBytes, fetch, fetched_bytes
from vidiff.text.sources import is_hub_id, is_revision

PATTERNS = ("*.json", "*.yaml", "*.safetensors")


@dataclass(frozen=True)
class Pulled:
    """What `pull` left on this machine."""

    folder: Path
    revision: str  # commit, 40 hexadecimal digits
    size: int  # bytes of all files


def pins_path() -> Path:
    """Return the file that says at which commit each model was fetched."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "vidiff" / "models.json"


def pinned() -> dict[str, str]:
    """Return the commit of each model that was fetched; raises a CheckpointError if their file is damaged."""
    path = pins_path()
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
        sound = isinstance(found, dict) and all(is_hub_id(name) and is_revision(pin) for name, pin in found.items())
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete it and pull your models again") from error
    if not sound:
        raise CheckpointError(f"{path}: damaged; delete it and pull your models again")
    return dict(found)


def pull(name: str, note: Callable[[str], None], on_bytes: OnBytes = lambda path, done, size: None) -> Pulled:
    """Fetch a model, or what is missing of it, and remember its commit.

    Args:
        name: OWNER/NAME, which is fetched at the newest commit the first time and at the same one after that, or
            OWNER/NAME@COMMIT.
        note: hears what is fetched, before it is.
        on_bytes: hears of each large file how much of it is here.

    Raises:
        ConfigError: if the name is none, or the newest commit is not the one that was fetched before.
        ResourceError: if the disk has too little room.
        CheckpointError: if the hub cannot be reached or has no such model, or nothing but pickled weights, or one of
            another layout or architecture; nothing large is fetched then.
    """
    source, _, revision = name.partition("@")
    if not is_hub_id(source) or (revision and not is_revision(revision)):
        raise ConfigError(f"{name}: not of the form OWNER/NAME or OWNER/NAME@COMMIT, a commit of 40 digits")
    info = _asked(source, lambda api: api.model_info(source, revision=revision or None, files_metadata=True))
    pins = pinned()
    if not revision and pins.get(source, info.sha) != info.sha:
        raise ConfigError(
            f"{source} moved from {pins[source][:12]} to {info.sha[:12]} since it was pulled; to take the new one: "
            f"vidiff models pull {source}@{info.sha}"
        )
    wanted = {one.rfilename: one.size or 0 for one in info.siblings if one.rfilename.endswith(_SUFFIXES)}
    if not any(path.endswith(".safetensors") for path in wanted):
        raise CheckpointError(f"{source}: holds no safetensors weights; pickled weights are never read")
    _check_kind(source, info.sha, wanted)
    large = [one for one in info.siblings if one.rfilename in wanted and one.lfs is not None]
    missing = _missing(source, info.sha, wanted) - sum(fetched_bytes(source, one.lfs.sha256) for one in large)
    _check_room(source, missing)
    total = files.size_text(sum(wanted.values()))
    note(f"{source}@{info.sha[:12]}: {total}, of which {files.size_text(missing)} are still to be fetched")
    for one in large:
        _asked(source, partial(_large, source, info.sha, one, on_bytes))
    folder = _asked(source, lambda api: _fetched(source, info.sha))
    files.write_text(_made(pins_path()), json.dumps(pins | {source: info.sha}, indent=1))
    return Pulled(Path(folder), info.sha, sum(wanted.values()))


_SUFFIXES = tuple(pattern.removeprefix("*") for pattern in PATTERNS)


def _check_kind(source: str, revision: str, paths: Container[str]) -> None:
    """Raise a CheckpointError if the files of a repository are those of no model that can be read."""
    from huggingface_hub import hf_hub_download

    from vidiff.components import read_json
    from vidiff.diffusers_folder import check_architecture
    from vidiff.interop.wan_published import PUBLISHED

    if "model_index.json" in paths:
        index = _asked(source, lambda api: hf_hub_download(source, "model_index.json", revision=revision))
        check_architecture(source, read_json(Path(index)))
    elif "config.yaml" not in paths:
        other = f"{source}-Diffusers"
        hint = f"; {other} is" if any(one.hub == other for one in PUBLISHED) else ""
        raise CheckpointError(
            f"{source}: is not in the diffusers layout (it has no model_index.json), and so cannot be read{hint}"
        )


def _large(source: str, revision: str, file: Any, on_bytes: OnBytes, api: Any) -> None:
    fetch(source, revision, file.rfilename, file.lfs.sha256, file.size, on_bytes)


def _fetched(source: str, revision: str) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(source, revision=revision, allow_patterns=list(PATTERNS))


def _asked(source: str, ask: Callable[[Any], Any]) -> Any:
    from huggingface_hub import HfApi

    try:
        return ask(HfApi())
    except UserError:
        raise
    except Exception as error:  # the hub raises many kinds; each means that it did not answer
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{source}: cannot be fetched ({reason}); what is here stays, and pull goes on"
        ) from error


def _missing(source: str, revision: str, wanted: dict[str, int]) -> int:
    """Return the bytes of the files that are not here yet."""
    from huggingface_hub import try_to_load_from_cache

    here = {path: try_to_load_from_cache(source, path, revision=revision) for path in wanted}
    return sum(size for path, size in wanted.items() if not isinstance(here[path], str))


def _check_room(source: str, needed: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ResourceError(
            f"{source}: {files.size_text(needed)} needed, {files.size_text(free)} free in {place}; free some space, or "
            "set HF_HOME to a larger disk"
        )


def _made(path: Path) -> Path:
    with files.os_errors_named(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path
