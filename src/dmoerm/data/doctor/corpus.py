"""What the doctor looks at: every usable row of every file, the rows that the reader refuses with their reasons, and numbers for prompts.

Nothing is repaired, and nothing is dropped as training would drop it: the doctor is there to see what that will be.

P strictly ranked pairs.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmoerm.data.doctor.finding import FileSummary
from dmoerm.data.jsonl import read_rows
from dmoerm.data.readers import ReadResult, read_comparisons
from dmoerm.recipe import BackboneOptions, DataOptions, ExpertOptions, Recipe, TaskModelOptions
from dmoerm.records import Comparison, prompt_hash

__all__ = ["LABELS", "TEST", "TRAIN", "Context", "Corpus", "Pairs", "RefusedRow", "read_corpus", "skipping"]

TRAIN, TEST, LABELS = "train", "test", "labels"
"""Roles of files: learnt from, tested on, and learnt from but for the ranks (`data.labels` of a recipe)."""

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Context:
    """What the data will be used for, as far as a check depends on it.

    Attributes:
        seed: of the split.
        test_fraction: share of the prompts that a run holds out; used where no test file is given.
        max_length_tokens: budget for prompt and response together.
        minimum_comparisons: below this a category gets no inner model.
        minimum_labels: below this a capability gets no expert.
    """

    seed: int = 0
    test_fraction: float = DataOptions.model_fields["test_fraction"].default
    max_length_tokens: int = BackboneOptions.model_fields["max_length_tokens"].default
    minimum_comparisons: int = TaskModelOptions.model_fields["minimum_comparisons"].default
    minimum_labels: int = ExpertOptions.model_fields["minimum_labels"].default

    @staticmethod
    def of_recipe(recipe: Recipe) -> "Context":
        """The values of a recipe."""
        return Context(
            seed=recipe.seed,
            test_fraction=recipe.data.test_fraction,
            max_length_tokens=recipe.backbone.max_length_tokens,
            minimum_comparisons=recipe.task_model.minimum_comparisons,
            minimum_labels=recipe.experts.minimum_labels,
        )


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that cannot be used: where it stands ("file:line") and why."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """Strictly ranked pairs as columns: number of the comparison, index of chosen and rejected response, number of the prompt."""

    comparison_P: IntArray
    chosen_P: IntArray
    rejected_P: IntArray
    prompt_P: IntArray

    def __len__(self) -> int:
        return len(self.comparison_P)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Comparison, chosen and rejected of each pair."""
        return zip(self.comparison_P.tolist(), self.chosen_P.tolist(), self.rejected_P.tolist(), strict=True)

    def select(self, keep_P: NDArray[np.bool_]) -> "Pairs":
        """Some of the pairs."""
        return Pairs(self.comparison_P[keep_P], self.chosen_P[keep_P], self.rejected_P[keep_P], self.prompt_P[keep_P])


@dataclass(eq=False)
class Corpus:
    """All comparisons of all files, in order.

    Attributes:
        context: what they will be used for.
        files: what each file held.
        comparisons: the usable rows.
        file_of: for each comparison, the number of its file.
        refused: the other rows.
    """

    context: Context = field(default_factory=Context)
    files: list[FileSummary] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    file_of: list[int] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)

    def role(self, number: int) -> str:
        """What a comparison is for."""
        return self.files[self.file_of[number]].role

    def place(self, number: int) -> str:
        """Where a comparison stands, "file:line"."""
        return f"{self.files[self.file_of[number]].name}:{self.comparisons[number].source.rpartition(':')[2]}"

    @cached_property
    def prompt_keys(self) -> list[str]:
        """`records.prompt_hash` of each comparison."""
        return [prompt_hash(comparison.prompt) for comparison in self.comparisons]

    @cached_property
    def prompt_numbers(self) -> IntArray:
        """Equal prompts, equal numbers; from 0, in order of first appearance."""
        known: dict[str, int] = {}
        return np.array([known.setdefault(key, len(known)) for key in self.prompt_keys], dtype=np.int64)

    @cached_property
    def first_of_prompt(self) -> list[int]:
        """For each prompt number, its first comparison."""
        _, first = np.unique(self.prompt_numbers, return_index=True)
        return [int(number) for number in first]

    @cached_property
    def preferences(self) -> list[int]:
        """Numbers of the comparisons whose ranks count: all but those of label files."""
        return [number for number in range(len(self.comparisons)) if self.role(number) != LABELS]

    @cached_property
    def pairs(self) -> Pairs:
        """The ranked pairs of `preferences`."""
        return self.pairs_of(self.preferences)

    def pairs_of(self, numbers: Sequence[int]) -> Pairs:
        """The ranked pairs of some comparisons."""
        found = [(number, pair.chosen, pair.rejected) for number in numbers for pair in self.comparisons[number].pairs()]
        columns = np.array(found, dtype=np.int64).reshape(-1, 3)
        return Pairs(columns[:, 0], columns[:, 1], columns[:, 2], self.prompt_numbers[columns[:, 0]])

    def sample(self, limit: int) -> list[int]:
        """Comparisons with about `limit` of the `pairs`, those with the smallest hashes of their prompts, in the order of the files."""
        if len(self.pairs) <= limit:
            return self.preferences
        pairs_of = np.bincount(self.pairs.comparison_P, minlength=len(self.comparisons))
        ordered = sorted(self.preferences, key=lambda number: self.prompt_keys[number])
        return sorted(ordered[: int(np.searchsorted(np.cumsum(pairs_of[ordered]), limit)) + 1])


def skipping(path: Path, rejected_dir: str, format: str = "auto") -> ReadResult:
    """Read a file without stopping at bad rows, which are written to a folder."""
    return read_comparisons(path, format, bad_rows="skip", rejected_dir=rejected_dir)


def read_corpus(
    files: Sequence[tuple[Path, str]], context: Context | None = None, read: Callable[[Path, str], ReadResult] = skipping
) -> Corpus:
    """Read files, each with its role. A bad row is noted; a file that is none of ours stops.

    Args:
        files: paths and roles.
        context: what they will be used for; None takes the defaults of a recipe.
        read: reads a file, skips bad rows and writes them to the folder that it is given.

    Raises:
        DataError: a file that cannot be read, or that fits no known format.
    """
    corpus = Corpus(context or Context())
    last_parts = Counter(path.name for path, _ in files)
    for path, role in files:
        name = path.name if last_parts[path.name] == 1 else str(path)
        with tempfile.TemporaryDirectory(prefix="dmoerm-check-") as folder:
            result = read(path, folder)
            if result.rejected_path is not None:
                corpus.refused += [RefusedRow(f"{name}:{row.data['line']}", row.data["reason"]) for row in read_rows(result.rejected_path)]
        tied = sum(not comparison.has_preference for comparison in result.comparisons)
        corpus.file_of += [len(corpus.files)] * len(result.comparisons)
        corpus.comparisons += result.comparisons
        counts = (result.rows, len(result.comparisons), tied, result.rejected)
        corpus.files.append(FileSummary(str(path), name, role, result.format, *counts, dict(result.left_out)))
    return corpus
