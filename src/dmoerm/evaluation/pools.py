"""Pools: one prompt, many candidate responses, and for each how good it really is (its gold score).

    {"prompt": str | [msg], "responses": [{"text": str, "gold"?: number | null, "model"?: str}], "id"? | "prompt_id"?, "category"?}
    {"instruction": str, "input"?: str, "answers": [str], "gold_scores"?: [number | null], "id"?, "category"?}

The second is the best-of-n file of llm_optimization, whose prompt is the instruction and, where it is not empty, the input on the next
line, as there. A pool is what a policy says, so an empty response is a member like any other. Scores that are missing in every response
are None (a gold model has to give them); a score that only some of them have is a mistake, unless it is null: that member is known to have
none. Nothing here scores anything; `RecordedRewards` gives back rewards that were kept in a file.

    {"candidates": hex SHA-256 of prompt and responses, "id": str, "rewards": [number | null]}
"""

import difflib
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmoerm.data.files import scan_file
from dmoerm.data.jsonl import Row, map_rows, write_rows
from dmoerm.data.readers.fields import (
    category_field,
    check_fields,
    list_value,
    message_texts,
    messages_field,
    name_field,
    number_value,
    object_value,
    sized_list,
    source_of,
    text_field,
)
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.scorers import Candidates, Rewards
from dmoerm.records import Message, prompt_hash

__all__ = ["KEPT_SUFFIX", "Pool", "RecordedRewards", "candidates_digest", "keep_rewards", "parse_filter", "read_pools"]

KEPT_SUFFIX = ".rewards.jsonl"
"""A file with such a name stands for the model whose rewards it holds."""

