"""Arguments that several verbs share, and what they stand for. No verb of its own."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmoerm.evaluation.run import ModelReport
    from dmoerm.modeling.reward_model import RewardModel
    from dmoerm.recipe import Recipe

__all__ = [
    "AGGREGATIONS",
    "add_model",
    "add_recipe",
    "add_run",
    "check_device",
    "line_writer",
    "open_model",
    "print_json",
    "print_measured",
    "progress_line",
    "quiet_libraries",
    "read_recipe",
    "read_run",
    "terminal_colours",
]

_SECONDS_BETWEEN_LINES = 30.0
"""Between two progress lines where stderr is no terminal."""

AGGREGATIONS = ("mlp", "mean", "wco", "uwo", "task")
"""Those of `dmoerm.modeling.inner`, repeated because help must not load torch; a test compares them."""


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE and --set."""
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="the YAML file")
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="replace one value of the recipe; may be repeated"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Where the model of a recipe is, and where to run."""
    parser.add_argument("--output", metavar="DIR", type=Path, help="the folder of the model, from here; default: as the recipe says")
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps; default: as the recipe says")


def read_run(args: argparse.Namespace) -> "Recipe":
    """The recipe with --set, --output and --device; the data files must be there."""
    recipe = read_recipe(args.recipe, args.set)
    if args.output is not None:
        recipe = recipe.model_copy(update={"output": args.output.absolute()})
    if args.device is not None:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"device": args.device})})
    return recipe


def print_measured(recipe: "Recipe", report: "ModelReport | None") -> None:
    """The table of a run that has ended, and where its model is; nothing in all processes but the first."""
    from dmoerm.training.pipeline import is_first_process, run_folder

    if not is_first_process():
        return
    if report is None:
        print("Nothing with a preference is held out, so nothing was measured.")
    else:
        print(report.as_table())
        print(f"\nFigures: {run_folder(recipe.output) / 'evaluation.json'}")
    print(f"Model: {recipe.output}")


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, --device and --backbone."""
    parser.add_argument("model", metavar="MODEL", help="a folder that dmoerm train wrote, or a Hub id")
    parser.add_argument("--backbone", metavar="NAME", help="where its backbone lies now, when not where it lay in training")
    parser.add_argument("--device", metavar="D", default="auto", help="auto, cpu, cuda, cuda:1 or mps")


def read_recipe(path: Path, overrides: list[str]) -> "Recipe":
    """The recipe with its overrides; the data files must be there."""
    from dmoerm.recipe import load_recipe

    return load_recipe(path, overrides)


def open_model(name: str, device: str, backbone: str | None = None) -> "RewardModel":
    """Load a saved model.

    Raises:
        ConfigError: torch knows no such device.
        ArtifactError: there is no such model, or it is damaged.
    """
    from dmoerm.modeling.reward_model import RewardModel

    quiet_libraries()
    check_device(device)
    return RewardModel.from_pretrained(name, device=device, backbone=backbone)


def check_device(device: str) -> None:
    """Refuse a device before anything is loaded.

    Raises:
        ConfigError: torch knows no such device, or not here.
    """
    import torch

    from dmoerm.errors import ConfigError

    if device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {device}: not usable here ({str(error).splitlines()[0]}); expected auto, cpu, cuda, cuda:1 or mps"
        ) from error


def quiet_libraries() -> None:
    """Keep the progress bars of libraries off stderr: our own lines say what is going on."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def print_json(value: Any) -> None:
    """One JSON document to stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))


def terminal_colours() -> bool:
    """Whether stdout is a terminal that takes colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def line_writer(*, quiet: bool) -> Callable[[Callable[[], str], bool], None]:
    """Writes (text, finished) to stderr: one changing line on a terminal, which ends empty; now and then a line elsewhere."""
    shown = time.monotonic()
    live = sys.stderr.isatty()

    def write(text: Callable[[], str], finished: bool) -> None:
        nonlocal shown
        if quiet or (not live and time.monotonic() - shown < _SECONDS_BETWEEN_LINES):
            return
        shown = time.monotonic()
        sys.stderr.write(("\r\x1b[K" + ("" if finished else text())) if live else text() + "\n")
        sys.stderr.flush()

    return write


def progress_line(what: str, *, quiet: bool, unit: str = "rows") -> Callable[[int, int | None], None]:
    """A callback (done, all or None) for stderr: rate in units and time left, as `line_writer` shows them."""
    from dmoerm.training.progress import clock

    begin = time.monotonic()
    write = line_writer(quiet=quiet)
    first: int | None = None

    def report(done: int, total: int | None) -> None:
        nonlocal first
        first = done if first is None else first  # a resumed run begins late
        rate = (done - first) / max(time.monotonic() - begin, 1e-9)
        left = f", {clock((total - done) / rate)} left" if total is not None and rate > 0 else ""
        line = f"{what} {done:,}{'' if total is None else f' of {total:,}'}, {rate:,.0f} {unit}/s{left}"
        write(lambda: line, total is not None and done >= total)

    return report
