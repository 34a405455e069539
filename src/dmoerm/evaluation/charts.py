"""Small inline SVG charts that fit any width: plain strings, no script, no library.

Positions are percentages and sizes of text and lines are pixels, so a chart is as readable at 360 px as on a wide screen. Colours are
the CSS classes `c0` … `c7`, which the page of `report` defines for light and dark; lines differ in their dashes as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dmoerm.errors import DataError

__all__ = ["N_COLORS", "Line", "Scale", "bar", "bar_axis", "legend_mark", "line_plot", "nice_scale", "number_text"]

N_COLORS = 8
_DASHES = ("none", "6 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2", "1 2", "8 2 2 2 2 2")


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear axis from `low` to `high` with labelled ticks between."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def percent(self, value: float) -> float:
        """Where a value lies, 0 at `low` to 100 at `high`; values outside stay at the edge."""
        return min(100.0, max(0.0, 100.0 * (value - self.low) / (self.high - self.low)))


@dataclass(frozen=True, slots=True)
class Line:
    """A polyline; `low` and `high`, where given, are drawn as a band around it. Colour and dash are those of number `style`."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: int = 0


def nice_scale(values: Sequence[float], *, wanted_ticks: int = 6, whole: bool = False) -> Scale:
    """An axis over all values, ending at round numbers.

    Args:
        values: finite numbers; equal ones get room on both sides.
        wanted_ticks: about how many ticks, at least 2.
        whole: ticks at whole numbers only, for what is counted.

    Returns:
        A scale whose first and last ticks are its ends.

    Raises:
        DataError: no values, or one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise DataError(f"A chart got {len(values)} values, or one that is not finite; expected at least one, all finite.")
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)) or high == low:
        room = 1.0 if whole else abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    raw_step = (high - low) / max(1, wanted_ticks - 1)
    magnitude = 10.0 ** math.floor(math.log10(raw_step))
    step = next(factor * magnitude for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * magnitude >= raw_step * 0.999)
    step = math.ceil(step) if whole else step
    # A millionth of slack, so that 0.30000000000000004 does not ask for one more tick.
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    ticks = tuple(round(number * step, 12) for number in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def number_text(value: float) -> str:
    """A tick or point as people write it: 0.25, 1,200, −0.5; never an exponent between a thousandth and a million."""
    text = f"{value:,.6g}" if 1e-3 <= abs(value) < 1e6 or value == 0 else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def bar(value: float, scale: Scale, *, origin: float = 0.0, interval: tuple[float, float] | None = None, color: int = 0) -> str:
    """One horizontal bar from `origin` to `value`, with whiskers from end to end of `interval`.

    Hidden from screen readers: the table row that holds the bar gives the numbers.
    """
    start, end, zero = sorted((scale.percent(origin), scale.percent(value))), scale.percent(value), scale.percent(origin)
    grid = "".join(_vertical(scale.percent(tick), "grid") for tick in scale.ticks)
    body = f'<rect class="c{color % N_COLORS} fill" x="{start[0]:.2f}%" width="{start[1] - start[0]:.2f}%" y="22%" height="56%" rx="1.5"/>'
    point = f'<circle class="ink" cx="{end:.2f}%" cy="50%" r="2.5"/>' if interval else ""
    whisker = _whisker(*(scale.percent(edge) for edge in interval)) if interval else ""
    return f'<svg class="bar" aria-hidden="true">{grid}{body}{_vertical(zero, "axis")}{whisker}{point}</svg>'


def bar_axis(scale: Scale) -> str:
    """The numbers under a column of bars."""
    return f'<svg class="bar-axis" aria-hidden="true">{"".join(_tick_below(tick, scale, "14") for tick in scale.ticks)}</svg>'


def line_plot(lines: Sequence[Line], x_scale: Scale, y_scale: Scale, description: str) -> str:
    """Lines with bands over a grid; the caller prints names and axis titles as text around it.

    Args:
        lines: drawn in order.
        x_scale: horizontal axis.
        y_scale: vertical axis, its high end up.
        description: what a screen reader says; escaped here.

    Returns:
        An SVG element as wide as its container, whose margins (room for tick labels) are set by the page.
    """
    grid = "".join(
        [
            *(_horizontal(100.0 - y_scale.percent(tick), "grid") + _tick_left(tick, y_scale) for tick in y_scale.ticks),
            *(_vertical(x_scale.percent(tick), "grid") + _tick_below(tick, x_scale, "100%", "18") for tick in x_scale.ticks),
        ]
    )
    shapes = "".join(_band(line, x_scale, y_scale) for line in lines)
    shapes += "".join(_polyline(line, x_scale, y_scale) for line in lines)
    # Only shapes are stretched; text and dots outside this inner drawing keep their size.
    stretched = f'<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none">{shapes}</svg>'
    dots = "".join(_dots(line, x_scale, y_scale) for line in lines)
    return f'<svg class="plot" role="img" aria-label="{escape(description)}">{grid}{stretched}{dots}</svg>'


def legend_mark(style: int) -> str:
    """The look of lines of that style, for a legend."""
    return f'<svg class="mark" aria-hidden="true"><line x1="0" x2="100%" y1="50%" y2="50%" {_stroke(style)}/></svg>'


def _stroke(style: int) -> str:
    # The ninth line has the colour of the first, so it takes the dash of the second.
    dash = _DASHES[(style + style // N_COLORS) % len(_DASHES)]
    return f'class="c{style % N_COLORS} stroke" stroke-dasharray="{dash}"'


def _vertical(percent: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{percent:.2f}%" x2="{percent:.2f}%" y1="0" y2="100%"/>'


def _horizontal(percent: float, kind: str) -> str:
    return f'<line class="{kind}" x1="0" x2="100%" y1="{percent:.2f}%" y2="{percent:.2f}%"/>'


def _whisker(low: float, high: float) -> str:
    caps = "".join(f'<line class="whisker" x1="{end:.2f}%" x2="{end:.2f}%" y1="35%" y2="65%"/>' for end in (low, high))
    return f'<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>{caps}'


def _tick_below(tick: float, scale: Scale, y: str, dy: str = "0") -> str:
    return f'<text class="tick" x="{scale.percent(tick):.2f}%" y="{y}" dy="{dy}" text-anchor="middle">{number_text(tick)}</text>'


def _tick_left(tick: float, scale: Scale) -> str:
    return f'<text class="tick" x="0" dx="-8" y="{100.0 - scale.percent(tick):.2f}%" dy="4" text-anchor="end">{number_text(tick)}</text>'


def _points(x: Sequence[float], y: Sequence[float], x_scale: Scale, y_scale: Scale) -> str:
    pairs = zip(x, y, strict=True)
    return " ".join(f"{x_scale.percent(x_value):.3f},{100.0 - y_scale.percent(y_value):.3f}" for x_value, y_value in pairs)


def _band(line: Line, x_scale: Scale, y_scale: Scale) -> str:
    if not line.low:
        return ""
    outline = _points([*line.x, *reversed(line.x)], [*line.low, *reversed(line.high)], x_scale, y_scale)
    return f'<polygon class="c{line.style % N_COLORS} band" points="{outline}"/>'


def _polyline(line: Line, x_scale: Scale, y_scale: Scale) -> str:
    return f'<polyline {_stroke(line.style)} points="{_points(line.x, line.y, x_scale, y_scale)}"/>'


def _dots(line: Line, x_scale: Scale, y_scale: Scale) -> str:
    if len(line.x) > 30:
        return ""
    return "".join(
        f'<circle class="c{line.style % N_COLORS} fill" cx="{x_scale.percent(x):.2f}%" cy="{100.0 - y_scale.percent(y):.2f}%" r="3"/>'
        for x, y in zip(line.x, line.y, strict=True)
    )
