"""A linear head on whitened features: the only kind that can be fitted privately (`privacy.head`).

Shapes: N images, F features of a kind, D components of all kinds together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from elk_jax.features.whitening import Whitening, unit_norm, whiten


class Linear(NamedTuple):
    """Log odds = inputs @ weights [D] + bias, where an input is a vector of whitened features minus `mean` [D], divided
    by its norm. whitening: by kind of features, in the order of the components."""

    whitening: Mapping[str, Whitening]
    mean: np.ndarray
    weights: np.ndarray
    bias: float

    def log_odds(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Log odds of the positive class [N], for features of every kind [N, F]."""
        found = inputs(whitened(features, self.whitening), self.mean)
        return found.astype(np.float64) @ self.weights + self.bias

    def scaled(self, scale: float, shift: float) -> Linear:
        """The head whose log odds are `scale` times those of this one, plus `shift`."""
        return self._replace(weights=(scale * self.weights).astype(np.float32), bias=scale * self.bias + shift)

    def params(self) -> dict[str, Any]:
        """The arrays stored in a model folder."""
        head = {"mean": self.mean, "weights": self.weights, "bias": np.asarray(self.bias)}
        return {"head": head, "whitening": {name: one._asdict() for name, one in self.whitening.items()}}

    @classmethod
    def of(cls, params: Mapping[str, Any], kinds: Mapping[str, object]) -> Linear:
        """A head from `params`, for kinds of features in their order."""
        whitening = {name: Whitening(**params["whitening"][name]) for name in kinds}
        return cls(whitening, params["head"]["mean"], params["head"]["weights"], float(params["head"]["bias"]))

    @staticmethod
    def shapes(flat: Mapping[str, np.ndarray], kinds: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
        """The shapes of parameters by path a/b/c, assuming that those of the components are right."""
        shapes: dict[str, tuple[int, ...]] = {}
        total = 0
        for name in kinds:
            components = flat.get(f"whitening/{name}/components", np.zeros((0, 0)))
            inner, outer = components.shape if components.ndim == 2 else (0, 0)
            shapes |= {f"whitening/{name}/mean": (inner,), f"whitening/{name}/components": (inner, outer)}
            total += outer
        return shapes | {"head/mean": (total,), "head/weights": (total,), "head/bias": ()}


def whitened(features: Mapping[str, np.ndarray], by: Mapping[str, Whitening]) -> np.ndarray:
    """Features of every kind as one vector [N, D] for each image, in the order of `by`."""
    return np.concatenate([whiten(features[name], one) for name, one in by.items()], axis=1).astype(np.float32)


def inputs(found: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Whitened features [N, D] as the input of a head: minus `mean` [D], with norm 1."""
    return unit_norm(found - mean)
