"""What a server allows and refuses, and where it listens. No torch, no framework."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

from dmoerm.errors import ConfigError
from dmoerm.validation import did_you_mean

__all__ = ["Limits", "ServerSettings", "is_loopback", "with_limits"]

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request and all of them together may ask for; `/v1/info` shows them.

    Tokens are estimated, a third of the UTF-8 bytes, because counting them exactly costs as much as a small model itself. What the model
    computes in one pass is counted exactly (`batch_tokens`).

    Attributes:
        body_bytes: of one request.
        body_seconds: for it to arrive.
        request_responses: responses (or texts) of one request.
        request_tokens: of one request, before any text is cut.
        open_requests: being read, waiting or being scored.
        queue_tokens: waiting or being scored, as the model sees them (cut texts).
        batch_tokens: in one pass of the model, padding counted.
        wait_seconds: from admission to answer.
        drain_seconds: for requests under way after SIGTERM.
    """

    body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0
    request_responses: int = 256
    request_tokens: int = 262_144
    open_requests: int = 1024
    queue_tokens: int = 524_288
    batch_tokens: int = 16_384
    wait_seconds: float = 60.0
    drain_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server is set up.

    Attributes:
        name: of the model, in answers.
        host: what it binds to.
        api_key: asked of every request but /health/live; None asks for none.
        allowed_hosts: names under which browsers and clients may call it where no key is asked for, beside loopback and plain addresses.
        delimiter: what stands between prompt and response in strings without a known chat template.
        failed_reward: what the dialects answer for a response that cannot be scored; None refuses the request.
        aggregation: unless a request asks for another; None is the model's own.
        limits: see there.
    """

    name: str = "dmoerm"
    host: str = "127.0.0.1"
    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    delimiter: str | None = None
    failed_reward: float | None = None
    aggregation: str | None = None
    limits: Limits = field(default_factory=Limits)

    def require_safe(self, *, insecure: bool) -> None:
        """Refuse to serve the network without a key.

        Raises:
            ConfigError: the host is not this machine alone, there is no key, and nobody said that this is meant.
        """
        if self.api_key is None and not insecure and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} can be reached from other machines, and no API key is set. "
                "Set one (--api-key-env NAME), or say --insecure where something else keeps strangers out"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def with_limits(limits: Limits, given: Iterable[str]) -> Limits:
    """Limits changed by texts of the form NAME=NUMBER.

    Raises:
        ConfigError: no such limit, or no number above 0.
    """
    kinds = {item.name: type(getattr(limits, item.name)) for item in fields(limits)}
    for text in given:
        name, _, value = text.partition("=")
        if name not in kinds:
            raise ConfigError(f'--limit {text}: unknown limit "{name}"{did_you_mean(name, kinds)}')
        try:
            number = kinds[name](value)
        except ValueError:
            number = 0
        if not 0 < number < float("inf"):
            raise ConfigError(f"--limit {text}: expected {name}=NUMBER with a {'whole ' if kinds[name] is int else ''}number above 0")
        limits = replace(limits, **{name: number})
    return limits
