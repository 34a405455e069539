"""One page of several results, to send to a colleague: summary, warnings, contents, a chapter a kind, and where it all comes from.

The page is whole in itself. Beside it lies a folder with the numbers of every plot as CSV; the page names each file under its plot.
Nothing is computed here.
"""

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.report import page_html, write_page
from dmoerm.evaluation.report_kinds.kind import Chapter, Headline, Made, Part, Run
from dmoerm.evaluation.report_kinds.table import KINDS
from dmoerm.evaluation.report_runs import Found
from dmoerm.evaluation.run import ModelReport
from dmoerm.evaluation.sections import Cell, Headlines, Measured, Section, Table, Text, Warnings, plot_numbers, section_html, text_html

__all__ = ["csv_folder", "write_results_page"]

_OURS = re.compile(r"\d\d-[a-z0-9-]+\.csv")


def csv_folder(page: Path) -> Path:
    """Where the numbers of a page's plots lie."""
    return page.with_name(f"{page.stem}-csv")


def write_results_page(path: str | os.PathLike[str], found: Found, *, title: str = "", overwrite: bool = False) -> list[Path]:
    """Write the page and its CSV files.

    Args:
        path: of the page.
        found: what `read_runs` gave.
        title: of the page; "" makes one.
        overwrite: replace a page that is there, with its CSV files.

    Returns:
        The page, then every CSV file.

    Raises:
        ConfigError: the page is there already.
        DataError: no results.
    """
    page = Path(path)
    if page.exists() and not overwrite:
        raise ConfigError(f"{page} exists already; nothing was written. Name another file (--output), or pass overwrite (--overwrite)")
    if not found.runs:
        raise DataError("Nothing to report on; expected at least one result.")
    writing = _Writing(csv_folder(page).name)
    chapters = {kind: KINDS[kind].chapter(runs) for kind, runs in found.runs.items()}
    body = "\n".join(_body(found, chapters, writing))
    text = page_html(title or _title(found), _subtitle(found), body)
    folder = csv_folder(page)
    for old in folder.glob("*.csv") if folder.is_dir() else ():
        if _OURS.fullmatch(old.name):
            old.unlink()
    written = [write_page(folder / name, numbers) for name, numbers in writing.files.items()]
    return [write_page(page, text), *written]


@dataclass(slots=True)
class _Writing:
    """What grows while the page is written: anchors and CSV files."""

    folder: str
    files: dict[str, str] = field(default_factory=dict)
    anchors: int = 0

    def anchor(self) -> str:
        self.anchors += 1
        return f"s{self.anchors}"

    def section(self, section: Section, level: int, anchor: str = "") -> str:
        """Markup of a section; where it is a plot, its numbers go to a file."""
        numbers = plot_numbers(section)
        foot = ""
        if numbers is not None:
            name = f"{len(self.files) + 1:02}-{_slug(section.title)}.csv"
            self.files[name] = _csv_text(*numbers)
            link = f"{self.folder}/{name}"
            foot = f'<p class="note csv">CSV: <a href="{text_html(_quoted(link))}">{text_html(link)}</a></p>'
        return section_html(section, level=level, anchor=anchor, foot=foot)


def _body(found: Found, chapters: Mapping[str, Chapter], writing: _Writing) -> Iterator[str]:
    contents: list[tuple[str, str, list[tuple[str, str]]]] = []
    parts: list[str] = []
    for kind, chapter in chapters.items():
        anchor = writing.anchor()
        inside: list[tuple[str, str]] = []
        markup = [f"<h2 id={anchor}>{text_html(KINDS[kind].title)}</h2>"]
        for part in chapter.parts:
            markup += _part(part, writing, inside)
        contents.append((anchor, KINDS[kind].title, inside))
        parts.append(f'<div class="chapter">{"".join(markup)}</div>')
    anchor = writing.anchor()
    contents.append((anchor, "Where this comes from", []))
    yield section_html(_summary(chapters))
    yield section_html(Warnings("Warnings", _warnings(found, chapters)))
    yield _contents(contents)
    yield from parts
    yield _sources(found, chapters, anchor)


def _part(part: Part, writing: _Writing, inside: list[tuple[str, str]]) -> Iterator[str]:
    if part.title:
        anchor = writing.anchor()
        inside.append((anchor, part.title))
        yield f"<h3 id={anchor}>{text_html(part.title)}</h3>"
        yield from (writing.section(section, 4) for section in part.sections)
        return
    for section in part.sections:
        anchor = writing.anchor() if section.title else ""
        if anchor:
            inside.append((anchor, section.title))
        yield writing.section(section, 3, anchor)


