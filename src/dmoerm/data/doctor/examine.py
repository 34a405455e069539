"""The doctor's round: every check over one corpus, in this order, and the report.

A new check is a function from a corpus to findings, one row in `CHECKS`, two tests (it fires, it does not) and a line in docs/doctor.md.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from dmoerm.data.doctor.authors import authors
from dmoerm.data.doctor.budget import budget
from dmoerm.data.doctor.corpus import LABELS, TEST, TRAIN, Context, Corpus, read_corpus, skipping
from dmoerm.data.doctor.encoding import oddities
from dmoerm.data.doctor.finding import SEVERITIES, DoctorReport, Finding, NotChecked
from dmoerm.data.doctor.labels import halo, judge_against_people, label_counts, repeated_capabilities
from dmoerm.data.doctor.length import length_bias
from dmoerm.data.doctor.orders import order_consistency
from dmoerm.data.doctor.refused import blank_responses, left_out_rows, refused_rows
from dmoerm.data.doctor.repeats import (
    contradictions,
    identical_responses,
    prompts_in_several_files,
    repeated_comparisons,
    same_response_to_many_prompts,
)
from dmoerm.data.doctor.scripts import scripts
from dmoerm.data.doctor.sizes import categories, names_that_look_alike, positions, ties
from dmoerm.data.doctor.style import refusals, style
from dmoerm.data.doctor.turns import turns
from dmoerm.data.doctor.twins import near_duplicate_prompts, near_duplicate_responses, nearly_identical_pairs
from dmoerm.data.doctor.words import words
from dmoerm.data.readers import ReadResult, read_comparisons, read_prompts
from dmoerm.data.sources import category_by_prompt, known_category, with_aspects
from dmoerm.recipe import Recipe, recipe_taxonomy
from dmoerm.records import Comparison, prompt_hash
from dmoerm.taxonomy import Taxonomy

__all__ = ["CHECKS", "examine", "examine_corpus", "examine_recipe"]

_LOG = logging.getLogger(__name__)
MANY_COMPARISONS = 20_000
"""Comparisons that take long enough for a word in between."""

CHECKS: tuple[Callable[[Corpus], Iterable[Finding | NotChecked]], ...] = (
    refused_rows,
    left_out_rows,
    identical_responses,
    contradictions,
    prompts_in_several_files,
    repeated_comparisons,
    ties,
    blank_responses,
    categories,
    names_that_look_alike,
    length_bias,
    style,
    words,
    authors,
    positions,
    refusals,
    near_duplicate_prompts,
    near_duplicate_responses,
    nearly_identical_pairs,
    same_response_to_many_prompts,
    label_counts,
    halo,
    repeated_capabilities,
    order_consistency,
    judge_against_people,
    budget,
    turns,
    scripts,
    oddities,
)
"""In the order of the report."""


def examine(
    files: Iterable[str | os.PathLike[str]],
    test: Iterable[str | os.PathLike[str]] = (),
    context: Context | None = None,
    format: str = "auto",
) -> DoctorReport:
    """Look at preference files before anything is trained on them.

    Args:
        files: what will be learnt from.
        test: what will be tested on; empty where a part of `files` will be held out by the hash of the prompt.
        context: what they will be used for; None takes the defaults of a recipe.
        format: of all files, a name of `FORMATS`, or "auto" for the one that their rows fit.

    Raises:
        ConfigError: no such format.
        DataError: a file that cannot be read, or that fits no known format. A bad row is a finding and no error.
    """
    roles = [*((Path(path), TRAIN) for path in files), *((Path(path), TEST) for path in test)]
    return examine_corpus(read_corpus(roles, context, partial(skipping, format=format)))


def examine_recipe(recipe: Recipe) -> DoctorReport:
    """Look at the files of a recipe; of those of `data.prompts`, which hold no preferences, only the categories are used.

    Raises:
        DataError: as `examine`.
    """
    data = recipe.data
    taxonomy = recipe_taxonomy(recipe)
    category_of = category_by_prompt([row for path in recipe.prompt_files for row in read_prompts(path, "skip")])

    def read(path: Path, rejected_dir: str) -> ReadResult:
        result = read_comparisons(path, data.formats.get(str(path), "auto"), "skip", rejected_dir, data.rank_order)
        return dataclasses.replace(
            result, comparisons=[_as_trained(comparison, recipe, taxonomy, category_of) for comparison in result.comparisons]
        )

    listed = ((data.comparisons, TRAIN), (recipe.label_files, LABELS), (data.test, TEST))
    return examine_corpus(read_corpus([(path, role) for paths, role in listed for path in paths], Context.of_recipe(recipe), read))


def _as_trained(comparison: Comparison, recipe: Recipe, taxonomy: Taxonomy, category_of: Mapping[str, str]) -> Comparison:
    """With the category of its prompt and the names of the taxonomy; an unknown category stays as it is."""
    named = with_aspects(comparison, recipe.data.aspects)
    category = named.category or (category_of.get(prompt_hash(named.prompt)) if category_of else None)
    if category is None:
        return named
    return dataclasses.replace(named, category=known_category(taxonomy, category) or category)


def examine_corpus(corpus: Corpus, checks: Sequence[Callable[[Corpus], Iterable[Finding | NotChecked]]] = CHECKS) -> DoctorReport:
    """Every check, most serious findings first."""
    if len(corpus.comparisons) >= MANY_COMPARISONS:
        _LOG.info(f"{len(corpus.comparisons):,} comparisons read; looking through them")
    results = [result for check in checks for result in check(corpus)]
    findings = [result for result in results if isinstance(result, Finding)]
    return DoctorReport(
        files=tuple(corpus.files),
        comparisons=len(corpus.comparisons),
        prompts=len(corpus.first_of_prompt),
        pairs=len(corpus.pairs),
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        not_checked=tuple(result for result in results if isinstance(result, NotChecked)),
    )
