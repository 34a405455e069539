"""Who wins among some responses, how sure that is, and on which capability: as numbers and as text for a narrow terminal.

The margin is between the two best. It counts as clear when it is larger than the two rewards' uncertainties together (root of the sum of
their squares, which is too careful: the bootstrapped aggregators behind them move together). Nothing here loads torch.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dmoerm.errors import DataError
from dmoerm.records import Reward

__all__ = ["Verdict", "letter", "verdict", "verdict_text"]

MINIMUM_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who wins.

    Attributes:
        winner: index of the best response.
        second: index of the next one; None where there is only one.
        margin: reward of the winner less that of the next, >= 0; 0 where there is only one.
        margin_uncertainty: root of the sum of their squared uncertainties.
        probability: of the winner being preferred to the next, by the model's own odds, 0.5 to 1.
        clear: the margin is larger than its uncertainty.
    """

    winner: int
    second: int | None
    margin: float
    margin_uncertainty: float
    probability: float
    clear: bool

    def as_dict(self, rewards: Sequence[Reward]) -> dict[str, Any]:
        """The verdict with the rewards it came from, in types that JSON knows."""
        return {**asdict(self), "results": [{**asdict(reward), "capabilities": dict(reward.capabilities)} for reward in rewards]}


def verdict(rewards: Sequence[Reward]) -> Verdict:
    """The verdict on the rewards of the responses to one prompt; of equal ones the first wins, and it is not clear.

    Raises:
        DataError: no rewards.
    """
    if not rewards:
        raise DataError("there is no response to judge; expected at least one")
    order = sorted(range(len(rewards)), key=lambda index: -rewards[index].reward)
    if len(order) == 1:
        return Verdict(0, None, 0.0, 0.0, 1.0, True)
    first, second = rewards[order[0]], rewards[order[1]]
    margin = first.reward - second.reward
    doubt = math.hypot(first.uncertainty, second.uncertainty)
    return Verdict(order[0], order[1], margin, doubt, 1 / (1 + math.exp(-min(margin, 700.0))), margin > doubt)


def letter(index: int) -> str:
    """A, B … Z, then 27, 28 …"""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def verdict_text(rewards: Sequence[Reward], *, width: int = 72) -> str:
    """The verdict as text: the route, the winner, each reward, and bars by capability.

    Args:
        rewards: of the responses to one prompt, in order.
        width: columns; fewer than 40 are taken as 40.

    Raises:
        DataError: no rewards.
    """
    width = max(width, MINIMUM_WIDTH)
    found = verdict(rewards)
    blocks = [_sentences(found, rewards, width), list(_rewards(rewards))]
    blocks += list(_capabilities(rewards, width))
    return "\n\n".join("\n".join(block) for block in blocks)


def _sentences(found: Verdict, rewards: Sequence[Reward], width: int) -> list[str]:
    first = rewards[found.winner]
    sentences = [f"Judged as {first.category} (router: {first.category_probability:.0%} sure)."]
    if found.second is None:
        sentences.append("One response, so nothing to compare.")
    elif found.margin == 0.0:
        sentences.append(f"{letter(found.winner)} and {letter(found.second)} are tied.")
    else:
        sentences.append(
            f"{letter(found.winner)} wins by {found.margin:.2f} over {letter(found.second)}: preferred in "
            f"{min(found.probability, 0.99):.0%}{' or more' if found.probability > 0.99 else ''} of such cases, by the model's own odds."
        )
        if found.margin_uncertainty == 0.0:
            sentences.append("The model has no uncertainty to set beside that margin.")
        elif not found.clear:
            sentences.append(f"The margin is within the uncertainty ({found.margin_uncertainty:.2f}): no clear winner.")
    return [line for sentence in sentences for line in textwrap.wrap(sentence, width)]


def _rewards(rewards: Sequence[Reward]) -> Iterator[str]:
    for index, reward in enumerate(rewards):
        yield f"{letter(index):>2} {reward.reward:+7.2f} ± {reward.uncertainty:.2f}{'  (cut to fit)' if reward.truncated else ''}"


def _capabilities(rewards: Sequence[Reward], width: int) -> Iterator[list[str]]:
    names = list(dict.fromkeys(name for reward in rewards for name in reward.capabilities))
    if not names:
        return
    largest = max(1.0, *(abs(value) for reward in rewards for value in reward.capabilities.values()))
    half = (width - 12) // 2
    lines = []
    for name in names:
        lines.append(name.replace("_", " "))
        for index, reward in enumerate(rewards):
            if name in reward.capabilities:
                value = reward.capabilities[name]
                lines.append(f"{letter(index):>2} {_bar(value / largest, half)} {value:+6.2f}")
    yield lines
    yield textwrap.wrap("Capabilities: 0 is the average response, 1 is one standard deviation above it.", width)


def _bar(share: float, half: int) -> str:
    size = min(half, round(abs(share) * half))
    return ("#" * size if share < 0 else "").rjust(half) + "|" + ("#" * size if share > 0 else "").ljust(half)
