"""Compare responses: which wins, by what odds, and on which capability.

python examples/02_compare.py my-rm/model
"""

import math
import sys

from dmoerm import Message, RewardModel

PROMPT = [
    Message("user", "Is it true that we use only ten percent of our brain?"),
    Message("assistant", "No. Imaging shows activity in all parts of it over a day."),
    Message("user", "Then where does the saying come from?"),
]
RESPONSES = {
    "A": "Nobody knows for sure. It was spread by self-help books about a hundred years ago, some of which misquoted psychologists.",
    "B": "It is a well-known scientific fact.",
    "C": "Brains are interesting! Did you know that an octopus has nine of them?",
}


def main(model_path: str) -> None:
    model = RewardModel.from_pretrained(model_path)
    results = dict(zip(RESPONSES, model.score(PROMPT, list(RESPONSES.values())), strict=True))
    ranking = sorted(results, key=lambda name: -results[name].reward)
    best, second = results[ranking[0]], results[ranking[1]]
    print("from best to worst:", " > ".join(f"{name} ({results[name].reward:+.3f})" for name in ranking))
    # Rewards are log-odds: a difference d says that the first is preferred with probability sigmoid(d).
    probability = 1 / (1 + math.exp(second.reward - best.reward))
    print(f"{ranking[0]} beats {ranking[1]} with probability {probability:.2f}, says the inner model of {best.category}")
    if best.capabilities:
        gains = {name: best.capabilities[name] - second.capabilities[name] for name in best.capabilities}
        decisive = max(gains, key=lambda name: abs(gains[name]))
        print(f"they differ most in {decisive}: {gains[decisive]:+.2f} standard deviations for {ranking[0]}")


if __name__ == "__main__":
    main(sys.argv[1])
