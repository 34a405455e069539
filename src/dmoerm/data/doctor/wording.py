"""How the doctor writes figures: counts with thousands, shares in percent, intervals in brackets."""

from dmoerm.data.doctor.share import Share

__all__ = ["counted", "part", "percent", "share_text"]


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def part(count: int, total: int, noun: str, plural: str | None = None) -> str:
    """So many of so many: "3 of 1,200 pairs (0.3%)"."""
    return f"{count:,} of {counted(total, noun, plural)} ({percent(count / total if total else 0.0)})"


def percent(value: float) -> str:
    """A share as a percentage, with a decimal where it is near 0 or 1; never 0% for something, nor 100% for less than all."""
    if value in (0.0, 1.0):
        return f"{value:.0%}"
    if value < 0.001:
        return "<0.1%"
    if value > 0.999:
        return ">99.9%"
    return f"{value:.1%}" if value < 0.1 or value > 0.9 else f"{value:.0%}"


def share_text(share: Share) -> str:
    """A share with its interval: "68% [66, 70]"."""
    return f"{percent(share.value)} [{100 * share.low:.0f}, {100 * share.high:.0f}]"
