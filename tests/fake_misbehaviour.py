"""What can go wrong between a client and an OpenAI-compatible endpoint, each by name, one row of MISBEHAVIOURS each.

Most are a function from the exchange to a whole reply. The others (`wire`) take over the connection: they drip, hang, break off. A
misbehaviour that is an answer to a parameter (`when`) happens only to a request that carries it, as at a real endpoint. To add one: a
function and a row. Bodies of errors have the fields and codes of OpenAI's, wording our own.
"""

import asyncio
import functools
import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate

HUGE_BYTES = 50_000_000
REASONS = {200: "OK", 302: "Found", 307: "Temporary Redirect", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests"}
JSON = "application/json"
HTML = "<!doctype html><html><head><title>{0}</title></head><body><h1>{0}</h1><hr>a proxy in between</body></html>"


@dataclass(frozen=True)
class Reply:
    """A whole HTTP reply. The length is declared from the body unless `headers` declares one."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = JSON

    def to_bytes(self) -> bytes:
        headers = [("Content-Type", self.content_type), *self.headers]
        if not any(name.lower() == "content-length" for name, _ in headers):
            headers.append(("Content-Length", str(len(self.body))))
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Status')}", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body


@dataclass(frozen=True)
class Exchange:
    """One request as a misbehaviour sees it, and the good answer it spoils."""

    path: str
    headers: Mapping[str, str]
    body: Mapping
    good: dict  # a chat.completion of its own, free to change
    writer: asyncio.StreamWriter

    @property
    def api_key(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def content(self) -> str:
        return self.good["choices"][0]["message"]["content"]

    @property
    def criteria(self) -> list[str]:
        return list(json.loads(self.content))

    def good_reply(self) -> Reply:
        return json_reply(self.good)


@dataclass(frozen=True)
class Misbehaviour:
    """Exactly one of `reply` and `wire`; `kind` groups them: limit, refusal, parameter, server, envelope, content, logprobs, wire."""

    name: str
    kind: str
    reply: Callable[[Exchange], Reply] | None = None
    wire: Callable[[Exchange], Awaitable[None]] | None = None
    when: Callable[[Mapping], bool] = lambda body: True


def json_reply(payload: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    return Reply(status, json.dumps(payload, separators=(",", ":")).encode(), headers)


def error_reply(status: int, message: str, type_: str, code: str | None, param: str | None = None, headers=()) -> Reply:
    return json_reply({"error": {"message": message, "type": type_, "param": param, "code": code}}, status, tuple(headers))


# Errors by status.


def error(status: int, message: str, type_: str, code: str | None = None, param: str | None = None, headers=()):
    """`{key}` and `{model}` in the message are filled from the request."""

    def reply(exchange: Exchange) -> Reply:
        text = message.replace("{key}", exchange.api_key).replace("{model}", str(exchange.body.get("model")))
        return error_reply(status, text, type_, code, param, headers)

    return reply


def too_many_requests(retry_after: str | None = None, retry_after_ms: str | None = None) -> Reply:
    """429 that asks to come back later; a Retry-After of `+N` is the HTTP date N seconds from now."""
    headers = []
    if retry_after is not None:
        is_date = retry_after.startswith("+")
        headers.append(("Retry-After", formatdate(time.time() + float(retry_after[1:]), usegmt=True) if is_date else retry_after))
    if retry_after_ms is not None:
        headers.append(("retry-after-ms", retry_after_ms))
    return error_reply(429, "Rate limit reached.", "requests", "rate_limit_exceeded", headers=headers)


def rate_limited(retry_after: str | None = None, retry_after_ms: str | None = None):
    return lambda exchange: too_many_requests(retry_after, retry_after_ms)


def page(status: int, title: str):
    return lambda exchange: Reply(status, HTML.format(title).encode(), content_type="text/html; charset=utf-8")


def redirect(status: int, where: Callable[[str], str]):
    return lambda exchange: Reply(status, b"", (("Location", where(exchange.path)),))


# Spoilt 200s.


def envelope(**fields: object):
    """The good completion with fields replaced; the value `...` removes the field."""

    def reply(exchange: Exchange) -> Reply:
        return json_reply({name: value for name, value in {**exchange.good, **fields}.items() if value is not ...})

    return reply


def content(change: Callable[[Exchange], object], finish_reason: str = "stop", **message: object):
    """The good completion with the content replaced by `change(exchange)`, its log-probabilities too, and other fields of the message."""

    def reply(exchange: Exchange) -> Reply:
        choice, text = exchange.good["choices"][0], change(exchange)
        choice["logprobs"] = _logprobs_of(text, exchange.content, choice["logprobs"])
        choice["message"] |= {"content": text, **message}
        choice["finish_reason"] = finish_reason
        return exchange.good_reply()

    return reply


def _logprobs_of(text: object, good: str, given: dict | None) -> dict | None:
    """Of a spoilt text: the good tokens where it holds the good content whole, else a token a word. None: not asked for, or no text."""
    if given is None or not isinstance(text, str):
        return None
    before, found, after = text.partition(good)
    return {**given, "content": [*_words(before), *(given["content"] if found else ()), *_words(after)]}


def _words(text: str) -> list[dict]:
    words = re.findall(r"\s*\S+|\s+", text)
    return [{"token": word, "logprob": -0.01, "bytes": list(word.encode("utf-8", "surrogatepass")), "top_logprobs": []} for word in words]


def each(answer: object):
    """The JSON content with one value for every criterion."""
    return lambda exchange: json.dumps(dict.fromkeys(exchange.criteria, answer))


def other_answers(exchange: Exchange) -> str:
    """The opposite of what the judge says: a decoy."""
    return json.dumps({name: "A" if answer == "B" else "B" for name, answer in json.loads(exchange.content).items()})


def duplicate_keys(exchange: Exchange) -> str:
    """The true verdicts, then the opposite ones under the same keys: most readers keep the last."""
    return f"{exchange.content[:-1]}, {other_answers(exchange)[1:]}"


def body_bytes(change: Callable[[bytes], bytes], *headers: tuple[str, str]):
    return lambda exchange: Reply(200, change(exchange.good_reply().body), headers)


def usage_of_strings(exchange: Exchange) -> Reply:
    return envelope(usage={name: str(value) for name, value in exchange.good["usage"].items()})(exchange)


def two_choices(exchange: Exchange) -> Reply:
    """A second choice that says the opposite."""
    first = exchange.good["choices"][0]
    second = {**first, "index": 1, "message": {**first["message"], "content": other_answers(exchange)}}
    return envelope(choices=[first, second])(exchange)


@functools.cache
def _packed_blanks() -> tuple[bytes, object]:
    """The beginning of a gzip stream of 50 MB of spaces, and the compressor in the state to go on from there."""
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(b" " * HUGE_BYTES), compressor


def gzip_bomb(exchange: Exchange) -> Reply:
    """Some 50 kB that unpack to 50 MB of spaces and then the good answer."""
    start, compressor = _packed_blanks()
    compressor = compressor.copy()
    packed = start + compressor.compress(exchange.good_reply().body) + compressor.flush()
    return Reply(200, packed, (("Content-Encoding", "gzip"),))


# Spoilt log-probabilities: only for a request that asks for them.


def logprobs(change: Callable[[dict], object]):
    def reply(exchange: Exchange) -> Reply:
        choice = exchange.good["choices"][0]
        choice["logprobs"] = change(choice["logprobs"])
        return exchange.good_reply()

    return reply


def every_token(**fields: object):
    return lambda given: {**given, "content": [{**token, **fields} for token in given["content"]]}


def merged_tokens(given: dict) -> dict:
    """Verdict and opening quote are one token (` "A`), as with many vocabularies; alternatives likewise."""
    merged: list[dict] = []
    for token in given["content"]:
        if token["token"] in ("A", "B", "tie") and merged and merged[-1]["token"] == ' "':
            quote = merged.pop()["token"]
            alternatives = [_prefixed(quote, item) for item in token["top_logprobs"]]
            merged.append({**_prefixed(quote, token), "top_logprobs": alternatives})
        else:
            merged.append(token)
    return {**given, "content": merged}


def _prefixed(prefix: str, token: dict) -> dict:
    return {**token, "token": prefix + token["token"], "bytes": list((prefix + token["token"]).encode())}


# On the wire.


async def never(exchange: Exchange) -> None:
    """Answers not at all; ends when the client leaves or the server closes, which cancel it."""
    await asyncio.get_running_loop().create_future()


def drip(interval_s: float):
    """The headers at once, then one byte of the body each `interval_s`: each read is quick, the whole is not."""

    async def wire(exchange: Exchange) -> None:
        data = exchange.good_reply().to_bytes()
        start = data.index(b"\r\n\r\n") + 4
        exchange.writer.write(data[:start])
        for byte in data[start:]:
            exchange.writer.write(bytes([byte]))
            await exchange.writer.drain()
            await asyncio.sleep(interval_s)

    return wire


async def huge(exchange: Exchange) -> None:
    """50 MB of spaces, chunked, and then the good answer: valid JSON for whoever reads that far."""
    writer, blanks = exchange.writer, b" " * 100_000
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    for part in [*[blanks] * (HUGE_BYTES // len(blanks)), exchange.good_reply().body, b""]:
        writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        await writer.drain()


def partly(keep: Callable[[Exchange], bytes], *, then_hang: bool = False):
    """Some bytes, then the connection is closed in order, or stays open and silent."""

    async def wire(exchange: Exchange) -> None:
        exchange.writer.write(keep(exchange))
        await exchange.writer.drain()
        if then_hang:
            await never(exchange)
        exchange.writer.close()

    return wire


def declares(length: Callable[[int], int]) -> Callable[[Exchange], bytes]:
    """The good reply under a Content-Length that is not its own."""

    def data(exchange: Exchange) -> bytes:
        body = exchange.good_reply().body
        return Reply(200, body, (("Content-Length", str(length(len(body)))),)).to_bytes()

    return data


async def reset(exchange: Exchange) -> None:
    """TCP reset before the first byte: closing with a linger of 0 s drops the connection without a farewell."""
    exchange.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.writer.transport.abort()


def has(parameter: str) -> Callable[[Mapping], bool]:
    return lambda body: body.get(parameter) not in (None, False)


def unsupported(parameter: str, hint: str = "", code: str = "unsupported_parameter"):
    return error(400, f"'{parameter}' is not supported with this model. {hint}".strip(), "invalid_request_error", code, parameter)


UNAVAILABLE = ("The server is overloaded.", "server_error", "overloaded")
SERVER_ERROR = {"message": "Something broke here.", "type": "server_error", "param": None, "code": 500}

_ROWS = (
    Misbehaviour("rate_limited", "limit", rate_limited()),
    Misbehaviour("rate_limited_1s", "limit", rate_limited("1")),
    Misbehaviour("rate_limited_float", "limit", rate_limited("0.05")),
    Misbehaviour("rate_limited_date", "limit", rate_limited("+2")),
    Misbehaviour("rate_limited_past_date", "limit", rate_limited("+-60")),
    Misbehaviour("rate_limited_hour", "limit", rate_limited("3600")),
    Misbehaviour("rate_limited_hour_date", "limit", rate_limited("+3600")),
    Misbehaviour("rate_limited_zero", "limit", rate_limited("0")),
    Misbehaviour("rate_limited_negative", "limit", rate_limited("-5")),
    Misbehaviour("rate_limited_garbage", "limit", rate_limited("soon")),
    Misbehaviour("rate_limited_nan", "limit", rate_limited("nan")),
    Misbehaviour("rate_limited_endless", "limit", rate_limited("inf")),
    Misbehaviour("rate_limited_ms", "limit", rate_limited(retry_after_ms="50")),
    Misbehaviour("rate_limited_ms_and_s", "limit", rate_limited("3600", retry_after_ms="50")),
    Misbehaviour("rate_limited_html", "limit", page(429, "Too many requests")),
    Misbehaviour("insufficient_quota", "refusal", error(429, "The quota is used up.", "insufficient_quota", "insufficient_quota")),
    Misbehaviour("payment_required", "refusal", error(402, "Insufficient balance.", "insufficient_balance", "payment_required")),
    Misbehaviour("wrong_key", "refusal", error(401, "Incorrect API key: {key}.", "invalid_request_error", "invalid_api_key")),
    Misbehaviour("forbidden", "refusal", error(403, "Key {key} has no access to {model}.", "permission_error", "forbidden")),
    Misbehaviour("unknown_model", "refusal", error(404, "No model named {model}.", "invalid_request_error", "model_not_found")),
    Misbehaviour(
        "context_too_long", "parameter", error(400, "Too many tokens.", "invalid_request_error", "context_length_exceeded", "messages")
    ),
    Misbehaviour(
        "context_too_long_flat",  # older vLLM and others: no "error" around it, the status as the code
        "parameter",
        lambda exchange: json_reply({"object": "error", "message": "Too many tokens.", "type": "BadRequestError", "code": 400}, 400),
    ),
    Misbehaviour("response_format_unsupported", "parameter", unsupported("response_format"), when=has("response_format")),
    Misbehaviour(
        "max_tokens_unsupported",
        "parameter",
        unsupported("max_tokens", "Use 'max_completion_tokens' instead."),
        when=has("max_tokens"),
    ),
    Misbehaviour("logprobs_unsupported", "parameter", unsupported("logprobs"), when=has("logprobs")),
    Misbehaviour(
        "temperature_unsupported",
        "parameter",
        unsupported("temperature", "Only the default, 1, is.", code="unsupported_value"),
        when=lambda body: body.get("temperature") not in (None, 1),
    ),
    Misbehaviour(
        "validation_detail",  # the shape of FastAPI
        "parameter",
        lambda exchange: json_reply({"detail": [{"loc": ["body", "messages"], "msg": "invalid", "type": "value_error"}]}, 422),
    ),
    Misbehaviour("timeout_408", "server", error(408, "Took too long.", "timeout", "timeout")),
    Misbehaviour("server_error", "server", error(500, "Something broke.", "server_error")),
    Misbehaviour("bad_gateway_html", "server", page(502, "Bad gateway")),
    Misbehaviour("unavailable", "server", error(503, *UNAVAILABLE, headers=(("Retry-After", "1"),))),
    Misbehaviour("gateway_timeout_empty", "server", lambda exchange: Reply(504, b"", content_type="text/plain")),
    Misbehaviour("overloaded_529", "server", error(529, *UNAVAILABLE)),
    Misbehaviour("redirect_loop", "server", redirect(307, lambda path: path)),
    Misbehaviour("redirect_elsewhere", "server", redirect(302, lambda path: path.replace("/chat/completions", "/elsewhere"))),
    Misbehaviour("choices_null", "envelope", envelope(choices=None)),
    Misbehaviour("choices_empty", "envelope", envelope(choices=[])),
    Misbehaviour("choices_missing", "envelope", envelope(choices=...)),
    Misbehaviour("message_null", "envelope", lambda exchange: envelope(choices=[{"index": 0, "message": None}])(exchange)),
    Misbehaviour("two_choices", "envelope", two_choices),
    Misbehaviour("error_in_200", "envelope", lambda exchange: json_reply({"error": SERVER_ERROR})),
    Misbehaviour("html_in_200", "envelope", page(200, "Please log in")),
    Misbehaviour("json_list", "envelope", lambda exchange: json_reply([exchange.good])),
    Misbehaviour("json_null", "envelope", lambda exchange: json_reply(None)),
    Misbehaviour("empty_body", "envelope", lambda exchange: Reply(200, b"")),
    Misbehaviour("cut_json", "envelope", body_bytes(lambda body: body[: len(body) // 2])),
    Misbehaviour("invalid_utf8", "envelope", body_bytes(lambda body: body.replace(b'"content":"', b'"content":"\xff\xfe', 1))),
    Misbehaviour("nan_in_json", "envelope", body_bytes(lambda body: body.replace(b'"created":', b'"score":NaN,"created":', 1))),
    Misbehaviour("not_gzip", "envelope", body_bytes(lambda body: body, ("Content-Encoding", "gzip"))),
    Misbehaviour("gzip_bomb", "envelope", gzip_bomb),
    Misbehaviour("other_model", "envelope", envelope(model="another-model-2024-08-06")),
    Misbehaviour("usage_missing", "envelope", envelope(usage=...)),
    Misbehaviour("usage_null", "envelope", envelope(usage=None)),
    Misbehaviour("usage_strings", "envelope", usage_of_strings),
    Misbehaviour("usage_negative", "envelope", envelope(usage={"prompt_tokens": -1, "completion_tokens": -1, "total_tokens": -2})),
    Misbehaviour("content_null", "content", content(lambda exchange: None)),
    Misbehaviour("content_empty", "content", content(lambda exchange: "")),
    Misbehaviour("content_blank", "content", content(lambda exchange: " \n\n\t ")),
    Misbehaviour("content_number", "content", content(lambda exchange: 1)),
    Misbehaviour("content_parts", "content", content(lambda exchange: [{"type": "text", "text": exchange.content}])),
    Misbehaviour("content_in_reasoning", "content", lambda exchange: content(lambda _: "", reasoning_content=exchange.content)(exchange)),
    Misbehaviour("truncated", "content", content(lambda exchange: exchange.content[: len(exchange.content) // 2], "length")),
    Misbehaviour("truncated_in_thought", "content", content(lambda exchange: f"<think>Is it {other_answers(exchange)}", "length")),
    Misbehaviour("refused", "content", content(lambda exchange: None, refusal="I cannot help with that.")),
    Misbehaviour("refused_in_prose", "content", content(lambda exchange: "I'm sorry, but I can't compare these responses.")),
    Misbehaviour("content_filter", "content", content(lambda exchange: "", "content_filter")),
    Misbehaviour(
        "tool_call",
        "content",
        content(
            lambda exchange: None, "tool_calls", tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]
        ),
    ),
    Misbehaviour("prose", "content", content(lambda exchange: "Response A is better.")),
    Misbehaviour("bare_letter", "content", content(lambda exchange: "A")),
    Misbehaviour("both_verdicts", "content", content(each("A or B"))),
    Misbehaviour("both_verdicts_prose", "content", content(lambda exchange: "A is the clearer one, but overall I prefer B.")),
    Misbehaviour("two_objects", "content", content(lambda exchange: f"{exchange.content}\n\nOn reflection:\n{other_answers(exchange)}")),
    Misbehaviour("wrong_key_names", "content", content(lambda exchange: json.dumps({"verdict": "A", "reason": "clearer"}))),
    Misbehaviour("missing_key", "content", content(lambda exchange: json.dumps(dict(list(json.loads(exchange.content).items())[1:])))),
    Misbehaviour("extra_key", "content", content(lambda exchange: f'{exchange.content[:-1]}, "charm": "A"}}')),
    Misbehaviour("duplicate_keys", "content", content(duplicate_keys)),
    Misbehaviour("lower_case", "content", content(lambda exchange: exchange.content.replace('"A"', '"a"').replace('"B"', '"b"'))),
    Misbehaviour("values_null", "content", content(each(None))),
    Misbehaviour("values_nan", "content", content(each(float("nan")))),
    Misbehaviour("values_nested", "content", content(each({"verdict": "A"}))),
    Misbehaviour("values_list", "content", content(each(["A"]))),
    Misbehaviour("values_padded", "content", content(lambda exchange: exchange.content.replace('"A"', '" A "').replace('"B"', '" B "'))),
    Misbehaviour("values_named", "content", content(each("Response A"))),
    Misbehaviour("object_in_list", "content", content(lambda exchange: f"[{exchange.content}]")),
    Misbehaviour("single_quotes", "content", content(lambda exchange: exchange.content.replace('"', "'"))),
    Misbehaviour("fenced", "content", content(lambda exchange: f"```json\n{exchange.content}\n```")),
    Misbehaviour(
        "thought_first", "content", content(lambda exchange: f"<think>\nAt first {other_answers(exchange)}.\n</think>\n{exchange.content}")
    ),
    Misbehaviour("wrapped_in_prose", "content", content(lambda exchange: f"My verdict: {exchange.content} I hope this helps!")),
    Misbehaviour("deep_nesting", "content", content(lambda exchange: '{"a":' * 20_000)),
    Misbehaviour("surrogate", "content", content(lambda exchange: f"{exchange.content} \ud800")),
    Misbehaviour("null_character", "content", content(lambda exchange: f"{exchange.content}\0")),
    Misbehaviour("logprobs_missing", "logprobs", logprobs(lambda given: None), when=has("logprobs")),
    Misbehaviour("logprobs_content_null", "logprobs", logprobs(lambda given: {"content": None, "refusal": None}), when=has("logprobs")),
    Misbehaviour("logprobs_no_alternatives", "logprobs", logprobs(every_token(top_logprobs=[])), when=has("logprobs")),
    Misbehaviour("logprobs_bytes_null", "logprobs", logprobs(every_token(bytes=None)), when=has("logprobs")),
    Misbehaviour("logprobs_merged", "logprobs", logprobs(merged_tokens), when=has("logprobs")),
    Misbehaviour("logprobs_floor", "logprobs", logprobs(every_token(logprob=-9999.0)), when=has("logprobs")),  # OpenAI's "very unlikely"
    Misbehaviour("logprobs_positive", "logprobs", logprobs(every_token(logprob=0.5)), when=has("logprobs")),
    Misbehaviour("logprobs_of_other_text", "logprobs", logprobs(every_token(token="x", bytes=[120])), when=has("logprobs")),
    Misbehaviour("huge_body", "wire", wire=huge),
    Misbehaviour("slow_drip", "wire", wire=drip(1.0)),
    Misbehaviour("never_answers", "wire", wire=never),
    Misbehaviour("reset", "wire", wire=reset),
    Misbehaviour("closed_before_reply", "wire", wire=partly(lambda exchange: b"")),
    Misbehaviour("closed_mid_headers", "wire", wire=partly(lambda exchange: b"HTTP/1.1 200 OK\r\nContent-Ty")),
    Misbehaviour("closed_mid_body", "wire", wire=partly(declares(lambda length: length + 100))),
    Misbehaviour("vast_length_declared", "wire", wire=partly(declares(lambda length: 100_000_000), then_hang=True)),
    Misbehaviour("not_http", "wire", wire=partly(lambda exchange: b"SSH-2.0-OpenSSH_9.6\r\n")),
)
MISBEHAVIOURS: dict[str, Misbehaviour] = {row.name: row for row in _ROWS}
