"""Free memory goes back to the system when a server has grown, and not more often than a set share of the time."""

import ctypes
import subprocess
import sys

import pytest

from dmoerm.serving.heap import GROWTH_BYTES, PAUSE, Heap, environment_without_block_cache

MIB = 2**20


class Machine:
    """A process whose size is set by the test; a trim takes half a second and leaves 300 MiB."""

    def __init__(self):
        self.now, self.resident, self.trims = 0.0, 0, 0

    def trim(self, pad):
        assert pad == 0
        self.now += 0.5
        self.resident = 300 * MIB
        self.trims += 1

    def heap(self):
        return Heap(self.trim, lambda: self.resident, lambda: self.now)


def test_a_process_that_has_not_grown_is_left_alone():
    machine = Machine()
    heap = machine.heap()
    for resident in (500 * MIB, 400 * MIB, 500 * MIB + GROWTH_BYTES - 1):
        machine.resident = resident
        assert not heap.tidy()
    assert machine.trims == 0


def test_growth_is_given_back_and_counted_from_what_was_left():
    machine = Machine()
    heap = machine.heap()
    machine.resident = 500 * MIB
    heap.tidy()
    machine.resident += GROWTH_BYTES
    assert heap.tidy()
    machine.now += 1000.0
    machine.resident = 300 * MIB + GROWTH_BYTES - 1
    assert not heap.tidy()
    machine.resident += 1
    assert heap.tidy()


def test_a_trim_is_followed_by_a_pause_of_two_hundred_times_its_own():
    machine = Machine()
    heap = machine.heap()
    heap.tidy()
    machine.resident = 1000 * MIB
    assert heap.tidy()
    machine.resident = 1000 * MIB
    machine.now += PAUSE * 0.5 - 0.01
    assert PAUSE == 200
    assert not heap.tidy()
    machine.now += 0.02
    assert heap.tidy()
    assert machine.trims == 2


def test_the_environment_keeps_what_else_it_says_and_a_choice_of_the_operator():
    found = environment_without_block_cache({"A": "b"})
    assert found == {"A": "b", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    assert environment_without_block_cache(found) is None
    assert environment_without_block_cache({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}) is None
    other = environment_without_block_cache({"GLIBC_TUNABLES": "glibc.malloc.perturb=1"})
    assert other == {"GLIBC_TUNABLES": "glibc.malloc.perturb=1:glibc.malloc.tcache_count=0"}


HOLES = """
import ctypes
from dmoerm.serving.heap import GROWTH_BYTES, Heap, resident_bytes

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
heap = Heap()
heap.tidy()
size = 100_000  # below the size from which glibc maps a block by itself
pairs = [(libc.malloc(size), libc.malloc(2000)) for _ in range(2 * GROWTH_BYTES // size)]
for block, _ in pairs:
    ctypes.memset(block, 1, size)
for block, _ in pairs:
    libc.free(block)
before = resident_bytes()
assert heap.tidy(), "not trimmed"
assert before - resident_bytes() > GROWTH_BYTES, (before, resident_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's heap")
def test_holes_between_blocks_in_use_are_given_back():
    subprocess.run([sys.executable, "-c", HOLES], check=True)  # in a heap of its own: what other tests left free would be filled first
