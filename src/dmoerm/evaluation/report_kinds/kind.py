"""What a kind of result is to the report: how its JSON is read, and what its chapter says. A kind computes nothing."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dmoerm.errors import DataError, DmoermError
from dmoerm.evaluation.bootstrap import FEW_PROMPTS
from dmoerm.evaluation.sections import Folded, Measured, Section

__all__ = ["Chapter", "Headline", "Made", "Part", "ReportKind", "Run", "few_prompts", "owned", "parsed", "several_parts"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run:
    """One result on the page.

    Attributes:
        name: what the page calls it; no two of a kind have one name.
        source: the file or folder that it came from.
        dated: the day on which that file was written, as 2026-11-28.
        found: the result, of the type that the kind reads.
    """

    name: str
    source: str
    dated: str
    found: Any


@dataclass(frozen=True, slots=True)
class Headline:
    """A line of the summary.

    Attributes:
        what: the figure in words.
        of: whose it is.
        value: with its interval, or as text where there is none.
        on: what it was measured on, with its n.
    """

    what: str
    of: str
    value: Measured | str
    on: str


@dataclass(frozen=True, slots=True)
class Made:
    """What the numbers of a run were made with; "" where the result does not say."""

    run: str
    version: str
    seed: str
    intervals: str


@dataclass(frozen=True, slots=True)
class Part:
    """Sections under one heading; "" where the chapter has one part only."""

    title: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Chapter:
    """All runs of one kind: what goes into the summary, its own parts, and recipes for the end of the page."""

    headlines: tuple[Headline, ...]
    warnings: tuple[str, ...]
    made: tuple[Made, ...]
    parts: tuple[Part, ...]
    recipes: tuple[Folded, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportKind:
    """A row of the table.

    Attributes:
        title: heading of the chapter.
        made_by: the command whose result it is, for messages.
        chapter: of one or more runs.
        read: a JSON document to the result; a DataError says why it is none. None where the result is a folder.
    """

    title: str
    made_by: str
    chapter: Callable[[Sequence[Run]], Chapter]
    read: Callable[[Mapping[str, Any]], Any] | None = None


def parsed(result_type: type[T], value: Mapping[str, Any]) -> T:
    """A result from its JSON. Keys that the type does not have are passed over, so that a newer version may add some.

    Args:
        result_type: a dataclass whose fields have the names and the types of the document.
        value: the document.

    Raises:
        DataError: the first things that are missing or of another type.
    """
    try:
        return TypeAdapter(result_type).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        words = [f"{'.'.join(map(str, problem['loc'])) or 'the whole'}: {_reason(problem['msg'])}" for problem in problems[:3]]
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DataError("; ".join(words) + more) from None
    except DmoermError as error:
        raise DataError(str(error)) from None


def _reason(message: str) -> str:
    return "is missing" if message == "Field required" else message[:1].lower() + message[1:]


def several_parts(runs: Sequence[Run], together: Sequence[Section], sections_of: Callable[[Run], Sequence[Section]]) -> tuple[Part, ...]:
    """One run: its sections. Several: what stands side by side, then each by its name."""
    if len(runs) == 1:
        return (Part("", tuple(sections_of(runs[0]))),)
    return (Part("Side by side", tuple(together)), *(Part(run.name, tuple(sections_of(run))) for run in runs))


def owned(name: str, run: Run, runs: Sequence[Run]) -> str:
    """What a result calls a model; where the page has several results of the kind, with the name of this one."""
    return name if len(runs) == 1 or name.startswith(run.name) else f"{name} ({run.name})"


def few_prompts(name: str, prompts: int) -> list[str]:
    """A warning where an interval over prompts is known to be too narrow."""
    return [f"{name}: {prompts:,} prompts, fewer than {FEW_PROMPTS}; its intervals are too narrow."] if prompts < FEW_PROMPTS else []
