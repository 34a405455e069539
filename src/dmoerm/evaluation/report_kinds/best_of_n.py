"""Best-of-n and the exact RL frontier: `dmoerm best-of-n`."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dmoerm.errors import DataError
from dmoerm.evaluation.best_of_n_page import study_sections
from dmoerm.evaluation.gold_curves import GoldCurve, Interval
from dmoerm.evaluation.pool_study import RESERVED, PoolStudy, setting_text
from dmoerm.evaluation.report_kinds.kind import Chapter, Headline, Made, ReportKind, Run, few_prompts, owned, parsed, several_parts
from dmoerm.evaluation.scorers import Longest
from dmoerm.evaluation.sections import Cell, Measured, Section, Table

__all__ = ["BEST_OF_N", "pool_headlines", "pool_warnings", "read_study"]

_BESIDE = (*RESERVED, Longest.name)
"""Rows to read a model against."""


def read_study(document: Mapping[str, Any]) -> PoolStudy:
    """What the verb printed, also where it stands inside another result.

    Raises:
        DataError: it is not that, or a curve lacks points.
    """
    study = parsed(PoolStudy, _with_infinity(document))
    if not study.best_of_n or not all(row.points for row in (*study.best_of_n, *study.frontier)):
        raise DataError("best_of_n: no curve, or one without points")
    if not {row.name for row in study.frontier} <= {row.name for row in study.best_of_n}:
        raise DataError("frontier: a reward that best_of_n does not have")
    return study


def _with_infinity(document: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity, so a β without end was written as null; here it becomes a number again that JSON readers take for one."""
    found = copy.deepcopy(dict(document))
    curves = found.get("frontier")
    for row in curves if isinstance(curves, list) else []:
        if isinstance(row, dict):
            settings = [(point, "setting") for point in [*_list(row.get("points")), row.get("peak")]]
            settings += [(row.get("peak_setting"), key) for key in ("value", "low", "high")]
            for place, key in settings:
                if isinstance(place, dict) and key in place and place[key] is None:
                    place[key] = math.inf
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _chapter(runs: Sequence[Run]) -> Chapter:
    return Chapter(
        headlines=tuple(headline for run in runs for headline in _headlines(run, runs)),
        warnings=tuple(warning for run in runs for warning in _warnings(run, runs)),
        made=tuple(_made(run) for run in runs),
        parts=several_parts(runs, _together(runs), lambda run: study_sections(run.found)),
    )


def _models(study: PoolStudy) -> list[GoldCurve]:
    """The rewards that were asked about; where these are reference rows alone, those."""
    return [row for row in study.best_of_n if row.name not in _BESIDE] or [row for row in study.best_of_n if row.name not in RESERVED]


def _headlines(run: Run, runs: Sequence[Run]) -> Iterator[Headline]:
    for row in _models(run.found):
        yield from pool_headlines(run.found, row, owned(row.name, run, runs))


def pool_headlines(study: PoolStudy, row: GoldCurve, of: str) -> Iterator[Headline]:
    """What one reward, which the page calls `of`, gains at its peak and loses after it."""
    on = f"{study.prompts:,} prompts, {study.responses:,} responses"
    n, last = setting_text(row.peak_setting.value), setting_text(row.points[-1].setting)
    yield Headline(f"Gold gained by best-of-n at its peak (n = {n})", of, _measured(row.gain), on)
    if row.fall.value < 0:
        yield Headline(f"Gold lost after the peak (n = {last})", of, _measured(row.fall), on)


def _warnings(run: Run, runs: Sequence[Run]) -> Iterator[str]:
    yield from pool_warnings(run.found, _models(run.found), "Best-of-n" if len(runs) == 1 else f"Best-of-n ({run.name})")


def pool_warnings(study: PoolStudy, rows: Sequence[GoldCurve], name: str) -> Iterator[str]:
    """What to know of the pools and of some rewards; `name` begins each sentence."""
    yield from few_prompts(name, study.prompts)
    if study.without_gold or study.short_pools:
        yield f"{name}: {study.without_gold:,} responses without a gold score and {study.short_pools:,} prompts with them are left out."
    for row in rows:
        if row.failed:
            yield f"{name}: {row.failed:,} of {row.responses:,} responses have no reward from {row.name}."
        if row.fall.high < 0:
            yield f"{name}: {row.name} is over-optimised by picking harder; gold falls after n = {setting_text(row.peak_setting.value)}."
        if row.gain.low <= 0:
            yield f"{name}: {row.name} is not above the policy as it is; the interval of its gain reaches 0."


def _together(runs: Sequence[Run]) -> list[Section]:
    columns = ("result", "reward", "prompts", "n at the peak", "gold there", "gain", "gold at the end", "fall", "failed")
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        for row in run.found.best_of_n:
            peak = setting_text(row.peak_setting.value)
            figures = (row.peak.gold, row.gain, row.points[-1].gold, row.fall)
            rows.append((run.name, row.name, run.found.prompts, peak, *map(_measured, figures), row.failed))
    caption = "Gold scores compare between results of the same pool only."
    return [Table("Best-of-n of all results", columns, tuple(rows), caption)]


def _made(run: Run) -> Made:
    study: PoolStudy = run.found
    draws = f"{100 * study.resampling.confidence:g} %, {study.resampling.samples:,} draws"
    return Made(run.name, study.version, str(study.resampling.seed), draws)


def _measured(found: Interval) -> Measured:
    return Measured(found.value, found.low, found.high)


BEST_OF_N = ReportKind("Selection and optimisation", "dmoerm best-of-n --json", _chapter, read_study)
