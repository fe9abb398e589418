"""What every command shows: results on stdout, everything else on stderr."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    console.print(f"warning: {text}", markup=False)


def note(text: str) -> None:
    """Print a line of progress on stderr."""
    console.print(text, markup=False)


def result(value: Any, text: str, as_json: bool) -> None:
    """Print the result on stdout, for people or for programs."""
    print(json.dumps(value) if as_json else text)
    sys.stdout.flush()


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that temporary files are removed; the exit code is 143."""

    def stop(signum: int, frame: object) -> None:
        raise _Terminated()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(BaseException):
    exit_code = 143
