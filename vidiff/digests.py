"""SHA-256 digests of large files, remembered from run to run, for reading tens of gigabytes takes minutes."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vidiff import files
from vidiff.errors import ResourceError

_WORTH = 1 << 20  # bytes; smaller files are read as fast as they are looked up
_SETTLED = 2.0  # seconds; a file that was just written may be written again within one tick of its disk's clock
_MOST = 10_000  # files remembered


def digests_path() -> Path:
    """Return the file that holds them."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "vidiff" / "digests.json"


def remembered(path: Path, digest: Callable[[Path], str]) -> str:
    """Return the digest of a file, which is read only if its size or its times are not those of the last time.

    Args:
        path: of the file, resolved.
        digest: reads it.
    """
    before = _stamp(path)
    if before[0] < _WORTH:
        return digest(path)
    known = _read().get(str(path))
    if isinstance(known, list) and known[:-1] == before and isinstance(known[-1], str):
        return known[-1]
    found = digest(path)
    if _stamp(path) == before and time.time() - max(before[1:]) / 1e9 > _SETTLED:
        _remember(path, [*before, found])
    return found


def _stamp(path: Path) -> list[int]:
    """Return size in bytes and the times in ns at which contents and, as nobody can set, anything last changed."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read() -> dict[str, object]:
    try:
        found = json.loads(digests_path().read_bytes())
    except (OSError, ValueError, RecursionError):  # none yet, or damaged: then files are read again
        return {}
    return found if isinstance(found, dict) else {}


def _remember(path: Path, entry: list[object]) -> None:
    others = {name: one for name, one in _read().items() if name != str(path) and os.path.exists(name)}
    kept = dict(list(others.items())[1 - _MOST :]) | {str(path): entry}
    with suppress(ResourceError):  # a cache that cannot be written costs time, and nothing else
        files.write_text(digests_path(), json.dumps(kept, indent=1))
