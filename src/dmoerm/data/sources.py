"""The data of one run: every file of the recipe read, checked and split by prompt, before any model is loaded.

Identical responses and repeated comparisons are dropped and counted; a prompt of the test files that also stands in a training file is
an error, and so are more bad rows than `data.max_drop_fraction` allows. Rows of label files give capability labels only. A comparison
without a category takes the one that a prompt file gives its prompt. Labels get the names of capabilities from `data.aspects`, without
any judge. Nothing is shuffled: the order of files and rows is the order of the data.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from dmoerm.data.hub import hub_commit
from dmoerm.data.readers import FORMATS, ReadResult, map_prompts, read_comparisons
from dmoerm.data.splits import overlapping_prompts, split_by_prompt
from dmoerm.errors import DataError
from dmoerm.locations import is_hub
from dmoerm.recipe import Recipe, recipe_taxonomy
from dmoerm.records import CapabilityLabel, Comparison, Message, prompt_hash
from dmoerm.taxonomy import Taxonomy
from dmoerm.validation import did_you_mean

__all__ = ["RunData", "category_by_prompt", "known_category", "load_run_data", "with_aspects"]


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
        formats: by the path of each file, its format as it was recognised, and the commit of a data set of the Hub.
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


def load_run_data(recipe: Recipe, *, named: bool = True) -> RunData:
    """Read and split the recipe's files.

    Args:
        recipe: names them.
        named: with the categories that `dmoerm label categories` has written.

    Raises:
        DataError: a file or row that cannot be used, an unknown category, no comparison left, or test prompts among the training prompts.
    """
    files = _Files(recipe, recipe_taxonomy(recipe))
    notes = files.notes
    prompts = [row for path in (recipe.prompt_files if named else recipe.data.prompts) for row in files.read_prompts(path)]
    files.category_of = category_by_prompt(prompts)
    comparisons = files.read(recipe.data.comparisons)
    labels = files.read(recipe.label_files)
    if recipe.data.test:
        test = files.read(recipe.data.test)
        comparisons, labels = _without_test_prompts(recipe, comparisons, labels, test, notes)
    else:
        comparisons, test = split_by_prompt(comparisons, recipe.data.test_fraction, recipe.seed)
        labels, _ = split_by_prompt(labels, recipe.data.test_fraction, recipe.seed)
    files.check_dropped()
    files.check_aspects()
    tested = {prompt_hash(comparison.prompt) for comparison in test}
    kept_prompts = tuple((prompt, category) for prompt, category in prompts if prompt_hash(prompt) not in tested)
    if not any(comparison.has_preference for comparison in comparisons):
        raise DataError("no comparison with a preference is left to train on; name more files in data.comparisons")
    return RunData(files.taxonomy, tuple(comparisons), tuple(labels), kept_prompts, tuple(test), notes, files.formats)


@dataclass(slots=True)
class _Files:
    """Reads the files of one recipe and keeps count over all of them."""

    recipe: Recipe
    taxonomy: Taxonomy
    notes: Counter[str] = field(default_factory=Counter)
    formats: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    aspects: set[str] = field(default_factory=set)
    of_id: dict[str, tuple[object, object]] = field(default_factory=dict)
    category_of: dict[str, str] = field(default_factory=dict)
    """Of `category_by_prompt`, over the prompt files."""

    def read(self, paths: Sequence[Path]) -> list[Comparison]:
        """The comparisons of some files, each once, with ids that stand for nothing else in any file of the recipe."""
        kept: list[Comparison] = []
        seen: set[tuple[object, ...]] = set()
        ids: set[str] = set()
        for path in paths:
            result = self._result(path)
            for comparison in result.comparisons:
                named = self._renamed(self._with_category(comparison, FORMATS[result.format].own_categories))
                key = (named.prompt, named.responses, named.ranks, named.labels)
                if len(set(named.responses)) == 1:
                    self.notes["identical responses"] += 1
                elif key in seen:
                    self.notes["repeated comparisons"] += 1
                else:
                    seen.add(key)
                    texts = (named.prompt, named.responses)
                    candidates = (named.id, f"{path.stem}/{named.id}", f"{path}/{named.id}")
                    # Labels of a comparison keep its id, so that its responses are rendered and computed once.
                    unique = next(name for name in candidates if name not in ids and self.of_id.get(name, texts) == texts)
                    ids.add(unique)
                    self.of_id[unique] = texts
                    kept.append(replace(named, id=unique))
        return kept

    def read_prompts(self, path: Path) -> list[tuple[tuple[Message, ...], str]]:
        """The prompts of one file, with names of categories from the taxonomy."""
        mapped = map_prompts(path, self.recipe.data.bad_rows, self.recipe.output.parent)
        self._count(path, mapped.rows, mapped.rejected)
        return [(prompt, self._known_category(category) or self._refuse_category(str(path), category)) for prompt, category in mapped.items]

    def check_dropped(self) -> None:
        """Stop where skipping bad rows has taken too many.

        Raises:
            DataError: a larger share than `data.max_drop_fraction`.
        """
        total, limit = sum(self.rejected.values()), self.recipe.data.max_drop_fraction
        if total > limit * self.rows:
            listed = ", ".join(f"{path} ({count})" for path, count in self.rejected.items() if count)
            raise DataError(
                f"{total} of {self.rows} rows were bad, more than data.max_drop_fraction ({limit:g}): {listed}. "
                f"Fix them (they are listed in *.rejected.jsonl in {self.recipe.output.parent}), or raise that limit."
            )

    def check_aspects(self) -> None:
        """Stop where `data.aspects` maps something that the files do not have: a slip of the pen would cost all its labels.

        Raises:
            DataError: with the nearest name that they do have.
        """
        for aspect in self.recipe.data.aspects:
            if aspect not in self.aspects:
                known = did_you_mean(aspect, sorted(self.aspects)) if self.aspects else "; they carry no labels at all"
                raise DataError(f'data.aspects maps "{aspect}", but no label of the files has that name{known}. Correct the recipe.')

    def _result(self, path: Path) -> ReadResult:
        data = self.recipe.data
        format = data.formats.get(str(path), "auto")
        result = read_comparisons(path, format, data.bad_rows, self.recipe.output.parent, data.rank_order)
        commit = hub_commit(path) if is_hub(path) else None
        self.formats[str(path)] = result.format if commit is None else f"{result.format}, commit {commit[:12]}"
        self._count(path, result.rows, result.rejected)
        for reason, count in result.left_out.items():
            self.notes[f"rows without a comparison: {reason}"] += count
        return result

    def _count(self, path: Path, rows: int, rejected: int) -> None:
        self.rows += rows
        self.rejected[str(path)] += rejected
        self.notes["rows rejected"] += rejected

    def _with_category(self, comparison: Comparison, own_categories: bool) -> Comparison:
        name = None
        if comparison.category is not None:
            name = self._known_category(comparison.category)
            if name is None and own_categories:
                self.notes[f'labels of the unknown category "{comparison.category}" (the router decides instead)'] += 1
            elif name is None:
                self._refuse_category(comparison.source, comparison.category)
        if name is None and self.category_of:
            name = self.category_of.get(prompt_hash(comparison.prompt))
        return comparison if name == comparison.category else replace(comparison, category=name)

    def _known_category(self, given: str) -> str | None:
        return known_category(self.taxonomy, given)

    def _refuse_category(self, where: str, given: str) -> NoReturn:
        near = did_you_mean(given, self.taxonomy.category_names)
        raise DataError(f'{where}: category "{given}" is not in the taxonomy{near}. Fix the row or the taxonomy.')

    def _renamed(self, comparison: Comparison) -> Comparison:
        self.aspects.update(label.capability for label in comparison.labels)
        return with_aspects(comparison, self.recipe.data.aspects)


def category_by_prompt(rows: Sequence[tuple[tuple[Message, ...], str]]) -> dict[str, str]:
    """By hash of a prompt, the category that the first of these rows with it names."""
    return {prompt_hash(prompt): category for prompt, category in reversed(rows)}


def known_category(taxonomy: Taxonomy, given: str) -> str | None:
    """The category of that name, or of that Chinese name; None where there is none."""
    return next((category.name for category in taxonomy.categories if given in (category.name, category.chinese)), None)


def with_aspects(comparison: Comparison, aspects: Mapping[str, str | None]) -> Comparison:
    """The comparison with its labels under the names of capabilities, as `data.aspects` of a recipe maps them."""
    if not aspects or not comparison.labels:
        return comparison
    named = ((aspects.get(label.capability, label.capability), label) for label in comparison.labels)
    labels: dict[tuple[str, int, int], CapabilityLabel] = {}
    for name, label in named:
        if name is not None:
            labels.setdefault((name, label.preferred, label.other), replace(label, capability=name))
    # Two aspects that count to one capability say nothing where they disagree.
    kept = (label for (name, preferred, other), label in labels.items() if (name, other, preferred) not in labels)
    return replace(comparison, labels=tuple(kept))


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
