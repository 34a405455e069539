"""How many requests may be under way: as many as the endpoint takes, found by listening to its refusals.

Additive increase, multiplicative decrease: every success makes a little more room, a refusal (429) takes three tenths away, once for all
refusals of requests that were sent before the room shrank (one episode). A wait that the endpoint asks for holds all new requests, not
only the refused one. It starts with a few requests and opens over a third of a second: an endpoint refuses a wrong key or an unknown
model sooner than a model can write an answer, so such a mistake costs the calls of that moment and not hundreds. The first failure stops
the opening, the first reply that counts completes it.

Source: Chiu & Jain (1989) for why this settles at a fair share.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

__all__ = ["Pace"]

_FIRST = 4
_OPENING_S = 0.3
_LOOK_AGAIN_S = 0.02
_SHRINK, _GROW = 0.7, 0.1


class Pace:
    """Grants slots to requests; for one event loop."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.under_way = 0
        self._room = float(min(_FIRST, most))
        self._opened = self._opening_over = False
        self._opening_since: float | None = None
        self._shrunk_at = float("-inf")
        self._not_before = 0.0
        self._clock = clock
        self._changed = asyncio.Event()

    @property
    def room(self) -> int:
        """Requests that may be under way now."""
        return max(1, int(self._room_at(self._clock())))

    def _room_at(self, now: float) -> float:
        if self._opening_since is None:
            return self._room
        share = min(1.0, (now - self._opening_since) / _OPENING_S)
        return self._room + (self.most - self._room) * share

    @property
    def held_s(self) -> float:
        """Seconds for which new requests are held because the endpoint asked for it."""
        return max(0.0, self._not_before - self._clock())

    @asynccontextmanager
    async def slot(self, stopping: asyncio.Event) -> AsyncIterator[float]:
        """Wait for room, then hold a place; gives the time at which the request starts. Once `stopping` is set, nobody waits."""
        while not stopping.is_set():
            now = self._clock()  # read once: were a hold over by a second look, this would wait for a change that nobody makes
            held_s = self._not_before - now
            if held_s <= 0 and self.under_way < int(self._room_at(now)):
                if self._opening_since is None and not self._opening_over:
                    self._opening_since = now
                break
            self._changed.clear()
            opening_s = _LOOK_AGAIN_S if self._opening_since is not None else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), held_s if held_s > 0 else opening_s)
        self.under_way += 1
        try:
            yield self._clock()
        finally:
            self.under_way -= 1
            self._changed.set()

    def succeeded(self) -> None:
        """A reply came that was no refusal."""
        if not self._opened:
            self._stop_opening()
            self._opened, self._room = True, float(self.most)
        self._room = min(float(self.most), self._room + _GROW)
        self._changed.set()

    def refused(self, started: float, wait_s: float | None) -> None:
        """The endpoint said that it is too much.

        Args:
            started: when the refused request was sent, as `slot` gave it.
            wait_s: what the endpoint asked to wait, or None.
        """
        self._stop_opening()
        if started > self._shrunk_at:
            self._room = max(1.0, self._room * _SHRINK)
            self._shrunk_at = self._clock()
            self._opened = True  # what it takes is known now: no jump to the limit any more
        if wait_s is not None:
            self.hold(wait_s)

    def failed(self) -> None:
        """An attempt brought no reply: before the first one there is, it gets no wider."""
        self._stop_opening()

    def _stop_opening(self) -> None:
        self._room, self._opening_since, self._opening_over = self._room_at(self._clock()), None, True

    def hold(self, seconds: float) -> None:
        """Let no new request start for so long."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def wake(self) -> None:
        """Let waiting requests look again, for example because the run stops."""
        self._changed.set()