def _contents(entries: Sequence[tuple[str, str, list[tuple[str, str]]]]) -> str:
    def link(anchor: str, title: str) -> str:
        return f'<a href="#{anchor}">{text_html(title)}</a>'

    items = []
    for anchor, title, inside in entries:
        nested = f"<ul>{''.join(f'<li>{link(*one)}</li>' for one in inside)}</ul>" if inside else ""
        items.append(f"<li>{link(anchor, title)}{nested}</li>")
    return f'<nav aria-label="Contents"><h2>Contents</h2><ol>{"".join(items)}</ol></nav>'


# --- summary ------------------------------------------------------------------------------------------------------------------------------


def _title(found: Found) -> str:
    names = list(dict.fromkeys(run.name for run in found.runs.get("model", ())))
    return f"Report on {', '.join(names)}" if names else "Report on reward models"


def _subtitle(found: Found) -> str:
    runs = _all_runs(found)
    days = sorted({run.dated for run in runs})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{len(runs)} {'result' if len(runs) == 1 else 'results'} of {when}. Page by dmoerm {version('dmoerm')}."


def _all_runs(found: Found) -> list[Run]:
    return [run for runs in found.runs.values() for run in runs]


def _summary(chapters: Mapping[str, Chapter]) -> Section:
    headlines = [headline for chapter in chapters.values() for headline in chapter.headlines]
    if not headlines:
        return Text("Summary", ("No result here has a headline figure; see the chapters.",))
    caption = "Brackets: intervals over prompts; they know nothing of other training seeds."
    return Headlines("Summary", tuple(map(_summary_row, headlines)), caption)


def _summary_row(headline: Headline) -> tuple[Measured | str, str, str]:
    return (headline.value, headline.what, " · ".join(filter(None, (headline.of, headline.on))))


def _warnings(found: Found, chapters: Mapping[str, Chapter]) -> tuple[str, ...]:
    warnings = [warning for chapter in chapters.values() for warning in chapter.warnings]
    warnings += _other_recipes(found)
    versions = {made.version: None for chapter in chapters.values() for made in chapter.made if made.version}
    if len(versions) > 1:
        warnings.append(f"Made with several versions of dmoerm ({', '.join(versions)}): small differences may be the version's.")
    return (*warnings, *found.left_out)


def _other_recipes(found: Found) -> Iterator[str]:
    """Where figures under a model's name say that they are of another recipe."""
    hashes = {run.name: run.found.recipe_hash for run in found.runs.get("model", ())}
    for run in found.runs.get("agreement", ()):
        report: ModelReport = run.found
        measured = report.meta.get("recipe")
        if measured and hashes.get(run.name) not in (None, "", measured):
            yield f"Agreement of {run.name} was measured on a model of recipe {measured}; the model beside it has {hashes[run.name]}."


# --- sources ------------------------------------------------------------------------------------------------------------------------------


def _sources(found: Found, chapters: Mapping[str, Chapter], anchor: str) -> str:
    rows: list[tuple[Cell, ...]] = []
    for kind, runs in found.runs.items():
        made = {one.run: one for one in chapters[kind].made}
        for run in runs:
            one = made.get(run.name, Made(run.name, "", "", ""))
            facts = (one.version, one.seed, one.intervals)
            rows.append((run.name, KINDS[kind].title, run.dated, *(fact or None for fact in facts), run.source))
    columns = ("result", "what", "file of", "dmoerm", "seed", "intervals", "where it lay")
    caption = (
        f"Days are those of the files, in UTC. Intervals are over prompts, each kept with all its pairs; how they are made stands in each "
        f"chapter. Page by dmoerm {version('dmoerm')}."
    )
    table = Table("", columns, tuple(rows), caption)
    recipes = [section_html(recipe) for chapter in chapters.values() for recipe in chapter.recipes]
    return f'<div class="chapter"><h2 id={anchor}>Where this comes from</h2>{section_html(table)}{"".join(recipes)}</div>'


# --- CSV ----------------------------------------------------------------------------------------------------------------------------------


def _csv_text(header: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _slug(title: str) -> str:
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")[:60].strip("-") or "plot"


def _quoted(link: str) -> str:
    from urllib.parse import quote

    return quote(link)
