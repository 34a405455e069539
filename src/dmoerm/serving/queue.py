"""Requests wait in one line, and one thread takes them to the model in micro-batches.

What waits at the moment the model is free makes up the next batch, up to a budget of tokens and about a second: nothing is delayed to
fill one. The line is bounded in tokens, so a wait is bounded too; who does not fit is told when to come back. A request whose client has
gone is skipped.

The thread loads the model itself, so a server can answer that it lives before it is ready. When a pass raises an error, a known text is
scored: if that works, the requests of the batch are tried one by one and only those that fail again are refused; if it does not, or the
thread ends for any other reason, the queue is dead and all that wait are told so at once.

Prompts are routed here, and routes are remembered, so that all responses to one prompt are judged by one category even if they arrive in
many requests and batches.
"""

import asyncio
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dmoerm.errors import DataError
from dmoerm.records import Message, Reward, ScoreFailure, prompt_hash
from dmoerm.serving.heap import Heap
from dmoerm.serving.metrics import Metrics
from dmoerm.serving.problems import Problem
from dmoerm.serving.settings import Limits

if TYPE_CHECKING:
    from dmoerm.modeling.inner import Aggregation
    from dmoerm.modeling.reward_model import RewardModel, ScoreRequest

__all__ = ["Results", "ScoringQueue", "estimated_tokens"]

Results = list[list[Reward | ScoreFailure]]

BYTES_A_TOKEN = 3
BATCH_SECONDS = 1.0
SMALLEST_BATCH_TOKENS = 2048
"""On a slow machine a batch holds what takes about a second, but no less than this: smaller ones would be mostly padding."""
REMEMBERED_ROUTES = 16_384
STARTING_RATE = 2_000.0
"""Tokens a second, until the first batches have shown the true rate."""

_LOG = logging.getLogger(__name__)


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return len(text.encode("utf-8")) // BYTES_A_TOKEN + 1


@dataclass(slots=True, eq=False)
class _Job:
    """One request in the line."""

    requests: "Sequence[ScoreRequest]"
    aggregation: "Aggregation"
    tokens: int
    future: "asyncio.Future[Results]"
    loop: asyncio.AbstractEventLoop
    started: bool = False
    cancelled: bool = field(default=False)