_NATIVE = ("prompt", "responses")
_ANSWERS = ("instruction", "answers")


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates for one prompt.

    Attributes:
        id: of the row, or "file:line".
        prompt: the conversation up to the response.
        responses: two or more texts, which may be empty.
        gold: one a response, higher is better; None where it has none.
        authors: who wrote each response, or None.
        category: of the row, or None.
        source: "file:line" for messages.
    """

    id: str
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    gold: tuple[float | None, ...]
    authors: tuple[str | None, ...]
    category: str | None = None
    source: str = ""

    @property
    def candidates(self) -> Candidates:
        """What a scorer is asked for."""
        return Candidates(self.prompt, self.responses)


def read_pools(
    path: str | os.PathLike[str],
    *,
    gold_column: str | None = None,
    only: Mapping[str, Collection[str]] | None = None,
    limit: int | None = None,
) -> list[Pool]:
    """The pools of a file, in order.

    Args:
        path: JSON lines, plain or gzip, or any other file that comparisons may come in.
        gold_column: key of the gold score (in each response; beside `answers` it is that of the list). None is `gold` or `gold_scores`,
            which may then be missing.
        only: keep the rows whose value of each key is one of those named; numbers and true, false, null are written as in JSON.
        limit: the first so many of them; None is all.

    Raises:
        DataError: a row that cannot be used, a prompt that comes twice, no row left.
    """
    path = Path(path)
    rows = map_rows(path, lambda row: (_kept(row, only or {}), _pool(row, path, gold_column)), scan=scan_file).items
    if not rows:
        raise DataError(f"{path}: no rows; expected pools of responses, one prompt a row.")
    pools = [pool for (keep, _), pool in rows if keep]
    if not pools:
        _refuse_filter(path, only or {}, [values for (_, values), _ in rows])
    _refuse_repeats(pools)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: {limit}; expected at least 1 prompt")
    return pools[:limit]


def parse_filter(texts: Sequence[str]) -> dict[str, set[str]]:
    """KEY=VALUE texts as the `only` of `read_pools`; a key given twice keeps both values.

    Raises:
        ConfigError: a text without a key or an equals sign.
    """
    wanted: dict[str, set[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--only {text}: expected KEY=VALUE, for example fold=4")
        wanted.setdefault(key, set()).add(value)
    return wanted


# --- rows -------------------------------------------------------------------------------------------------------------------------------


def _pool(row: Row, path: Path, gold_column: str | None) -> Pool:
    data = row.data
    if "answers" in data and "responses" not in data:
        check_fields(data, _ANSWERS, ("input", gold_column or "gold_scores", "category"))
        asked, more = text_field(data, "instruction"), "" if data.get("input") is None else text_field(data, "input")
        prompt = messages_field(f"{asked}\n{more}" if more else asked, '"instruction"')
        responses = message_texts(data["answers"], '"answers"')
        gold = _listed_gold(data, gold_column, len(responses))
        authors: tuple[str | None, ...] = (None,) * len(responses)
    else:
        check_fields(data, _NATIVE, ("category",))
        prompt = messages_field(data["prompt"], '"prompt"')
        items = [
            object_value(item, f'"responses", item {number}') for number, item in enumerate(list_value(data["responses"], '"responses"'), 1)
        ]
        responses, gold, authors = _members(items, gold_column)
    if len(responses) < 2:
        raise DataError(f"{len(responses)} responses; expected at least 2 to select from.")
    return Pool(_id(row, path), prompt, responses, gold, authors, category_field(data), source_of(row, path))


def _members(
    items: Sequence[dict[str, Any]], gold_column: str | None
) -> tuple[tuple[str, ...], tuple[float | None, ...], tuple[str | None, ...]]:
    column = gold_column or "gold"
    scored = gold_column is not None or any(column in item for item in items)
    texts, gold, authors = [], [], []
    for number, item in enumerate(items, 1):
        where = f'"responses", item {number}'
        try:
            check_fields(item, ("text", column) if scored else ("text",), ("model", column))
            texts.append(text_field(item, "text"))
            gold.append(_number_or_none(item.get(column), f'"{column}"'))
            authors.append(name_field(item, "model"))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    return tuple(texts), tuple(gold), tuple(authors)


def _listed_gold(data: Mapping[str, Any], gold_column: str | None, size: int) -> tuple[float | None, ...]:
    column = gold_column or "gold_scores"
    if column not in data:
        if gold_column is not None:
            raise DataError(f'"{column}" is missing.')
        return (None,) * size
    listed = sized_list(data[column], f'"{column}"', size)
    return tuple(_number_or_none(value, f'"{column}", item {number}') for number, value in enumerate(listed, 1))


def _number_or_none(value: object, where: str) -> float | None:
    return None if value is None else number_value(value, where)


def _id(row: Row, path: Path) -> str:
    for key in ("id", "prompt_id"):
        value = row.data.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            return name_field(row.data, key) or ""
    return f"{path.name}:{row.line}"


# --- which rows -------------------------------------------------------------------------------------------------------------------------


def _kept(row: Row, only: Mapping[str, Collection[str]]) -> tuple[bool, dict[str, str]]:
    """Whether all keys have a wanted value, and the values that they have."""
    values = {key: _value_text(row.data[key]) for key in only if key in row.data}
    for key in only:
        if key not in values:
            near = difflib.get_close_matches(key, row.data, n=1, cutoff=0.6)
            raise DataError(f'"{key}", by which rows are chosen, is missing{f"; did you mean {near[0]}?" if near else "."}')
    return all(values[key] in wanted for key, wanted in only.items()), values


def _value_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _refuse_filter(path: Path, only: Mapping[str, Collection[str]], found: Sequence[Mapping[str, str]]) -> None:
    asked = " and ".join(f"{key}={'|'.join(sorted(wanted))}" for key, wanted in only.items())
    there = "; ".join(f"{key} has {', '.join(sorted({values[key] for values in found})[:12])}" for key in only)
    raise DataError(f"{path}: no row with {asked}. {there}.")


def _refuse_repeats(pools: Sequence[Pool]) -> None:
    """Intervals are over prompts: one that comes twice would count as two."""
    first: dict[str, Pool] = {}
    for pool in pools:
        before = first.setdefault(prompt_hash(pool.prompt), pool)
        if before is not pool:
            raise DataError(f"{pool.source}: the prompt is that of {before.source}. Put all responses to a prompt into one row.")


# --- rewards that were kept -------------------------------------------------------------------------------------------------------------


def keep_rewards(path: str | os.PathLike[str], pools: Sequence[Pool], rewards: Sequence[Rewards]) -> None:
    """Write the rewards of one model; `RecordedRewards` gives them back.

    Raises:
        ConfigError: the name does not end in `KEPT_SUFFIX`.
    """
    if not str(path).endswith(KEPT_SUFFIX):
        raise ConfigError(f"{path}: expected a name that ends in {KEPT_SUFFIX}, by which it is known later")
    write_rows(
        path,
        (
            {"candidates": candidates_digest(pool.candidates), "id": pool.id, "rewards": list(found)}
            for pool, found in zip(pools, rewards, strict=True)
        ),
    )


class RecordedRewards:
    """A scorer that looks up what another one gave."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the file.

        Raises:
            DataError: it cannot be read, or a row cannot be used.
        """
        self.path = Path(path)
        self.name = self.path.name.removesuffix(KEPT_SUFFIX)
        self._rewards = dict(map_rows(self.path, _recorded).items)

    def score(self, candidates: Sequence[Candidates]) -> list[Rewards]:
        """The recorded rewards.

        Raises:
            DataError: a prompt or response was not among those that were scored.
        """
        found = []
        for one in candidates:
            rewards = self._rewards.get(candidates_digest(one))
            if rewards is None or len(rewards) != len(one.responses):
                start = " ".join(one.prompt[-1].content.split())[:60]
                raise DataError(f"{self.path}: holds no rewards for this prompt with these responses ({start!r} …). Score the pool anew.")
            found.append(list(rewards))
        return found


def _recorded(row: Row) -> tuple[str, Rewards]:
    check_fields(row.data, ("candidates", "rewards"))
    listed = enumerate(list_value(row.data["rewards"], '"rewards"'), 1)
    return text_field(row.data, "candidates"), [_number_or_none(value, f'"rewards", item {number}') for number, value in listed]


def candidates_digest(candidates: Candidates) -> str:
    """Hex SHA-256 of a prompt and its responses."""
    parts = [prompt_hash(candidates.prompt), *candidates.responses]
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()
