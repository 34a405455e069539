"""Bradley–Terry with linear rewards: what shallow features of two responses say about which one wins.

The doctor asks it of the data, the baselines of an evaluation are made of it. scikit-learn is imported when something is fitted.

P pairs, V features.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["fit_differences"]

FloatArray = NDArray[np.float64]


def fit_differences(difference_PV: Any, weight_P: FloatArray, strength: float) -> FloatArray:
    """The weight of each feature, by logistic regression without intercept on chosen − rejected.

    Every other pair is turned round, since the solver wants both outcomes; without an intercept this leaves the loss as it is.

    Args:
        difference_PV: features of the chosen response minus those of the rejected one, dense or sparse, at least one pair.
        weight_P: weight of each pair in the loss.
        strength: inverse of the L2 penalty; larger fits closer.

    Returns:
        Weights, shape (V,), in log-odds a unit of the feature.
    """
    from sklearn.linear_model import LogisticRegression

    n_pairs = len(weight_P)
    if n_pairs == 1:
        # The turned-round twin at half weight is the same loss, and gives the solver its second outcome.
        difference_PV, weight_P, n_pairs = difference_PV[[0, 0]], np.repeat(weight_P / 2.0, 2), 2
    outcome_P = np.arange(n_pairs) % 2
    sign_P = 2.0 * outcome_P - 1.0
    turned_PV = difference_PV.multiply(sign_P[:, None]).tocsr() if hasattr(difference_PV, "multiply") else difference_PV * sign_P[:, None]
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=5000)
    model.fit(turned_PV, outcome_P, sample_weight=weight_P)
    return np.asarray(model.coef_[0], dtype=np.float64)
