"""One self-contained HTML page: no network, no script, light and dark, readable on a telephone and on paper.

The page forbids itself any outside request (Content-Security-Policy), so a report with text from untrusted data is safe to open.
Sections come from `sections`; `agreement_sections` makes those of an `AgreementReport`.
"""

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from dmoerm.errors import DataError
from dmoerm.evaluation.agreement import AgreementReport, AgreementRow
from dmoerm.evaluation.bootstrap import FEW_PROMPTS
from dmoerm.evaluation.metrics import Estimate
from dmoerm.evaluation.sections import (
    Bar,
    Bars,
    Cell,
    Curve,
    Explanation,
    Heat,
    Measured,
    Section,
    Series,
    Table,
    Text,
    section_html,
    text_html,
)

__all__ = [
    "Bar",
    "Bars",
    "Curve",
    "Explanation",
    "Heat",
    "Measured",
    "Section",
    "Series",
    "Table",
    "Text",
    "agreement_sections",
    "page_html",
    "report_html",
    "write_page",
    "write_report",
]


def write_report(path: str | os.PathLike[str], title: str, sections: Sequence[Section], *, subtitle: str = "") -> Path:
    """Write the page; an existing file is replaced in one step, so a reader never sees half of it.

    Args:
        path: file to write; its folder is made where missing.
        title: heading and window title.
        sections: in the order of the page.
        subtitle: a line under the heading, such as data set, date and version.

    Returns:
        The path written.

    Raises:
        DataError: no sections.
    """
    return write_page(path, report_html(title, sections, subtitle=subtitle))


