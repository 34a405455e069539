"""`dmoerm serve MODEL`: rewards over HTTP, in the dialects of other tools too, and a page."""

import argparse
import os
from typing import TYPE_CHECKING

from dmoerm.cli.main import DONE
from dmoerm.cli.options import AGGREGATIONS, add_model

if TYPE_CHECKING:
    from dmoerm.modeling.reward_model import RewardModel

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm serve`."""
    add_model(parser)
    parser.add_argument("--host", metavar="H", default="127.0.0.1", help="what to bind to; anything but this machine needs a key")
    parser.add_argument("--port", metavar="N", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the API key which every request needs")
    parser.add_argument("--insecure", action="store_true", help="serve other machines without a key")
    parser.add_argument("--allow-host", metavar="NAME", action="append", default=[], help="a host name clients may use where no key is set")
    parser.add_argument("--aggregation", choices=AGGREGATIONS, help="default: the model's own")
    parser.add_argument(
        "--delimiter", metavar="TEXT", help="between prompt and response in texts without a known chat template; \\n is a line"
    )
    parser.add_argument("--failed-reward", metavar="X", type=float, help="what other tools get for an empty response; default: an error")
    parser.add_argument("--limit", metavar="NAME=NUMBER", action="append", default=[], help="change a limit of /v1/info; may be repeated")
    parser.add_argument("--name", metavar="NAME", help="of the model, in answers; default: that of its folder")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    import math
    from pathlib import Path

    from dmoerm.cli.options import open_model
    from dmoerm.errors import ConfigError
    from dmoerm.serving.heap import restart_without_block_cache
    from dmoerm.serving.run import serve
    from dmoerm.serving.settings import Limits, ServerSettings, with_limits

    if args.own_process:
        restart_without_block_cache()
    if args.failed_reward is not None and not math.isfinite(args.failed_reward):
        raise ConfigError("--failed-reward is no finite number; expected one such as -5")
    settings = ServerSettings(
        name=args.name or Path(args.model).name or "dmoerm",
        host=args.host,
        api_key=_api_key(args.api_key_env),
        allowed_hosts=tuple(args.allow_host),
        delimiter=args.delimiter.replace("\\n", "\n") if args.delimiter else None,
        failed_reward=args.failed_reward,
        aggregation=args.aggregation,
        limits=with_limits(Limits(), args.limit),
    )

    def load() -> "RewardModel":  # in the server's own thread, so that it answers /health/live meanwhile
        from dmoerm.scoring.bulk import require_aggregation

        model = open_model(args.model, args.device, args.backbone)
        if args.aggregation:
            require_aggregation(model, args.aggregation)
        return model

    serve(load, settings, port=args.port, insecure=args.insecure)
    return DONE


def _api_key(name: str | None) -> str | None:
    from dmoerm.errors import ConfigError

    if name is None:
        return None
    key = os.environ.get(name, "")
    if not key.strip() or not key.isascii() or not key.isprintable():
        raise ConfigError(f"--api-key-env {name}: the variable is not set, empty or not plain ASCII; export {name}=…")
    return key.strip()
