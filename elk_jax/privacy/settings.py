"""The settings of a private training: what is promised to whom, and how contributions are bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, AtLeast, Checked, Range, check
from elk_jax.privacy.accounting import DELTA, NOISE, Accountant, Unit
from elk_jax.randomness import Seed


@dataclass(frozen=True)
class Flat(Checked):
    """Scale gradients of an L2 norm above `clip_norm` down to it. Abadi et al. 2016 (arXiv:1607.00133)."""

    name: Literal["flat"] = "flat"
    clip_norm: Annotated[float, ABOVE_ZERO] = 1.0

    @property
    def bound(self) -> float:
        """The largest norm of what one unit adds."""
        return self.clip_norm


@dataclass(frozen=True)
class Normalised(Checked):
    """Divide every gradient g by |g| + stability, which leaves no clip norm to choose. Bu et al. 2023
    (arXiv:2206.07136), equation 1.3."""

    name: Literal["normalised"] = "normalised"
    stability: Annotated[float, AtLeast(0)] = 0.01

    @property
    def bound(self) -> float:
        """The largest norm of what one unit adds."""
        return 1.0


@dataclass(frozen=True)
class Adaptive(Checked):
    """A clip norm that follows a quantile of the gradients' norms. Andrew et al. 2021 (arXiv:1905.03871), algorithm 1.

    initial: clip norm of the first step. quantile: share of the units whose gradients are to stay unclipped. rate: of
    the geometric update. count_noise: standard deviation of the noise on the share of unclipped gradients (their
    sigma_b over the expected batch size). The gradients get a little more noise, so that both together cost what the
    noise multiplier says (theorem 1).
    """

    name: Literal["adaptive"] = "adaptive"
    initial: Annotated[float, ABOVE_ZERO] = 0.1
    quantile: Annotated[float, Range(0, 1, above=True, below=True)] = 0.5
    rate: Annotated[float, ABOVE_ZERO] = 0.2
    count_noise: Annotated[float, ABOVE_ZERO] = 0.05

    @property
    def bound(self) -> float:
        """The largest norm of what one unit adds to the first step."""
        return self.initial


Clipping = Flat | Normalised | Adaptive


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """How a training protects the units of its data. The batch size of the recipe is the expected number of units.

    epsilon, noise_multiplier: the one follows from the other, delta and the steps of the recipe. With both, the
    training stops before the step that would exceed epsilon. unit: whose contribution is protected as a whole.
    clipping: how the gradient of a unit is bounded. images: of a unit in a batch at most (of an inpainter: lesions),
    drawn at random where it has more. views: augmentations of every image, averaged before clipping (De et al. 2022,
    arXiv:2204.13650). micro_batch: units whose gradients are computed at once; more need more memory, and gain little
    on a CPU. gradients: of every unit, or their norms and their clipped sum alone ("ghost", training/step/ghost.py).
    Both are the same sum, but for rounding. Ghost norms need memory for gradients of units only where layers are used
    several times, and another backward pass: they are for layers with many parameters and few positions. For a Swin-T
    they cost more (benchmarks/README.md).
    public_weight: of the loss on public examples beside the private ones; 0: there are none.
    known_seed: take the noise and the batches from this number instead of the system's entropy. For tests: whoever
    knows it can subtract the noise, so that such a training is not private.
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
            todo = "set epsilon, or noise_multiplier, or both"
            raise UserError("a private training without a budget and without noise", where="epsilon", todo=todo)
