"""`dmoerm overoptimize MODEL…`: train a policy against each reward by GRPO, and see what a gold reward says of it."""

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmoerm.cli.main import DONE
from dmoerm.cli.options import AGGREGATIONS, check_device, line_writer, print_json, quiet_libraries

if TYPE_CHECKING:
    from dmoerm.evaluation.scorers import Scorer

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm overoptimize`."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a reward to train on, each in a run of its own: a folder that dmoerm train wrote, a sequence-classification reward model "
        "(folder or Hub id), or longest. The first is the reference of the differences",
    )
    parser.add_argument("--policy", metavar="MODEL", required=True, help="the causal language model that is trained, folder or Hub id")
    parser.add_argument("--prompts", metavar="FILE", type=Path, required=True, help='rows with "prompt", a text or messages')
    parser.add_argument("--gold", metavar="MODEL", required=True, help="the reward that is watched and never trained on")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="for the runs, curves.csv and report.html")
    parser.add_argument("--aggregation", choices=AGGREGATIONS, nargs="+", help="of our models, a run each; default: the model's own")
    parser.add_argument("--gold-aggregation", choices=AGGREGATIONS, help="of the gold model, where it is ours; default: its own")
    parser.add_argument("--steps", metavar="N", type=int, default=200, help="optimiser steps (default 200)")
    parser.add_argument("--generations", metavar="N", type=int, default=8, help="completions of a prompt in a step (default 8)")
    parser.add_argument("--prompts-per-step", metavar="N", type=int, default=4, help="prompts in a step (default 4)")
    parser.add_argument("--batch", metavar="N", type=int, default=0, help="completions in one training pass; default: as --generations")
    parser.add_argument("--max-completion-tokens", metavar="N", type=int, default=128, help="a completion is cut there (default 128)")
    parser.add_argument("--beta", metavar="X", type=float, default=0.0, help="weight of TRL's KL penalty (default 0: none)")
    parser.add_argument("--learning-rate", metavar="X", type=float, default=1e-6, help="constant (default 1e-6; LoRA takes more)")
    parser.add_argument("--lora", metavar="RANK", type=int, default=0, help="train a LoRA of this rank; default: all weights")
    parser.add_argument("--measure-prompts", metavar="N", type=int, help="prompts to measure on; default: a fifth of them, at most 64")
    parser.add_argument("--measure-samples", metavar="N", type=int, default=2, help="completions of each, each time (default 2)")
    parser.add_argument("--measure-every", metavar="STEPS", type=int, help="default: a tenth of --steps")
    parser.add_argument("--save-every", metavar="STEPS", type=int, help="between checkpoints; default: as --measure-every")
    parser.add_argument("--resume", action="store_true", help="go on with unfinished runs; with more --steps, with finished ones too")
    parser.add_argument("--overwrite", action="store_true", help="begin the named runs anew")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--backbone", metavar="NAME", help="where the backbone of our models lies now, when not where it lay in training")
    parser.add_argument("--gold-backbone", metavar="NAME", help="the same of a gold model of ours")
    parser.add_argument("--device", metavar="D", default="auto", help="auto or cpu; choose a GPU with CUDA_VISIBLE_DEVICES")
    parser.add_argument("--bootstrap-samples", metavar="N", type=int, default=2000, help="resamples of the prompts behind an interval")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of sampling, the order of prompts and the bootstrap")


def run(args: argparse.Namespace) -> int:
    """Train, measure, print, and write table, curves and page."""
    from dmoerm.evaluation.bootstrap import Resampling
    from dmoerm.evaluation.overoptimization import overoptimize, read_prompt_sets, write_csv
    from dmoerm.evaluation.overoptimization_page import overoptimization_sections
    from dmoerm.evaluation.report import write_report
    from dmoerm.evaluation.result_files import result_document
    from dmoerm.evaluation.scorers import open_scorer
    from dmoerm.training.policy import PolicyOptions, require_policy

    every = args.measure_every or max(1, args.steps // 10)
    options = PolicyOptions(
        policy=args.policy,
        steps=args.steps,
        generations=args.generations,
        prompts_per_step=args.prompts_per_step,
        batch=args.batch,
        max_completion_tokens=args.max_completion_tokens,
        beta=args.beta,
        learning_rate=args.learning_rate,
        lora_rank=args.lora,
        measure_samples=args.measure_samples,
        measure_every=every,
        save_every=args.save_every or every,
        seed=args.seed,
        device=args.device,
    )
    resampling = Resampling(args.seed, args.bootstrap_samples)
    prompts = read_prompt_sets(args.prompts, args.measure_prompts)
    quiet_libraries()
    require_policy(options)
    check_device(args.device)
    proxies = _proxies(args)
    gold = open_scorer(args.gold, device=args.device, aggregation=args.gold_aggregation, backbone=args.gold_backbone)
    meta = {"policy": args.policy, "gold": _label(args.gold, args.gold_aggregation), "prompts": str(args.prompts)}
    study = overoptimize(
        proxies,
        gold,
        prompts,
        options,
        args.output,
        resume=args.resume,
        overwrite=args.overwrite,
        resampling=resampling,
        meta=meta,
        progress=_progress(quiet=args.quiet),
    )
    document = result_document("overoptimization", study.as_dict())
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
    (args.output / "overoptimization.json").write_text(text + "\n", encoding="utf-8")
    write_csv(args.output / "curves.csv", study)
    page = write_report(
        args.output / "report.html", "Over-optimisation by RL", overoptimization_sections(study), subtitle=f"{args.policy}, {args.prompts}"
    )
    if args.json:
        print_json(document)
    else:
        print(study.as_table())
        print(f"\nPage: {page}")
    return DONE


def _proxies(args: argparse.Namespace) -> "dict[str, Callable[[], Scorer]]":
    """A run for each model, and for each aggregation of one of ours."""
    from dmoerm.errors import ConfigError
    from dmoerm.evaluation.scorers import open_scorer

    found: dict[str, Callable[[], Scorer]] = {}
    for source in args.models:
        ours = (Path(source) / "dmoerm.json").is_file()
        for aggregation in (args.aggregation or [None]) if ours else [None]:
            name = _label(Path(source).name, aggregation if len(args.aggregation or ()) > 1 else None)
            if name in found:
                name = _label(source.strip("/"), aggregation)
            if name in found:
                raise ConfigError(f"{source} is named twice; name each model once")
            found[name] = partial(open_scorer, source, device=args.device, aggregation=aggregation, backbone=args.backbone)
    return found


def _label(name: str, aggregation: str | None) -> str:
    return name if aggregation is None else f"{name}/{aggregation}"


def _progress(*, quiet: bool) -> Callable[[str, int, int, Mapping[str, Any]], None]:
    write = line_writer(quiet=quiet)

    def report(name: str, done: int, total: int, row: Mapping[str, Any]) -> None:
        figures = ", ".join(f"{key} {row[key]:.3f}" for key in ("proxy", "gold", "kl") if row[key] is not None)
        write(lambda: f"{name}: step {done:,} of {total:,}, {figures}", done >= total)

    return report
