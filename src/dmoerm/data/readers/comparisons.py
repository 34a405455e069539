"""Preference files to comparisons: a dict of formats, and the choice among them by the keys of the first rows."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dmoerm.data.files import scan_file
from dmoerm.data.jsonl import Row, map_rows
from dmoerm.data.readers import (
    arena,
    helpsteer2,
    helpsteer2_preference,
    helpsteer3,
    hh,
    judge_bench,
    judgements,
    llama_factory_alpaca,
    llama_factory_sharegpt,
    ms_swift,
    mtmc,
    native,
    pairs,
    reward_bench,
    reward_bench_2,
    rm_bench,
    trl,
    ultrafeedback,
)
from dmoerm.data.readers.fields import explain_missing
from dmoerm.data.readers.helpsteer2 import RatedResponse
from dmoerm.data.readers.outcome import LeftOut
from dmoerm.errors import ConfigError, DataError
from dmoerm.records import Comparison
from dmoerm.validation import did_you_mean

__all__ = ["FORMATS", "RANK_ORDERS", "Format", "ReadResult", "read_comparisons"]

RANK_ORDERS = ("smaller_is_better", "larger_is_better")

_SNIFFED_ROWS = 20


def _no_misfit(data: Mapping[str, Any]) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Format:
    """One file format.

    Attributes:
        required: the keys by which it is known.
        read_row: makes a comparison of a row, or says why it is none.
        misfit: why a row with these keys is of another format all the same; "" where it is of this one.
        compare: where a row holds one response, makes a comparison of the rows that follow each other with the same prompt.
        either_order: `rank_order` applies, because the source does not settle which end of its ranks is better.
        own_categories: its categories are the source's: one that the taxonomy lacks is dropped and counted instead of refused.
    """

    required: tuple[str, ...]
    read_row: Callable[[Row, Path], Comparison | LeftOut | RatedResponse]
    misfit: Callable[[Mapping[str, Any]], str] = _no_misfit
    compare: Callable[[Sequence[RatedResponse]], Comparison | LeftOut] | None = None
    either_order: bool = False
    own_categories: bool = False

    def fits(self, data: Mapping[str, Any]) -> bool:
        """Whether a row is of this format, by its keys."""
        return all(key in data for key in self.required) and not self.misfit(data)

    def mismatch(self, data: Mapping[str, Any]) -> str:
        """Why a row is not of this format; "" where it is."""
        return explain_missing(data, self.required) or self.misfit(data)


# Where two formats fit a row, the earlier one is taken: most of them are TRL rows with more keys.
FORMATS: dict[str, Format] = {
    "native": Format(native.REQUIRED, native.read_row),
    "pairs": Format(pairs.REQUIRED, pairs.read_row),
    "judgements": Format(judgements.REQUIRED, judgements.read_row),
    "ultrafeedback": Format(ultrafeedback.REQUIRED, ultrafeedback.read_row),
    "helpsteer2": Format(helpsteer2.REQUIRED, helpsteer2.read_row, compare=helpsteer2.compare),
    "helpsteer2_preference": Format(helpsteer2_preference.REQUIRED, helpsteer2_preference.read_row),
    "helpsteer3": Format(helpsteer3.REQUIRED, helpsteer3.read_row),
    "reward_bench_2": Format(reward_bench_2.REQUIRED, reward_bench_2.read_row),
    "reward_bench": Format(reward_bench.REQUIRED, reward_bench.read_row),
    "rm_bench": Format(rm_bench.REQUIRED, rm_bench.read_row, rm_bench.misfit),
    "judge_bench": Format(judge_bench.REQUIRED, judge_bench.read_row),
    "arena": Format(arena.REQUIRED, arena.read_row),
    "llama_factory_alpaca": Format(llama_factory_alpaca.REQUIRED, llama_factory_alpaca.read_row, llama_factory_alpaca.misfit),
    "llama_factory_sharegpt": Format(llama_factory_sharegpt.REQUIRED, llama_factory_sharegpt.read_row),
    "ms_swift": Format(ms_swift.REQUIRED, ms_swift.read_row, ms_swift.misfit),
    "mtmc": Format(mtmc.REQUIRED, mtmc.read_row, either_order=True, own_categories=True),
    "hh": Format(hh.REQUIRED, hh.read_row, hh.misfit),
    "trl": Format(trl.REQUIRED, trl.read_row),
}


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a preference file held.

    Attributes:
        comparisons: in the order of the file.
        format: the name of the format it was read with (for a file without a usable row, the first of `FORMATS`).
        rows: good rows and bad ones.
        rejected: bad rows that were skipped.
        rejected_path: where they were written, or None.
        left_out: good rows that hold no comparison, by reason.
    """

    comparisons: list[Comparison]
    format: str
    rows: int
    rejected: int
    rejected_path: Path | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_comparisons(
    path: str | os.PathLike[str],
    format: str = "auto",
    bad_rows: str = "stop",
    rejected_dir: str | os.PathLike[str] | None = None,
    rank_order: str = RANK_ORDERS[0],
) -> ReadResult:
    """Read a file of preferences: JSON lines, a JSON array, Parquet, CSV, or a data set of the Hub (see `dmoerm.locations`).

    Args:
        path: the file, or a `hub:` name.
        format: a name of `FORMATS`, or "auto" for the one that most of the first rows fit.
        bad_rows: "stop" raises an error that lists the first bad rows, "skip" leaves them out and counts them.
        rejected_dir: folder for `<stem>.rejected.jsonl` with the skipped rows; None writes nothing.
        rank_order: which end of the ranks is better in formats that leave it open (mtmc), one of `RANK_ORDERS`.

    Raises:
        ConfigError: no such format, policy or order.
        DataError: the file cannot be read or fits no format; with "stop" also for bad rows. An id used twice makes a bad row.
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        raise ConfigError(f"format is {format!r}; expected auto, {', '.join(FORMATS)}{_nearest(format)}.")
    if rank_order not in RANK_ORDERS:
        raise ConfigError(f"rank_order is {rank_order!r}; expected {' or '.join(RANK_ORDERS)}.")
    name = _detect(path) if format == "auto" else format
    chosen = FORMATS[name]
    used: dict[str, str] = {}

    def convert(row: Row) -> Comparison | LeftOut | RatedResponse:
        item = chosen.read_row(row, path)
        if isinstance(item, Comparison):
            first = used.setdefault(item.id, row.where)
            if first != row.where:
                place = f"line {first}" if first.isdigit() else first
                raise DataError(f'"id" {item.id!r} is already used in {place}; expected each id once.')
            if chosen.either_order and rank_order != RANK_ORDERS[0]:
                return _turned_round(item)
        return item

    mapped = map_rows(path, convert, bad_rows, rejected_dir, scan_file)
    comparisons: list[Comparison] = []
    left_out: Counter[str] = Counter()
    for item in _compared(chosen, mapped.items):
        if isinstance(item, LeftOut):
            left_out[item.reason] += 1
        else:
            comparisons.append(item)
    return ReadResult(comparisons, name, mapped.rows, mapped.rejected, mapped.rejected_path, left_out)


def _compared(format: Format, items: Iterable[Comparison | LeftOut | RatedResponse]) -> Iterator[Comparison | LeftOut]:
    rated: list[RatedResponse] = []
    for item in items:
        if isinstance(item, RatedResponse):
            rated.append(item)
        else:
            yield item
    if format.compare is not None:
        for _, group in itertools.groupby(rated, key=lambda row: row.prompt):
            yield format.compare(list(group))


def _turned_round(comparison: Comparison) -> Comparison:
    return replace(comparison, ranks=tuple(max(comparison.ranks) + 1 - rank for rank in comparison.ranks))


def _detect(path: Path) -> str:
    """The format that fits most of the first rows; where there is no good row to look at, the first format will do."""
    rows = list(itertools.islice((row for row in scan_file(path) if isinstance(row, Row)), _SNIFFED_ROWS))
    if not rows:
        return next(iter(FORMATS))
    fits = Counter(filter(None, map(_first_fit, rows)))
    if fits:
        return fits.most_common(1)[0][0]
    first = rows[0]
    tried = [f"  {name}: {format.mismatch(first.data)}" for name, format in FORMATS.items()]
    found = ", ".join(f'"{key}"' for key in first.data) or "none"
    raise DataError(f"{path}:{first.where}: fits no known format. Its keys: {found}. Tried:\n" + "\n".join(tried))


def _first_fit(row: Row) -> str | None:
    return next((name for name, format in FORMATS.items() if format.fits(row.data)), None)


def _nearest(name: str) -> str:
    near = did_you_mean(name, FORMATS)
    return near.removesuffix("?") if "did you mean" in near else ""
