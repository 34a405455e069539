"""The parts a report page is made of, and the HTML of each.

A section is a small dataclass of plain data; `section_html` turns it into markup. All text that came from outside is escaped, control
characters are shown as a replacement sign, and each number of a chart also stands in a table; `plot_numbers` gives the same in full.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dmoerm.errors import DataError
from dmoerm.evaluation.charts import Line, Scale, bar, bar_axis, legend_mark, line_plot, nice_scale, number_text
from dmoerm.records import Message, Reward

__all__ = [
    "Bar",
    "Bars",
    "Cell",
    "Curve",
    "Explanation",
    "Folded",
    "Headlines",
    "Heat",
    "Measured",
    "Section",
    "Series",
    "Table",
    "Text",
    "Warnings",
    "plot_numbers",
    "section_html",
    "text_html",
]


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure with its interval, for a table cell."""

    value: float
    low: float
    high: float


Cell = str | int | float | Measured | None


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs of plain text."""

    title: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Headlines:
    """The figures to remember, large: each with what it is, and on what it was measured. A text stands where there is no single figure."""

    title: str
    rows: tuple[tuple[Measured | str, str, str], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Warnings:
    """What a reader must know before believing the figures; without texts, that there is nothing."""

    title: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Folded:
    """A long text that opens on a click, such as a recipe, in the lines that it has."""

    title: str
    summary: str
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; floats are shown to three decimals, a `Measured` with its interval beneath, None as a dash.

    Raises:
        DataError: a row has another length than `columns`.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.columns):
                raise DataError(f"Table {self.title!r}, row {number}: {len(row)} cells; expected {len(self.columns)}, one a column.")


@dataclass(frozen=True, slots=True)
class Heat:
    """A table of shares, shaded the more the nearer they are to 1; each row has a name and one share (or None) a column.

    Raises:
        DataError: a row has another length than `columns`, or a share is not between 0 and 1.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Measured | None, ...]], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        for name, shares in self.rows:
            if len(shares) != len(self.columns):
                raise DataError(f"Heat {self.title!r}, row {name!r}: {len(shares)} shares; expected {len(self.columns)}, one a column.")
            for share in shares:
                if share is not None and not 0.0 <= share.value <= 1.0:
                    raise DataError(f"Heat {self.title!r}, row {name!r}: {share.value}; expected a share between 0 and 1.")


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; `interval` is drawn as whiskers, `strong` sets it apart from the others."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars that grow from `origin`: 0, or for an accuracy 0.5, so that a bar's length is what is better than chance.

    Raises:
        DataError: no bars, or a number that is not finite.
    """

    title: str
    bars: tuple[Bar, ...]
    origin: float = 0.0
    value_name: str = "value"
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.bars:
            raise DataError(f"Bars {self.title!r} has no bar; expected at least one.")
        for item in self.bars:
            _require_finite(f"Bars {self.title!r}, {item.label!r}", (item.value, *(item.interval or ())))


@dataclass(frozen=True, slots=True)
class Series:
    """One named line; `low` and `high` make a band where given.

    `style` is the number of its colour and dash; None takes its place in the plot. Give it where one name stands in several plots.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    style: int | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """A line plot.

    Attributes:
        title: heading.
        x_name: under the plot.
        y_name: above it.
        series: the lines.
        caption: under the legend.
        shaded: whether bands are drawn; over many lines they hide each other, and stand in the numbers alone.

    Raises:
        DataError: no series, a series without points, columns of unequal length, or a number that is not finite.
    """

    title: str
    x_name: str
    y_name: str
    series: tuple[Series, ...]
    caption: str = ""
    shaded: bool = True

    def __post_init__(self) -> None:
        if not self.series:
            raise DataError(f"Curve {self.title!r} has no series; expected at least one.")
        for item in self.series:
            where = f"Curve {self.title!r}, series {item.name!r}"
            lengths = [len(item.x), len(item.y), len(item.low) or len(item.x), len(item.high) or len(item.x)]
            if not item.x or len(set(lengths)) > 1 or bool(item.low) != bool(item.high):
                raise DataError(
                    f"{where}: x, y, low, high have lengths {lengths}; expected one length, at least 1, and both bands or none."
                )
            _require_finite(where, (*item.x, *item.y, *item.low, *item.high))


