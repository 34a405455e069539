"""How many requests may be under way: as many as the endpoint takes, found by listening to its refusals.

Additive increase, multiplicative decrease: every success makes a little more room, a refusal (429) takes three tenths away, once for all
refusals of requests that were sent before the room shrank (one episode). A wait that the endpoint asks for holds all new requests, not
only the refused one. It starts with a few requests, so that a wrong key or an unknown model costs a few calls and not hundreds, and
opens fully at the first reply that counts.

Source: Chiu & Jain (1989) for why this settles at a fair share.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

__all__ = ["Pace"]

_FIRST = 4
_SHRINK, _GROW = 0.7, 0.1


class Pace:
    """Grants slots to requests; for one event loop."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.under_way = 0
        self._room = float(min(_FIRST, most))
        self._opened = False
        self._shrunk_at = float("-inf")
        self._not_before = 0.0
        self._clock = clock
        self._changed = asyncio.Event()

    @property
    def room(self) -> int:
        """Requests that may be under way now."""
        return max(1, int(self._room))

    @property
    def held_s(self) -> float:
        """Seconds for which new requests are held because the endpoint asked for it."""
        return max(0.0, self._not_before - self._clock())

    @asynccontextmanager
    async def slot(self, stopping: asyncio.Event) -> AsyncIterator[float]:
        """Wait for room, then hold a place; gives the time at which the request starts. Once `stopping` is set, nobody waits."""
        while not stopping.is_set():
            held_s = self.held_s  # read once: were it over by the second look, this would wait for a change that nobody makes
            if held_s <= 0 and self.under_way < self.room:
                break
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), held_s if held_s > 0 else None)
        self.under_way += 1
        try:
            yield self._clock()
        finally:
            self.under_way -= 1
            self._changed.set()

    def succeeded(self) -> None:
        """A reply came that was no refusal."""
        if not self._opened:
            self._opened, self._room = True, float(self.most)
        self._room = min(float(self.most), self._room + _GROW)
        self._changed.set()

    def refused(self, started: float, wait_s: float | None) -> None:
        """The endpoint said that it is too much.

        Args:
            started: when the refused request was sent, as `slot` gave it.
            wait_s: what the endpoint asked to wait, or None.
        """
        if started > self._shrunk_at:
            self._room = max(1.0, self._room * _SHRINK)
            self._shrunk_at = self._clock()
            self._opened = True  # what it takes is known now: no jump to the limit any more
        if wait_s is not None:
            self.hold(wait_s)

    def hold(self, seconds: float) -> None:
        """Let no new request start for so long."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def wake(self) -> None:
        """Let waiting requests look again, for example because the run stops."""
        self._changed.set()
