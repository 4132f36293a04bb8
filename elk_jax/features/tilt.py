"""Weights of public images that give their features the wanted means, with the smallest change from equal weights.

Shapes: M images, D features.
"""

from __future__ import annotations

import numpy as np

STEPS = 500
"""Most steps of the descent."""


def tilted(pool: np.ndarray, mean: np.ndarray, penalty: float) -> np.ndarray:
    """Log weights [M] of images with features [M, D], whose weighted mean is close to `mean` [D]; weights sum to 1.

    Of all weights with that mean they have the largest entropy: they are proportional to exp(features @ tilt). The tilt
    is the minimum of log(mean(exp(features @ tilt))) - tilt @ mean + penalty / 2 |tilt|^2, which is convex. The
    weighted mean misses the wanted one by penalty * tilt, which suits a mean that is noisy or out of reach.
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
    """The number of equally weighted images with the same variance of the mean: 1 / sum of squared weights."""
    return float(1 / np.exp(2 * log_weights).sum())