def write_page(path: str | os.PathLike[str], page: str) -> Path:
    """Write a text in one step; an existing file is replaced, and its folder is made where missing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".part")
    unfinished.write_text(page, encoding="utf-8", newline="\n")
    unfinished.replace(target)
    return target


def report_html(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """The page as text; see `write_report`.

    Raises:
        DataError: no sections.
    """
    if not sections:
        raise DataError(f"Report {title!r} has no sections; expected at least one.")
    return page_html(title, subtitle, "\n".join(section_html(section) for section in sections))


def page_html(title: str, subtitle: str, body: str) -> str:
    """The document around a body that is markup already; title and subtitle are plain text."""
    lead = f'<p class="lead">{text_html(subtitle)}</p>' if subtitle else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{text_html(title)}</title>\n<style>{_style()}</style>\n</head>\n"
        f"<body>\n<main>\n<header class=page><h1>{text_html(title)}</h1>{lead}</header>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _style() -> str:
    return files("dmoerm.evaluation").joinpath("report.css").read_text(encoding="utf-8")


def agreement_sections(report: AgreementReport, *, strong: Sequence[str] = ()) -> list[Section]:
    """Bars and tables of an agreement result.

    Args:
        report: the result.
        strong: models to set apart in the bars, such as the one that the page is about.

    Returns:
        Agreement as bars, differences to the reference as bars, all overall figures, agreement by category, calibration by category,
        and what the numbers were made with.
    """
    overall = [row for row in report.rows if row.category is None]
    categories = [name for name in dict.fromkeys(row.category for row in report.rows) if name is not None]
    sections: list[Section] = [_agreement_bars(report, overall, strong)]
    if any(row.difference for row in overall):
        sections.append(_difference_bars(report, overall, strong))
    sections.append(_figures(overall))
    if categories:
        sections += [_agreement_by_category(report, categories), _calibration_by_category(report, categories)]
    return [*sections, _provenance(report)]


def _agreement_bars(report: AgreementReport, rows: Sequence[AgreementRow], strong: Sequence[str]) -> Bars:
    first = rows[0].agreement
    ties = f"; {first.n_human_ties:,} pairs that people tied are left out" if first.n_human_ties else ""
    caption = (
        f"Share of pairs in which the model prefers what people prefer; bars start at 0.5, which is chance. {first.n_pairs:,} pairs of "
        f"{first.n_prompts:,} prompts{ties}. Whiskers: {_percent(report)} intervals over prompts."
    )
    bars = [Bar(row.model, row.agreement.value, (row.agreement.low, row.agreement.high), row.model in strong) for row in rows]
    return Bars("Agreement with human preference", tuple(bars), 0.5, "agreement", caption)


def _difference_bars(report: AgreementReport, rows: Sequence[AgreementRow], strong: Sequence[str]) -> Bars:
    differences = [(row.model, row.difference) for row in rows if row.difference is not None]
    bars = [Bar(name, found.value, (found.low, found.high), name in strong) for name, found in differences]
    caption = (
        f"The same prompts are drawn for both models; where whiskers cross 0, {_percent(report)} intervals leave open which is better."
    )
    return Bars(f"Difference to {report.reference}", tuple(bars), 0.0, "difference", caption)


def _figures(rows: Sequence[AgreementRow]) -> Table:
    columns = ("model", "agreement", "length-balanced", "calibration error", "by chance alone", "log loss", "failed", "equal rewards")
    cells = [
        (
            row.model,
            _measured(row.agreement),
            _measured(row.length_balanced),
            _measured(row.calibration_error),
            row.calibration_floor,
            _measured(row.log_loss),
            row.agreement.n_failed,
            row.agreement.n_reward_ties,
        )
        for row in rows
    ]
    caption = (
        "Length-balanced: pairs with a longer and with a shorter winner weigh the same. Calibration error: how far stated probabilities "
        "are from observed ones; a perfect model would still show the error given beside it. Log loss: nats a pair, 0.693 says nothing. "
        "Failed pairs count as wrong, equal rewards as half right."
    )
    return Table("All figures", columns, tuple(cells), caption)


def _agreement_by_category(report: AgreementReport, categories: Sequence[str]) -> Table:
    rows = [(name, *(_measured(report.row(name, category).agreement) for category in categories)) for name in _models(report)]
    few = any(report.row(name, category).agreement.n_prompts < FEW_PROMPTS for name in _models(report) for category in categories)
    caption = f"* fewer than {FEW_PROMPTS} prompts: the interval is too narrow." if few else ""
    return Table("Agreement by category", ("model", *_category_heads(report, categories)), tuple(rows), caption)


def _calibration_by_category(report: AgreementReport, categories: Sequence[str]) -> Table:
    rows = [(name, *(_calibration(report.row(name, category)) for category in categories)) for name in _models(report)]
    caption = "Calibration error and, behind the stroke, the error that a perfect model would show at this size."
    return Table("Calibration by category", ("model", *_category_heads(report, categories)), tuple(rows), caption)


def _models(report: AgreementReport) -> list[str]:
    return list(dict.fromkeys(row.model for row in report.rows))


def _category_heads(report: AgreementReport, categories: Sequence[str]) -> list[str]:
    counts = [report.row(_models(report)[0], category).agreement for category in categories]
    return [
        f"{category or '(no category)'}{'*' if found.n_prompts < FEW_PROMPTS else ''} ({found.n_pairs:,} pairs)"
        for category, found in zip(categories, counts, strict=True)
    ]


def _provenance(report: AgreementReport) -> Table:
    draws = f"bootstrap over prompts, {report.resampling.samples:,} samples, {_percent(report)}"
    rows = [("dmoerm", report.version), ("seed", str(report.resampling.seed)), ("intervals", draws)]
    rows += [(str(key), str(value)) for key, value in report.meta.items()]
    rows += [("left out (no ranked pair)", name or "(no category)") for name in report.skipped_categories]
    return Table("Made with", ("what", "value"), tuple(rows))


def _percent(report: AgreementReport) -> str:
    return f"{100 * report.resampling.confidence:g} %"


def _measured(estimate: Estimate | None) -> Cell:
    return None if estimate is None else Measured(estimate.value, estimate.low, estimate.high)


def _calibration(row: AgreementRow) -> Cell:
    return (
        None
        if row.calibration_error is None
        else f"{row.calibration_error.value:.3f}\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}{row.calibration_floor:.3f}"
    )
