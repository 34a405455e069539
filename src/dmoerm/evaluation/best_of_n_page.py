"""The sections of a page about selection and optimisation on pools: curves, figures, fits. Nothing is computed here."""

from collections.abc import Collection, Sequence

from dmoerm.evaluation.gold_curves import Fit, GoldCurve, Interval
from dmoerm.evaluation.pool_study import REGIMES, PoolStudy, setting_text
from dmoerm.evaluation.sections import Cell, Curve, Measured, Section, Series, Table, Text

__all__ = ["study_sections"]

_SHADED = 5
"""So many lines have bands that can be told apart."""


def study_sections(study: PoolStudy, *, drawn: Collection[str] | None = None) -> list[Section]:
    """What was measured, gold and proxy under best-of-n, its figures and fits, the same for the frontier, and what it was made with.

    Args:
        study: the result.
        drawn: rewards that the plots show; None is all. Tables have all.
    """
    names = [row.name for row in study.best_of_n if drawn is None or row.name in drawn]
    sections: list[Section] = [Text("What is measured", _lead(study)), *_selection(study, names)]
    if study.frontier:
        sections += _frontier(study, names)
    return [*sections, _provenance(study)]


def _lead(study: PoolStudy) -> tuple[str, ...]:
    left_out = f" {study.without_gold:,} responses without a gold score are left out." if study.without_gold else ""
    return (
        f"{study.prompts:,} prompts, {study.responses:,} responses.{left_out} {REGIMES[study.regime]}.",
        "A reward picks responses; the gold score says how good the picks are. KL is how far the picking moves from the policy as it is. "
        "Where gold turns down while the proxy still rises, the reward is over-optimised.",
    )


def _selection(study: PoolStudy, drawn: Sequence[str]) -> list[Section]:
    caption = (
        f"Mean gold score of what best-of-n picks, n = 1 to {study.best_of_n[0].points[-1].setting:,.0f}. "
        f"{_bands(study, drawn)}. random: a reward that knows nothing; gold: the gold score as the reward."
    )
    if study.regime == "samples":
        caption += " KL is the bound log n − (n − 1)/n, an upper one."
    sections: list[Section] = [
        Curve("Gold under best-of-n", "KL, nats", "gold score", _series(study.best_of_n, drawn), caption, len(drawn) <= _SHADED)
    ]
    sections += _proxies("Proxy and gold under best-of-n", study.best_of_n, drawn)
    return [*sections, _peaks("Best-of-n: peak and fall", "n", study.best_of_n), *_more("Best-of-n", study.best_of_n, study.reference)]


def _frontier(study: PoolStudy, drawn: Sequence[str]) -> list[Section]:
    caption = (
        "Mean gold score of the policy that has the highest mean reward of all with that KL: what perfect RL reaches. "
        f"One β for all prompts. {_bands(study, drawn)}, at the β of all of them."
    )
    curve = Curve(
        "Gold along the exact RL frontier", "KL, nats", "gold score", _series(study.frontier, drawn), caption, len(drawn) <= _SHADED
    )
    proxies = _proxies("Proxy and gold along the frontier", study.frontier, drawn)
    return [curve, *proxies, _peaks("Frontier: peak and fall", "β", study.frontier), *_more("Frontier", study.frontier, study.reference)]


def _bands(study: PoolStudy, drawn: Sequence[str]) -> str:
    if len(drawn) <= _SHADED:
        return f"Bands: {_percent(study)} over prompts"
    return f"So many bands would hide each other; low and high under Numbers are {_percent(study)} over prompts"


def _series(curves: Sequence[GoldCurve], drawn: Sequence[str]) -> tuple[Series, ...]:
    """A reward has the colour of its place in `drawn`, the same in every plot."""
    return tuple(
        Series(
            row.name,
            tuple(point.kl for point in row.points),
            tuple(point.gold.value for point in row.points),
            tuple(point.gold.low for point in row.points),
            tuple(point.gold.high for point in row.points),
            drawn.index(row.name),
        )
        for row in curves
        if row.name in drawn
    )


