"""Kernel ridge regression on features: a head that stores features of its training images, so it is never private.

Shapes: N training images, M images to score, F features of all kinds together, P penalties, K folds.

The targets are +1 and -1; minimised is the sum over images of squared errors, plus the penalty times the squared norm
of the function. The intercept is not penalised. Source: Saunders, Gammerman and Vovk 1998.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from elk_jax.errors import UserError

LINEAR = 0.0
"""Width that denotes the linear kernel."""


class Scaling(NamedTuple):
    """Mean and deviation [F] of one kind of features over the training images. float32."""

    mean: np.ndarray
    deviation: np.ndarray


class Kernel(NamedTuple):
    """Log odds = kernel(inputs, anchors) @ coefficients + bias; an input has the scaled features of all kinds.

    scaling: by kind of features, in the order of the inputs. anchors: [N, F], the inputs of the training images; for a
    linear kernel [1, F], their weighted sum. coefficients: [N] or [1]. width: see `gram`.
    """

    scaling: Mapping[str, Scaling]
    anchors: np.ndarray
    coefficients: np.ndarray
    bias: float
    width: float

    def log_odds(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Log odds of the positive class [M], for features of every kind. A head from `fit` must be `scaled` first."""
        return gram(scaled(features, self.scaling), self.anchors, self.width) @ self.coefficients + self.bias

    def scaled(self, scale: float, shift: float) -> Kernel:
        """The head whose log odds are `scale` times those of this one, plus `shift`."""
        return self._replace(coefficients=scale * self.coefficients, bias=scale * self.bias + shift)

    def params(self) -> dict[str, Any]:
        """The arrays stored in a model folder."""
        numbers = {"bias": np.asarray(self.bias), "width": np.asarray(self.width)}
        head = {"anchors": self.anchors, "coefficients": self.coefficients, **numbers}
        return {"head": head, "scaling": {name: one._asdict() for name, one in self.scaling.items()}}

    @classmethod
    def of(cls, params: Mapping[str, Any], kinds: Mapping[str, object]) -> Kernel:
        """A head from `params`, for kinds of features in their order."""
        scaling, head = {name: Scaling(**params["scaling"][name]) for name in kinds}, params["head"]
        coefficients = head["coefficients"].astype(np.float64)
        return cls(scaling, head["anchors"], coefficients, float(head["bias"]), float(head["width"]))

    @staticmethod
    def shapes(flat: Mapping[str, np.ndarray], kinds: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
        """The shapes of parameters by path a/b/c, assuming that those of the means and the coefficients are right."""
        sizes = {name: int(np.size(flat.get(f"scaling/{name}/mean", ()))) for name in kinds}
        count, total = int(np.size(flat.get("head/coefficients", ()))), sum(sizes.values())
        shapes: dict[str, tuple[int, ...]] = {
            f"scaling/{name}/{part}": (size,) for name, size in sizes.items() for part in Scaling._fields
        }
        return shapes | {
            "head/anchors": (count, total),
            "head/coefficients": (count,),
            "head/bias": (),
            "head/width": (),
        }


# ---- Inputs ----------------------------------------------------------------------------------------------------------


def scaling_of(features: np.ndarray, where: str = "") -> Scaling:
    """The scaling from features [N, F] of training images. UserError unless they are finite."""
    if not np.isfinite(features).all():
        raise UserError(
            "the features of the training images contain NaN or infinity", where=where, todo="omit those images"
        )
    wide = np.asarray(features, np.float64)
    return Scaling(wide.mean(0).astype(np.float32), wide.std(0).astype(np.float32))


def scaled(features: Mapping[str, np.ndarray], by: Mapping[str, Scaling]) -> np.ndarray:
    """Features of every kind as one vector [N, F] for each image, in the order of `by`; float32.

    The mean squared norm of the training images' vectors is 1, with equal shares for all kinds and, within a kind, for
    all features; a feature that is constant over the training images has no weight.
    """
    parts = []
    for name, one in by.items():
        varies = one.deviation > 0
        factors = varies / np.where(varies, one.deviation, 1) / np.sqrt(max(varies.sum(), 1) * len(by))
        parts.append(((features[name] - one.mean) * factors).astype(np.float32))
    return np.concatenate(parts, axis=1)


def gram(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """Kernel [M, N] of inputs [M, F] and [N, F], in float64.

    exp(-d / (2 width^2)), where d is the squared distance; LINEAR: the product.
    """
    products = first.astype(np.float64) @ second.T.astype(np.float64)
    if width == LINEAR:
        return products
    squares = [(one.astype(np.float64) ** 2).sum(1) for one in (first, second)]
    distances = np.maximum(squares[0][:, None] + squares[1] - 2 * products, 0)
    return np.exp(-distances / (2 * width**2))


# ---- Fitting ---------------------------------------------------------------------------------------------------------


def solve(matrix: np.ndarray, truth: np.ndarray, penalties: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [P, N] and biases [P] for a kernel [N, N] and truth [N] (whether an image has the positive class).

    One decomposition serves all penalties.
    """
    values, vectors = np.linalg.eigh(matrix)
    targets, ones = vectors.T @ np.where(truth, 1.0, -1.0), vectors.T @ np.ones(len(truth))
    shrunk = 1 / (np.maximum(values, 0) + np.asarray(penalties, np.float64)[:, None])
    biases = (shrunk * targets * ones).sum(1) / (shrunk * ones**2).sum(1)
    return (shrunk * (targets - biases[:, None] * ones)) @ vectors.T, biases


def cross_validated(matrix: np.ndarray, truth: np.ndarray, folds: np.ndarray, penalties: Sequence[float]) -> np.ndarray:
    """Scores [P, N] of every image by the fit without its fold. matrix: kernel [N, N]; folds: [N], 0 to K - 1."""
    scores = np.zeros((len(penalties), len(truth)))
    for fold in np.unique(folds):
        out = folds == fold
        coefficients, biases = solve(matrix[np.ix_(~out, ~out)], truth[~out], penalties)
        scores[:, out] = coefficients @ matrix[np.ix_(~out, out)] + biases[:, None]
    return scores


def fit(inputs: np.ndarray, scaling: Mapping[str, Scaling], truth: np.ndarray, width: float, penalty: float) -> Kernel:
    """The head fitted to inputs [N, F], which are scaled by `scaling`."""
    coefficients, biases = solve(gram(inputs, inputs, width), truth, (penalty,))
    anchors, own = inputs, coefficients[0]
    if width == LINEAR:
        anchors, own = (own @ inputs.astype(np.float64))[None].astype(np.float32), np.ones(1)
    return Kernel(scaling, anchors, own, float(biases[0]), width)
