"""`dmoerm compare MODEL`: one prompt and some responses: who wins, how sure that is, and on which capability."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dmoerm.cli.main import DONE
from dmoerm.cli.options import AGGREGATIONS, add_model, open_model, print_json

if TYPE_CHECKING:
    from dmoerm.modeling.reward_model import ScoreRequest

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm compare`."""
    add_model(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="the user's message; without it and --file, all is read from standard input")
    parser.add_argument("--response", metavar="TEXT", action="append", default=[], help="one response; repeat it for each")
    parser.add_argument("--file", metavar="ROW.json", type=Path, help='one JSON object, such as {"prompt": …, "responses": [ … ]}')
    parser.add_argument("--aggregation", choices=AGGREGATIONS, help="default: the model's own")
    parser.add_argument("--category", metavar="NAME", help="judge by this category and skip the router")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Judge and print."""
    request = _request(args)
    from dmoerm.scoring.bulk import require_aggregation
    from dmoerm.scoring.verdict import verdict, verdict_text

    model = open_model(args.model, args.device, args.backbone)
    require_aggregation(model, args.aggregation or model.aggregation)
    rewards = model.score(request.prompt, request.responses, category=args.category, aggregation=args.aggregation)
    if args.json:
        print_json(verdict(rewards).as_dict(rewards))
    else:
        print(verdict_text(rewards, width=min(100, shutil.get_terminal_size((72, 24)).columns)))
    return DONE


def _request(args: argparse.Namespace) -> "ScoreRequest":
    from dmoerm.errors import ConfigError, DataError
    from dmoerm.modeling.reward_model import ScoreRequest, as_messages

    given = args.prompt is not None or bool(args.response)
    if args.file is not None:
        if given:
            raise ConfigError("--file brings prompt and responses; leave out --prompt and --response")
        return _from_file(args.file)
    if given and (args.prompt is None or not args.response):
        raise ConfigError("--prompt and --response belong together; give one --prompt and a --response for each response")
    prompt, responses = (args.prompt, args.response) if given else _from_stdin()
    if not responses:
        raise DataError("there is no response to judge; expected a prompt and at least one response")
    return ScoreRequest(as_messages(prompt), tuple(responses))


def _from_file(path: Path) -> "ScoreRequest":
    from dmoerm.data.jsonl import Row
    from dmoerm.data.strict_json import parse_object
    from dmoerm.errors import DataError
    from dmoerm.scoring.requests import read_request

    try:
        return read_request(Row(1, parse_object(path.read_bytes())), path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _from_stdin() -> tuple[str, list[str]]:
    """A prompt and its responses, one line each, up to an empty line or the end; what to type is said on a terminal only."""
    asking = sys.stdin.isatty()

    def line(question: str) -> str:
        if asking:
            print(question, end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip()

    prompt = line("Prompt: ")
    responses: list[str] = []
    while prompt and (text := line(f"Response {len(responses) + 1}{' (empty line: done)' if responses else ''}: ")):
        responses.append(text)
    return prompt, responses
