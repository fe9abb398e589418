"""Files that are whole or absent: written beside their target, fsynced, renamed into place; and the lock of a run."""

import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vidiff.errors import ResourceError

LOCK_NAME = ".lock"


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, with its suffix; rename it to ``path`` if the body succeeds.

    The body may create a file or a folder there. Either is fsynced before the rename and gets the permissions that
    the umask asks for. After a failure nothing is left behind and ``path`` is as it was.

    Raises:
        ResourceError: if the disk is full, the place is not writable, or the body created nothing.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}{path.suffix}")
    with os_errors_named(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            mode = _file_mode(temporary)
            yield temporary
            if not temporary.exists():
                raise ResourceError(f"{path}: nothing was written")
            for file in [temporary] if temporary.is_file() else sorted(temporary.rglob("*")):
                if file.is_file():
                    file.chmod(mode)
                fsync(file)
            if temporary.is_dir():
                fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            remove(temporary)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all.

    Raises:
        ResourceError: as ``atomic_path``, with the bytes needed and free when the disk is full.
    """
    with os_errors_named(Path(path), needed=len(data)), atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(data)


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` whole or not at all; raises as ``write_bytes``."""
    write_bytes(path, text.encode("utf-8"))


def append_line(path: Path | str, text: str) -> None:
    """Append ``text`` and a line feed to ``path``, on a line of its own even after a torn one.

    Raises:
        ResourceError: if the file cannot be written.
    """
    if "\n" in text:
        raise ValueError(f"a line holds no line feed, got {text!r}")
    path = Path(path)
    with os_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            torn = b""
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                torn = b"" if file.read(1) == b"\n" else b"\n"
            line = torn + text.encode("utf-8") + b"\n"
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sha256_of(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def run_lock(folder: Path | str) -> Iterator[None]:
    """Hold the only right to write into a run's folder. The lock goes with the process, also when it is killed.

    Raises:
        ResourceError: if another process holds it, with that process's id, host and start of the hold; or if the
            folder cannot be written.
    """
    import fcntl  # POSIX only, and only runs need it

    path = Path(folder) / LOCK_NAME
    with os_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                f"{folder}: in use by {_holder(descriptor)}; wait for it or use another folder"
            ) from None
        except OSError as error:
            raise resource_error(error, path) from error
        with os_errors_named(path):
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.strftime("%Y-%m-%d %H:%M:%S %z")}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def os_errors_named(path: Path, temporary: Path | None = None, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError of the body into a ResourceError that names ``path``; ``needed`` is in bytes."""
    try:
        yield
    except OSError as error:
        named = error.filename
        foreign = isinstance(named, str | os.PathLike) and temporary is not None and Path(named) != temporary
        raise resource_error(error, Path(named) if foreign else path, needed) from error
    except ResourceError as error:
        cause = error.__cause__
        if needed is None or not isinstance(cause, OSError) or cause.errno not in _FULL:
            raise
        raise resource_error(cause, path, needed) from cause


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def resource_error(error: OSError, path: Path, needed: int | None = None) -> ResourceError:
    """Say what went wrong at ``path`` and what to do; ``needed`` is in bytes."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            need = f"{size_text(needed)} needed, " if needed is not None else ""
            what = f"no space left ({need}{size_text(free_bytes(path))} free); free some or choose another folder"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            what = f"not writable ({os.strerror(error.errno)}); choose another folder or change its permissions"
        case errno.EIO:
            what = "the disk reports an input/output error; choose another disk"
        case errno.ENAMETOOLONG:
            what = "the name is too long; choose a shorter one"
        case errno.ENOTDIR | errno.EEXIST:
            what = "a file is where a folder should be; choose another place or remove it"
        case errno.EISDIR | errno.ENOTEMPTY:
            what = "a folder of this name is in the way; choose another name or remove it"
        case _:
            what = f"{error.strerror or error}; choose another place"
    return ResourceError(f"{path}: {what}")


def free_bytes(path: Path) -> int:
    """Return the bytes free on the disk of ``path``, which need not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def size_text(size: int) -> str:
    """Return ``size`` in bytes as text with a readable unit."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def fsync(path: Path) -> None:
    """Flush a file's or folder's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder, as far as it goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _file_mode(probe: Path) -> int:
    # The umask cannot be read without setting it for all threads; safetensors and mkstemp write 0600.
    with probe.open("xb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    probe.unlink()
    return mode


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['time']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
