"""Score responses to one prompt: the reward, and why.

python examples/01_score.py my-rm/model
"""

import sys

from dmoerm import RewardModel

PROMPT = "My train is late and I will miss my sister's wedding. What can I do?"
RESPONSES = [
    "I am sorry, that is a hard place to be. Call your sister first, so that she can wait or keep you a place; then ask the staff for the "
    "next connection, and look whether a taxi from the next stop is quicker.",
    "Trains are late for many reasons, such as weather and maintenance.",
]


def main(model_path: str) -> None:
    model = RewardModel.from_pretrained(model_path)
    # Responses to one prompt go in together: they then see the same cut of a long prompt and can be compared.
    for response, result in zip(RESPONSES, model.score(PROMPT, RESPONSES), strict=True):
        print(f"{response[:60]} …")
        print(f"  reward {result.reward:+.3f} (± {result.uncertainty:.3f} over bootstrapped aggregators)")
        print(f"  judged as {result.category}, router's probability {result.category_probability:.2f}")
        for capability, score in result.capabilities.items():
            print(f"  {capability:<44} {score:+.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
