"""An LLM's overall verdicts as a row of the table: the judge that a reward model has to beat, as it is the one that labels."""

from collections.abc import Sequence

from dmoerm.evaluation.pair_table import Scored
from dmoerm.labeling.judged import JudgedPair, Verdict, response_hash, state
from dmoerm.records import OVERALL, Comparison, prompt_hash

__all__ = ["judge_scores"]


def judge_scores(comparisons: Sequence[Comparison], judged: Sequence[JudgedPair]) -> list[Scored]:
    """Rewards of a judge: for each response its verdicts won less those lost, over the verdicts it took part in.

    Two orders that disagree, and ties, count half to each side: the judge could not tell. A comparison of which a ranked pair was not
    answered in both orders is a failed one, and its pairs count as wrong, as for any model that gives no reward.

    Args:
        comparisons: what is evaluated.
        judged: pairs with their verdicts, matched by prompt and texts; only `OVERALL` counts.
    """
    verdicts = {(pair.prompt, frozenset(pair.responses)): pair for pair in judged if OVERALL in pair.verdicts}
    return [Scored(comparison, _rewards(comparison, verdicts)) for comparison in comparisons]


def _rewards(comparison: Comparison, verdicts: dict[tuple[str, frozenset[str]], JudgedPair]) -> tuple[float | None, ...]:
    prompt, texts = prompt_hash(comparison.prompt), [response_hash(text) for text in comparison.responses]
    total, met = [0.0] * len(texts), [0] * len(texts)
    for pair in comparison.pairs():
        first, second = sorted((pair.chosen, pair.rejected))
        verdict = _verdict(verdicts.get((prompt, frozenset((texts[first], texts[second])))), texts[first])
        if verdict is None:
            return (None,) * len(texts)
        for index, value in ((first, verdict), (second, -verdict)):
            total[index] += value
            met[index] += 1
    return tuple(value / max(count, 1) for value, count in zip(total, met, strict=True))


def _verdict(found: JudgedPair | None, first: str) -> Verdict | None:
    """1: `first` is better, -1: the other one, 0: the judge cannot tell, None: not answered in both orders."""
    if found is None or state(found.verdicts[OVERALL]) == "incomplete":
        return None
    if state(found.verdicts[OVERALL]) != "consistent":
        return 0
    value = found.verdicts[OVERALL][0]
    assert value is not None, "a consistent verdict is there"
    return value if found.responses[0] == first else (-1 if value == 1 else 1)
