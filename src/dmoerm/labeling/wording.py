"""How label reports write figures: shares as the doctor does, differences with their sign, lists of names cut short."""

from collections.abc import Sequence

from dmoerm.data.doctor.share import Share
from dmoerm.data.doctor.wording import share_text
from dmoerm.labeling.draws import Figure

__all__ = ["figure_text", "listed", "percent_text", "signed_percent_text", "size_text"]

_LISTED = 6


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:_LISTED]) + (" …" if len(names) > _LISTED else "")


def figure_text(found: Figure | None, *, signed: bool = False) -> str:
    """A figure with its interval, two decimals: "0.75 [0.73, 0.77]"."""
    if found is None:
        return "-"
    value, low, high = (f"{number:{'+' if signed else ''}.2f}" for number in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def percent_text(found: Figure | None) -> str:
    """A share that comes from draws, as `share_text` writes plain ones: "2.4% [2, 3]"."""
    return "-" if found is None else share_text(Share(found.value, found.low, found.high, found.n, found.n_prompts))


def signed_percent_text(found: Figure | None) -> str:
    """A difference of shares, or one that may be negative: "+2.4 [+1.6, +3.1]", in percent."""
    if found is None:
        return "-"
    value, low, high = (f"{100 * number:+.1f}" for number in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def size_text(found: Figure) -> str:
    """A signed share without its sign: "7.1% [5, 9]"; the interval starts at 0 where the sign is open."""
    ends = sorted((abs(found.low), abs(found.high)))
    low = ends[0] if found.apart_from(0.0) else 0.0
    return share_text(Share(abs(found.value), low, ends[1], found.n, found.n_prompts))
