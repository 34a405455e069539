"""The run: asks every question that has no answer yet, as fast as the endpoint allows, and ends in a state that can be gone on from.

Each worker takes one question at a time: a place is granted (`pace`), the attempt is written down, the request goes out, the raw reply is
stored, then read. What to try again and what to give up, when to hold back and when to stop is decided here, in `_Run`:

    a reply that cannot be used       the question is tried again, `max_attempts` times over all runs
    429                               room shrinks, the question waits; never counted against it
    5xx, no connection, no reply      tried again, `max_attempts` times in this run, the next one begins anew; held back further with each
                                      failure in a row; after a minute without any reply the run pauses
    a wait beyond max_retry_after_s   the run pauses at once
    wrong key, model, no credit       the run stops; what is under way is still stored
    nothing usable in 20 replies      the run stops: the judge does not do what is asked of it

Questions are made one by one, and there are as many tasks as places: beyond the keys of what was asked, memory does not grow with a run.
"""

import asyncio
import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Literal

from dmoerm.labeling.costs import MAYBE_BILLED, Costs
from dmoerm.labeling.judge import Exchange, Judge
from dmoerm.labeling.pace import Pace
from dmoerm.labeling.plan import Plan
from dmoerm.labeling.questions import AnyQuestion
from dmoerm.labeling.replies import UNUSABLE, Outcome, Reading, read_reply
from dmoerm.labeling.store import Store

__all__ = ["Limits", "Progress", "RunResult", "Tally", "label"]

Ended = Literal["done", "interrupted", "paused", "limit", "failed"]

_PATIENCE_S = 60.0
"""Seconds of failures in a row, without one reply, after which the run pauses; a third of it where nothing ever came."""
_STREAK = 5
"""Failures in a row from which the endpoint is held to be in trouble. What was sent before a failure was known fails with it."""
_HOPELESS = 20
"""Replies without a single usable one after which the run stops."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a run stops by itself: US dollars spent on the store in all its runs, requests of this run; None: nowhere."""

    max_cost: float | None = None
    max_requests: int | None = None


@dataclass(slots=True)
class Tally:
    """Order consistency by point, kept up to date answer by answer."""

    consistent: Counter[str] = field(default_factory=Counter)
    complete: Counter[str] = field(default_factory=Counter)
    _half: dict[tuple[str, str], tuple[bool, int | str]] = field(default_factory=dict)

    def add(self, question: AnyQuestion, name: str, verdict: str) -> None:
        """Take one verdict; the second of two orders completes it."""
        place, value = (question.place, name), question.value(verdict)
        other = self._half.pop(place, None)
        if other is None or other[0] == question.swapped:
            self._half[place] = (question.swapped, value)
        else:
            self.complete[name] += 1
            self.consistent[name] += other[1] == value


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        done: questions with an answer, earlier runs counted.
        total: questions of the plan.
        sent: requests of this run.
        given_up: questions that will not be tried again.
        rate: answers a second of late.
        left_s: seconds left at that rate; None where there is none.
        cost: US dollars, earlier runs counted; None without prices.
        under_way: requests under way.
        room: requests that the endpoint takes at once, as far as known.
        held_s: seconds for which the endpoint has asked to wait.
        tally: order consistency by point.
    """

    done: int
    total: int
    sent: int
    given_up: int
    rate: float
    left_s: float | None
    cost: float | None
    under_way: int
    room: int
    held_s: float
    tally: Tally


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        ended: done, interrupted (by a signal), paused (by the endpoint), limit (of the user), or failed.
        reason: why, for people; "" when done.
        progress: at the end.
        outcomes: of this run's requests.
        seconds: wall time.
        unknown_usage: attempts of all runs for which the endpoint counted no tokens: estimated in the cost.
        dropped: what the endpoint did not take of the request.
    """

    ended: Ended
    reason: str
    progress: Progress
    outcomes: Mapping[str, int]
    seconds: float
    unknown_usage: int
    dropped: frozenset[str]


async def label(
    plan: Plan,
    store: Store,
    key: str,
    limits: Limits = Limits(),
    *,
    progress: Callable[[Progress], None] = lambda now: None,
    every_s: float = 0.5,
) -> RunResult:
    """Ask what has no answer yet.

    The first SIGINT or SIGTERM lets requests under way come back and stores them; the second one stops at once.

    Args:
        plan: of `plan_labels` or `plan_categories`.
        store: opened for writing.
        key: of the endpoint.
        limits: where to stop.
        progress: called every `every_s` seconds and at the end.
        every_s: seconds.

    Raises:
        LabelError: the store cannot be written any more.
    """
    for reply in store.unread():  # of a run that was killed between storing and reading
        store.settle(reply.attempt, reply.key, read_reply(reply.body, reply.asked, reply.answers))
    judge = Judge(
        plan.settings,
        plan.template,
        key,
        store.secret(),
        timeout_s=plan.options.timeout_s,
        connections=plan.options.max_in_flight,
    )
    async with judge:
        run = _Run(plan, store, judge, limits)
        with _signals(run.interrupt):
            return await run.to_the_end(progress, every_s)