def _proxies(title: str, curves: Sequence[GoldCurve], drawn: Sequence[str]) -> list[Section]:
    series = []
    for row in curves:
        known = [(point.proxy, point.gold.value) for point in row.points if point.proxy is not None]
        if known and row.name in drawn and row.name != "gold":
            proxy, gold = zip(*known, strict=True)
            series.append(Series(row.name, proxy, gold, style=drawn.index(row.name)))
    caption = (
        "From left to right the reward is optimised harder. Proxy: the reward of what is picked, 0 for the policy as it is, in standard "
        "deviations within a prompt; each reward has its own unit, so compare shapes and not places."
    )
    return [Curve(title, "proxy reward, standard deviations", "gold score", tuple(series), caption)] if series else []


def _peaks(title: str, setting: str, curves: Sequence[GoldCurve]) -> Table:
    columns = ("reward", f"{setting} at the peak", "KL there", "gold there", "gain", "gold at the end", "fall", "draws that turn", "failed")
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            row.name,
            f"{setting_text(row.peak_setting.value)} [{setting_text(row.peak_setting.low)}, {setting_text(row.peak_setting.high)}]",
            *map(_measured, (row.peak_kl, row.peak.gold, row.gain, row.points[-1].gold, row.fall)),
            row.turns,
            row.failed,
        )
        for row in curves
    )
    caption = (
        "Fall: gold at the last point minus gold at the peak of all prompts, the same point in every draw; as it was chosen for being "
        "high, a small fall is expected by chance. Draws that turn: share of the draws of prompts that end below their own peak. "
        "Failed: responses without a reward; they are picked only when nothing else can be."
    )
    return Table(title, columns, rows, caption)


def _more(title: str, curves: Sequence[GoldCurve], reference: str) -> list[Section]:
    sections: list[Section] = []
    fits = [(row, row.fit) for row in curves if row.fit is not None]
    if fits:
        form = "R(d) = d (α − β d)" if fits[0][1].form == "best_of_n" else "R(d) = d (α − β log d)"
        caption = (
            f"Gold gain over the policy as it is, {form}, d = √KL (Gao, Schulman & Hilton 2022, arXiv 2210.10760). Intervals: refits "
            "of draws of prompts. Misfit: root mean square of what is left, units of gold. Fitted peak: its KL, maybe beyond the data."
        )
        sections.append(
            Table(f"{title}: fit", ("reward", "α", "β", "misfit", "fitted peak"), tuple(_fit(row, fit) for row, fit in fits), caption)
        )
    differences = tuple(
        (row.name, _measured(row.peak_difference), _measured(row.end_difference)) for row in curves if row.end_difference is not None
    )
    caption = "The same prompts are drawn for both. At the peaks: each at its own."
    return [*sections, Table(f"{title}: minus {reference}", ("reward", "at the peaks", "at the end"), differences, caption)]


def _fit(row: GoldCurve, fit: Fit) -> tuple[Cell, ...]:
    return (row.name, _measured(fit.alpha), _measured(fit.beta), fit.misfit, fit.peak_kl)


def _provenance(study: PoolStudy) -> Table:
    draws = f"bootstrap over prompts, {study.resampling.samples:,} samples, {_percent(study)}"
    rows = [("dmoerm", study.version), ("seed", str(study.resampling.seed)), ("intervals", draws), ("pool", study.regime)]
    rows += [(str(key), str(value)) for key, value in study.meta.items()]
    return Table("Made with", ("what", "value"), tuple(rows))


def _percent(study: PoolStudy) -> str:
    return f"{100 * study.resampling.confidence:g} %"


def _measured(found: Interval | None) -> Cell:
    return None if found is None else Measured(found.value, found.low, found.high)
