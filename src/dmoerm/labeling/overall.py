"""The judge asked for the overall preference alone: the LLM-as-judge baseline of an evaluation. Answers are kept like any others."""

from collections.abc import Callable, Iterator, Sequence

from dmoerm.errors import LabelError
from dmoerm.labeling.judge import JudgeSettings, api_key
from dmoerm.labeling.judged import JudgedPair
from dmoerm.labeling.labels import judged_pairs
from dmoerm.labeling.plan import LabelPlan
from dmoerm.labeling.prompts import load_template
from dmoerm.labeling.questions import OVERALL_DESCRIPTION, AskedPair, Criterion
from dmoerm.labeling.run import Limits, Progress, label
from dmoerm.labeling.store import Store
from dmoerm.recipe import LabelingOptions
from dmoerm.records import OVERALL, Comparison

__all__ = ["ask_overall"]


async def ask_overall(
    options: LabelingOptions,
    comparisons: Sequence[Comparison],
    limits: Limits = Limits(),  # noqa: B008 frozen
    *,
    progress: Callable[[Progress], None] = lambda now: None,
) -> list[JudgedPair]:
    """Every strictly ranked pair of the comparisons, judged in both orders.

    Args:
        options: the section of a recipe that names the judge and the store.
        comparisons: what is evaluated.
        limits: where to stop.
        progress: as in `label`.

    Raises:
        ConfigError: no model is named, or the key is missing.
        LabelError: the run ended before everything was asked; what was answered is kept.
    """
    template = load_template(options.template, reason=options.reason)
    settings = JudgeSettings.of(options, template)
    pairs = list(_ranked_pairs(comparisons))
    plan = LabelPlan(options, template, settings, pairs, (), {})
    key = api_key(options)
    with Store(options.store, write=True) as store:
        result = await label(plan, store, key, limits, progress=progress)
        if result.ended != "done":
            now = result.progress
            raise LabelError(
                f"the judge {settings.model} answered {now.done:,} of {now.total:,} questions, then: {result.reason}. The answers are kept "
                f"in {options.store}; the same command goes on"
            )
        return judged_pairs(pairs, settings.fingerprint, store.answers(settings.fingerprint), settings.model)


def _ranked_pairs(comparisons: Sequence[Comparison]) -> Iterator[AskedPair]:
    groups = ((Criterion(OVERALL, OVERALL_DESCRIPTION),),)
    for comparison in comparisons:
        for pair in comparison.pairs():
            first, second = sorted((pair.chosen, pair.rejected))
            if comparison.responses[first] != comparison.responses[second]:
                yield AskedPair(comparison, first, second, groups)
