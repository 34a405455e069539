"""`dmoerm baselines RECIPE`: the double-layer model beside all that it has to beat and all that it is made of, on one budget."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dmoerm.cli.main import DONE
from dmoerm.cli.options import add_recipe, check_device, print_json, quiet_libraries, read_run

if TYPE_CHECKING:
    from dmoerm.data.sources import RunData
    from dmoerm.evaluation.contest import ContestPlan
    from dmoerm.labeling.judged import JudgedPair
    from dmoerm.recipe import Recipe

__all__ = ["CONTENDERS", "add_arguments", "run"]

CONTENDERS = ("double-layer", "without-outer", "without-inner", "single", "single-judged", "ensemble", "multi-head")
"""Those of `dmoerm.training.contenders`, repeated because help must not load torch; a test compares them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm baselines`."""
    add_recipe(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, help="where pieces and figures go; default: the recipe's output, -baselines")
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps; default: as the recipe says")
    parser.add_argument(
        "--models", choices=CONTENDERS, nargs="+", metavar="NAME", help=f"{', '.join(CONTENDERS)}; default: all that the data can train"
    )
    parser.add_argument("--members", metavar="M", type=int, default=5, help="of the ensemble (default 5)")
    parser.add_argument(
        "--model", metavar="NAME=PATH", action="append", default=[], dest="others",
        help="one more row: a folder that dmoerm train wrote, or a sequence-classification reward model; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", default=[0], help="of the trainings (default 0); the split stays")
    parser.add_argument(
        "--flip", metavar="SHARE", type=float, nargs="+", default=[], help="also train with this share of the preferences flipped: 0.1 0.25"
    )
    parser.add_argument("--flip-seeds", metavar="N", type=int, nargs="+", help="seeds that are also trained with flips; default: all")
    parser.add_argument("--judgements", metavar="FILE", type=Path, nargs="+", default=[], help="verdicts of LLM judges on test comparisons")
    parser.add_argument("--pool", metavar="POOL", type=Path, help="pools with gold scores: best-of-n and the RL frontier of every row")
    parser.add_argument("--only", metavar="KEY=VALUE", action="append", default=[], help="use the pools with this value; may be repeated")
    parser.add_argument("--gold-column", metavar="KEY", help="where the gold scores are; default: gold, or gold_scores beside answers")
    parser.add_argument("--limit", metavar="PROMPTS", type=int, help="use the first so many pools")
    parser.add_argument(
        "--probe", metavar="PROMPTS", type=int, nargs="?", const=100, help="put the hacking probes of so many prompts (100) to every row"
    )
    parser.add_argument("--overwrite", action="store_true", help="forget what is in the folder; without it, a run goes on")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Train what is not there yet, measure, print, say where the page is."""
    from dmoerm.data.sources import load_run_data
    from dmoerm.evaluation.contest import Contest
    from dmoerm.evaluation.contest_page import contest_html
    from dmoerm.evaluation.contest_report import write_contest_csv
    from dmoerm.evaluation.report import write_page
    from dmoerm.evaluation.run import write_json
    from dmoerm.recipe import recipe_hash

    folder = args.output.absolute() if args.output else None
    args.output = None  # the recipe's own output names the model, which is not written here
    recipe = read_run(args)
    folder = folder or recipe.output.with_name(f"{recipe.output.name}-baselines")
    data = load_run_data(recipe)
    quiet_libraries()
    if args.device:
        check_device(args.device)
    contest = Contest(
        recipe, data, folder, _plan(args, recipe, data), judges=_judges(args, data), overwrite=args.overwrite, quiet=args.quiet
    )
    contest.run_all()
    report = contest.report({"recipe file": str(args.recipe), **({"pool": str(args.pool)} if args.pool else {})})
    write_json(folder / "baselines.json", report.as_dict())
    write_contest_csv(folder, report)
    page = write_page(folder / "baselines.html", contest_html(report, subtitle=f"recipe {recipe_hash(recipe)}"))
    if args.json:
        print_json(report.as_dict())
    else:
        print(f"{report.as_table()}\n\nPage: {page}\nFigures: {folder / 'baselines.json'}, and *.csv beside it")
    return DONE


def _plan(args: argparse.Namespace, recipe: "Recipe", data: "RunData") -> "ContestPlan":
    from dmoerm.evaluation.contest import ContestPlan
    from dmoerm.evaluation.pools import parse_filter, read_pools
    from dmoerm.training.contenders import contenders_of

    possible = [name for name, why_not in contenders_of(data, recipe).items() if why_not is None]
    pools = []
    if args.pool:
        pools = read_pools(args.pool, gold_column=args.gold_column, only=parse_filter(args.only), limit=args.limit)
    return ContestPlan(
        models=tuple(name for name in CONTENDERS if name in (args.models or possible)),
        seeds=tuple(args.seeds),
        flips=tuple(args.flip),
        flip_seeds=None if args.flip_seeds is None else tuple(args.flip_seeds),
        members=args.members,
        others=_others(args.others),
        pools=tuple(pools),
        probe_prompts=args.probe,
        device=recipe.training.device,
    )


def _others(given: list[str]) -> dict[str, str]:
    from dmoerm.errors import ConfigError

    named: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--model {text}: expected NAME=PATH, for example published=org/reward-model")
        if name in named:
            raise ConfigError(f"--model {text}: {name} is {named[name]} already; name each model once")
        named[name] = path
    return named


def _judges(args: argparse.Namespace, data: "RunData") -> "dict[str, list[JudgedPair]]":
    """Verdicts of the files that were named, and of the recipe's own files of two-order judgements."""
    from dmoerm.labeling.judged import read_judged

    own = [Path(path) for path, format in data.formats.items() if format == "judgements"]
    return {path.name.removesuffix(".gz").removesuffix(".jsonl"): read_judged(path) for path in dict.fromkeys([*args.judgements, *own])}
