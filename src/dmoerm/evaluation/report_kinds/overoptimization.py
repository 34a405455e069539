"""Policies trained against rewards: `dmoerm overoptimize`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dmoerm.errors import DataError
from dmoerm.evaluation.gold_curves import Interval
from dmoerm.evaluation.overoptimization import Overoptimization
from dmoerm.evaluation.overoptimization_page import overoptimization_sections
from dmoerm.evaluation.report_kinds.kind import Chapter, Headline, Made, ReportKind, Run, few_prompts, owned, parsed, several_parts
from dmoerm.evaluation.sections import Cell, Measured, Section, Table

__all__ = ["OVEROPTIMIZATION"]


def _read(document: Mapping[str, Any]) -> Overoptimization:
    study = parsed(Overoptimization, document)
    if not study.runs or not all(run.curve.points for run in study.runs):
        raise DataError("runs: none, or one whose curve has no points")
    return study


def _chapter(runs: Sequence[Run]) -> Chapter:
    return Chapter(
        headlines=tuple(headline for run in runs for headline in _headlines(run, runs)),
        warnings=tuple(warning for run in runs for warning in _warnings(run, runs)),
        made=tuple(_made(run) for run in runs),
        parts=several_parts(runs, _together(runs), lambda run: overoptimization_sections(run.found)),
    )


def _headlines(run: Run, runs: Sequence[Run]) -> Iterator[Headline]:
    study: Overoptimization = run.found
    for one in study.runs:
        of, last = owned(one.name, run, runs), one.curve.points[-1]
        on = f"{study.prompts:,} measured prompts, KL {last.kl:.2f} nats at the end"
        yield Headline(f"Gold gained by RL at its peak (step {one.curve.peak.setting:,.0f})", of, _measured(one.curve.gain), on)
        if one.curve.fall.value < 0:
            yield Headline(f"Gold lost after the peak (step {last.setting:,.0f})", of, _measured(one.curve.fall), on)


def _warnings(run: Run, runs: Sequence[Run]) -> Iterator[str]:
    study: Overoptimization = run.found
    name = "RL" if len(runs) == 1 else f"RL ({run.name})"
    yield from few_prompts(name, study.prompts)
    if study.left_out:
        yield f"{name}: {study.left_out:,} measured prompts are left out for want of gold scores."
    for one in study.runs:
        if one.proxy_failed or one.gold_failed:
            yield (
                f"{name}: of {one.curve.responses:,} measured completions of {one.name}, {one.proxy_failed:,} have no reward and "
                f"{one.gold_failed:,} no gold score."
            )
        if one.curve.fall.high < 0:
            yield f"{name}: {one.name} is over-optimised by training; gold falls after step {one.curve.peak.setting:,.0f}."
        if one.curve.gain.low <= 0:
            yield f"{name}: {one.name} is not above the policy as it was; the interval of its gain reaches 0."


def _together(runs: Sequence[Run]) -> list[Section]:
    columns = ("result", "reward", "prompts", "step at the peak", "gold there", "gain", "gold at the end", "KL at the end", "fall")
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        for one in run.found.runs:
            curve = one.curve
            peak, gain, end, fall = map(_measured, (curve.peak.gold, curve.gain, curve.points[-1].gold, curve.fall))
            rows.append((run.name, one.name, run.found.prompts, int(curve.peak.setting), peak, gain, end, curve.points[-1].kl, fall))
    return [
        Table("RL of all results", columns, tuple(rows), "Gold scores compare between results of the same prompts and gold model only.")
    ]


def _made(run: Run) -> Made:
    study: Overoptimization = run.found
    draws = f"{100 * study.resampling.confidence:g} %, {study.resampling.samples:,} draws"
    return Made(run.name, study.version, str(study.resampling.seed), draws)


def _measured(found: Interval) -> Measured:
    return Measured(found.value, found.low, found.high)


OVEROPTIMIZATION = ReportKind("Over-optimisation by RL", "dmoerm overoptimize --json", _chapter, _read)