@dataclass(frozen=True, slots=True)
class Explanation:
    """One prompt, its responses, and why one of them wins.

    Attributes:
        title: heading.
        prompt: the conversation up to the responses.
        responses: their texts.
        rewards: one a response, None where scoring failed.
        human_ranks: people's ranks, 1 is best; empty where unknown.
        note: a sentence under the heading.

    Raises:
        DataError: no response, the lengths differ, or a reward is not finite.
    """

    title: str
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    rewards: tuple[Reward | None, ...]
    human_ranks: tuple[int, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        expected = len(self.responses)
        if expected == 0 or len(self.rewards) != expected or len(self.human_ranks) not in (0, expected):
            raise DataError(
                f"Explanation {self.title!r}: {expected} responses, {len(self.rewards)} rewards, {len(self.human_ranks)} ranks; "
                "expected at least one response, a reward for each, and as many ranks or none."
            )
        for reward in self.rewards:
            if reward is not None:
                _require_finite(f"Explanation {self.title!r}", (reward.reward, reward.uncertainty, *reward.capabilities.values()))


Section = Text | Headlines | Warnings | Folded | Table | Heat | Bars | Curve | Explanation

_QUIET = 7  # the colour of what should stand back; responses take turns with those before it


def section_html(section: Section, *, level: int = 2, anchor: str = "", foot: str = "") -> str:
    """The markup of a section, heading included.

    Args:
        section: what to show.
        level: of the heading, 2 to 5.
        anchor: where a link of the same page leads; letters and digits. "" for none.
        foot: markup to put at its end.
    """
    match section:
        case Text():
            body = "".join(f"<p>{text_html(paragraph)}</p>" for paragraph in section.paragraphs)
        case Headlines():
            body = _headlines(section) + _caption(section.caption)
        case Warnings():
            body = _warnings(section)
        case Folded():
            body = f'<details><summary>{text_html(section.summary)}</summary><pre tabindex="0">{text_html(section.text)}</pre></details>'
        case Table():
            body = _table(section.columns, section.rows, section.title) + _caption(section.caption)
        case Heat():
            body = _heat(section) + _caption(section.caption)
        case Bars():
            body = _bars(section)
        case Curve():
            body = _curve(section)
        case Explanation():
            body = _explanation(section)
    heading = f"<h{level}>{text_html(section.title)}</h{level}>" if section.title else ""
    return f"<section{f' id={anchor}' if anchor else ''}>{heading}{body}{foot}</section>"


def plot_numbers(section: Section) -> tuple[tuple[str, ...], list[tuple[str | float, ...]]] | None:
    """Header and rows of all numbers that a plot draws, unrounded; "" where there is none. None for a section that is no plot."""
    match section:
        case Bars():
            ends = [item.interval or ("", "") for item in section.bars]
            rows: list[tuple[str | float, ...]] = [(item.label, item.value, *end) for item, end in zip(section.bars, ends, strict=True)]
            return ("name", section.value_name, "low", "high"), rows
        case Curve():
            found: list[tuple[str | float, ...]] = []
            for item in section.series:
                bands: Sequence[tuple[str | float, str | float]] = (
                    list(zip(item.low, item.high, strict=True)) if item.low else [("", "")] * len(item.x)
                )
                found += [(item.name, x, y, *band) for x, y, band in zip(item.x, item.y, bands, strict=True)]
            return ("series", section.x_name, section.y_name, "low", "high"), found
        case Heat():
            cells = [(name, column, share) for name, shares in section.rows for column, share in zip(section.columns, shares, strict=True)]
            return ("row", "column", "share", "low", "high"), [
                (name, column, *(("", "", "") if share is None else (share.value, share.low, share.high))) for name, column, share in cells
            ]
        case _:
            return None


def text_html(text: str) -> str:
    """Text from outside, safe between tags and in quoted attributes; control characters and lone surrogates are replaced."""
    return escape(_printable(text))


def _printable(text: str) -> str:
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def _require_finite(where: str, values: Sequence[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise DataError(f"{where}: {value} cannot be drawn; expected finite numbers. Leave the failed item out and say so.")


def _caption(text: str) -> str:
    return f'<p class="note">{text_html(text)}</p>' if text else ""


def _cell(value: Cell) -> str:
    if value is None:
        return '<td class="number">\N{EN DASH}</td>'
    if isinstance(value, Measured):
        interval = _interval_text((value.low, value.high))
        return f'<td class="number">{_signed_text(value.value)}<br><span class="interval">{interval}</span></td>'
    if isinstance(value, str):
        return f'<td dir="auto">{text_html(value)}</td>'
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
    return f'<td class="number">{text.replace("-", chr(0x2212))}</td>'


def _headlines(section: Headlines) -> str:
    items = ""
    for value, what, on in section.rows:
        figure = (
            f'<strong>{_signed_text(value.value)}</strong> <span class="interval">{_interval_text((value.low, value.high))}</span>'
            if isinstance(value, Measured)
            else f'<strong class="text">{text_html(value)}</strong>'
        )
        items += f'<li><div class="figure">{figure}</div><div>{text_html(what)}</div><div class="quiet">{text_html(on)}</div></li>'
    return f'<ul class="headlines">{items}</ul>'


def _warnings(section: Warnings) -> str:
    if not section.texts:
        return "<p>None: enough prompts, nothing failed, nothing left out.</p>"
    return f'<ul class="warnings">{"".join(f"<li>{text_html(text)}</li>" for text in section.texts)}</ul>'


def _scroll(name: str, table: str) -> str:
    """A box that scrolls sideways by itself, by finger, wheel or (it takes the focus) arrow keys."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text_html(name or "table")}">{table}</div>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], name: str) -> str:
    numeric = [bool(rows) and all(not isinstance(row[index], str) for row in rows) for index in range(len(columns))]
    head = "".join(
        f'<th scope="col"{" class=number" if is_number else ""}>{text_html(name)}</th>'
        for name, is_number in zip(columns, numeric, strict=True)
    )
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return _scroll(name, f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _heat(section: Heat) -> str:
    head = "".join(f'<th scope="col" class="number">{text_html(name)}</th>' for name in section.columns)
    body = "".join(f'<tr><td dir="auto">{text_html(name)}</td>{"".join(map(_heat_cell, shares))}</tr>' for name, shares in section.rows)
    return _scroll(section.title, f'<table class="heat"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>')


def _heat_cell(share: Measured | None) -> str:
    step = 0 if share is None else round(10 * share.value)
    return _cell(share).replace('class="number"', f'class="number h{step}"', 1)


def _signed_text(value: float, *, plus: bool = False, digits: int = 3) -> str:
    rounded = round(value, digits) or 0.0  # no minus before a zero
    return f"{rounded:{'+' if plus else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _interval_text(interval: tuple[float, float] | None) -> str:
    return f"[{_signed_text(interval[0])}, {_signed_text(interval[1])}]" if interval else ""


def _bars(section: Bars) -> str:
    scale = nice_scale([section.origin, *(edge for item in section.bars for edge in (item.value, *(item.interval or ())))])
    any_strong = any(item.strong for item in section.bars)
    rows = "".join(_bar_row(item, scale, section.origin, 0 if item.strong or not any_strong else _QUIET) for item in section.bars)
    foot = f'<tr class="foot"><td></td><td class="chart">{bar_axis(scale)}</td><td></td></tr>'
    head = f'<th></th><th></th><th scope="col" class="number">{text_html(section.value_name)}</th>'
    table = f'<table class="bars"><thead><tr>{head}</tr></thead><tbody>{rows}{foot}</tbody></table>'
    return table + _caption(section.caption)


def _bar_row(item: Bar, scale: Scale, origin: float, color: int) -> str:
    chart = bar(item.value, scale, origin=origin, interval=item.interval, color=color)
    label = f"<strong>{text_html(item.label)}</strong>" if item.strong else text_html(item.label)
    number = f'{_signed_text(item.value)} <span class="interval">{_interval_text(item.interval)}</span>'
    return f'<tr><th scope="row" dir="auto">{label}</th><td class="chart">{chart}</td><td class="number">{number}</td></tr>'


def _curve(section: Curve) -> str:
    every_x = [x for item in section.series for x in item.x]
    x_scale = nice_scale(every_x, whole=all(x == round(x) for x in every_x))
    bands = [(item.low, item.high) if section.shaded else ((), ()) for item in section.series]
    y_scale = nice_scale([y for item, band in zip(section.series, bands, strict=True) for y in (*item.y, *band[0], *band[1])])
    styles = [index if item.style is None else item.style for index, item in enumerate(section.series)]
    lines = [Line(item.x, item.y, *band, style) for item, band, style in zip(section.series, bands, styles, strict=True)]
    plot = line_plot(lines, x_scale, y_scale, _printable(_curve_words(section)))
    keys = "".join(f"<li>{legend_mark(style)}{text_html(item.name)}</li>" for item, style in zip(section.series, styles, strict=True))
    return (
        f'<figure><p class="axis-name">{text_html(section.y_name)}</p><div class="plot-box">{plot}</div>'
        f'<p class="axis-name below">{text_html(section.x_name)}</p><ul class="legend">{keys}</ul></figure>'
        f"{_caption(section.caption)}<details><summary>Numbers</summary>{_curve_table(section)}</details>"
    )


def _curve_words(section: Curve) -> str:
    """What a screen reader says of the plot: each line by its ends and its highest point."""
    lines = []
    for item in section.series:
        top = max(range(len(item.y)), key=item.y.__getitem__)
        ends = f"from {number_text(item.y[0])} at {number_text(item.x[0])} to {number_text(item.y[-1])} at {number_text(item.x[-1])}"
        inside = f", highest {number_text(item.y[top])} at {number_text(item.x[top])}" if 0 < top < len(item.y) - 1 else ""
        lines.append(f"{item.name} {ends}{inside}")
    return f"{section.y_name} against {section.x_name}: {'; '.join(lines)}. All numbers are in the table below."


def _curve_table(section: Curve) -> str:
    has_band = any(item.low for item in section.series)
    columns = ["series", section.x_name, section.y_name, *(["low", "high"] if has_band else [])]
    rows: list[list[Cell]] = []
    for item in section.series:
        for index, (x, y) in enumerate(zip(item.x, item.y, strict=True)):
            band: list[Cell] = [item.low[index], item.high[index]] if item.low else [None, None]
            rows.append([item.name, number_text(x), y, *(band if has_band else [])])
    return _table(columns, rows, f"Numbers of {section.title}")


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _explanation(section: Explanation) -> str:
    scored = [reward.reward for reward in section.rewards if reward is not None]
    winners = {index for index, reward in enumerate(section.rewards) if reward is not None and reward.reward == max(scored)}
    turns = "".join(_turn(message) for message in section.prompt)
    cards = "".join(_card(section, index, winners) for index in range(len(section.responses)))
    return (
        f'{_caption(section.note)}<div class="prompt">{turns}</div>{_verdict(section, winners)}<div class="cards">{cards}</div>'
        f"{_capabilities(section.rewards)}"
    )


def _turn(message: Message) -> str:
    words = f'<div class="words" dir="auto">{text_html(message.content)}</div>'
    return f'<div class="turn"><span class="role">{text_html(message.role)}</span>{words}</div>'


def _verdict(section: Explanation, winners: set[int]) -> str:
    ranked = sorted((reward.reward for reward in section.rewards if reward is not None), reverse=True)
    if not ranked:
        return '<p class="verdict">No response could be scored.</p>'
    if len(winners) > 1:
        return f'<p class="verdict">Tied: {", ".join(_letter(index) for index in sorted(winners))} have the same reward.</p>'
    letter = _letter(next(iter(winners)))
    if len(ranked) == 1:
        return f'<p class="verdict">{letter} is the only response with a reward.</p>'
    margin = ranked[0] - ranked[1]
    chance = 100.0 / (1.0 + math.exp(-margin))
    chance_text = f"{chance:.0f}" if chance < 99.0 else "99 or more"
    return (
        f'<p class="verdict"><strong>{letter} wins.</strong> Its reward is {margin:.2f} above the next one: '
        f"by the model's own odds it is preferred in {chance_text} % of such cases.</p>"
    )


def _card(section: Explanation, index: int, winners: set[int]) -> str:
    reward = section.rewards[index]
    badge = f'<span class="badge">{"winner" if len(winners) == 1 else "tied"}</span>' if index in winners else ""
    rank = f'<span class="rank">people: rank {section.human_ranks[index]}</span>' if section.human_ranks else ""
    facts = '<p class="facts">could not be scored</p>' if reward is None else _facts(reward)
    words = f'<div class="words" dir="auto" tabindex="0">{text_html(section.responses[index])}</div>'
    header = f'<header><span class="letter c{index % _QUIET} solid">{_letter(index)}</span>{badge}{rank}</header>'
    return f'<article class="card{" won" if index in winners else ""}">{header}{facts}{words}</article>'


def _facts(reward: Reward) -> str:
    cut = " · cut to fit" if reward.truncated else ""
    return (
        f'<p class="facts"><strong>{_signed_text(reward.reward, plus=True, digits=2)}</strong> ± {reward.uncertainty:.2f}<br>'
        f'<span class="quiet">{text_html(reward.category)} ({100 * reward.category_probability:.0f} %){cut}</span></p>'
    )


def _capabilities(rewards: Sequence[Reward | None]) -> str:
    names = list(dict.fromkeys(name for reward in rewards if reward is not None for name in reward.capabilities))
    if not names:
        return ""
    table: Mapping[str, Sequence[tuple[int, float]]] = {
        name: [(i, reward.capabilities[name]) for i, reward in enumerate(rewards) if reward is not None and name in reward.capabilities]
        for name in names
    }
    scale = nice_scale([0.0, *(value for values in table.values() for _, value in values)])
    groups = "".join(_capability_rows(name, values, scale) for name, values in table.items())
    foot = f'<tr class="foot"><td></td><td class="chart">{bar_axis(scale)}</td><td></td></tr>'
    return f'<h3>By capability</h3><table class="bars capabilities"><tbody>{groups}{foot}</tbody></table>' + _caption(
        "Standardised: 0 is the average response of the category, 1 is one standard deviation above it. "
        "The number behind ± is the standard deviation of the reward over resampled aggregators."
    )


def _capability_rows(name: str, values: Sequence[tuple[int, float]], scale: Scale) -> str:
    head = f'<tr class="group"><th scope="rowgroup" colspan="3">{text_html(name.replace("_", " "))}</th></tr>'
    rows = "".join(
        f'<tr><th scope="row"><span class="letter small c{index % _QUIET} solid">{_letter(index)}</span></th>'
        f'<td class="chart">{bar(value, scale, color=index % _QUIET)}</td>'
        f'<td class="number">{_signed_text(value, plus=True, digits=2)}</td></tr>'
        for index, value in values
    )
    return head + rows
