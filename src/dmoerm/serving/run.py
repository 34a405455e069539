"""The server as a process: a socket, uvicorn, the end on SIGTERM.

On SIGTERM or Ctrl-C the socket is closed, requests under way are answered for at most `drain_seconds`, then the process ends.
"""

import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from dmoerm.errors import ConfigError, missing_extra
from dmoerm.serving.heap import share_one_arena
from dmoerm.serving.settings import ServerSettings

if TYPE_CHECKING:
    from dmoerm.modeling.reward_model import RewardModel

__all__ = ["serve"]

_LOG = logging.getLogger(__name__)


def serve(load: "Callable[[], RewardModel]", settings: ServerSettings, *, port: int, insecure: bool = False) -> None:
    """Serve until told to stop.

    Args:
        load: gives the model, checked.
        settings: host, key, limits.
        port: 0 takes a free one.
        insecure: serve other machines without a key.

    Raises:
        ConfigError: other machines could call without a key, or the port cannot be had.
        DmoermError: FastAPI or uvicorn is not installed, or the model cannot be loaded.
    """
    settings.require_safe(insecure=insecure)
    try:
        import uvicorn

        from dmoerm.serving.app import build_server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("fastapi", "uvicorn", "starlette"):
            raise
        raise missing_extra(error.name.partition(".")[0], "serve") from error

    share_one_arena()
    listening = _listen(settings.host, port)
    app = build_server(load, settings, on_load_error=lambda: setattr(server, "should_exit", True))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # lines of our own need no request: /metrics counts them
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.limits.drain_seconds)),
            timeout_keep_alive=30,
            lifespan="on",
            ws="none",
        )
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    _LOG.info("serving on http://%s:%d (the page: /, numbers: /metrics); loading the model", host, listening.getsockname()[1])
    before = signal.signal(signal.SIGTERM, _done)  # uvicorn raises the signal again when it has drained: then all is well
    try:
        server.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
        listening.close()
    if app.queue.load_error is not None:
        raise app.queue.load_error
    _LOG.info("stopped")


def _done(number: int, frame: FrameType | None) -> None:
    """Nothing more to do."""


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--host {host} --port {port}: {reason}. Choose another port (--port 0 takes a free one)") from error
