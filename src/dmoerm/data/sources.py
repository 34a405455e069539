"""The data of one run: every file of the recipe read, checked and split by prompt, before any model is loaded.

Identical responses and repeated comparisons are dropped and counted; a prompt of the test files that also stands in a training file is
an error. Rows of label files give capability labels only. Nothing is shuffled: the order of files and rows is the order of the data.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dmoerm.data.readers import read_comparisons, read_prompts
from dmoerm.data.splits import overlapping_prompts, split_by_prompt
from dmoerm.errors import DataError
from dmoerm.recipe import Recipe, recipe_taxonomy
from dmoerm.records import Comparison, Message, prompt_hash
from dmoerm.taxonomy import Taxonomy
from dmoerm.validation import did_you_mean

__all__ = ["RunData", "load_run_data"]


@dataclass(frozen=True, slots=True)
class RunData:
    """What a run trains and tests on.

    Attributes:
        taxonomy: the recipe's.
        comparisons: training comparisons with overall preferences (some also carry capability labels).
        labels: comparisons of label files; only their capability labels count.
        prompts: (prompt, category) rows for the router, training prompts only.
        test: held-out comparisons.
        notes: what was dropped, by reason, with counts.
        formats: format of each file as it was recognised.
    """

    taxonomy: Taxonomy
    comparisons: tuple[Comparison, ...]
    labels: tuple[Comparison, ...]
    prompts: tuple[tuple[tuple[Message, ...], str], ...]
    test: tuple[Comparison, ...]
    notes: Counter[str] = field(default_factory=Counter)
    formats: dict[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> tuple[Comparison, ...]:
        """Every training comparison that carries a capability label, each once."""
        return tuple(comparison for comparison in (*self.comparisons, *self.labels) if comparison.labels)


def load_run_data(recipe: Recipe) -> RunData:
    """Read and split the recipe's files.

    Raises:
        DataError: a file or row that cannot be used, an unknown category, no comparison left, or test prompts among the training prompts.
    """
    taxonomy = recipe_taxonomy(recipe)
    notes: Counter[str] = Counter()
    formats: dict[str, str] = {}
    comparisons = _read(recipe.data.comparisons, recipe, taxonomy, notes, formats)
    labels = _read(recipe.data.labels, recipe, taxonomy, notes, formats)
    prompts = [row for path in recipe.data.prompts for row in _known_prompts(path, recipe, taxonomy)]
    if recipe.data.test:
        test = _read(recipe.data.test, recipe, taxonomy, notes, formats)
        comparisons, labels = _without_test_prompts(recipe, comparisons, labels, test, notes)
    else:
        comparisons, test = split_by_prompt(comparisons, recipe.data.test_fraction, recipe.seed)
        labels, _ = split_by_prompt(labels, recipe.data.test_fraction, recipe.seed)
    tested = {prompt_hash(comparison.prompt) for comparison in test}
    kept_prompts = tuple((prompt, category) for prompt, category in prompts if prompt_hash(prompt) not in tested)
    if not any(comparison.has_preference for comparison in comparisons):
        raise DataError("no comparison with a preference is left to train on; name more files in data.comparisons")
    return RunData(taxonomy, tuple(comparisons), tuple(labels), kept_prompts, tuple(test), notes, formats)


def _read(paths: Sequence[Path], recipe: Recipe, taxonomy: Taxonomy, notes: Counter[str], formats: dict[str, str]) -> list[Comparison]:
    kept: list[Comparison] = []
    seen: set[tuple[object, ...]] = set()
    ids: set[str] = set()
    for path in paths:
        result = read_comparisons(path, bad_rows=recipe.data.bad_rows, rejected_dir=recipe.output.parent)
        formats[path.name] = result.format
        notes["rows rejected"] += result.rejected
        for comparison in result.comparisons:
            _check_category(comparison, taxonomy)
            key = (comparison.prompt, comparison.responses, comparison.ranks, comparison.labels)
            if len(set(comparison.responses)) < len(comparison.responses) and len(set(comparison.responses)) == 1:
                notes["identical responses"] += 1
            elif key in seen:
                notes["repeated comparisons"] += 1
            else:
                seen.add(key)
                unique = comparison.id if comparison.id not in ids else f"{path.stem}/{comparison.id}"
                ids.add(unique)
                kept.append(replace(comparison, id=unique))
    return kept


def _check_category(comparison: Comparison, taxonomy: Taxonomy) -> None:
    if comparison.category is not None and comparison.category not in taxonomy.category_names:
        near = did_you_mean(comparison.category, taxonomy.category_names)
        raise DataError(f'{comparison.source}: category "{comparison.category}" is not in the taxonomy{near}. Fix the row or the taxonomy.')


def _known_prompts(path: Path, recipe: Recipe, taxonomy: Taxonomy) -> list[tuple[tuple[Message, ...], str]]:
    rows = read_prompts(path, recipe.data.bad_rows, recipe.output.parent)
    for _, category in rows:
        if category not in taxonomy.category_names:
            raise DataError(f'{path}: category "{category}" is not in the taxonomy{did_you_mean(category, taxonomy.category_names)}.')
    return rows


def _without_test_prompts(
    recipe: Recipe, comparisons: list[Comparison], labels: list[Comparison], test: list[Comparison], notes: Counter[str]
) -> tuple[list[Comparison], list[Comparison]]:
    shared = set(overlapping_prompts([*comparisons, *labels], test))
    if not shared or recipe.data.allow_overlap:
        notes["test prompts also trained on"] += len(shared)
        return comparisons, labels
    first = next(c for c in [*comparisons, *labels] if prompt_hash(c.prompt) in shared)
    raise DataError(
        f"{first.source}: this prompt is also in data.test, as are {len(shared) - 1} others. "
        "Remove them from the training files, or set data.allow_overlap: true (the result is then no test)."
    )
