"""A hostile OpenAI-compatible server on loopback, against which the labelling is tested and timed.

In process:

    with FakeOpenAI(ScriptedJudge(noise=0.1), latency_s=0.05) as server:
        server.script("rate_limited_1s", times=3)
        client = AsyncOpenAI(base_url=server.base_url, api_key="sk-test", max_retries=0)
        ...
    assert server.count == 3 + server.distinct

As a process of its own, for tests that kill the client, and for benchmarks (see `--help`; `fake_openai_process` starts and stops it):

    python tests/fake_openai.py --latency-s 0.5 --max-in-flight 100 --noise 0.2 --log requests.jsonl

It prints its base URL on the first line and appends one line to the log for each request, before it answers. HTTP/1.1 with keep-alive by
asyncio alone. No streaming, no TLS. A client that closes its side of the connection, even only for sending, has left.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fake_judge import ScriptedJudge, asked_criteria, completion, draw, request_key
from fake_misbehaviour import MISBEHAVIOURS, Exchange, Misbehaviour, Reply, error_reply, json_reply, too_many_requests

HEADER_LIMIT_BYTES = 65_536
GOOD = "good"
BUSY = "busy"


@dataclass(frozen=True)
class HttpRequest:
    method: str
    path: str  # without the query
    headers: dict[str, str]  # lower-case names
    raw_body: bytes
    keep_alive: bool


@dataclass
class Request:
    """A request to chat/completions: what came and what was done with it. All but the last two fields are set before it is listed."""

    number: int  # from 0, in order of arrival
    key: str  # the same for the same question
    body: dict | None  # None: not a JSON object
    headers: dict[str, str]
    arrived: float  # seconds since 1970
    in_flight: int  # requests being answered when it came, itself included
    attempt: int  # from 1, of this key
    asked: tuple[str, ...] = ()
    given: str = ""  # "good", "busy", "invalid" or the name of a misbehaviour
    answers: dict[str, str] = field(default_factory=dict)  # the judge's verdicts, if they were asked for
    client_left: bool = False  # before it had the whole reply; also where the server stopped first


@dataclass
class Rule:
    """Where a scripted misbehaviour strikes; None is no restriction."""

    misbehaviour: Misbehaviour
    times: int | None
    when: Callable[[Mapping], bool] | None
    chance: float
    seed: int
    first_attempts: int | None

    def strikes(self, request: Request) -> bool:
        """Counts down `times` when it does."""
        spent = self.times == 0 or (self.first_attempts is not None and request.attempt > self.first_attempts)
        if spent or not self.misbehaviour.when(request.body) or (self.when is not None and not self.when(request.body)):
            return False
        if self.chance < 1 and draw(self.seed, self.misbehaviour.name, request.key, request.attempt) >= self.chance:
            return False
        if self.times is not None:
            self.times -= 1
        return True


class FakeOpenAI:
    """The server. Start it with `with`; what it counted stays readable afterwards.

    Args:
        judge: gives the verdicts; anything with `verdicts(body, key)`.
        latency_s: wait before each whole reply with status 200. Errors come at once.
        jitter_s: up to this much more, by request.
        max_in_flight: a request above this many at once gets 429 at once.
        max_per_s: likewise one above this many a second, at least 1; after a quiet second so many may come at once.
        busy_retry_after: the Retry-After of that 429; None sends none.
        models: the models it knows; None knows any.
        key: names the question of a body; the same name is the same question. Give one where a body holds something random.
        log: file to which each request is appended as a line of JSON before it is answered; attempts count on from what is there.
    """

    def __init__(
        self,
        judge=None,
        *,
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
        max_in_flight: int | None = None,
        max_per_s: float | None = None,
        busy_retry_after: str | None = None,
        models: tuple[str, ...] | None = None,
        prefix: str = "/v1",
        port: int = 0,
        log: str | Path | None = None,
        key: Callable[[Mapping | None], str] = request_key,
    ):
        self.judge = judge or ScriptedJudge()
        self.latency_s, self.jitter_s = latency_s, jitter_s
        self.max_in_flight, self.busy_retry_after = max_in_flight, busy_retry_after
        self.max_per_s, self._allowance, self._allowance_at = max_per_s, 0.0, 0.0
        self.models, self._key = models, key
        self.prefix, self.port = prefix, port
        self._lock = threading.Condition()
        self._requests: list[Request] = []
        self._others: list[HttpRequest] = []
        self._rules: list[Rule] = []
        self._in_flight = 0
        self._log_path = Path(log) if log else None
        self._attempts = Counter(line["key"] for line in read_log(self._log_path)) if self._log_path else Counter()
        self._log = None
        self._connections: set[_Connection] = set()
        self.failures: list[BaseException] = []  # errors in the judge, a rule or the server itself: raised at the end of the block

    # What it counted.

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    @property
    def requests(self) -> list[Request]:
        """All requests to chat/completions so far, in order of arrival."""
        with self._lock:
            return list(self._requests)

    @property
    def other_requests(self) -> list[HttpRequest]:
        """Those to any other path."""
        with self._lock:
            return list(self._others)

    @property
    def count(self) -> int:
        return len(self.requests)

    @property
    def distinct(self) -> int:
        """How many different questions came."""
        return len({request.key for request in self.requests})

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def peak_in_flight(self) -> int:
        """The most requests at once, those answered 429 for being too many included; 0 before the first."""
        return max((request.in_flight for request in self.requests), default=0)

    @property
    def given(self) -> Counter:
        """How often each outcome was given: "good", "busy", "invalid" and names of misbehaviours."""
        return Counter(request.given for request in self.requests)

    @property
    def headers_seen(self) -> dict[str, set[str]]:
        """Each header's values over all requests, by lower-case name."""
        seen: dict[str, set[str]] = {}
        for request in self.requests:
            for name, value in request.headers.items():
                seen.setdefault(name, set()).add(value)
        return seen

    def wait_for(self, count: int, timeout_s: float = 10.0) -> None:
        """Returns once `count` requests have come."""
        with self._lock:
            if not self._lock.wait_for(lambda: len(self._requests) >= count, timeout_s):
                raise TimeoutError(f"{len(self._requests)} of {count} requests came within {timeout_s} s")

    # What it is told to do.

    def script(
        self,
        misbehaviour: str | Misbehaviour,
        *,
        times: int | None = None,
        when: Callable[[Mapping], bool] | None = None,
        chance: float = 1.0,
        seed: int = 0,
        first_attempts: int | None = None,
    ) -> None:
        """Adds a rule; for each request the first rule that strikes decides, in the order they were added.

        Args:
            misbehaviour: a name of MISBEHAVIOURS, or one of your own.
            times: strike this often, then never again.
            when: only requests whose body satisfies this.
            chance: strike with this probability, drawn from seed, question and attempt: a repeated question is drawn anew.
            seed: of that draw.
            first_attempts: only the first so many attempts at each question.
        """
        if isinstance(misbehaviour, str):
            misbehaviour = MISBEHAVIOURS[misbehaviour]
        with self._lock:
            self._rules.append(Rule(misbehaviour, times, when, chance, seed, first_attempts))

    def behave(self) -> None:
        """Forgets all rules."""
        with self._lock:
            self._rules.clear()

    # Start and stop.

    def __enter__(self) -> "FakeOpenAI":
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="fake-openai", daemon=True)
        self._thread.start()
        ready.wait()
        if self.failures:
            self._thread.join()
            raise self.failures[0]
        return self

    def __exit__(self, exc_type: type | None, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        if self.failures and exc_type is None:
            raise self.failures[0]

    def _run(self, ready: threading.Event) -> None:
        try:
            self._loop.run_until_complete(self.serve(self._stopping, ready.set))
        except BaseException as error:  # handed to the thread of the block
            self.failures.append(error)
        finally:
            self._loop.close()
            ready.set()

    async def serve(self, stopping: asyncio.Event, announce: Callable[[], None]) -> None:
        """Serves until `stopping` is set; then drops every connection and returns."""
        with open(self._log_path, "ab", buffering=0) if self._log_path else contextlib.nullcontext() as self._log:
            loop = asyncio.get_running_loop()
            listener = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, backlog=2048)
            self.port = listener.sockets[0].getsockname()[1]
            announce()
            await stopping.wait()
            # No more is accepted, but what just was turns up yet, made by tasks of asyncio that bear neither being cancelled nor a closed
            # listener: they end by themselves.
            loop.remove_reader(listener.sockets[0].fileno())
            while self._connections or len(asyncio.all_tasks()) > 1:
                for connection in self._connections:
                    connection.drop()
                await asyncio.sleep(0)
            listener.close()

    # Answering.

    async def answer(self, http: HttpRequest, connection: "_Connection") -> None:
        """Answers one request; cancelled when the client leaves."""
        if http.path != f"{self.prefix}/chat/completions" or http.method != "POST":
            await connection.send(self._elsewhere(http))
            return
        request = self._arrive(http)
        try:
            try:
                reply = await self._prepare(request, http, connection)
            finally:
                self._in_flight -= 1  # before the reply: the client's next request must not find this one still counted
            if reply is not None:
                await connection.send(reply)
        except (asyncio.CancelledError, ConnectionError):
            request.client_left = True
            raise

    async def _prepare(self, request: Request, http: HttpRequest, connection: "_Connection") -> Reply | None:
        """The reply when it is due; None where a misbehaviour has had the connection to itself."""
        misbehaviour, reply = self._decide(request)
        self._record(request)
        if reply is None:
            exchange = self._exchange(request, http, connection)
            if misbehaviour is not None and misbehaviour.wire is not None:
                await misbehaviour.wire(exchange)
                return None
            reply = misbehaviour.reply(exchange) if misbehaviour else exchange.good_reply()
        if reply.status == 200 and self.latency_s + self.jitter_s:
            await asyncio.sleep(self.latency_s + self.jitter_s * draw("latency", request.key, request.attempt))
        return reply

    def _arrive(self, http: HttpRequest) -> Request:
        try:
            body = json.loads(http.raw_body)
        except ValueError:
            body = None
        body = body if isinstance(body, dict) else None
        key = self._key(body)
        self._in_flight += 1
        self._attempts[key] += 1
        return Request(len(self._requests), key, body, http.headers, time.time(), self._in_flight, self._attempts[key])

    def _decide(self, request: Request) -> tuple[Misbehaviour | None, Reply | None]:
        """The misbehaviour that strikes, or else the reply that refuses the request, or else neither: a good answer is due."""
        if (complaint := _invalid(request.body, self.models)) is not None:
            request.given = "invalid"
            return None, complaint
        request.asked = asked_criteria(request.body)
        if (self.max_in_flight is not None and self._in_flight > self.max_in_flight) or not self._within_rate(request.arrived):
            request.given = BUSY
            return None, too_many_requests(self.busy_retry_after)
        with self._lock:
            misbehaviour = next((rule.misbehaviour for rule in self._rules if rule.strikes(request)), None)
        request.given = misbehaviour.name if misbehaviour else GOOD
        return misbehaviour, None

    def _within_rate(self, now: float) -> bool:
        """Whether one more may be answered: a bucket that holds one second's worth and fills at `max_per_s`."""
        if self.max_per_s is None:
            return True
        self._allowance = min(self.max_per_s, self._allowance + (now - self._allowance_at) * self.max_per_s)
        self._allowance_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _record(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)
            self._lock.notify_all()
        if self._log is not None:
            names = ("number", "key", "asked", "arrived", "attempt", "in_flight", "given")
            self._log.write(json.dumps({name: getattr(request, name) for name in names}).encode() + b"\n")

    def _exchange(self, request: Request, http: HttpRequest, connection: "_Connection") -> Exchange:
        verdicts = self.judge.verdicts(request.body, request.key)
        request.answers = {criterion: verdict.answer for criterion, verdict in verdicts.items()}
        return Exchange(http.path, http.headers, request.body, completion(request.body, verdicts, request.number), connection.writer)

    def _elsewhere(self, http: HttpRequest) -> Reply:
        with self._lock:
            self._others.append(http)
        if http.method == "GET" and http.path == f"{self.prefix}/models":
            rows = [
                {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "tests"} for name in self.models or ("fake-judge",)
            ]
            return json_reply({"object": "list", "data": rows})
        return error_reply(404, f"Nothing at {http.method} {http.path}.", "invalid_request_error", "unknown_url")


