"""One attempt at one question: the request goes out through the `openai` client, what comes back is kept as bytes and classed.

The client's own retries and redirects are off: it would retry an exhausted quota, follow a redirect loop for dozens of requests, and
wait for no `Retry-After` of an hour; whether and when to try again is decided in `run`. It also parses replies leniently, so its parser
is not used: the body is read as bytes up to a limit.

The key is read from the environment and appears nowhere: messages of the endpoint about it are reduced to code and type, and its text is
struck out of everything that is stored.
"""

import asyncio
import contextlib
import email.utils
import json
import math
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dmoerm.errors import ConfigError, missing_extra
from dmoerm.labeling.prompts import Template
from dmoerm.labeling.questions import AnyQuestion, fingerprint
from dmoerm.labeling.replies import Outcome, shortened
from dmoerm.recipe import LabelingOptions

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["MAX_BODY_BYTES", "Exchange", "Judge", "JudgeSettings", "api_key", "retry_after_s"]

MAX_BODY_BYTES = 4 * 2**20
"""Longest body that is read; a verdict has a few hundred bytes, a long chain of thought some hundred thousand."""

MAX_ERROR_BYTES = 2**16
"""How much of an error's body is read."""


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """All that the answers of one run depend on, besides the question itself."""

    base_url: str
    model: str
    temperature: float | None
    max_tokens: int
    response_format: str
    soft: bool
    request: str
    """Further fields of each request, as JSON."""
    template: str

    @staticmethod
    def of(options: LabelingOptions, template: Template) -> "JudgeSettings":
        """From the section of a recipe.

        Raises:
            ConfigError: it names no model or no web address, or replaces a field of the request that has a key of its own.
        """
        if not options.base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f'labeling.base_url is "{options.base_url}"; expected an address that starts with http:// or https://, for example '
                "http://127.0.0.1:8000/v1"
            )
        if options.model is None:
            raise ConfigError('labeling.model is null; name the judge, for example "--set labeling.model=NAME", as its endpoint calls it')
        taken = {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "stream", "n", "response_format", "logprobs"}
        for name in options.request:
            if name in taken:
                raise ConfigError(
                    f'labeling.request has "{name}", which dmoerm sets itself; see the other keys of labeling in docs/recipe.md'
                )
        return JudgeSettings(
            options.base_url.rstrip("/"),
            options.model,
            options.temperature,
            options.max_tokens,
            options.response_format,
            options.soft,
            json.dumps(options.request, sort_keys=True),
            template.fingerprint,
        )

    @property
    def fingerprint(self) -> str:
        """32 hex digits."""
        return fingerprint(asdict(self))


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one attempt brought.

    Attributes:
        outcome: UNREAD for a body with status 200, else why there is none.
        status: of the response; None without one.
        body: bytes of the response, the key struck out; of errors too.
        detail: for people.
        wait_s: what the endpoint asked to wait before the next request; None where it did not, or not in a form that means anything.
        request_id: of the endpoint, for its support.
        hint: a part of the request that the endpoint does not take and that can be left out.
    """

    outcome: Outcome
    status: int | None = None
    body: bytes = b""
    detail: str = ""
    wait_s: float | None = None
    request_id: str | None = None
    hint: str | None = None


def api_key(options: LabelingOptions) -> str:
    """The key, from the environment variable that the recipe names.

    Raises:
        ConfigError: the variable is not set or empty, or holds what no HTTP header can carry.
    """
    if options.api_key_env is None:
        return "none"
    key = os.environ.get(options.api_key_env)
    if key is None:
        raise ConfigError(
            f"labeling.api_key_env names {options.api_key_env}, which is not set. Set it, or write api_key_env: null for an endpoint that "
            "takes none"
        )
    if not key.strip():
        raise ConfigError(f"the environment variable {options.api_key_env} is empty; expected the key of {options.base_url}")
    key = key.strip()
    wrong = next((place for place, character in enumerate(key, start=1) if not "!" <= character <= "~"), None)
    if wrong is not None:
        raise ConfigError(
            f"the environment variable {options.api_key_env} holds a blank, a line break or a character beyond ASCII at place {wrong}; "
            "no key has one. Copy the key anew"
        )
    return key


class Judge:
    """Sends questions to one endpoint.

    Use as an async context manager: it owns the connections.
    """

    def __init__(self, settings: JudgeSettings, template: Template, key: str, secret: bytes, *, timeout_s: float, connections: int) -> None:
        self.settings = settings
        self._further = json.loads(settings.request)
        self._template = template
        self._key = key
        # As it is and as JSON may write it, where a slash may stand behind a backslash. Shorter ones are no secrets ("none").
        self._forms = {key, json.dumps(key)[1:-1], key.replace("/", "\\/")} if len(key) >= 8 else set()
        self._secret = secret
        self._timeout_s = timeout_s
        self._connections = connections
        self._client: AsyncOpenAI | None = None
        self._left_out: set[str] = set()
        """Hints that the endpoint does not take."""

    async def __aenter__(self) -> "Judge":
        """Open the client.

        Raises:
            DmoermError: the extra `label` is not installed.
        """
        try:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient
        except ImportError as error:
            raise missing_extra("openai", "label") from error
        import httpx2

        http = DefaultAsyncHttpxClient(
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=self._connections, max_keepalive_connections=self._connections),
            timeout=self._timeout_s,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [_limited_error]},
        )
        self._client = AsyncOpenAI(base_url=self.settings.base_url, api_key=self._key, max_retries=0, http_client=http)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def ask(self, question: AnyQuestion) -> Exchange:
        """One attempt. Failures of the endpoint and of the network are outcomes; only cancellation is raised."""
        import openai

        request = self._request(question)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._send(request)
        except (TimeoutError, openai.APITimeoutError):
            return Exchange(Outcome.TIMEOUT, detail=f"no complete reply within {self._timeout_s:g} s")
        except openai.APIStatusError as error:
            return self._failed(error, request)
        except openai.OpenAIError as error:
            return self._unreached(error.__cause__ or error)
        except OSError as error:
            return self._unreached(error)
        except Exception as error:  # the http library under the client raises its own kinds while a body is read
            if type(error).__module__.partition(".")[0] not in ("httpx2", "httpx", "httpcore2", "httpcore", "h11", "zlib", "anyio"):
                raise
            return self._unreached(error)

    async def _send(self, request: dict[str, Any]) -> Exchange:
        assert self._client is not None
        body = bytearray()
        async with self._client.chat.completions.with_streaming_response.create(**request) as response:
            async for chunk in response.iter_bytes(65536):
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    return Exchange(
                        Outcome.BAD_REPLY, response.status_code, self._struck(bytes(body[:4096])),
                        f"a body of more than {MAX_BODY_BYTES >> 20} MiB", request_id=self._named(response.headers),
                    )  # fmt: skip
        return Exchange(Outcome.UNREAD, response.status_code, self._struck(bytes(body)), request_id=self._named(response.headers))

    def _request(self, question: AnyQuestion) -> dict[str, Any]:
        settings = self.settings
        request: dict[str, Any] = {"model": settings.model, "messages": self._template.messages(question, self._secret)}
        if settings.temperature is not None:
            request["temperature"] = settings.temperature
        request["max_completion_tokens" if "max_tokens" in self._left_out else "max_tokens"] = settings.max_tokens
        if settings.response_format == "json_object" and "response_format" not in self._left_out:
            request["response_format"] = {"type": "json_object"}
        if settings.soft and "logprobs" not in self._left_out:
            request |= {"logprobs": True, "top_logprobs": 5}
        return request | ({"extra_body": self._further} if self._further else {})

    def _failed(self, error: Any, request: Mapping[str, Any]) -> Exchange:
        """Class a response with a status of 3xx, 4xx or 5xx."""
        status, headers = error.status_code, error.response.headers
        body = self._struck(_content(error.response))
        code, kind, message, parameter = _error_fields(body)
        named = ", ".join(filter(None, (f"status {status}", code and f"code {code}", kind and f"type {kind}")))
        wait_s = retry_after_s(headers, time.time())
        outcome, detail, hint = Outcome.SERVER_ERROR, named, None
        if 300 <= status < 400:
            outcome = Outcome.FATAL
            detail = f"{named}: the endpoint redirects; write the address that it redirects to into labeling.base_url"
        elif status in (401, 403):
            outcome, detail = Outcome.FATAL, f"{named}: the endpoint does not take the key"
        elif status == 402 or (status == 429 and ({code, kind} & {"insufficient_quota", "billing_hard_limit_reached"})):
            outcome, detail = Outcome.FATAL, f"{named}: the account has no credit left"
        elif status == 404:
            outcome = Outcome.FATAL
            detail = f"{named}: no model {self.settings.model!r} at {self.settings.base_url}, or that is not the address of an API"
        elif status == 429:
            outcome = Outcome.RATE_LIMITED
        elif status in (400, 413, 422):
            hint = self._hint(parameter, message, request)
            outcome = Outcome.REJECTED
            detail = f"{named}: {_KEY_LIKE.sub('[key]', message)}" if message else named
        elif status in (405, 410, 501):
            outcome, detail = Outcome.FATAL, f"{named}: this address answers no chat completions"
        return Exchange(outcome, status, body, shortened(detail), wait_s, self._named(headers), hint)

    def _hint(self, parameter: str | None, message: str, request: Mapping[str, Any]) -> str | None:
        """A part of that request that its refusal is about and that can be left out, or renamed in the case of max_tokens."""
        optional = {"response_format": "response_format", "logprobs": "logprobs", "top_logprobs": "logprobs", "max_tokens": "max_tokens"}
        for name, part in optional.items():
            named = parameter is None and _NOT_TAKEN.search(message) and re.search(rf"\b{name}\b", message)
            meant = parameter == name or named
            if meant and part in request:
                self._left_out.add(part)
                return part
        return None

    @property
    def left_out(self) -> frozenset[str]:
        """What the endpoint does not take, of `response_format`, `logprobs` and `max_tokens` (renamed)."""
        return frozenset(self._left_out)

    def _unreached(self, error: BaseException) -> Exchange:
        import httpx2

        outcome = Outcome.UNREACHED if isinstance(error, httpx2.ConnectError) else Outcome.CONNECTION
        return Exchange(outcome, detail=shortened(self._without_key(f"{type(error).__name__}: {error}")))

    def _named(self, headers: Mapping[str, str]) -> str | None:
        name = headers.get("x-request-id")
        return None if name is None else shortened(self._without_key(name))

    def _struck(self, body: bytes) -> bytes:
        for form in self._forms:
            body = body.replace(form.encode(), b"[key]")
        return body

    def _without_key(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, "[key]")
        return text


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a response asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date; None for anything else.

    A date in the past and zero mean "at once"; a negative number means nothing.

    Source: RFC 9110, section 10.2.3.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, date.timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


def _content(response: Any) -> bytes:
    try:
        return bytes(response.content[:MAX_ERROR_BYTES])
    except Exception as error:  # the body was not read, or cannot be decoded
        return f"({type(error).__name__})".encode()


def _error_fields(body: bytes) -> tuple[str | None, str | None, str, str | None]:
    """Code, type, message and parameter of an error in OpenAI's form, or the message of vLLM's and FastAPI's."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None, None, "", None
    error = data.get("error", data) if isinstance(data, dict) else {}
    if not isinstance(error, dict):
        return None, None, str(error), None
    fields = [error.get(name) for name in ("code", "type", "message", "param")]
    code, kind, message, parameter = (str(value) if isinstance(value, str | int) and value != "" else None for value in fields)
    return code, kind, message or str(error.get("detail") or ""), parameter


_KEY_LIKE = re.compile(r"\b(sk|pk|key|Bearer)[-_ ][\w*.-]{6,}", re.IGNORECASE)


_NOT_TAKEN = re.compile(r"support|recogni|unknown|unexpected|permitted|allowed|extra", re.IGNORECASE)
"""How endpoints that do not name the parameter say that they do not take it; "max_tokens" alone also stands in "too many tokens"."""


async def _limited_error(response: Any) -> None:
    """Let no more of an error's body come in than is kept: the client under us reads all of it, however long it is.

    What is cut off or breaks off is no failure of its own, as the status says enough. It is not unpacked: we have asked for plain bytes.
    """
    import httpx2

    if response.status_code < 300:
        return

    class Beginning(httpx2.AsyncByteStream):
        def __init__(self, whole: Any) -> None:
            self._whole = whole

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = MAX_ERROR_BYTES
            with contextlib.suppress(httpx2.TransportError):
                async for part in self._whole:
                    yield part[:left]
                    left -= len(part)
                    if left <= 0:
                        return

        async def aclose(self) -> None:
            await self._whole.aclose()

    response.headers.pop("content-encoding", None)
    response.stream = Beginning(response.stream)
