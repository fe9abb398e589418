"""Large files of a hub repository, fetched so that a broken fetch goes on where it stopped.

They go into the hub's own cache under their final name, so that its library finds them there. By itself it begins a
file anew after the process has ended, and one file of a large model is 10 GB.
"""

import os
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from vidiff.errors import CheckpointError
from vidiff.files import fsync, os_errors_named, run_lock, sha256_of

OnBytes = Callable[[str, int, int], None]  # a file's path, its bytes that are here, all of them

_PIECE = 1 << 20
_TIMEOUT = 60  # seconds without an answer


def fetch(source: str, revision: str, path: str, digest: str, size: int, on_bytes: OnBytes) -> None:
    """Fetch one file, or what is missing of it, into the hub's cache.

    Args:
        source: OWNER/NAME.
        revision: commit, 40 hexadecimal digits.
        path: of the file in the repository.
        digest: its sha256.
        size: its bytes.
        on_bytes: hears how much is here.

    Raises:
        CheckpointError: if the connection fails, after which what came stays, or something else came than promised.
        ResourceError: if it cannot be written.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(source, path, revision=revision, endpoint=constants.ENDPOINT)
    found = get_hf_file_metadata(url)
    if found.etag != digest:  # not a large file's: no name that the library would look for
        return
    part = _part(source, digest)
    blob = part.with_suffix("")
    with run_lock(part.parent.parent), os_errors_named(part, needed=size):
        part.parent.mkdir(exist_ok=True)
        if blob.exists():
            return
        _complete(part, found.location, url, size, lambda done: on_bytes(path, done, size))
        if (came := sha256_of(part)) != digest:
            part.unlink()
            raise CheckpointError(
                f"{source}: {path} came damaged (sha256 {came[:12]}..., not {digest[:12]}...); fetch it again"
            )
        os.replace(part, blob)


def fetched_bytes(source: str, digest: str) -> int:
    """Return how much of a file that is not complete is here."""
    part = _part(source, digest)
    return part.stat().st_size if part.is_file() else 0


def _part(source: str, digest: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return (
        Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model") / "blobs" / f"{digest}.part"
    )


def _complete(part: Path, location: str, url: str, size: int, on_size: Callable[[int], None]) -> None:
    """Bring ``part`` to ``size`` bytes."""
    have = part.stat().st_size if part.is_file() else 0
    if have < size:
        with _opened(location, url, have) as answer, part.open("ab") as file:
            if not _goes_on(answer, have):
                have = 0
                file.truncate(0)
            on_size(have)
            while piece := _read(answer):
                file.write(piece)
                have += len(piece)
                on_size(have)
    fsync(part)
    if have < size:
        raise _broken(url, f"the connection ended after {have} of {size} bytes")


def _opened(location: str, url: str, begin: int) -> HTTPResponse:
    from huggingface_hub.utils import build_hf_headers

    if urlsplit(location).scheme not in ("https", urlsplit(url).scheme):
        raise CheckpointError(f"{location.split('?')[0]}: not fetched, since it is no https address")
    request = urllib.request.Request(location, headers={"Range": f"bytes={begin}-"} if begin else {})
    if urlsplit(location).netloc == urlsplit(url).netloc:  # other hosts are given signed addresses, and nobody's token
        for name, value in build_hf_headers().items():
            request.add_unredirected_header(name, value)
    try:
        opened: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except (OSError, HTTPException) as error:
        raise _broken(url, str(error)) from error
    return opened


def _broken(url: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{url}: cannot be fetched ({reason}); what is here stays, and pull goes on")


def _goes_on(answer: HTTPResponse, begin: int) -> bool:
    """Return whether an answer begins at the byte that was asked for, and not with the first."""
    return begin > 0 and (answer.headers.get("Content-Range") or "").startswith(f"bytes {begin}-")


def _read(answer: HTTPResponse) -> bytes:
    """Return the next piece, and none after the connection was lost: what came counts, and the size tells."""
    try:
        return answer.read(_PIECE)
    except (OSError, HTTPException):
        return b""
