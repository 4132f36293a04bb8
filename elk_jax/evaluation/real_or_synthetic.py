"""AUC of a classifier of real versus synthetic lesions: 0.5 if it cannot distinguish them, 1 if it always can.

Shapes: N images, D features, P groups (patients), R resamples. Features are [N, D], radiomics or those of any network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation import bootstrap

FOLDS = 5
PENALTY = 1.0
STEPS = 50
LIMIT = 6.0  # standard deviations: the tails of texture features would otherwise dominate the fit


def real_or_synthetic(
    real: np.ndarray,
    synthetic: np.ndarray,
    real_patients: Sequence[str],
    synthetic_patients: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float | int | None]:
    """Cross-validated AUC of a logistic regression, with a percentile interval over patients.

    real [N, D], synthetic [M, D]; synthetic_patients: patient of the CANVAS of each synthetic image. All images of a
    patient are in one fold, so no background is known from training. The AUC counts pairs within folds only, since
    scores of different classifiers are not comparable. The interval reflects the sampling of patients, not the
    randomness of training the classifiers.

    Folds whose classifier has seen only one kind do not count: all real images of one patient are in one fold, and
    nothing can be learned about them.

    Returns `auc`, `low`, `high` (None if not defined, for example if no fold counts) and the counts `real`,
    `synthetic`, `patients`, `folds`.
    UserError for an empty set, non-finite features, or fewer than two patients.
    """
    features = np.concatenate([np.asarray(real, np.float64), np.asarray(synthetic, np.float64)])
    labels = np.repeat([False, True], [len(real), len(synthetic)])
    names, groups = np.unique([*real_patients, *synthetic_patients], return_inverse=True)
    if not len(real) or not len(synthetic):
        raise UserError(f"{len(real)} real and {len(synthetic)} synthetic", where="images", todo="give some of each")
    if len(groups) != len(features):
        raise ValueError(f"{len(groups)} patients for {len(features)} images")
    if not np.isfinite(features).all():
        raise UserError("NaN or infinity found", where="features", todo="omit the images or features concerned")
    if len(names) < 2:
        raise UserError("only 1 patient", where="patients", todo="give at least 2 for cross-validation")
    fold = assign_folds(labels, groups, min(FOLDS, len(names)), seed)
    scores = cross_validated_scores(features, labels, fold)
    found = bootstrap.estimate(_auc_statistic(scores, labels, groups, fold), len(names), resamples=resamples, seed=seed)
    auc = found["auc"]
    return {
        **{"auc": auc["value"], "low": auc["low"], "high": auc["high"]},
        "real": len(real),
        "synthetic": len(synthetic),
        "patients": len(names),
        "folds": int(fold.max()) + 1,
    }


def assign_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold [N] of each image. Groups (0 to P - 1) stay whole; they are assigned by descending size, ties in random
    order, each to the fold with the smallest share of its classes so far."""
    number = int(groups.max()) + 1
    contents = np.stack([np.bincount(groups[labels == kind], minlength=number) for kind in (False, True)], 1)
    shares = contents / np.maximum(contents.sum(0), 1)
    order = np.random.default_rng(seed).permutation(number)
    order = order[np.argsort(-contents.sum(1)[order], kind="stable")]
    filled = np.zeros((folds, 2))
    chosen = np.zeros(number, int)
    for group in order:
        load = filled @ shares[group] + 1e-6 * filled.sum(1)
        chosen[group] = int(np.argmin(load))
        filled[chosen[group]] += shares[group]
    return chosen[groups]


def cross_validated_scores(features: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Score [N] of each image by the classifier of the other folds; higher means synthetic. Features are standardised
    on the training folds and clipped to +-LIMIT."""
    scores = np.zeros(len(features))
    for held in np.unique(fold):
        train, test = fold != held, fold == held
        mean, spread = features[train].mean(0), features[train].std(0)
        varies = spread > 1e-12 * (1 + np.abs(mean))
        fitted, tested = (
            np.clip((features[part][:, varies] - mean[varies]) / spread[varies], -LIMIT, LIMIT)
            for part in (train, test)
        )
        weights, intercept = logistic_regression(fitted, labels[train])
        scores[test] = tested @ weights + intercept
    return scores


def logistic_regression(features: np.ndarray, labels: np.ndarray, penalty: float = PENALTY) -> tuple[np.ndarray, float]:
    """Weights [D] and intercept that minimise the summed cross entropy + penalty / 2 |weights|^2, by Newton's method.

    features [N, D], labels [N] bool. penalty > 0 ensures a solution for separable classes too. The search is restricted
    to the span of the images, which contains the minimum even with more features than images.
    """
    left, sizes, right = np.linalg.svd(features, full_matrices=False)
    inner = np.concatenate([left * sizes, np.ones((len(features), 1))], 1)
    ridge = np.full(inner.shape[1], penalty)
    ridge[-1] = 1e-6  # keeps the intercept finite with a single class
    target = labels.astype(np.float64)
    weights = np.zeros(inner.shape[1])

    def loss(w: np.ndarray) -> float:
        logits = inner @ w
        return float((np.logaddexp(0, logits) - target * logits).sum() + 0.5 * (ridge * w**2).sum())

    value = loss(weights)
    for _ in range(STEPS):
        p = 0.5 * (1 + np.tanh(0.5 * (inner @ weights)))
        gradient = inner.T @ (p - target) + ridge * weights
        step = np.linalg.solve((inner * (p * (1 - p))[:, None]).T @ inner + np.diag(ridge), gradient)
        rate = 1.0
        while (new := loss(weights - rate * step)) > value and rate > 1e-6:
            rate /= 2
        if new > value:
            break
        weights, gain, value = weights - rate * step, value - new, new
        if gain <= 1e-10 * (1 + value):
            break
    return right.T @ weights[:-1], float(weights[-1])


def _auc_statistic(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, fold: np.ndarray) -> bootstrap.Statistic:
    """Weighted share of (real, synthetic) pairs within folds in which the synthetic image scores higher; ties half."""
    pairs = []
    for held in np.unique(fold):
        if len(np.unique(labels[fold != held])) < 2:
            continue
        real, synthetic = np.flatnonzero((fold == held) & ~labels), np.flatnonzero((fold == held) & labels)
        gap = scores[synthetic][None] - scores[real][:, None]
        pairs.append((groups[real], groups[synthetic], (gap > 0) + 0.5 * (gap == 0)))

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        won, total = np.zeros(len(weights)), np.zeros(len(weights))
        for real, synthetic, wins in pairs:
            a, b = weights[:, real].astype(np.float64), weights[:, synthetic].astype(np.float64)
            won += ((a @ wins) * b).sum(1)
            total += a.sum(1) * b.sum(1)
        return {"auc": np.divide(won, total, out=np.full(len(weights), np.nan), where=total > 0)}

    return statistic
