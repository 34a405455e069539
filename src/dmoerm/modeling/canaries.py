"""Canaries: texts whose rewards are stored with a model and must come out again when it is loaded.

Hashes find changed files. Canaries find what hashes cannot: a head that was not restored, an expert on the wrong capability, another
backbone, another library that computes something else. They run through the router and through every category.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dmoerm.errors import ArtifactError
from dmoerm.modeling.manifest import CanaryEntry, Manifest
from dmoerm.modeling.reward_model import RewardModel, ScoreRequest, as_messages
from dmoerm.records import Reward

__all__ = ["CANARIES", "CANARY_TOLERANCE", "CanaryResult", "compare_canaries", "measure_canaries"]

CANARY_TOLERANCE = 2e-3
"""By how much a canary may move between machines in float32, times max(1, its size)."""

CANARIES = (
    ("What is the boiling point of water at sea level?", "Pure water boils at 100 degrees Celsius at sea level."),
    ("What is the boiling point of water at sea level?", "Water is wet, and soup is often served hot."),
    ("Write two lines about autumn.", "Leaves let go without a word,\nand the wind reads them aloud."),
    ("My cat died last night and I can't stop crying.", "Cats live about fifteen years. Consider a dog."),
    ("Should I learn the piano at forty?", "Yes, if an hour a day pleases you: adults progress steadily, and nobody asks for a career."),
    (
        "You are a ship's captain. Tell me a storm is coming.",
        "Reef the mains, lad! That sky has teeth, and I mean to see the harbour again.",
    ),
    ("用一句话介绍长城。", "长城是中国古代修建的防御工程，绵延数千公里。"),
    (
        "Add the numbers and explain: " + " + ".join(map(str, range(1, 120))),
        "The sum is 7140: there are 119 terms with a mean of 60. " * 12,
    ),
)
"""Prompt and response: short and long ones, one beyond many a token budget, one outside the Latin script."""


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """What a comparison with the stored values found.

    Attributes:
        count: canaries scored.
        largest_difference: over rewards, capabilities and router probabilities.
        problems: one sentence for each canary that is not as it was.
    """

    count: int
    largest_difference: float
    problems: tuple[str, ...]


def measure_canaries(model: RewardModel) -> tuple[CanaryEntry, ...]:
    """What the model says of every canary: routed, and the first two by each category.

    Raises:
        ArtifactError: it cannot score one, or gives it a reward that is no number.
    """
    requests = [ScoreRequest(as_messages(prompt), (response,)) for prompt, response in CANARIES]
    requests += [ScoreRequest(as_messages(p), (r,), category) for category in model.inner for p, r in CANARIES[:2]]
    entries = []
    for request, result in zip(requests, _scored(model, requests), strict=True):
        if not all(map(math.isfinite, (result.reward, *result.capabilities.values()))):
            raise ArtifactError(
                f"category {result.category} gives a canary the reward {result.reward}, so nothing was saved. Train it again."
            )
        entries.append(
            CanaryEntry(
                prompt=request.prompt[0].content,
                response=request.responses[0],
                category=request.category,
                judged_by=result.category,
                reward=result.reward,
                capabilities=dict(result.capabilities),
                category_probability=result.category_probability,
            )
        )
    return tuple(entries)


def compare_canaries(model: RewardModel, manifest: Manifest) -> CanaryResult:
    """Score the stored canaries again."""
    requests = [ScoreRequest(as_messages(c.prompt), (c.response,), c.category) for c in manifest.canaries]
    problems, largest = [], 0.0
    for saved, result in zip(manifest.canaries, _scored(model, requests), strict=True):
        if result.category != saved.judged_by:
            problems.append(f"the router sends a canary to {result.category}, at saving it was {saved.judged_by}")
            continue
        differences = list(_differences(saved, result))
        largest = max(largest, *(abs(now - then) for _, now, then in differences))
        for what, now, then in differences:
            tolerance = CANARY_TOLERANCE * max(1.0, abs(then))
            if not abs(now - then) <= tolerance:
                problems.append(
                    f"category {result.category} gives a canary the {what} {now:.4f}, "
                    f"at saving it was {then:.4f} (tolerance {tolerance:.4f}): a head, adapter or aggregator is not the saved one"
                )
                break
    return CanaryResult(len(requests), largest, tuple(problems))


def _differences(saved: CanaryEntry, result: Reward) -> Iterator[tuple[str, float, float]]:
    yield "reward", result.reward, saved.reward
    for name, value in saved.capabilities.items():
        yield name, result.capabilities.get(name, math.nan), value
    if saved.category_probability is not None:
        yield "router probability", result.category_probability, saved.category_probability


def _scored(model: RewardModel, requests: list[ScoreRequest]) -> list[Reward]:
    results = [answers[0] for answers in model.score_many(requests)]
    for result in results:
        if not isinstance(result, Reward):
            raise ArtifactError(f"the model cannot score one of its canaries: {result.message}")
    return [result for result in results if isinstance(result, Reward)]
