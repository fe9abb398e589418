"""TorchScript archives: networks that came as code, opened only where the sha256 of that code is written down."""

import hashlib
import io
import os
import sys
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import torch

from vidiff.errors import CheckpointError, ConfigError, ResourceError
from vidiff.files import atomic_path, os_errors_named, size_text

_MOST = 2**32  # bytes of a download
_PIECE = 2**20
_TIMEOUT = 30.0  # seconds without an answer


def open_archive(
    kind: str, source: str, sha256: str, wanted: str, arguments: frozenset[str], device: torch.device | str = "cpu"
) -> Any:
    """Return the network of a TorchScript archive.

    Args:
        kind: what it is to the user, such as "i3d".
        source: its path, or a URL, from which it is fetched once.
        sha256: of the file.
        wanted: the file that is published, for messages.
        arguments: what its forward must take.
        device: where it goes.

    Raises:
        ConfigError: if the file is not there, or its sha256 is not the one that is named.
        CheckpointError: if it cannot be read, is no archive, or takes other arguments.
        ResourceError: if it cannot be fetched.
    """
    path = fetched(kind, source, sha256)
    if not path.is_file():
        raise ConfigError(f"{kind}: no file {source!r}; get {wanted} and name it: --weights {kind}=FILE@SHA256")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        raise ConfigError(
            f"{kind}: {path} is a TorchScript archive, so code that would run here, and has sha256 {found}, not "
            f"{sha256!r}; if you trust where it came from, allow it: --weights {kind}={source}@{found}"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        try:
            # From the bytes that were hashed: the file may be another by now.
            network = torch.jit.load(io.BytesIO(data), map_location=device)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: not a TorchScript archive ({str(error).splitlines()[0]})") from error
    missing = arguments - {argument.name for argument in network.forward.schema.arguments}
    if missing:
        raise CheckpointError(f"{path}: its forward does not take {', '.join(sorted(missing))}; get {wanted} instead")
    return network.eval()


def fetched(kind: str, source: str, sha256: str) -> Path:
    """Return the path of a file that is named by its path, or by a URL and the sha256 of what lies there.

    Raises:
        ConfigError: if a URL comes without a sha256, or with that of something else.
        ResourceError: if it cannot be fetched.
    """
    if not source.startswith(("https://", "http://")):
        return Path(source)
    if len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef"):
        raise ConfigError(f"{kind}: a URL takes the sha256 of what lies there: --weights {kind}={source}@SHA256")
    path = _cache() / sha256.lower()
    if not path.is_file():
        print(f"{kind}: fetching {source}", file=sys.stderr)
        with os_errors_named(path), atomic_path(path) as temporary:
            _fetch(kind, source, sha256.lower(), temporary)
    return path


def _fetch(kind: str, url: str, sha256: str, target: Path) -> None:
    hashed, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, target.open("wb") as file:
            while piece := answer.read(_PIECE):
                size += len(piece)
                if size > _MOST:
                    raise ResourceError(f"{url}: more than {size_text(_MOST)}: not what was wanted")
                hashed.update(piece)
                file.write(piece)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ResourceError(
            f"{url}: cannot be fetched ({error}); get it by other means and give its path: --weights {kind}=PATH@SHA256"
        ) from error
    if hashed.hexdigest() != sha256:
        raise ConfigError(f"{kind}: what lies at {url} has sha256 {hashed.hexdigest()}, not {sha256}; it was not kept")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidiff" / "weights"
