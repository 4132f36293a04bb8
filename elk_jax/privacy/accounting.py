"""What noise buys: epsilon of private training, and the noise that a budget of epsilon needs.

A noise multiplier is the standard deviation of the Gaussian noise over the clip norm.
"""

from __future__ import annotations

import math

import dp_accounting
import numpy as np

from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, AtLeast, Range

DELTA = Range(0, 1, above=True, below=True)


def gaussian_epsilon(noise_multiplier: float, delta: float, steps: int = 1) -> float:
    """Epsilon of `steps` full batches with Gaussian noise: exact, not a bound. UserError for impossible values.

    Balle and Wang 2018 (arXiv:1805.06530), theorem 8: delta = Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m) with
    m = sqrt(steps) / noise_multiplier, since steps of the same noise compose to one of less noise.
    """
    _check(noise_multiplier=(noise_multiplier, ABOVE_ZERO), delta=(delta, DELTA), steps=(steps, AtLeast(1)))
    with np.errstate(divide="ignore"):  # log(0) where delta underflows
        return float(dp_accounting.get_epsilon_gaussian(noise_multiplier / math.sqrt(steps), delta))


def gaussian_noise_multiplier(epsilon: float, delta: float, steps: int = 1) -> float:
    """The least noise with which `steps` full batches have `epsilon`: the inverse of `gaussian_epsilon`, exact."""
    _check(epsilon=(epsilon, ABOVE_ZERO), delta=(delta, DELTA), steps=(steps, AtLeast(1)))
    with np.errstate(divide="ignore"):
        return float(dp_accounting.get_sigma_gaussian(epsilon, delta)) * math.sqrt(steps)


def _check(**values: tuple[float, Range]) -> None:
    """UserError for the first of name=(value, range) that is outside."""
    for name, (value, wanted) in values.items():
        if not wanted.takes(value):
            raise UserError(f"{name} is {value!r}", where=name, todo=f"give a number {wanted}")