class _Run:
    """One run: its counters, its decisions, its workers."""

    def __init__(self, plan: Plan, store: Store, judge: Judge, limits: Limits) -> None:
        self.plan, self.store, self.judge, self.limits = plan, store, judge, limits
        self.pace = Pace(plan.options.max_in_flight)
        self._settings = asdict(plan.settings)
        self.cost = Costs(plan, store)
        self.tally = Tally()
        self.outcomes: Counter[str] = Counter()
        self.failed_before = {
            key: sum(outcome in UNUSABLE for outcome in outcomes) + plan.options.max_attempts * (Outcome.REJECTED in outcomes)
            for key, outcomes in store.failures().items()
        }
        self.answered, self.total = self._look_back()
        self.sent = self.given_up = self.usable = self.unusable = self.rejected = 0
        self.streak, self.streak_began, self.failed_at = 0, 0.0, float("-inf")
        self.ended: Ended = "done"
        self.reason = ""
        self.stopping = asyncio.Event()
        self.recent: list[tuple[float, int]] = []
        self._random = Random(0)
        self._questions = self._open_questions()
        self._workers: list[asyncio.Task[None]] = []
        self._signals = 0

    def _look_back(self) -> tuple[int, int]:
        """Answers there are and questions in all; the tally takes up the former."""
        stored = self.store.answers(self.plan.settings.fingerprint)
        self._done_keys = set(stored)
        answered = total = 0
        for question in self.plan.questions():
            total += 1
            self._take(question, {name: answer.verdict for name, answer in stored.get(question.key, {}).items()})
            answered += question.key in self._done_keys
        return answered, total

    def _open_questions(self) -> Iterator[AnyQuestion]:
        for question in self.plan.questions():
            key = question.key
            if key in self._done_keys:
                continue
            if self.failed_before.get(key, 0) >= self.plan.options.max_attempts:
                self.given_up += 1
                continue
            yield question

    async def to_the_end(self, progress: Callable[[Progress], None], every_s: float) -> RunResult:
        begin = time.monotonic()
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.plan.options.max_in_flight)]
        reporter = asyncio.create_task(self._report(progress, every_s))
        try:
            finished, _ = await asyncio.wait(self._workers, return_when=asyncio.FIRST_EXCEPTION)
            for worker in finished:
                if not worker.cancelled():  # by the second signal
                    worker.result()
        finally:
            for worker in self._workers:
                worker.cancel()
            reporter.cancel()
            await asyncio.gather(*self._workers, reporter, return_exceptions=True)
        now = self._progress()
        progress(now)
        return RunResult(
            self.ended, self.reason, now, dict(self.outcomes), time.monotonic() - begin, self.cost.unknown, self.judge.left_out
        )

    def interrupt(self) -> None:
        """A signal: the first lets what is under way come back, the second does not wait."""
        self._signals += 1
        self._end("interrupted", "interrupted")
        if self._signals > 1:
            for worker in self._workers:
                worker.cancel()

    def _end(self, ended: Ended, reason: str) -> None:
        if not self.stopping.is_set():
            self.ended, self.reason = ended, reason
            self.stopping.set()
            self.pace.wake()

    async def _work(self) -> None:
        for question in self._questions:
            tries = self.failed_before.get(question.key, 0)
            while not self.stopping.is_set():
                again = await self._attempt(question, tries)
                if again is None:
                    break
                tries += again
                if tries >= self.plan.options.max_attempts:
                    self.given_up += 1
                    break
                await self._sleep(min(15.0, 0.5 * 2 ** min(tries + self.streak, 5)) * self._random.uniform(0.5, 1.0))
            if self.stopping.is_set():
                return

    async def _attempt(self, question: AnyQuestion, tries: int) -> int | None:
        """Send a question once. None: it is settled, or the run ends; 0: send it again; 1: again, and count this one against it."""
        with contextlib.ExitStack() as account:  # until the real cost is known, also while the disk is busy
            async with self.pace.slot(self.stopping) as started:
                if self.stopping.is_set() or not self._allowed(question):
                    return None
                self.sent += 1
                account.enter_context(self.cost.under_way(question))
                attempt = await self.store.begin(question, self._settings)
                if self.stopping.is_set() and self.ended != "limit":  # meanwhile; nothing has been sent yet
                    self.sent -= 1
                    await self.store.withdraw(attempt)
                    return None
                began = time.monotonic()
                exchange = await self.judge.ask(question)
            await self.store.finish(attempt, exchange, time.monotonic() - began)
            if exchange.outcome == Outcome.UNREAD:
                return self._read(question, attempt, exchange)
            self.outcomes[exchange.outcome] += 1
            self.cost.add(None, question, billed=exchange.outcome in MAYBE_BILLED)
            return self._refused(exchange, started)

    def _read(self, question: AnyQuestion, attempt: int, exchange: Exchange) -> int | None:
        reading = read_reply(exchange.body, question.names, question.answers)
        self.store.settle(attempt, question.key, reading)
        self.outcomes[reading.outcome] += 1
        self.cost.add(reading.usage, question)
        if reading.outcome != Outcome.ANSWERED:
            return self._unusable(reading.outcome, reading.detail)
        self.pace.succeeded()
        self.streak = 0
        self._count(question, reading)
        return None

    def _unusable(self, outcome: Outcome, detail: str) -> int | None:
        """A reply came, and gives no verdict."""
        self.pace.succeeded()
        self.streak = 0
        self.unusable += 1
        if self.usable == 0 and self.answered == 0 and self.unusable >= _HOPELESS:
            self._end("failed", f"none of {self.unusable} replies could be used; the last one: {outcome}, {detail}")
            return None
        return 1

    def _count(self, question: AnyQuestion, reading: Reading) -> None:
        self.usable += 1
        self._take(question, reading.verdicts)

    def _take(self, question: AnyQuestion, verdicts: Mapping[str, str]) -> None:
        """Into the tally, where it counts there."""
        if self.plan.tallied(question):
            for name, verdict in verdicts.items():
                self.tally.add(question, name, verdict)

    def _refused(self, exchange: Exchange, started: float) -> int | None:
        """What an attempt without a reply means for the question and for the run."""
        outcome, options = exchange.outcome, self.plan.options
        self.pace.failed()
        if exchange.hint is not None:
            return 0
        if outcome == Outcome.FATAL:
            self._end("failed", exchange.detail)
            return None
        if exchange.wait_s is not None and exchange.wait_s > options.max_retry_after_s:
            self._end(
                "paused",
                f"the endpoint asks to wait {exchange.wait_s:,.0f} s, more than labeling.max_retry_after_s ({options.max_retry_after_s:g})",
            )
            return None
        if outcome == Outcome.REJECTED:
            self.rejected += 1
            if self.usable == 0 and self.answered == 0 and self.rejected >= 5:
                self._end("failed", f"the endpoint takes none of the questions: {exchange.detail}")
                return None
            return options.max_attempts  # the same question would be rejected again
        if outcome == Outcome.BAD_REPLY:
            return self._unusable(outcome, exchange.detail)
        if outcome == Outcome.RATE_LIMITED:
            self.pace.refused(started, exchange.wait_s)
        elif exchange.wait_s is not None:
            self.pace.hold(exchange.wait_s)
        self._trouble(exchange, started)
        return int(outcome != Outcome.RATE_LIMITED)

    def _trouble(self, exchange: Exchange, started: float) -> None:
        """One more failure of the endpoint in a row, unless it was sent before the last one was known."""
        if started <= self.failed_at:
            return
        now = self.failed_at = time.monotonic()
        self.streak += 1
        if self.streak == 1:
            self.streak_began = now
        patience_s = _PATIENCE_S if self.usable + self.answered else _PATIENCE_S / 3
        if self.streak >= _STREAK:
            self.pace.hold(min(15.0, 0.25 * 2 ** (self.streak - _STREAK)))
        asked_s = exchange.wait_s or 0.0
        if self.streak >= _STREAK and now - self.streak_began > max(patience_s, 2 * asked_s):
            self._end("paused", f"no reply for {now - self.streak_began:.0f} s; the last failure: {exchange.outcome}, {exchange.detail}")

    def _allowed(self, question: AnyQuestion) -> bool:
        """Whether the user's limits let one more request go out."""
        limits = self.limits
        if limits.max_requests is not None and self.sent >= limits.max_requests:
            self._end("limit", f"--max-requests {limits.max_requests} is reached")
        elif limits.max_cost is not None and self.cost.expected_with(question) > limits.max_cost:
            self._end("limit", f"the next request would go beyond --max-cost {limits.max_cost:g}")
        return not self.stopping.is_set()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    async def _report(self, progress: Callable[[Progress], None], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            progress(self._progress())

    def _progress(self) -> Progress:
        now = time.monotonic()
        self.recent = [*(point for point in self.recent if now - point[0] < 30.0), (now, self.usable)]
        (then, before), (_, after) = self.recent[0], self.recent[-1]
        rate = (after - before) / (now - then) if now > then else 0.0
        done = self.answered + self.usable
        left = self.total - done - self.given_up
        return Progress(
            done, self.total, self.sent, self.given_up, rate, left / rate if rate > 0 else None, self.cost.spent, self.pace.under_way,
            self.pace.room, self.pace.held_s, self.tally,
        )  # fmt: skip


@contextlib.contextmanager
def _signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """Within this block SIGINT and SIGTERM call `interrupt`; nothing changes outside the main thread, which gets no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
