"""The sections of a report page about one reward model: agreement, router, doubt, and one comparison explained."""

from collections.abc import Sequence

from dmoerm.errors import DataError
from dmoerm.evaluation.report import Curve, Explanation, Section, Series, Table, agreement_sections
from dmoerm.evaluation.run import ModelReport
from dmoerm.evaluation.sections import Cell
from dmoerm.records import Comparison, Reward, ScoreFailure

__all__ = ["explanation", "model_sections"]

_MOST_POINTS = 200


def model_sections(report: ModelReport) -> list[Section]:
    """Agreement as bars and tables, routing by category, and the risk–coverage curve."""
    sections = agreement_sections(report, strong=[report.main])
    extra: list[Section] = []
    if report.routing is not None:
        extra.append(_routing(report))
    if report.risk:
        extra.append(_risk(report))
    return [*sections[:-1], *extra, sections[-1]]  # what the numbers were made with stays last


def explanation(comparison: Comparison, results: Sequence[Reward | ScoreFailure], *, title: str, note: str = "") -> Explanation:
    """One comparison with its rewards and human ranks.

    Raises:
        DataError: none of its responses could be scored.
    """
    rewards = tuple(result if isinstance(result, Reward) else None for result in results)
    if not any(rewards):
        raise DataError(f"comparison {comparison.id!r}: none of its responses could be scored, so there is nothing to explain")
    return Explanation(title, comparison.prompt, comparison.responses, rewards, comparison.ranks, note)


def _routing(report: ModelReport) -> Table:
    assert report.routing is not None
    judges = sorted({name for found in report.routing.judged_by.values() for name in found})
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (category, *(found.get(name, 0) for name in judges)) for category, found in report.routing.judged_by.items()
    )
    caption = (
        f"Held-out prompts by their category (rows) and by the inner model that judged them (columns). "
        f"{report.routing.right:.1%} of {report.routing.prompts:,} go to their category, "
        f"{report.routing.unsure:.1%} to the fallback (general), the router being unsure."
    )
    return Table("Router", ("category", *judges), rows, caption)


def _risk(report: ModelReport) -> Curve:
    series = []
    for name, risk in report.risk.items():
        step = -(-len(risk.curve.coverage) // _MOST_POINTS)
        kept = [*range(0, len(risk.curve.coverage) - 1, step), len(risk.curve.coverage) - 1]
        series.append(Series(name, tuple(risk.curve.coverage[i] for i in kept), tuple(risk.curve.risk[i] for i in kept)))
    found = "; ".join(f"{name} {risk.gain:+.3f} [{risk.gain_low:+.3f}, {risk.gain_high:+.3f}]" for name, risk in report.risk.items())
    caption = (
        "Share of wrong pairs when only the pairs with the least doubt are judged. A curve that rises from the left reads its doubt from "
        "something useful; a flat one does not. Doubt is the uncertainty of the reward, the spread over capabilities, or a small margin. "
        f"Overall error minus the mean of the curve: {found}."
    )
    return Curve("Errors and doubt", "share of pairs judged", "share of them wrong", tuple(series), caption)
