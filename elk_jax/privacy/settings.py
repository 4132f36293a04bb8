"""Settings of private training: the guarantee, the protected unit, and the bounds of contributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, AtLeast, Checked, Range, check
from elk_jax.privacy.accounting import DELTA, NOISE, Accountant, Unit
from elk_jax.randomness import Seed


@dataclass(frozen=True)
class Flat(Checked):
    """Scale gradients with an L2 norm above `clip_norm` down to it. Abadi et al. 2016 (arXiv:1607.00133)."""

    name: Literal["flat"] = "flat"
    clip_norm: Annotated[float, ABOVE_ZERO] = 1.0

    @property
    def bound(self) -> float:
        """The largest norm of one unit's contribution."""
        return self.clip_norm


@dataclass(frozen=True)
class Normalised(Checked):
    """Divide every gradient g by |g| + stability, so that no clip norm has to be chosen. Bu et al. 2023
    (arXiv:2206.07136), equation 1.3.

    stability: far above the norms at which squares underflow, so that the norm of the result is at most 1.
    """

    name: Literal["normalised"] = "normalised"
    stability: Annotated[float, AtLeast(1e-6)] = 0.01

    @property
    def bound(self) -> float:
        """The largest norm of one unit's contribution."""
        return 1.0


@dataclass(frozen=True)
class Adaptive(Checked):
    """A clip norm that follows a quantile of the gradients' norms. Andrew et al. 2021 (arXiv:1905.03871), algorithm 1.

    initial: clip norm of the first step. quantile: share of the units whose gradients should stay unclipped. rate: of
    the geometric update. count_noise: standard deviation of the noise on the share of unclipped gradients (their
    sigma_b over the expected batch size). The gradients get slightly more noise, so that the total cost is that of the
    noise multiplier (theorem 1).
    """

    name: Literal["adaptive"] = "adaptive"
    initial: Annotated[float, ABOVE_ZERO] = 0.1
    quantile: Annotated[float, Range(0, 1, above=True, below=True)] = 0.5
    rate: Annotated[float, ABOVE_ZERO] = 0.2
    count_noise: Annotated[float, ABOVE_ZERO] = 0.05

    @property
    def bound(self) -> float:
        """The largest norm of one unit's contribution to the first step."""
        return self.initial


Clipping = Flat | Normalised | Adaptive


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """How training protects the units of its data. The batch size of the recipe is the expected number of units.

    epsilon, noise_multiplier: each follows from the other, delta and the steps of the recipe. If both are set, training
    stops before the step that would exceed epsilon. unit: protected as a whole. clipping: how the gradient of a unit is
    bounded. images: most images of a unit in a batch (for an inpainter: lesions), drawn at random if it has more.
    views: augmentations of every image, averaged before clipping (De et al. 2022, arXiv:2204.13650). micro_batch: units
    whose gradients are computed at once; more need more memory, and gain little on a CPU. gradients: of every unit, or
    only their norms and their clipped sum ("ghost", training/step/ghost.py). Except for rounding, both give the same
    sum. Ghost norms need memory for gradients of units only if layers are used several times, and another backward
    pass: they suit layers with many parameters and few positions. For a Swin-T they cost more (benchmarks/README.md).
    public_weight: weight of the loss on public examples in addition to the private ones; 0: there are none.
    known_seed: derive the noise and the batches from this number instead of the system's entropy. For tests only:
    anyone who knows it can subtract the noise, so such training is not private.
    """

    epsilon: Annotated[float, ABOVE_ZERO] | None = None
    noise_multiplier: Annotated[float, NOISE] | None = None
    delta: Annotated[float, DELTA] = 1e-5
    unit: Unit = "patient"
    accountant: Accountant = "pld"
    clipping: Clipping = Flat()
    images: Annotated[int, AtLeast(1)] = 4
    views: Annotated[int, AtLeast(1)] = 1
    micro_batch: Annotated[int, AtLeast(1)] = 1
    gradients: Literal["per_example", "ghost"] = "per_example"
    public_weight: Annotated[float, AtLeast(0)] = 0.0
    known_seed: Seed | None = None

    def __post_init__(self) -> None:
        check(self)
        if self.epsilon is None and self.noise_multiplier is None:
            todo = "set epsilon or noise_multiplier, or both"
            raise UserError("private training has neither a budget nor noise", where="epsilon", todo=todo)
