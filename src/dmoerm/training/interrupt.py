"""A polite end: the first SIGTERM or SIGINT lets the running step finish and be stored, the second stops at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["graceful_stop", "stop_wanted"]

_wanted = threading.Event()


def stop_wanted() -> bool:
    """Whether a signal has asked the phase that is running to stop."""
    return _wanted.is_set()


@contextmanager
def graceful_stop(*, active: bool = True) -> Iterator[None]:
    """Within this block a first signal only sets `stop_wanted`; it ends the block, at its end at the latest, by KeyboardInterrupt.

    Args:
        active: False changes nothing; nor does a block outside the main thread, which gets no signals.
    """
    if not active or threading.current_thread() is not threading.main_thread():
        yield
        return
    _wanted.clear()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if _wanted.is_set():
            raise KeyboardInterrupt
        _wanted.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        if _wanted.is_set():
            raise KeyboardInterrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _wanted.clear()
