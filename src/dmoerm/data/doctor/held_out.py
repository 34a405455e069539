"""How often a linear reward over shallow features picks the preferred response of prompts that it has not seen.

P pairs, V features.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmoerm.data.doctor.corpus import Corpus, Pairs
from dmoerm.data.doctor.share import Share, share_of
from dmoerm.data.pairwise_logistic import fit_differences

__all__ = ["ENOUGH_PAIRS", "cross_validated_agreement"]

FOLDS = 5
ENOUGH_PAIRS = 50
"""Pairs below which nothing is fitted."""


def cross_validated_agreement(corpus: Corpus, pairs: Pairs, difference_PV: Any, strength: float = 1.0) -> Share | None:
    """Fit on four fifths of the prompts, look at the last fifth, five times.

    Args:
        corpus: where the pairs come from; the hash of a prompt chooses its fold.
        pairs: what to predict.
        difference_PV: features of the chosen response minus those of the rejected one, dense or sparse.
        strength: inverse of the L2 penalty.

    Returns:
        The share of pairs that the held-out reward ranks as people did, equal rewards as one half; None below `ENOUGH_PAIRS` pairs or
        where all prompts share one fold.
    """
    fold_P = np.array([int(corpus.prompt_keys[number][:8], 16) % FOLDS for number in pairs.comparison_P.tolist()], dtype=np.int64)
    if len(pairs) < ENOUGH_PAIRS or len(set(fold_P.tolist())) < 2:
        return None
    hit_P: NDArray[np.float64] = np.zeros(len(pairs))
    for fold in sorted(set(fold_P.tolist())):
        learnt, asked = np.flatnonzero(fold_P != fold), np.flatnonzero(fold_P == fold)
        weights_V = fit_differences(difference_PV[learnt], np.ones(len(learnt)), strength)
        margin_P = difference_PV[asked] @ weights_V
        hit_P[asked] = np.where(margin_P > 0, 1.0, np.where(margin_P < 0, 0.0, 0.5))
    return share_of(hit_P, pairs.prompt_P)
