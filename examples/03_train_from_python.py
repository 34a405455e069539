"""Train from Python: what `dmoerm train` does, with the recipe as an object instead of a file.

    python examples/03_train_from_python.py comparisons.jsonl my-rm/model [BACKBONE]

COMPARISONS holds prompts with ranked responses, their category and, where known, labels of capabilities (docs/data.md).
"""

import sys
from pathlib import Path

from dmoerm.evaluation.trained import train_and_evaluate
from dmoerm.recipe import BackboneOptions, DataOptions, Recipe

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def main(comparisons: str, output: str, backbone: str = MINILM) -> None:
    recipe = Recipe(
        output=Path(output).absolute(),
        data=DataOptions(comparisons=(Path(comparisons).absolute(),)),
        backbone=BackboneOptions(name=backbone, max_length_tokens=128),
    )
    result, report = train_and_evaluate(recipe)
    for category, measured in result.metrics["categories"].items():
        print(
            f"{category}: {measured['comparisons']} comparisons, {measured['experts']} experts, "
            f"agreement on held-out folds {measured['held_out_accuracy']:.3f}"
        )
    # None where data.test_fraction is 0 and no test files are named: then nothing is left to measure on.
    if report is not None:
        print(report.as_table())


if __name__ == "__main__":
    main(*sys.argv[1:])
