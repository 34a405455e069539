"""`dmoerm best-of-n MODEL… POOL`: what a reward picks among many responses, and how good the picks really are."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dmoerm.cli.main import DONE
from dmoerm.cli.options import AGGREGATIONS, check_device, open_model, print_json, progress_line, quiet_libraries

if TYPE_CHECKING:
    from dmoerm.evaluation.pools import Pool
    from dmoerm.evaluation.scorers import Rewards
    from dmoerm.modeling.inner import Aggregation

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm best-of-n`."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a folder that dmoerm train wrote, a sequence-classification reward model (folder or Hub id), longest, or a file of rewards "
        "that --keep wrote. The first is the reference of the differences",
    )
    parser.add_argument(
        "pool", metavar="POOL", type=Path, help="prompts with many responses each, and their gold scores: docs/best-of-n.md"
    )
    gold = parser.add_mutually_exclusive_group()
    gold.add_argument("--gold", metavar="MODEL", help="a gold reward model, which scores the pool instead of the scores in the file")
    gold.add_argument("--gold-column", metavar="KEY", help="where the gold scores are; default: gold, or gold_scores beside answers")
    regime = parser.add_mutually_exclusive_group()
    regime.add_argument(
        "--samples",
        dest="regime",
        action="store_const",
        const="samples",
        help="the pool holds samples of one policy; default where no prompt has several authors",
    )
    regime.add_argument(
        "--finite",
        dest="regime",
        action="store_const",
        const="finite",
        help="the pool is the policy, uniform over its members; default where authors differ",
    )
    parser.add_argument("--aggregation", choices=AGGREGATIONS, nargs="+", help="of our models, one row each; default: the model's own")
    parser.add_argument("--max-n", metavar="N", type=int, help="default: eight times the largest pool, or with --samples the smallest")
    parser.add_argument(
        "--only", metavar="KEY=VALUE", action="append", default=[], help="use the rows with this value, such as fold=4; may be repeated"
    )
    parser.add_argument("--limit", metavar="PROMPTS", type=int, help="use the first so many prompts")
    parser.add_argument("--authors-from", metavar="POOL", type=Path, help="another pool, from which the row of the best author learns")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep the rewards of every model, as NAME.rewards.jsonl")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--html", metavar="PAGE.html", type=Path, help="also write a page with the curves")
    parser.add_argument("--csv", metavar="DIR", type=Path, help="also write every point of every curve")
    parser.add_argument("--backbone", metavar="NAME", help="where the backbone of our models lies now, when not where it lay in training")
    parser.add_argument("--device", metavar="D", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--bootstrap-samples", metavar="N", type=int, default=2000, help="resamples of the prompts behind an interval")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the bootstrap")


def run(args: argparse.Namespace) -> int:
    """Score, study and print."""
    from dmoerm.evaluation.best_of_n import n_grid
    from dmoerm.evaluation.best_of_n_page import study_sections
    from dmoerm.evaluation.bootstrap import Resampling
    from dmoerm.evaluation.pool_study import regime_of, study_pools, with_gold, write_csv
    from dmoerm.evaluation.pools import parse_filter, read_pools
    from dmoerm.evaluation.report import write_report
    from dmoerm.evaluation.result_files import result_document

    resampling = Resampling(args.seed, args.bootstrap_samples)
    pools = read_pools(args.pool, gold_column=args.gold_column, only=parse_filter(args.only), limit=args.limit)
    authors = read_pools(args.authors_from, gold_column=args.gold_column) if args.authors_from else []
    _require_gold(args, pools)
    n_grid([len(pool.responses) for pool in pools], args.regime or regime_of(pools), args.max_n)  # refused before anything is scored
    rewards: dict[str, list[Rewards]] = {}
    for source in args.models:
        for name, found in _scored(source, args, pools).items():
            rewards[_row_name(name, source, rewards)] = found
    if args.keep:
        _keep(args.keep, pools, rewards)
    if args.gold:
        (scores,) = _scored(args.gold, args, pools, aggregations=[]).values()
        pools = with_gold(pools, scores)
    meta = {"models": ", ".join(args.models), "pool": str(args.pool), "only": ", ".join(args.only) or "all rows", "gold": _gold_name(args)}
    study = study_pools(pools, rewards, regime=args.regime, max_n=args.max_n, authors_from=authors, resampling=resampling, meta=meta)
    if args.json:
        print_json(result_document("best_of_n", study.as_dict()))
    else:
        print(study.as_table())
    if args.html:
        write_report(args.html, "Best-of-n and the RL frontier", study_sections(study), subtitle=f"{meta['pool']}, {meta['only']}")
    if args.csv:
        write_csv(args.csv, study)
    return DONE


def _scored(
    source: str, args: argparse.Namespace, pools: "list[Pool]", aggregations: "list[Aggregation] | None" = None
) -> "dict[str, list[Rewards]]":
    """Rows of one source: one, or one for each aggregation that was asked for."""
    from dmoerm.evaluation.pool_study import score_aggregations, score_pools
    from dmoerm.evaluation.pools import KEPT_SUFFIX, RecordedRewards
    from dmoerm.evaluation.scorers import ModelScorer, Scorer, open_scorer

    name = Path(source).name.removesuffix(KEPT_SUFFIX)
    wanted: list[Aggregation] = (args.aggregation or []) if aggregations is None else aggregations
    progress = progress_line(f"{name}: scored", quiet=args.quiet)
    if source.endswith(KEPT_SUFFIX):
        return {name: score_pools(RecordedRewards(source), pools)}
    if source != "longest":
        quiet_libraries()
        check_device(args.device)
    if (Path(source) / "dmoerm.json").is_file():
        model = open_model(source, args.device, args.backbone)
        found = score_aggregations(model, wanted or [model.aggregation], pools, progress)
        return dict(zip([f"{name}/{aggregation}" for aggregation in wanted] if len(wanted) > 1 else [name], found, strict=True))
    rows: dict[str, list[Rewards]] = {}
    tried: list[Aggregation | None] = [*wanted] or [None]
    for aggregation in tried:
        scorer: Scorer = open_scorer(source, device=args.device, aggregation=aggregation, backbone=args.backbone)
        several = len(wanted) > 1 and isinstance(scorer, ModelScorer)
        rows[f"{name}/{aggregation}" if several else name] = score_pools(scorer, pools, progress)
        if not several:
            break
    return rows


def _row_name(name: str, source: str, taken: "dict[str, list[Rewards]]") -> str:
    """The last part of the path, or all of it where another model has that."""
    from dmoerm.errors import ConfigError

    longer = f"{Path(source).parent}/{name}"
    if name in taken and longer in taken:
        raise ConfigError(f"{source} is named twice; name each model once")
    return longer if name in taken else name


def _require_gold(args: argparse.Namespace, pools: "list[Pool]") -> None:
    """Before anything is scored."""
    from dmoerm.errors import DataError

    if not args.gold and not any(score is not None for pool in pools for score in pool.gold):
        raise DataError(f"{args.pool}: no response has a gold score. Name their key (--gold-column), or a gold model (--gold).")


def _gold_name(args: argparse.Namespace) -> str:
    return str(args.gold or args.gold_column or "as in the pool")


def _keep(folder: Path, pools: "list[Pool]", rewards: "dict[str, list[Rewards]]") -> None:
    from dmoerm.evaluation.pools import KEPT_SUFFIX, keep_rewards

    for name, found in rewards.items():
        keep_rewards(folder / f"{name.replace('/', '-')}{KEPT_SUFFIX}", pools, found)
