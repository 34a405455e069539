"""How many requests may be under way, worked out by hand with a clock of our own."""

import asyncio

import pytest

from dmoerm.labeling.pace import Pace


class Clock:
    """Seconds that pass when told to; `then` is added after the next look."""

    def __init__(self):
        self.now, self.then = 100.0, 0.0

    def __call__(self):
        now = self.now
        self.now, self.then = self.now + self.then, 0.0
        return now


def test_it_starts_with_four_and_opens_fully_at_the_first_reply():
    pace = Pace(32, clock=Clock())
    assert pace.room == 4
    pace.succeeded()
    assert pace.room == 32
    assert Pace(2).room == 2


def started(pace):
    """Let one request start and end."""

    async def act():
        async with pace.slot(asyncio.Event()):
            pass

    asyncio.run(act())


def test_from_the_first_request_on_it_opens_over_a_third_of_a_second():
    clock = Clock()
    pace = Pace(34, clock=clock)
    clock.now = 200.0
    assert pace.room == 4  # nothing was sent yet
    started(pace)
    assert pace.room == 4
    clock.now = 200.115
    assert pace.room == 15  # 4 + 30 * 0.115 / 0.3 = 15.5
    clock.now = 200.31
    assert pace.room == 34


@pytest.mark.faults("F08")
def test_a_failure_stops_the_opening_until_a_reply_comes():
    clock = Clock()
    pace = Pace(34, clock=clock)
    started(pace)
    clock.now = 100.115
    pace.failed()
    clock.now = 103.0
    started(pace)
    clock.now = 106.0
    assert pace.room == 15
    pace.succeeded()
    assert pace.room == 34


@pytest.mark.faults("F07")
def test_a_refusal_stops_the_opening_for_good_and_takes_three_tenths_of_what_it_was():
    clock = Clock()
    pace = Pace(34, clock=clock)
    started(pace)
    clock.now = 100.115
    pace.refused(started=100.0, wait_s=None)
    assert pace.room == 10  # 15.5 * 0.7
    clock.now = 103.0
    pace.succeeded()
    assert pace.room == 10


def test_who_waits_is_let_in_as_it_opens():
    async def act():
        pace, stopping = Pace(40), asyncio.Event()
        arrived = 0

        async def one():
            nonlocal arrived
            async with pace.slot(stopping):
                arrived += 1
                await asyncio.sleep(10)

        waiting = [asyncio.create_task(one()) for _ in range(40)]
        await asyncio.sleep(0)
        first = arrived
        while arrived < 40:
            await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
        return first

    assert asyncio.run(asyncio.wait_for(act(), 5)) == 4


@pytest.mark.faults("F07")
def test_refusals_of_one_episode_shrink_the_room_once():
    clock = Clock()
    pace = Pace(32, clock=clock)
    pace.succeeded()
    clock.now = 101.0
    for _ in range(9):
        pace.refused(started=100.5, wait_s=None)
    assert pace.room == 22  # 32 * 0.7 = 22.4
    pace.refused(started=101.0, wait_s=None)  # sent when the room shrank: the same episode
    assert pace.room == 22
    clock.now = 103.0
    pace.refused(started=102.0, wait_s=None)
    assert pace.room == 15  # 15.68
    for _ in range(4):
        pace.succeeded()
    assert pace.room == 16  # 15.68 + 4 * 0.1


@pytest.mark.faults("F07")
def test_after_a_refusal_the_first_reply_does_not_open_it_fully():
    pace = Pace(32, clock=Clock())
    pace.refused(started=100.0, wait_s=None)
    pace.succeeded()
    assert pace.room == 2  # 4 * 0.7 + 0.1 = 2.9


def test_there_is_always_room_for_one_and_never_for_more_than_the_limit():
    clock = Clock()
    pace = Pace(3, clock=clock)
    for _ in range(20):
        clock.now += 1
        pace.refused(started=clock.now, wait_s=None)
    assert pace.room == 1
    for _ in range(100):
        pace.succeeded()
    assert pace.room == 3


@pytest.mark.faults("F07")
def test_a_wait_holds_all_new_requests_and_the_longest_counts():
    clock = Clock()
    pace = Pace(8, clock=clock)
    pace.refused(started=100.0, wait_s=5.0)
    pace.refused(started=100.0, wait_s=2.0)
    assert pace.held_s == 5.0
    clock.now = 104.0
    assert pace.held_s == 1.0
    clock.now = 106.0
    assert pace.held_s == 0.0


def test_no_more_than_the_room_are_under_way_and_everyone_gets_a_turn():
    async def act():
        pace, stopping, peak, done = Pace(3), asyncio.Event(), 0, 0

        async def one():
            nonlocal peak, done
            async with pace.slot(stopping):
                peak = max(peak, pace.under_way)
                await asyncio.sleep(0)
                done += 1

        await asyncio.wait_for(asyncio.gather(*(one() for _ in range(50))), 5)
        return peak, done, pace.under_way

    assert asyncio.run(act()) == (3, 50, 0)


@pytest.mark.faults("F07")
def test_a_hold_that_ends_between_two_looks_at_the_clock_does_not_wait_for_ever():
    async def act():
        clock = Clock()
        pace = Pace(8, clock=clock)
        pace.hold(0.001)
        clock.then = 1.0  # the first look finds it held, the next one does not
        async with pace.slot(asyncio.Event()):
            return pace.under_way

    assert asyncio.run(asyncio.wait_for(act(), 5)) == 1


def test_nobody_waits_once_the_run_stops():
    async def act():
        pace, stopping = Pace(1), asyncio.Event()
        pace.hold(3600)

        async def one():
            async with pace.slot(stopping):
                pass

        waiting = [asyncio.create_task(one()) for _ in range(5)]
        await asyncio.sleep(0)
        stopping.set()
        pace.wake()
        await asyncio.wait_for(asyncio.gather(*waiting), 5)

    asyncio.run(act())


def test_a_waiter_that_is_cancelled_leaves_no_place_taken():
    async def act():
        pace = Pace(1)
        async with pace.slot(asyncio.Event()):
            waiting = asyncio.create_task(pace.slot(asyncio.Event()).__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        return pace.under_way

    assert asyncio.run(act()) == 0
