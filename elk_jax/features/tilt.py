"""Weights of public images with which their features have wanted means: the least change of equal weights.

Shapes: M images, D features.
"""

from __future__ import annotations

import numpy as np

STEPS = 500
"""Of the descent, at most."""


def tilted(pool: np.ndarray, mean: np.ndarray, penalty: float) -> np.ndarray:
    """Log weights [M] of images with features [M, D], whose mean comes near `mean` [D]; the weights sum to 1.

    Of all weights they are those of largest entropy with that mean: proportional to exp(features @ tilt). The tilt is
    the minimum of log(mean(exp(features @ tilt))) - tilt @ mean + penalty / 2 |tilt|^2, which is convex; the weighted
    mean misses the wanted one by penalty * tilt, as one does that is known up to noise, or that no image reaches.
    Source: Hainmueller 2012 (entropy balancing), with the penalty of Dudik, Phillips and Schapire 2007.
    """
    from scipy import optimize, special

    features, wanted = np.asarray(pool, np.float64), np.asarray(mean, np.float64)

    def loss(tilt: np.ndarray) -> tuple[float, np.ndarray]:
        scores = features @ tilt
        weights = special.softmax(scores)
        value = special.logsumexp(scores) - tilt @ wanted + penalty / 2 * tilt @ tilt
        return float(value), weights @ features - wanted + penalty * tilt

    found = optimize.minimize(
        loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": STEPS}
    ).x
    return np.asarray(special.log_softmax(features @ found))


def effective_number(log_weights: np.ndarray) -> float:
    """How many images of equal weight would scatter a mean as much as these do: 1 / sum of squared weights."""
    return float(1 / np.exp(2 * log_weights).sum())