class ScoringQueue:
    """The line and its thread.

    Args:
        load: gives the model, canaries checked; called in the thread.
        limits: bounds of the line, of a batch and of the wait.
        metrics: where it counts.
        on_load_error: called in the thread when `load` raised an error, which is then `load_error`.
    """

    def __init__(
        self,
        load: "Callable[[], RewardModel]",
        limits: Limits,
        metrics: Metrics,
        on_load_error: Callable[[], None] | None = None,
    ) -> None:
        self._load = load
        self.limits = limits
        self.metrics = metrics
        self._on_load_error = on_load_error
        self._model: RewardModel | None = None
        self.load_error: BaseException | None = None
        self._dead: str | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._tokens = 0
        self._rate = STARTING_RATE
        self._routes: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._thread: threading.Thread | None = None
        metrics.gauge("dmoerm_ready", "1 when the model is loaded and its canaries have passed.", lambda: float(self.ready))
        metrics.gauge("dmoerm_queue_requests", "Requests waiting or being scored.", lambda: float(len(self._waiting) + len(self._running)))
        metrics.gauge("dmoerm_queue_tokens", "Their tokens, estimated.", lambda: float(self._tokens))

    # --- life -----------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, which loads the model."""
        self._thread = threading.Thread(target=self._live, name="dmoerm-model", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop: what still waits is refused, the running batch is waited for a moment."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    @property
    def ready(self) -> bool:
        """Whether requests are scored."""
        return self._model is not None and self.alive and not self._closing

    @property
    def alive(self) -> bool:
        """False when only a new process can help."""
        return self._dead is None

    @property
    def model(self) -> "RewardModel":
        """The model.

        Raises:
            Problem: it is not loaded yet, or no longer usable.
        """
        if self._dead is not None:
            raise Problem(503, f"the model has stopped ({self._dead}); the server has to be started again")
        if self._model is None:
            raise Problem(503, "the model is being loaded; ask /health/ready", retry_after_s=2)
        return self._model

    # --- the side of the server -----------------------------------------------------------------------------------------------------

    async def score(self, requests: "Sequence[ScoreRequest]", aggregation: "Aggregation | None" = None) -> Results:
        """Rewards of the requests, in order.

        Args:
            requests: prompts and responses of one HTTP request.
            aggregation: None is the model's own.

        Raises:
            Problem: too much for one request (413), too much in the line or too long a wait (429), no model (503).
        """
        model = self.model
        if not requests:
            return []
        whole, cut = self._tokens_of(requests, model.renderer.max_length_tokens)
        if whole > self.limits.request_tokens:
            raise Problem(
                413,
                f"the texts have about {whole} tokens; at most {self.limits.request_tokens} are taken in one request",
                field="request_tokens",
                limit=self.limits.request_tokens,
            )
        loop = asyncio.get_running_loop()
        job = _Job(requests, aggregation or model.aggregation, cut, loop.create_future(), loop)
        self._admit(job)
        try:
            async with asyncio.timeout(self.limits.wait_seconds):
                return await job.future
        except TimeoutError:
            status = 503 if job.started else 429
            self.metrics.add("dmoerm_refused_total", "waited_too_long")
            raise Problem(
                status, f"no reward within {self.limits.wait_seconds:g} seconds; come back later", retry_after_s=self._seconds_left()
            ) from None
        except asyncio.CancelledError:
            self.metrics.add("dmoerm_dropped_total")
            raise
        finally:
            job.cancelled = True  # nobody waits any more: if it has not begun, it never will
            self._forget(job)

    def _tokens_of(self, requests: "Sequence[ScoreRequest]", most: int) -> tuple[int, int]:
        """(as sent, as the model sees them at most)."""
        whole = cut = 0
        for request in requests:
            prompt = sum(estimated_tokens(message.content) for message in request.prompt)
            whole += prompt
            for response in request.responses:
                tokens = estimated_tokens(response)
                whole += tokens
                cut += min(most, prompt + tokens)
        return whole, max(cut, 1)

    def _admit(self, job: _Job) -> None:
        with self._changed:
            too_many = self._tokens and self._tokens + job.tokens > self.limits.queue_tokens
            too_slow = self._tokens / self._rate > self.limits.wait_seconds
            if too_many or too_slow:
                self.metrics.add("dmoerm_refused_total", "queue_full")
                raise Problem(
                    429,
                    f"about {self._tokens} tokens are waiting already; come back in a moment",
                    retry_after_s=self._seconds_left(),
                    field="queue_tokens",
                    limit=self.limits.queue_tokens,
                )
            if self._dead is not None or self._closing:
                raise Problem(503, "the server is stopping")
            self._waiting.append(job)
            self._tokens += job.tokens
            self._changed.notify_all()

    def _forget(self, job: _Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._tokens -= job.tokens

    def _seconds_left(self) -> float:
        return min(max(1.0, math.ceil(self._tokens / self._rate / 2)), self.limits.wait_seconds)

    # --- the side of the thread -----------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        reason = "its thread ended"
        try:
            try:
                self._model = self._load()
            except BaseException as error:
                self.load_error = error
                reason = f"it could not be loaded: {type(error).__name__}"
                return
            heap = Heap()
            while (batch := self._next_batch()) is not None:
                self._run(batch)
                heap.tidy()
            reason = "the server is stopping"
        except BaseException as error:
            reason = f"{type(error).__name__} in its thread"
            _LOG.error("the model has stopped: %s; no request can be scored any more", _where(error))
        finally:
            self._die(reason)
            if self.load_error is not None and self._on_load_error is not None:
                self._on_load_error()

    def _die(self, reason: str) -> None:
        with self._changed:
            self._dead = reason
            stranded = [*self._running, *self._waiting]
            self._waiting.clear()
            self._running = []
            self._tokens = 0
        for job in stranded:
            _answer(job, Problem(503, f"the model has stopped ({reason})", retry_after_s=5))

    def _next_batch(self) -> list[_Job] | None:
        """The next jobs within the budget of tokens; None when the server stops."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if self._closing:
                return None
            batch: list[_Job] = []
            tokens = 0
            budget = min(self.limits.batch_tokens, max(SMALLEST_BATCH_TOKENS, self._rate * BATCH_SECONDS))
            while self._waiting and (not batch or tokens + self._waiting[0].tokens <= budget):
                job = self._waiting.popleft()
                if job.cancelled:
                    self._tokens -= job.tokens
                    continue
                job.started = True
                batch.append(job)
                tokens += job.tokens
            self._running = batch
            return batch

    def _run(self, batch: list[_Job]) -> None:
        begin = time.monotonic()
        try:
            outcomes: list[Results | Problem] = list(self._score(batch)) if batch else []
        except Exception as error:
            self.metrics.add("dmoerm_model_errors_total")
            _LOG.error("a pass of the model failed: %s", _where(error))
            self._probe()
            outcomes = [self._alone(job) for job in batch]
        seconds = time.monotonic() - begin
        tokens = sum(job.tokens for job in batch)
        with self._changed:
            self._running = []
            self._tokens -= tokens
            if batch:
                self._rate += 0.2 * (tokens / max(seconds, 1e-6) - self._rate)
        for job, outcome in zip(batch, outcomes, strict=True):
            _answer(job, outcome)
        if batch:
            self.metrics.observe("dmoerm_batch_seconds", seconds)
            self.metrics.observe("dmoerm_batch_responses", sum(len(one.responses) for job in batch for one in job.requests))
        self._count(outcomes)

    def _alone(self, job: _Job) -> Results | Problem:
        try:
            return self._score([job])[0]
        except Exception as error:
            _LOG.error("a request cannot be scored: %s", _where(error))
            self._probe()
            return Problem(503, f"the model failed on this request ({type(error).__name__})")

    def _probe(self) -> None:
        """Score a known text; raises when the model is not usable any more."""
        from dmoerm.modeling.canaries import CANARIES

        prompt, response = CANARIES[0]
        self.model.score(prompt, response)

    def _score(self, batch: list[_Job]) -> list[Results]:
        model = self.model
        requests = [request for job in batch for request in job.requests]
        routes = self._route(model, requests)
        sendable = [index for index, route in enumerate(routes) if not isinstance(route, ScoreFailure)]
        routed = [replace(requests[index], category=routes[index][0]) for index in sendable]  # type: ignore[index]
        aggregations = sorted({job.aggregation for job in batch})
        scored = model.score_by_aggregation(routed, aggregations, max_tokens=self.limits.batch_tokens)
        asked = [job.aggregation for job in batch for _ in job.requests]
        found: Results = [[route] * len(request.responses) for route, request in zip(routes, requests, strict=True)]  # type: ignore[list-item]
        for place, index in enumerate(sendable):
            probability = routes[index][1]  # type: ignore[index]
            results = scored[aggregations.index(asked[index])][place]
            found[index] = [_finite(result, probability) for result in results]
        taken = iter(found)
        return [[next(taken) for _ in job.requests] for job in batch]

    def _route(self, model: "RewardModel", requests: "Sequence[ScoreRequest]") -> list[tuple[str, float] | ScoreFailure]:
        """Category and the router's probability of every request; remembered."""
        routes: list[tuple[str, float] | ScoreFailure] = []
        unknown: dict[str, tuple[Message, ...]] = {}
        for request in requests:
            if request.category is None and (key := prompt_hash(request.prompt)) not in self._routes:
                unknown[key] = request.prompt
        failures: dict[str, ScoreFailure] = {}
        try:
            self._routes.update(zip(unknown, model.route(list(unknown.values())), strict=True))
        except DataError:  # one prompt that cannot be rendered: the others are routed without it
            for key, prompt in unknown.items():
                try:
                    self._routes[key] = model.route([prompt])[0]
                except DataError as error:
                    failures[key] = ScoreFailure(str(error))
        for request in requests:
            if request.category is not None:
                known = request.category in model.inner
                routes.append((request.category if known else "general", 1.0))
                continue
            key = prompt_hash(request.prompt)
            if key in failures:
                routes.append(failures[key])
                continue
            self._routes.move_to_end(key)
            routes.append(self._routes[key])
        while len(self._routes) > REMEMBERED_ROUTES:
            self._routes.popitem(last=False)
        return routes

    def _count(self, outcomes: "Sequence[Results | Problem]") -> None:
        for outcome in outcomes:
            if isinstance(outcome, Problem):
                continue
            for result in (result for results in outcome for result in results):
                if isinstance(result, ScoreFailure):
                    self.metrics.add("dmoerm_responses_failed_total")
                    continue
                self.metrics.add("dmoerm_responses_scored_total", result.category)
                if result.truncated:
                    self.metrics.add("dmoerm_responses_cut_total")


def _finite(result: Reward | ScoreFailure, probability: float) -> Reward | ScoreFailure:
    """The reward with the router's probability; a failure where a number is none."""
    if isinstance(result, ScoreFailure):
        return result
    numbers = (result.reward, result.uncertainty, result.capability_spread, *result.capabilities.values())
    if not all(map(math.isfinite, numbers)):
        return ScoreFailure("the model's reward is not a finite number")
    return replace(result, category_probability=probability)


def _answer(job: _Job, outcome: Results | Problem) -> None:
    def deliver() -> None:
        if job.future.done():
            return
        if isinstance(outcome, Problem):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)

    if not job.loop.is_closed():
        job.loop.call_soon_threadsafe(deliver)


def _where(error: BaseException) -> str:
    """Type and place of an error, never its message: that may quote the text that was scored."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" at {trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
    return type(error).__name__ + place