def _invalid(body: dict | None, models: tuple[str, ...] | None) -> Reply | None:
    """The complaint about a request no endpoint would take, or None."""

    def complaint(message: str, param: str | None, status: int = 400, code: str | None = None) -> Reply:
        return error_reply(status, message, "invalid_request_error", code, param)

    if body is None:
        return complaint("The body is not a JSON object.", None)
    if not isinstance(body.get("model"), str):
        return complaint("A model is needed.", "model")
    if models is not None and body["model"] not in models:
        return complaint(f"No model named {body['model']}.", "model", 404, "model_not_found")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) and "role" in item for item in messages):
        return complaint("A list of messages with roles is needed.", "messages")
    if body.get("stream"):
        return complaint("This server does not stream.", "stream", code="unsupported_value")
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        return complaint("top_logprobs needs logprobs.", "top_logprobs")
    if not 0 <= (body.get("top_logprobs") or 0) <= 20:
        return complaint("top_logprobs is between 0 and 20.", "top_logprobs", code="integer_above_max_value")
    return None


class _Connection(asyncio.StreamReaderProtocol):
    """One client connection: reads requests one after the other, and notices at once when the client leaves."""

    def __init__(self, server: FakeOpenAI):
        self._fake = server
        self._serving: asyncio.Task | None = None
        self._answering = False
        super().__init__(asyncio.StreamReader(limit=HEADER_LIMIT_BYTES), self._serve)

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._fake._connections.add(self)
        super().connection_made(transport)

    def eof_received(self) -> bool | None:
        self._leave()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._fake._connections.discard(self)
        super().connection_lost(exc)

    def _leave(self) -> None:
        if self._answering:
            self._serving.cancel()

    def drop(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
        self.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving, self.writer = asyncio.current_task(), writer
        try:
            while (http := await read_request(reader, writer)) is not None:
                self._answering = True
                await self._fake.answer(http, self)
                self._answering = False
                if not http.keep_alive or writer.is_closing():
                    break
        except (asyncio.CancelledError, ConnectionError):
            pass  # the client left, or the server stops
        except Exception as error:
            self._fake.failures.append(error)
        finally:
            self._answering = False
            writer.close()

    async def send(self, reply: Reply) -> None:
        self.writer.write(reply.to_bytes())
        await self.writer.drain()


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> HttpRequest | None:
    """The next request of a connection; None where it ends, or where what comes is not a request."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        request_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, version = request_line.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = await _read_chunks(reader)
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        return None
    keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return HttpRequest(method, target.partition("?")[0], headers, body, keep_alive)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readuntil(b"\r\n")
    while (await reader.readuntil(b"\r\n")) != b"\r\n":
        pass  # trailers
    return b"".join(parts)


def read_log(path: Path) -> list[dict]:
    """The requests a server process has logged so far; a line being written is not one yet."""
    complete = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in complete]


@dataclass(frozen=True)
class ServerProcess:
    base_url: str
    pid: int
    log: Path

    @property
    def requests(self) -> list[dict]:
        """The lines of the log: number, key, asked, arrived, attempt, in_flight, given."""
        return read_log(self.log)

    def wait_for(self, count: int, timeout_s: float = 20.0) -> None:
        """Returns once `count` requests have come."""
        deadline = time.monotonic() + timeout_s
        while (came := self.log.read_bytes().count(b"\n")) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{came} of {count} requests came within {timeout_s} s")
            time.sleep(0.01)


@contextlib.contextmanager
def fake_openai_process(log: Path, *arguments: str) -> Iterator[ServerProcess]:
    """The server as a process of its own, with the arguments of its command line; ends with the block, or with the process that called."""
    command = [sys.executable, str(Path(__file__).resolve()), "--log", str(log), "--with-parent", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            base_url = process.stdout.readline().strip()
            if not base_url:
                raise RuntimeError(f"{' '.join(command)} did not start")
            yield ServerProcess(base_url, process.pid, log)
        finally:
            process.terminate()


async def _serve_process(options: argparse.Namespace) -> None:
    judge = ScriptedJudge(options.position_bias, options.noise, options.halo, options.tie_below, options.seed)
    server = FakeOpenAI(
        judge,
        latency_s=options.latency_s,
        jitter_s=options.jitter_s,
        max_in_flight=options.max_in_flight,
        max_per_s=options.max_per_s,
        busy_retry_after=options.busy_retry_after,
        port=options.port,
        log=options.log,
    )
    for name, chance in options.misbehave:
        server.script(name, chance=chance, seed=options.seed)
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    def announce() -> None:
        sys.stdout.write(server.base_url + "\n")
        sys.stdout.flush()

    def stop_without(parent: int) -> None:
        if os.getppid() != parent:
            stopping.set()
        else:
            loop.call_later(0.5, stop_without, parent)

    if options.with_parent:
        stop_without(os.getppid())
    await server.serve(stopping, announce)


def _misbehaviour_and_chance(text: str) -> tuple[str, float]:
    name, _, chance = text.partition("=")
    if name not in MISBEHAVIOURS:
        raise argparse.ArgumentTypeError(f"no misbehaviour named {name}; there are {' '.join(MISBEHAVIOURS)}")
    return name, float(chance or 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="A scriptable OpenAI-compatible server on 127.0.0.1. Prints its base URL first.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--jitter-s", type=float, default=0.0)
    parser.add_argument("--max-in-flight", type=int, help="more at once get 429")
    parser.add_argument("--max-per-s", type=float, help="more a second get 429")
    parser.add_argument("--busy-retry-after", help="Retry-After of that 429")
    parser.add_argument("--position-bias", type=float, default=0.0, help="probability of A unseen")
    parser.add_argument("--noise", type=float, default=0.0, help="probability of the wrong answer")
    parser.add_argument("--halo", type=float, default=0.0, help="probability that overall quality decides a criterion")
    parser.add_argument("--tie-below", type=float, default=0.0, help="markers closer than this are a tie")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", help="append a line of JSON for each request")
    parser.add_argument(
        "--misbehave", type=_misbehaviour_and_chance, action="append", default=[], metavar="NAME[=CHANCE]", help="repeatable"
    )
    parser.add_argument("--with-parent", action="store_true", help="stop when the process that started this one is gone")
    asyncio.run(_serve_process(parser.parse_args()))


if __name__ == "__main__":
    main()
