"""The parameters of a private training run: sampling rate, noise, steps within the budget, and its guarantee."""

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
    """Every step draws each of `units` with probability `sampling_rate`, and adds noise to the clipped sum.

    batch_size: expected units per batch. noise_multiplier: standard deviation of the noise of a step over the largest
    change by one unit. steps: number allowed. releases: noisy sums per step, each over newly drawn units.
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
        """The noise multiplier of the gradients only.

        An adaptive clip norm spends part of the privacy on the counts of unclipped gradients, which one unit changes by
        one half. Andrew et al. 2021 (arXiv:1905.03871), theorem 1: z = (z_gradient^-2 + (2 sigma_b)^-2)^(-1/2).
        """
        if not isinstance(self.privacy.clipping, Adaptive):
            return self.noise_multiplier
        return (self.noise_multiplier**-2 - (2 * self.count_noise) ** -2) ** -0.5

    @property
    def count_noise(self) -> float:
        """Standard deviation of the noise on the number of unclipped gradients; 0 without an adaptive clip norm."""
        clipping = self.privacy.clipping
        return clipping.count_noise * self.batch_size if isinstance(clipping, Adaptive) else 0.0

    def ledger(self, steps: int) -> Ledger | None:
        """The ledger of this number of steps; None for no step."""
        if not steps:
            return None
        return Ledger((Phase(self.sampling_rate, self.noise_multiplier, steps * self.releases),), self.privacy.unit)

    def statement(self, steps: int, private: bool, exposed: str = "") -> Statement:
        """The statement after this number of steps, at least one. private: whether the secret is really secret.
        exposed: as in `Statement`."""
        privacy, ledger = self.privacy, self.ledger(steps)
        assert ledger is not None
        epsilon = accounting.epsilon_of(ledger.phases, privacy.delta, privacy.accountant)
        return Statement(private, epsilon, privacy.delta, privacy.accountant, ledger, exposed)


@dataclass(frozen=True)
class Statement:
    """The privacy guarantee of a training run, as given in its model and report. It contains nothing from the data.

    private: False if the seed of the noise is known. epsilon: of the ledger, at delta, by the accountant. exposed:
    inputs of the training that learned from the same patients without protection, as part of a sentence: epsilon then
    holds only for this training run, and none holds for the whole chain. identity: a random number unique to a training
    run, so that one behind several models or sets is counted once (`once`); "" if it has none.
    """

    private: bool
    epsilon: float
    delta: float
    accountant: Accountant
    ledger: Ledger
    exposed: str = ""
    identity: str = ""

    def named(self) -> Statement:
        """The statement with a new identity, as for a finished training run; without one if the noise is known, so that
        the run can be reproduced."""
        return replace(self, identity=secrets.token_hex(16)) if self.private else self

    @property
    def holds(self) -> bool:
        """Whether it protects anyone."""
        return self.private and not self.exposed

    def sentence(self) -> str:
        """The guarantee in words, with its limitations."""
        if not self.private:
            return "Not private: the seed of the noise is known."
        if self.exposed:
            return (
                f"Not private: {self.exposed}, without protection, so epsilon {self.epsilon:.3g} at delta "
                f"{self.delta:g} for each {self.ledger.unit} holds for this training alone, and no epsilon holds for "
                "the whole chain."
            )
        full = self.accountant == "pld" and all(phase.sampling_rate == 1 for phase in self.ledger.phases)
        accounted = "exact for full batches" if full else f"by {self.accountant}"
        whose = "All training images of each patient are" if self.ledger.unit == "patient" else "Each training image is"
        return (
            f"{whose} protected by differential privacy with epsilon {self.epsilon:.3g} at delta {self.delta:g} "
            f"(adjacency: {self.ledger.adjacency}; {accounted}). Not counted: the choice of settings, other "
            "training runs on the same data, and the validation data."
        )


def once(statements: Iterable[Statement]) -> tuple[Statement, ...]:
    """The statements in order, without duplicates of a training run behind several models or sets.

    One without an identity is counted every time: the bound is then too large, but valid.
    """
    found: dict[object, Statement] = {}
    for number, one in enumerate(statements):
        found.setdefault(one.identity or number, one)
    return tuple(found.values())


def together(statements: Sequence[Statement]) -> float | None:
    """Epsilon for someone in the data of several training runs, at the largest of their deltas.

    None if they protect different units, or if one of them protects no one.
    """
    if len({one.ledger.unit for one in statements}) != 1 or not all(one.holds for one in statements):
        return None
    phases = [phase for one in statements for phase in one.ledger.phases]
    loose = all(one.accountant == "rdp" for one in statements)
    return accounting.epsilon_of(phases, max(one.delta for one in statements), "rdp" if loose else "pld")


def in_words(statements: Sequence[Statement]) -> str:
    """The statements of the private training runs behind some weights, the last one last; "" for none."""
    if len(statements) < 2:
        return "".join(one.sentence() for one in statements)
    *_, last = statements
    exposed = next((one for one in statements if one.exposed), None)
    if exposed is not None and last.private:
        return exposed.sentence()
    epsilon = together(statements)
    if last.private and not all(one.private for one in statements):
        both = "Anyone in one whose noise has a known seed is not protected: its release is not accounted for here."
    elif epsilon is None:
        both = "Anyone in several of them is protected less, by an amount that is not accounted for here."
    else:
        delta = max(one.delta for one in statements)
        both = f"Anyone in all of them is protected with epsilon {epsilon:.3g} at delta {delta:g}."
    return f"Of {len(statements)} private training runs behind these weights, the last one: {last.sentence()} {both}"


def plan(privacy: Privacy, units: int, batch_size: int, steps: int, releases: int = 1) -> Mechanism:
    """The mechanism of a training run of `steps` steps on `units` units, with `batch_size` expected in a batch.

    releases: as in `Mechanism`.

    UserError if batches would be larger than the data, or if the budget allows no step.
    """
    if batch_size > units:
        what = f"an expected batch of {batch_size} out of {units} {privacy.unit}s"
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
            f"the noise on counts spends the whole budget of a noise multiplier of {noise:.4g}",
            where="privacy.clipping.count_noise",
            todo=f"give more than {noise / (2 * batch_size):.3g}, or a larger batch",
        )
    return found


def _affordable(privacy: Privacy, epsilon: float, rate: float, noise: float, steps: int, releases: int) -> int:
    """The largest number, up to `steps`, that stays within epsilon."""

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
