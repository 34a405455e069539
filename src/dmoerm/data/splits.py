"""Splits by prompt: a hash of the conversation decides, so the same prompt lands on the same side in every file and on every machine.

Nothing is stored and nothing is balanced by hand: sizes are right on average only (a fifth of 100 prompts is 20 ± 4), and comparisons
that share a prompt move together. `purpose` keeps splits apart that are made with one seed: without it, 60/40 of the training part
of an 80/20 split would not be 60/40, as both would cut the same line of hashes.
"""

import hashlib
from collections.abc import Iterable, Sequence

from dmoerm.errors import ConfigError
from dmoerm.records import Comparison, Message, prompt_hash

__all__ = ["fold_indices", "overlapping_prompts", "split_by_prompt", "split_of"]


def split_of(prompt: tuple[Message, ...], folds: int, seed: int, purpose: str = "fold") -> int:
    """The fold of a prompt.

    Args:
        prompt: the conversation; every byte and role of it counts.
        folds: number of folds, at least 1.
        seed: another seed, another assignment.
        purpose: name of the split; splits of different purposes are independent.

    Returns:
        0 to folds - 1, each equally likely.

    Raises:
        ConfigError: folds < 1.
    """
    if folds < 1:
        raise ConfigError(f"folds is {folds}; expected at least 1.")
    return _hash(prompt, seed, purpose) % folds


def fold_indices(comparisons: Sequence[Comparison], folds: int, seed: int, purpose: str = "fold") -> list[int]:
    """The fold of each comparison, in order.

    Raises:
        ConfigError: folds < 1.
    """
    return [split_of(comparison.prompt, folds, seed, purpose) for comparison in comparisons]


def split_by_prompt(
    comparisons: Iterable[Comparison], test_fraction: float, seed: int, purpose: str = "test"
) -> tuple[list[Comparison], list[Comparison]]:
    """Two parts without a common prompt, each in the given order.

    Args:
        comparisons: what to split.
        test_fraction: expected share of prompts in the second part, 0 to 1.
        seed: another seed, another split.
        purpose: name of the split; splits of different purposes are independent.

    Returns:
        The rest and the test part. A larger fraction only adds to the test part.

    Raises:
        ConfigError: the fraction is not between 0 and 1.
    """
    if not 0.0 <= test_fraction <= 1.0:
        raise ConfigError(f"test_fraction is {test_fraction}; expected 0 to 1.")
    rest: list[Comparison] = []
    test: list[Comparison] = []
    for comparison in comparisons:
        in_test = _hash(comparison.prompt, seed, purpose) < test_fraction * 2**64
        (test if in_test else rest).append(comparison)
    return rest, test


def overlapping_prompts(a: Iterable[Comparison], b: Iterable[Comparison]) -> list[str]:
    """`records.prompt_hash` of the prompts that occur in both, each once, in the order of `b`; a good split gives none."""
    known = {prompt_hash(comparison.prompt) for comparison in a}
    return list(dict.fromkeys(key for comparison in b if (key := prompt_hash(comparison.prompt)) in known))


def _hash(prompt: tuple[Message, ...], seed: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{purpose}\n{seed}\n{prompt_hash(prompt)}".encode())
    return int.from_bytes(digest.digest()[:8], "big")
