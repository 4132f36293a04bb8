"""Search for the best features and settings of a head on the validation images.

Shapes: N images, F features of a kind, D components of all kinds together, S settings, K draws of the noise.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax import randomness
from elk_jax.features import whitening
from elk_jax.features.whitening import Whitening
from elk_jax.heads import folds, kernel, linear
from elk_jax.heads.heads import Head
from elk_jax.heads.linear import Linear
from elk_jax.privacy import head as descent
from elk_jax.privacy.secret import NOISE_GENERATOR
from elk_jax.progress import LONG, Progress
from elk_jax.randomness import Purpose
from elk_jax.tasks.classification import model
from elk_jax.tasks.classification.recipe import FitHeadStage, HeadRecipe, KernelSearch, Search

UNBOUNDED = 1e9
"""The clip norm without privacy."""


@dataclass(frozen=True)
class Choice:
    """Settings of the descent of a linear head, with its features and components."""

    features: tuple[str, ...]
    components: int
    learning_rate: float
    steps: int
    averaged: float
    l2: float

    def __str__(self) -> str:
        averaged = f", mean of the last {self.averaged:.0%}" if self.averaged else ""
        decay = f", weight decay {self.l2:g}" if self.l2 else ""
        return (
            f"{' + '.join(self.features)}, {self.components} components each, {self.steps} steps at learning rate "
            f"{self.learning_rate:g}{averaged}{decay}"
        )


@dataclass(frozen=True)
class KernelChoice:
    """Settings of a kernel head, with its features."""

    features: tuple[str, ...]
    width: float
    penalty: float

    def __str__(self) -> str:
        kind = f"Gaussian kernel of width {self.width:g}" if self.width else "linear kernel"
        return f"{' + '.join(self.features)}, {kind}, penalty {self.penalty:g}"


class Fitted(NamedTuple):
    """The result of a search. heads: not yet calibrated, for every draw of the noise; the first is the model. aurocs:
    of the heads on the validation images. tried: number of settings. noise: multipliers of the mean and of each step.
    within: AUROC in cross-validation, if used."""

    heads: Sequence[Head]
    aurocs: np.ndarray
    choice: Choice | KernelChoice
    tried: int
    noise: tuple[float, float] = (0.0, 0.0)
    within: float | None = None


class Drawn(NamedTuple):
    """Heads of S settings for one draw of the noise: mean [D], weights [S, D], AUROC [S] on the validation images."""

    mean: np.ndarray
    weights: np.ndarray
    aurocs: np.ndarray


@dataclass(frozen=True)
class Problem:
    """The inputs common to all settings of the search. truth: of the training [N], val_truth: of the validation images.

    units: of privacy, of every training image [N], numbered from 0 to num_units - 1. full_noise: the multiplier with
    which one full batch spends the budget; 0 without privacy.
    """

    truth: np.ndarray
    val_truth: np.ndarray
    units: np.ndarray
    num_units: int
    full_noise: float
    stage: FitHeadStage
    recipe: HeadRecipe

    def noise(self, steps: int) -> tuple[float, float]:
        """Noise multipliers (of the mean, of each step) with the epsilon of the stage; 0 without privacy."""
        if not self.stage.is_private:
            return 0.0, 0.0
        return descent.split_noise(self.full_noise, self.recipe.mean_share, steps)

    def fit(self, training: np.ndarray, validation: np.ndarray, choices: Sequence[Choice], key: jax.Array) -> Drawn:
        """Heads with each of the settings, for one draw of the noise, from whitened features [N, D]."""
        of_mean, of_steps = jax.random.split(key)
        clip = self.recipe.mean_clip * training.shape[1] ** 0.5 if self.stage.is_private else UNBOUNDED
        units, noise = self.units.astype(np.int32), self.noise(choices[0].steps)[0]
        mean = np.asarray(descent.private_mean(training, units, clip, noise, of_mean, num_units=self.num_units))
        inputs = linear.inputs(training, mean)
        column = lambda values: jnp.asarray(values, jnp.float32)
        descents = descent.Descent(
            learning_rate=column([one.learning_rate for one in choices]),
            steps=jnp.asarray([one.steps for one in choices], jnp.int32),
            clip_norm=column([self.recipe.clip_norm if self.stage.is_private else UNBOUNDED] * len(choices)),
            noise_multiplier=column([self.noise(one.steps)[1] for one in choices]),
            l2=column([one.l2 for one in choices]),
            averaged=column([one.averaged for one in choices]),
        )
        most, truth = max(one.steps for one in choices), self.truth.astype(np.float32)
        weights = np.asarray(
            descent.train_many(
                inputs, truth, units, descents, of_steps[None], num_units=self.num_units, most_steps=most
            )
        )[:, 0]
        scores = linear.inputs(validation, mean) @ weights.T
        return Drawn(mean, weights, np.array([model.auroc(one, self.val_truth) for one in scores.T]))


def linear_head(
    problem: Problem,
    search: Search,
    training: Mapping[str, np.ndarray],
    validation: Mapping[str, np.ndarray],
    public: Mapping[str, np.ndarray],
) -> Fitted:
    """Linear heads with the best of all settings, from features [N, F] of every kind."""
    stage, recipe = problem.stage, problem.recipe
    found: list[tuple[float, Choice]] = []
    grid = list(itertools.product(recipe.combinations(), search.components))
    where = f"stage {stage.name}.public"
    whole = functools.cache(lambda names: _whitening(public, names, max(search.components), where))
    with Progress(f"  fitting {stage.name}", len(grid), unit="representation", patience=LONG) as bar:
        for done, (names, components) in enumerate(grid, start=1):
            by = _first(whole(names), components)
            inputs, of_val = (linear.whitened(part, by) for part in (training, validation))
            rest = itertools.product(search.learning_rates, search.steps, search.averaged, search.l2)
            choices = [Choice(names, components, *one) for one in rest]
            drawn = [
                problem.fit(inputs, of_val, choices, key) for key in noise_keys(search.draws, stage.known_seed, done)
            ]
            aurocs = np.mean([one.aurocs for one in drawn], axis=0)
            found += zip(aurocs.tolist(), choices)
            bar.update(done)
    _, choice = max(found, key=lambda one: one[0])
    by = _first(whole(choice.features), choice.components)
    inputs, of_val = (linear.whitened(part, by) for part in (training, validation))
    draws = recipe.draws if stage.is_private else 1
    drawn = [problem.fit(inputs, of_val, [choice], key) for key in noise_keys(draws, stage.known_seed, 0)]
    return Fitted(
        heads=[Linear(by, one.mean, one.weights[0], 0.0) for one in drawn],
        aurocs=np.array([one.aurocs[0] for one in drawn]),
        choice=choice,
        tried=len(found),
        noise=problem.noise(choice.steps),
    )


def kernel_head(
    problem: Problem,
    search: KernelSearch,
    training: Mapping[str, np.ndarray],
    validation: Mapping[str, np.ndarray],
    people: np.ndarray,
    seed: int,
) -> Fitted:
    """A kernel head with the best of all settings, from features [N, F] of every kind. people: the patient of every
    training image [N], numbered."""
    where = f"stage {problem.stage.name}"
    rng = randomness.generator(seed, Purpose.FOLDS)
    fold = folds.grouped(people, problem.truth, search.folds, rng, f"config.{problem.stage.recipe}.search.folds")
    scaling = {name: kernel.scaling_of(one, where) for name, one in training.items()}
    found: list[tuple[float, float, float, KernelChoice]] = []
    grid = list(itertools.product(problem.recipe.combinations(), search.widths))
    with Progress(f"  fitting {problem.stage.name}", len(grid), unit="kernel", patience=LONG) as bar:
        for done, (names, width) in enumerate(grid, start=1):
            by = {name: scaling[name] for name in names}
            inputs, of_val = (kernel.scaled(part, by) for part in (training, validation))
            matrix = kernel.gram(inputs, inputs, width)
            scores = kernel.cross_validated(matrix, problem.truth, fold, search.penalties)
            coefficients, _ = kernel.solve(matrix, problem.truth, search.penalties)
            val_scores = coefficients @ kernel.gram(inputs, of_val, width)
            for penalty, one, of_one in zip(search.penalties, scores, val_scores):
                within, beyond = model.auroc(one, problem.truth), model.auroc(of_one, problem.val_truth)
                found.append(((within + beyond) / 2, within, beyond, KernelChoice(names, width, penalty)))
            bar.update(done)
    _, within, auroc, choice = max(found, key=lambda one: one[0])
    by = {name: scaling[name] for name in choice.features}
    head = kernel.fit(kernel.scaled(training, by), by, problem.truth, choice.width, choice.penalty)
    return Fitted([head], np.array([auroc]), choice, len(found), within=within)


def noise_keys(count: int, known_seed: int | None, purpose: int) -> jax.Array:
    """`count` keys of the noise [K], from the system's entropy or from a number that is not secret.

    purpose: gives different noise for the same number. The entropy is an argument of compiled programs, never part of
    them.
    """
    if known_seed is None:
        words = np.frombuffer(os.urandom(8 * count), np.uint32)
    else:
        words = np.random.SeedSequence([known_seed, purpose]).generate_state(2 * count).astype(np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words.reshape(count, 2)), impl=NOISE_GENERATOR)


def _whitening(
    public: Mapping[str, np.ndarray], names: Sequence[str], components: int, where: str
) -> dict[str, Whitening]:
    return {name: whitening.fit(public[name], components, where) for name in names}


def _first(by: Mapping[str, Whitening], components: int) -> dict[str, Whitening]:
    """The first components of each; they do not depend on how many are fitted."""
    return {name: one._replace(components=one.components[:, :components]) for name, one in by.items()}
