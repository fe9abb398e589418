"""Checkpoints of a run that survive being killed at any moment.

A checkpoint is a folder ``step-%08d`` with one safetensors file a group of tensors, ``meta.json`` and, written last,
``MANIFEST.json`` with the size and SHA-256 of every other file. It is written under a temporary name, fsynced and
renamed; only then are older ones removed. The newest is the one with the highest step whose manifest holds: no
pointer file, no clock. Nothing in it is pickled.
"""

import json
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vidiff import files
from vidiff.errors import CheckpointError, ResourceError
from vidiff.optimizer_state import flatten_optimizer, restore_optimizer
from vidiff.weights import check_finite, load_weights, model_hash, read_tensors, save_model, size_of, write_tensors

__all__ = [
    "FORMAT",
    "Checkpoint",
    "flatten_optimizer",
    "latest",
    "load_weights",
    "model_hash",
    "read",
    "restore_optimizer",
    "save",
    "save_model",
]

FORMAT = 1
MANIFEST = "MANIFEST.json"
META = "meta.json"

_STEP = re.compile(r"step-(\d{8,})")
_REPLACED = re.compile(r"\.replaced-(step-\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been verified."""

    path: Path
    step: int
    meta: dict[str, Any] = field(default_factory=dict)

    def tensors(self, group: str) -> dict[str, Tensor]:
        """Return the tensors of one group, on the CPU.

        Raises:
            CheckpointError: if there is no such group; the message names those there are.
        """
        path = self.path / f"{group}.safetensors"
        if not path.is_file():
            groups = ", ".join(sorted(p.stem for p in self.path.glob("*.safetensors")))
            raise CheckpointError(f"{self.path}: holds no {group}, only {groups}; it belongs to another kind of stage")
        return read_tensors(path)


def save(
    run_dir: Path | str, step: int, tensors: dict[str, dict[str, Tensor]], meta: dict[str, Any], *, keep: int = 2
) -> Path:
    """Write the checkpoint of ``step`` and return its folder; then remove all but the ``keep`` newest.

    Args:
        run_dir: folder of the run; made if it is not there.
        step: number of optimizer steps done.
        tensors: groups by name; each becomes ``GROUP.safetensors``.
        meta: what JSON can hold.
        keep: at least 2, since the newest may be the one that a failing disk damages.

    Raises:
        NumericalError: if a tensor is not finite; nothing is written.
        ResourceError: if the disk is full or not writable; the older checkpoints are as they were.
    """
    if keep < 2 or step < 0:
        raise ValueError(f"keep must be at least 2 and step at least 0, got {keep} and {step}")
    run_dir = Path(run_dir)
    for group, named in tensors.items():
        check_finite(named, f"{group} at step {step}: ")
    text = json.dumps({**meta, "step": step}, allow_nan=False, indent=1)
    needed = sum(size_of(named) for named in tensors.values()) + len(text)
    final = run_dir / f"step-{step:08d}"
    temporary = run_dir / f".tmp-{step}-{os.getpid()}-{uuid.uuid4().hex}"
    with files.os_errors_named(final, temporary, needed):
        run_dir.mkdir(parents=True, exist_ok=True)
        _heal(run_dir)
        _sweep(run_dir)
        if files.free_bytes(run_dir) < needed:
            have = files.size_text(files.free_bytes(run_dir))
            raise ResourceError(f"{final}: {files.size_text(needed)} needed, {have} free; free some space")
        try:
            _write(temporary, tensors, text)
            _publish(temporary, final)
        finally:
            files.remove(temporary)
    _prune(run_dir, final, keep)
    return final


def latest(run_dir: Path | str, on_skip: Callable[[str], None]) -> Checkpoint | None:
    """Return the checkpoint with the highest step whose files all have the size and hash of its manifest.

    Args:
        run_dir: folder of the run; it need not exist.
        on_skip: called with one line for each damaged checkpoint, which is renamed ``.bad-*`` and never deleted.

    Raises:
        CheckpointError: if a newer version of vidiff wrote it; nothing is changed.
        ResourceError: if the folder cannot be read.
    """
    run_dir = Path(run_dir)
    damaged: list[tuple[Path, CheckpointError]] = []
    found = None
    with files.os_errors_named(run_dir):
        if not run_dir.is_dir():
            return None
        _heal(run_dir)
        for path in reversed(_steps(run_dir)):
            try:
                found = read(path)
                break
            except _NewerFormatError:
                raise
            except CheckpointError as error:
                damaged.append((path, error))
        for path, what in damaged:
            bad = path.with_name(f".bad-{path.name}-{uuid.uuid4().hex[:8]}")
            os.rename(path, bad)
            on_skip(f"{what}; skipped and renamed {bad.name}")
    return found


def read(path: Path | str) -> Checkpoint:
    """Verify one checkpoint folder and return it.

    Raises:
        CheckpointError: if it is damaged, incomplete, or of a newer format.
        ResourceError: if the disk cannot be read.
    """
    path = Path(path)
    with files.os_errors_named(path):
        listed = _manifest(path)
        for name, entry in listed.items():
            file = path / name
            if not file.is_file() or file.stat().st_size != entry["size"]:
                size = file.stat().st_size if file.is_file() else "no"
                raise CheckpointError(f"{path}: damaged: {name} has {size} bytes, not {entry['size']}")
            if files.sha256_of(file) != entry["sha256"]:
                raise CheckpointError(f"{path}: damaged: {name} is not what was written (SHA-256 differs)")
        meta = json.loads((path / META).read_bytes())
    return Checkpoint(path, int(meta.pop("step")), meta)


class _NewerFormatError(CheckpointError):
    """A checkpoint that this version cannot judge, and so must not touch."""


def _write(folder: Path, tensors: dict[str, dict[str, Tensor]], meta: str) -> None:
    folder.mkdir()
    mode = (folder.stat().st_mode & 0o666) | 0o600  # as the umask has it
    for group, named in tensors.items():
        path = folder / f"{group}.safetensors"
        write_tensors(path, named)
        path.chmod(mode)
        files.fsync(path)
    _write_flushed(folder / META, meta)
    listed = {p.name: {"size": p.stat().st_size, "sha256": files.sha256_of(p)} for p in sorted(folder.iterdir())}
    _write_flushed(folder / MANIFEST, json.dumps({"format": FORMAT, "files": listed}, separators=(",", ":")))
    files.fsync(folder)


def _write_flushed(path: Path, text: str) -> None:
    with path.open("xb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _publish(temporary: Path, final: Path) -> None:
    aside = final.with_name(f".replaced-{final.name}")
    if final.exists():  # the same step again, after a resume from an earlier one; `_heal` undoes a kill in between
        files.remove(aside)
        os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except OSError:
        if aside.exists():
            os.rename(aside, final)
        raise
    files.fsync(final.parent)
    files.remove(aside)


def _prune(run_dir: Path, newest: Path, keep: int) -> None:
    # Only whole ones count towards `keep`, by size: hashing them again after every save would cost minutes.
    others = [path for path in reversed(_steps(run_dir)) if path != newest and _has_all_sizes(path)]
    for path in others[keep - 1 :]:
        doomed = path.with_name(f".tmp-pruned-{path.name}-{uuid.uuid4().hex[:8]}")
        try:
            os.rename(path, doomed)
        except OSError:
            continue  # an undeleted old checkpoint must not end the run; the next save tries again
        files.remove(doomed)


def _heal(run_dir: Path) -> None:
    """Put back a checkpoint that was moved aside when the save that would have replaced it was killed."""
    for aside in run_dir.glob(".replaced-step-*"):
        match = _REPLACED.fullmatch(aside.name)
        if match and not (run_dir / match[1]).exists():
            os.rename(aside, run_dir / match[1])


def _sweep(run_dir: Path) -> None:
    """Remove what killed saves and prunes left; the lock of the run keeps living ones away."""
    for leftover in [*run_dir.glob(".tmp-*"), *run_dir.glob(".replaced-step-*")]:
        files.remove(leftover)


def _steps(run_dir: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in run_dir.iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    damaged = CheckpointError(f"{path}: damaged: {MANIFEST} is missing or not readable")
    try:
        raw = (path / MANIFEST).read_bytes()
        data = json.loads(raw)
        version = data["format"]
        if isinstance(version, int) and version > FORMAT:
            raise _NewerFormatError(
                f"{path}: written in format {version}, this vidiff reads up to {FORMAT}; upgrade it"
            )
        listed = data["files"]
        sound = version == FORMAT and META in listed
        for name, entry in listed.items():
            sound = sound and Path(name).name == name and isinstance(entry["size"], int) and bool(entry["sha256"])
    except FileNotFoundError:
        raise damaged from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise damaged from error
    if not sound:
        raise damaged
    return dict(listed)


def _has_all_sizes(path: Path) -> bool:
    try:
        return all((path / name).stat().st_size == entry["size"] for name, entry in _manifest(path).items())
    except _NewerFormatError:
        return True
    except (OSError, CheckpointError):
        return False
