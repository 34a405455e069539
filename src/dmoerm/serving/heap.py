"""The heap of a server does not grow beyond what it uses.

torch takes its arrays with `posix_memalign`. glibc cuts them out of larger blocks, and the slivers beside them go to a cache of small
blocks that each thread has (tcache). There they are not joined with their neighbours again and soon hold something else, so an array that
was freed leaves a hole which the next one of its size does not fit in: under load the heap grew to five times of what was in use, all of it
free between batches. Without that cache the same batches leave the heap as it is; but only the environment of a new process can say so.
So `dmoerm serve` starts itself anew in such an environment.

Where a program of its own serves, or something else piles up, `Heap.tidy` gives free pages back. They are mapped anew where they are used,
which costs time, so it acts only when the process has grown by `GROWTH_BYTES`, and for no more than a set share of the time.

Elsewhere than on Linux with glibc nothing is done. Source: malloc_trim(3), mallopt(3), malloc/malloc.c of glibc 2.36, and the tunables of
its manual.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["Heap", "environment_without_block_cache", "resident_bytes", "restart_without_block_cache", "share_one_arena"]

GROWTH_BYTES = 128 * 2**20
"""Above the least that was left after a trim, or by the first batch."""
PAUSE = 200
"""So many times of what a trim took, the thread computes before the next one: half a percent, and the pages that are then mapped anew."""

_TUNABLES = "GLIBC_TUNABLES"
_COUNT = "glibc.malloc.tcache_count"
_M_ARENA_MAX = -8
"""From glibc's malloc.h."""
_STATM = Path("/proc/self/statm")


def share_one_arena() -> None:
    """Let the model's thread take memory from the heap of the main thread.

    An arena of its own is made of pieces of 64 MiB, which batches of ever new shapes fill worse: from 0.6 to 1.9 GiB in 100 seconds of
    load (MiniLM, CPU).
    """
    if (mallopt := _of_glibc("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, 1)


def restart_without_block_cache() -> None:
    """Run this command anew, in the same process, without the cache of small blocks; returns where that is so already."""
    environment = environment_without_block_cache(os.environ)
    if _of_glibc("malloc_trim") is None or environment is None or not sys.orig_argv or not sys.executable:
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def environment_without_block_cache(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment with that setting beside the others; None where it has one for this cache already, whichever that is."""
    given = environment.get(_TUNABLES, "")
    if _COUNT in given:
        return None
    return {**environment, _TUNABLES: f"{given}:{_COUNT}=0".lstrip(":")}


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system does not say."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Heap:
    """Trims the heap of this process; called between batches by the thread that computes.

    Args:
        trim: gives free memory back; None is glibc's `malloc_trim`, or nothing where there is none.
        resident: memory of the process in bytes.
        clock: seconds that this thread has computed, so that a busy machine moves nothing.
    """

    def __init__(
        self,
        trim: Callable[[int], object] | None = None,
        resident: Callable[[], int] = resident_bytes,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._trim = trim or _of_glibc("malloc_trim")
        self._resident = resident
        self._clock = clock
        self._floor: int | None = None
        self._not_before = 0.0

    def tidy(self) -> bool:
        """Trim if the process has grown and the pause is over; returns whether it did."""
        if self._trim is None:
            return False
        resident, begin = self._resident(), self._clock()
        if self._floor is None:
            self._floor = resident
        if resident < self._floor + GROWTH_BYTES or begin < self._not_before:
            return False
        self._trim(0)
        end = self._clock()
        self._floor = self._resident()
        self._not_before = end + PAUSE * (end - begin)
        return True


def _of_glibc(name: str) -> Callable[..., object] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
