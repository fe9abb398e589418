"""Ctrl-C and SIGTERM as a request to stop at the next safe place."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest(BaseException):
    """Raised where work stopped because of a signal, after everything was saved."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Stopping:
    """Remembers the first signal; the second one ends the process at once."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = signum


@contextmanager
def deferred_signals() -> Iterator[Stopping]:
    """Hold SIGINT and SIGTERM back while inside; the caller looks at ``signum`` where it can stop."""
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield stopping
        return
    before = {signum: signal.signal(signum, stopping) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
