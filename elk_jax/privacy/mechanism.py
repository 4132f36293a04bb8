"""The numbers of one private training: sampling rate, noise, how many steps its budget allows, and what it promises."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from elk_jax.errors import UserError
from elk_jax.privacy import accounting
from elk_jax.privacy.accounting import Accountant, Ledger, Phase
from elk_jax.privacy.settings import Adaptive, Privacy


@dataclass(frozen=True)
class Mechanism:
    """Every step draws each of `units` with the probability `sampling_rate`, and adds noise to the clipped sum.

    batch_size: expected units of a batch. noise_multiplier: standard deviation of the noise of a step over what one
    unit can change. steps: that are allowed. releases: noisy sums of a step, each of units that are drawn anew.
    """

    privacy: Privacy
    units: int
    batch_size: int
    noise_multiplier: float
    steps: int
    releases: int = 1

    @property
    def sampling_rate(self) -> float:
        return self.batch_size / self.units

    @property
    def gradient_noise(self) -> float:
        """The noise multiplier of the gradients alone.

        An adaptive clip norm spends a part of the privacy on the counts of unclipped gradients, of which one unit
        changes a half. Andrew et al. 2021 (arXiv:1905.03871), theorem 1: z = (z_gradient^-2 + (2 sigma_b)^-2)^(-1/2).
        """
        if not isinstance(self.privacy.clipping, Adaptive):
            return self.noise_multiplier
        return (self.noise_multiplier**-2 - (2 * self.count_noise) ** -2) ** -0.5

    @property
    def count_noise(self) -> float:
        """Standard deviation of the noise on the number of unclipped gradients of an adaptive clip norm; 0 without."""
        clipping = self.privacy.clipping
        return clipping.count_noise * self.batch_size if isinstance(clipping, Adaptive) else 0.0

    def ledger(self, steps: int) -> Ledger | None:
        """What so many steps spend; None for no step."""
        if not steps:
            return None
        return Ledger((Phase(self.sampling_rate, self.noise_multiplier, steps * self.releases),), self.privacy.unit)

    def statement(self, steps: int, private: bool, exposed: str = "") -> Statement:
        """The promise after so many steps, at least one. private: whether the secret is one. exposed: as of a
        `Statement`."""
        privacy, ledger = self.privacy, self.ledger(steps)
        assert ledger is not None
        epsilon = accounting.epsilon_of(ledger.phases, privacy.delta, privacy.accountant)
        return Statement(private, epsilon, privacy.delta, privacy.accountant, ledger, exposed)


@dataclass(frozen=True)
class Statement:
    """What a private training promises, as its model and its report say it. It holds nothing of the data.

    private: False where the seed of the noise is known. epsilon: of the ledger, at delta, by the accountant. exposed:
    what the training has used that learned from the same patients without protecting them, as half a sentence: then the
    epsilon is of the training alone, and nobody has that of the whole chain. identity: a random number that no other
    training has, so that one that stands behind several models or sets is counted once (`once`); "" where it has none.
    """

    private: bool
    epsilon: float
    delta: float
    accountant: Accountant
    ledger: Ledger
    exposed: str = ""
    identity: str = ""

    def named(self) -> Statement:
        """With a new identity, as a finished training has it; without one where the noise is known, so that the
        training can be repeated."""
        return replace(self, identity=secrets.token_hex(16)) if self.private else self

    @property
    def holds(self) -> bool:
        """Whether it protects anybody."""
        return self.private and not self.exposed

    def sentence(self) -> str:
        """The promise in words, with what it leaves out."""
        if not self.private:
            return "Not private: the seed of the noise is known."
        if self.exposed:
            return (
                f"Not private: {self.exposed}, without protection, so that epsilon {self.epsilon:.3g} at delta "
                f"{self.delta:g} for each {self.ledger.unit} is that of this training alone and no epsilon holds for "
                "the whole chain."
            )
        full = self.accountant == "pld" and all(phase.sampling_rate == 1 for phase in self.ledger.phases)
        accounted = "exact for full batches" if full else f"by {self.accountant}"
        whose = "All training images of each patient are" if self.ledger.unit == "patient" else "Each training image is"
        return (
            f"{whose} protected by differential privacy with epsilon {self.epsilon:.3g} at delta {self.delta:g} "
            f"(adjacency: {self.ledger.adjacency}; {accounted}). Not counted: the choice of settings, other "
            "trainings on the same data, and the validation data."
        )


def once(statements: Iterable[Statement]) -> tuple[Statement, ...]:
    """The promises without repetitions of one training, which is behind several models or sets. In order.

    One without an identity is counted each time: the bound is too large then, and holds.
    """
    found: dict[object, Statement] = {}
    for number, one in enumerate(statements):
        found.setdefault(one.identity or number, one)
    return tuple(found.values())


def together(statements: Sequence[Statement]) -> float | None:
    """Epsilon of one who is in the data of several trainings, at the largest of their deltas.

    None where they protect different units, or one of them protects nobody.
    """
    if len({one.ledger.unit for one in statements}) != 1 or not all(one.holds for one in statements):
        return None
    phases = [phase for one in statements for phase in one.ledger.phases]
    loose = all(one.accountant == "rdp" for one in statements)
    return accounting.epsilon_of(phases, max(one.delta for one in statements), "rdp" if loose else "pld")


def in_words(statements: Sequence[Statement]) -> str:
    """What the private trainings behind some weights promise, the last one last; "" for none."""
    if len(statements) < 2:
        return "".join(one.sentence() for one in statements)
    *_, last = statements
    exposed = next((one for one in statements if one.exposed), None)
    if exposed is not None and last.private:
        return exposed.sentence()
    epsilon = together(statements)
    if last.private and not all(one.private for one in statements):
        both = "Who is in one whose noise has a known seed is not protected: what it tells is not accounted for here."
    elif epsilon is None:
        both = "Who is in several of them is protected less, by an amount that is not accounted for here."
    else:
        delta = max(one.delta for one in statements)
        both = f"Who is in all of them is protected with epsilon {epsilon:.3g} at delta {delta:g}."
    return f"Of {len(statements)} private trainings behind these weights, the last one: {last.sentence()} {both}"


def plan(privacy: Privacy, units: int, batch_size: int, steps: int, releases: int = 1) -> Mechanism:
    """The mechanism of a training of `steps` steps on `units` units, `batch_size` of them expected in a batch.

    releases: as of a `Mechanism`.

    UserError where batches would be larger than the data, or the budget allows no step.
    """
    if batch_size > units:
        what = f"an expected batch of {batch_size} of {units} {privacy.unit}s"
        raise UserError(what, where="batch_size", todo=f"give at most {units}; with {units} every batch is full")
    rate, noise = batch_size / units, privacy.noise_multiplier
    if noise is None:
        assert privacy.epsilon is not None  # Privacy checks it
        try:
            noise = accounting.noise_for(privacy.epsilon, privacy.delta, rate, steps * releases, privacy.accountant)
        except UserError as error:
            raise error.within("privacy") from error
    elif privacy.epsilon is not None:
        steps = _affordable(privacy, privacy.epsilon, rate, noise, steps, releases)
    found = Mechanism(privacy, units, batch_size, noise, steps, releases)
    if isinstance(privacy.clipping, Adaptive) and 2 * found.count_noise <= noise:
        raise UserError(
            f"the noise on counts spends all of the privacy of a noise multiplier of {noise:.4g}",
            where="privacy.clipping.count_noise",
            todo=f"give more than {noise / (2 * batch_size):.3g}, or a larger batch",
        )
    return found


def _affordable(privacy: Privacy, epsilon: float, rate: float, noise: float, steps: int, releases: int) -> int:
    """The most of `steps` steps that keep to epsilon."""

    def spent(steps: int) -> float:
        return accounting.epsilon_of((Phase(rate, noise, steps * releases),), privacy.delta, privacy.accountant)

    if spent(steps) <= epsilon:
        return steps
    least, most = 0, steps  # allowed, not allowed
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if spent(middle) <= epsilon else (least, middle)
    if not least:
        what = f"a step with the noise multiplier {noise:g} spends more than epsilon {epsilon:g}"
        raise UserError(what, where="privacy.noise_multiplier", todo="give more noise, or leave noise_multiplier out")
    return least
