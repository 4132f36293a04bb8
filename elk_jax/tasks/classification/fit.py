"""Fit a head on frozen features, privately or not. The stage leaves `model/` (model.py) and `draws.safetensors`.

Shapes: N images, D features, S settings, K draws of the noise.

Nothing is published while a private head is fitted, so nothing has to be resumed: an attempt that is interrupted starts
again with other noise. The seeds of the noise are nowhere but in the memory of the process.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from elk_jax import files
from elk_jax.data import patches
from elk_jax.data.sources import patients
from elk_jax.data.sources.labels import class_counts, image_labels
from elk_jax.data.sources.source import ImageSource
from elk_jax.errors import UserError
from elk_jax.evaluation import calibration, thresholds
from elk_jax.features import scattering, whitening
from elk_jax.features.whitening import Whitening
from elk_jax.privacy import accounting
from elk_jax.privacy import head as heads
from elk_jax.privacy.accounting import Ledger, Phase, Unit
from elk_jax.privacy.mechanism import Statement, in_words
from elk_jax.progress import LONG, Progress, progress_bar
from elk_jax.tasks import private
from elk_jax.tasks.classification import model, train
from elk_jax.tasks.classification.model import Frozen, Head
from elk_jax.tasks.classification.recipe import FitHeadStage, HeadRecipe, NetworkFeatures, ScatteringFeatures
from elk_jax.tasks.run import Run, skipped_images
from elk_jax.tasks.task import Summary
from elk_jax.weights import model_folder

DRAWS = "draws.safetensors"
"""The heads of all draws of the noise. Of a private head the first alone is published: all of them promise less."""
FEATURES = "features"
"""Folder of the run with the features of its images, which are private as these are."""
UNBOUNDED = 1e9
"""Clip norm without privacy."""


class Labelled(NamedTuple):
    """One split: its images, their classes [N], and their frozen features by name."""

    source: ImageSource
    labels: np.ndarray
    features: dict[str, np.ndarray]


@dataclass(frozen=True)
class Choice:
    """Settings of the descent, and the features and components that it runs on."""

    features: tuple[str, ...]
    components: int
    learning_rate: float
    steps: int
    averaged: float
    l2: float


# ---- Before anything runs --------------------------------------------------------------------------------------------


def check_fit(run: Run, stage: FitHeadStage, recipe: HeadRecipe, names: Collection[str]) -> None:
    """UserError for data without two classes, a public source that is the private one, units that nobody names, weights
    that have seen patients, and patches that are too small."""
    where = f"stage {stage.name}"
    if not recipe.combinations():
        todo = "set config.RECIPE.features.NAME.weights, or let search.features name others"
        raise UserError("none of the features of search.features is there", where=f"config.{stage.recipe}", todo=todo)
    for name, one in recipe.used().items():
        if isinstance(one, ScatteringFeatures):
            scattering.check_size((recipe.size, recipe.size), one.scales, f"config.{stage.recipe}.features.{name}")
    places = {run.spec(name).spec: name for name in stage.train_on}
    for name in stage.public:
        if stage.is_private and (twin := places.get(run.spec(name).spec)):
            what = f"'{name}' is the training data '{twin}', and the whitening would publish its statistics"
            raise UserError(what, where=f"{where}.public", todo="name a data source of public images")
    listed = train.check_classes(run, stage, recipe)
    if stage.is_private and stage.unit == "patient":
        train.check_named(listed["train"], f"{where}.unit")
    for one in recipe.used().values():
        if isinstance(one, NetworkFeatures):
            _check_unseen(Path(one.weights), listed, stage)


def _check_unseen(weights: Path, listed: dict[str, ImageSource], stage: FitHeadStage) -> None:
    """A network that has seen a patient leaks it into a private head, and flatters the validation."""
    seen = model_folder.seen_patients(weights)
    for split, source in listed.items():
        known = patients.among(patients.named(source.infos), seen)
        if known and (split == "val" or stage.is_private):
            what = f"the network was trained on the patient {known[0]} of the split '{split}'"
            raise UserError(what, where=weights, todo="take weights of other patients")


# ---- Fitting ---------------------------------------------------------------------------------------------------------


def fit(run: Run, stage: FitHeadStage, recipe: HeadRecipe) -> Summary:
    """Fit heads with every setting of the search, take the best, and write `<stage>/model/`.

    The main process works alone: noise that processes draw themselves would differ.
    """
    training, validation = run.open(stage.train_on, "train"), run.open(stage.validate_on, "val")
    public = [run.open(name, "") for name in stage.public]
    unit: Unit = stage.unit if stage.is_private else "image"
    units, count = train.units_of(training, unit)
    others = sum(map(len, public))
    run.say(f"  train {count} {unit}s; validation {len(validation)} images; whitened by {others} public images")
    if not run.is_main:
        return {}
    folder = files.make_folder(run.folder / stage.name)
    images = [model.patches_of(source, recipe.size) for source in (training, validation)]
    cuttings = np.concatenate(
        [
            patches.around_boxes(one, recipe.size, recipe.cutting, recipe.centre, progress_bar("  reading"))
            for one in public
        ]
    )
    findings = train.copies(run, stage, recipe.size)
    if stage.is_private:
        _check_public(cuttings, images[0], stage)
    parts, shelf = model.frozen(recipe), run.folder / FEATURES
    public_features = model.frozen_features(parts, cuttings, shelf)
    learned, val = (
        Labelled(source, image_labels(source), model.frozen_features(parts, of, shelf))
        for source, of in zip((training, validation), images)
    )

    # ---- The search --------------------------------------------------------------------------------------------------
    own = training.classes.index(recipe.positive)
    problem = Problem(learned.labels == own, val.labels == own, units, count, stage, recipe)
    found: list[tuple[float, Choice]] = []
    grid = list(itertools.product(recipe.combinations(), recipe.search.components))
    with Progress(f"  fitting {stage.name}", len(grid), unit="representation", patience=LONG) as bar:
        for done, (names, components) in enumerate(grid, start=1):
            by = _whitening(public_features, names, components, f"stage {stage.name}.public")
            inputs, of_val = (model.whitened(part.features, by) for part in (learned, val))
            choices = [Choice(names, components, *rest) for rest in itertools.product(*_descents(recipe))]
            drawn = [
                problem.fit(inputs, of_val, choices, key)
                for key in noise_keys(recipe.search.draws, stage.known_seed, done)
            ]
            aurocs = np.mean([one.aurocs for one in drawn], axis=0)
            found += zip(aurocs.tolist(), choices)
            bar.update(done)
    _, choice = max(found, key=lambda one: one[0])

    # ---- The heads ---------------------------------------------------------------------------------------------------
    by = _whitening(public_features, choice.features, choice.components, f"stage {stage.name}.public")
    inputs, of_val = (model.whitened(part.features, by) for part in (learned, val))
    draws = recipe.draws if stage.is_private else 1
    drawn = [problem.fit(inputs, of_val, [choice], key) for key in noise_keys(draws, stage.known_seed, 0)]
    aurocs = np.array([one.aurocs[0] for one in drawn])
    calibrated = [calibrate(Head(one.mean, one.weights[0], 0.0), of_val, problem.val_truth) for one in drawn]
    trained = _trained(
        run,
        stage,
        recipe,
        parts,
        by,
        calibrated[0],
        choice,
        problem.noise(choice.steps),
        learned.source,
        of_val,
        val,
    )
    model.save(folder / "model", trained)
    files.write_private(folder / DRAWS, safetensors.numpy.save(_draws(calibrated)))
    run.say(f"  {_chosen(choice)}; validation AUROC {_spread(aurocs)}")
    made = trained.description.trained
    assert made is not None
    promise = in_words(made.promises)
    if promise:
        run.say(f"  {promise}")
        if stage.delta * count >= 1:
            run.say(
                f"  warning: a delta of {stage.delta:g} allows the data of one of {count} {stage.unit}s to be published"
            )
    withheld = private.is_withheld(run.experiment, stage)
    return {
        "kind": "fit",
        "data": {
            **({} if withheld else {"train": class_counts(learned.source)}),
            "validation": class_counts(val.source),
        },
        "units": {f"{stage.unit}s": count} if stage.is_private else {},
        "skipped": skipped_images(validation) if withheld else skipped_images(training, validation),
        "notes": [] if withheld else findings,
        "withheld": withheld,
        "unnamed": not patients.named(validation.infos),
        "epsilon": stage.epsilon,
        "protection": train.protection_words(made.privacy),
        "promise": promise,
        "chosen": _chosen(choice),
        "public": len(cuttings),
        "auroc": aurocs.tolist(),
        "tried": len(found),
    }


class Drawn(NamedTuple):
    """Heads of S settings by one draw of the noise: mean [D], weights [S, D], AUROC [S] on the validation images."""

    mean: np.ndarray
    weights: np.ndarray
    aurocs: np.ndarray


@dataclass(frozen=True)
class Problem:
    """What every setting of the search has in common. truth: of the training [N], val_truth: of the validation images.

    units: of privacy, of every training image [N], numbered from 0 to num_units - 1.
    """

    truth: np.ndarray
    val_truth: np.ndarray
    units: np.ndarray
    num_units: int
    stage: FitHeadStage
    recipe: HeadRecipe

    def noise(self, steps: int) -> tuple[float, float]:
        """Noise multipliers (of the mean, of each step) with the epsilon of the stage; 0 without privacy."""
        if not self.stage.is_private:
            return 0.0, 0.0
        together = accounting.gaussian_noise_multiplier(self.stage.epsilon, self.stage.delta)
        return heads.split_noise(together, self.recipe.mean_share, steps)

    def fit(self, training: np.ndarray, validation: np.ndarray, choices: Sequence[Choice], key: jax.Array) -> Drawn:
        """Heads with every one of the settings, by one draw of the noise, from whitened features [N, D]."""
        of_mean, of_steps = jax.random.split(key)
        private = self.stage.is_private
        clip = self.recipe.mean_clip * training.shape[1] ** 0.5 if private else UNBOUNDED
        units, noise = self.units.astype(np.int32), self.noise(choices[0].steps)[0]
        mean = np.asarray(heads.private_mean(training, units, clip, noise, of_mean, num_units=self.num_units))
        inputs = Head(mean, np.zeros_like(mean), 0.0).inputs(training)
        column = lambda values: jnp.asarray(values, jnp.float32)
        descents = heads.Descent(
            learning_rate=column([one.learning_rate for one in choices]),
            steps=jnp.asarray([one.steps for one in choices], jnp.int32),
            clip_norm=column([self.recipe.clip_norm if private else UNBOUNDED] * len(choices)),
            noise_multiplier=column([self.noise(one.steps)[1] for one in choices]),
            l2=column([one.l2 for one in choices]),
            averaged=column([one.averaged for one in choices]),
        )
        most, truth = max(one.steps for one in choices), self.truth.astype(np.float32)
        weights = np.asarray(
            heads.train_many(inputs, truth, units, descents, of_steps[None], num_units=self.num_units, most_steps=most)
        )[:, 0]
        scores = Head(mean, mean, 0.0).inputs(validation) @ weights.T
        return Drawn(mean, weights, np.array([model.auroc(one, self.val_truth) for one in scores.T]))


def noise_keys(count: int, known_seed: int | None, purpose: int) -> jax.Array:
    """`count` keys of the noise [K]: from the system's entropy, or from a number that is not secret.

    purpose: other noise for the same number. The entropy is an argument of compiled programs, never a part of them.
    """
    if known_seed is None:
        words = np.frombuffer(os.urandom(8 * count), np.uint32)
    else:
        words = np.random.SeedSequence([known_seed, purpose]).generate_state(2 * count).astype(np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words.reshape(count, 2)), impl="threefry2x32")


def calibrate(head: Head, features: np.ndarray, truth: np.ndarray) -> Head:
    """The head with its log odds scaled and shifted to the shares of the validation images, features [N, D].

    Platt scaling. Where no positive scale is best, log odds keep their own.
    """
    ones, odds = np.ones((1, len(truth))), head.inputs(features).astype(np.float64) @ head.weights
    expit = lambda x: 0.5 * (1 + np.tanh(x / 2))
    slope = float(calibration.slope(expit(odds), truth, ones)[0])
    scale = slope if np.isfinite(slope) and slope > 0 else 1.0
    shift = float(calibration.intercept(expit(scale * odds), truth, ones)[0])
    weights = (scale * head.weights).astype(np.float32)
    return Head(head.mean, weights, shift if np.isfinite(shift) else 0.0)


def read_draws(folder: Path) -> list[Head]:
    """The heads of all draws of a stage; [] where they are not there, as in a published model."""
    if not (folder / DRAWS).is_file():
        return []
    found = safetensors.numpy.load(files.read_bytes(folder / DRAWS))
    return [Head(mean, weights, float(bias)) for mean, weights, bias in zip(*(found[name] for name in Head._fields))]


def with_draws(trained: model.Trained, folder: Path) -> model.Trained:
    """A head with those of all draws of its stage; any other model as it is."""
    return trained._replace(draws=tuple(read_draws(folder))) if isinstance(trained, model.FittedHead) else trained


# ---- Parts -----------------------------------------------------------------------------------------------------------


def _check_public(public: np.ndarray, private: np.ndarray, stage: FitHeadStage) -> None:
    both = set(model.hashes_of(public)) & set(model.hashes_of(private))
    if both:
        what = f"{len(both)} of the public images are training images, and the whitening would publish their statistics"
        raise UserError(what, where=f"stage {stage.name}.public", todo="name a data source of other images")


def _whitening(
    public: dict[str, np.ndarray], names: Sequence[str], components: int, where: str
) -> dict[str, Whitening]:
    return {name: whitening.fit(public[name], components, where) for name in names}


def _descents(recipe: HeadRecipe) -> list[Sequence[Any]]:
    search = recipe.search
    return [search.learning_rates, search.steps, search.averaged, search.l2]


def _trained(
    run: Run,
    stage: FitHeadStage,
    recipe: HeadRecipe,
    parts: Frozen,
    by: dict[str, Whitening],
    head: Head,
    choice: Choice,
    noise: tuple[float, float],
    training: ImageSource,
    validation_features: np.ndarray,
    validation: Labelled,
) -> model.FittedHead:
    """The model of the stage. Of a private one, nothing says who was in the training data."""
    promise: Statement | None = None
    seen = frozenset[str]()
    if stage.is_private:
        of_mean, of_steps = noise
        ledger = Ledger((Phase(1.0, of_mean, 1), Phase(1.0, of_steps, choice.steps)), stage.unit)
        spent = accounting.epsilon_of(ledger.phases, stage.delta)
        promise = Statement(stage.known_seed is None, spent, stage.delta, "pld", ledger)
    else:
        seen = frozenset(map(patients.patient_hash, patients.named(training.infos))) | training.seen_patients
    chosen = parts.only(choice.features)
    inherited: tuple[Statement, ...] = ()
    for one in chosen.features.values():
        if isinstance(one, NetworkFeatures):
            seen |= model_folder.seen_patients(Path(one.weights))
            inherited += model_folder.promises(Path(one.weights))
    of_positive = head.probability(validation_features)
    predicted = model.predictions(of_positive, validation.source, validation.labels, recipe.positive)
    points = [thresholds.choose(predicted, recipe.positive, thresholds.rule_from_text(rule)) for rule in recipe.rules]
    nameless = {
        n: replace(one, weights="") if isinstance(one, NetworkFeatures) else one for n, one in chosen.features.items()
    }
    description = model.Description(
        architecture=model.HEAD,
        classes=tuple(training.classes),  # type: ignore[arg-type]
        positive=recipe.positive,
        size=recipe.size,
        centre=recipe.centre,
        features=nameless,
        networks={name: one.config for name, one in chosen.networks.items()},
        operating_points=tuple(points),
        trained=model_folder.Training(choice.steps, tuple(stage.train_on), "", tuple(sorted(seen)), promise, inherited),
    )
    return model.FittedHead(chosen, by, head, description)


def _draws(found: Sequence[Head]) -> dict[str, np.ndarray]:
    return {name: np.stack([np.float32(getattr(head, name)) for head in found]) for name in Head._fields}


def _chosen(choice: Choice) -> str:
    """The settings that were chosen, in words."""
    averaged = f", mean of the last {choice.averaged:.0%}" if choice.averaged else ""
    decay = f", weight decay {choice.l2:g}" if choice.l2 else ""
    kinds = " + ".join(choice.features)
    return (
        f"{kinds}, {choice.components} components each, {choice.steps} steps at learning rate {choice.learning_rate:g}"
        f"{averaged}{decay}"
    )


def _spread(values: np.ndarray) -> str:
    """'0.712 ± 0.015 (10 draws of the noise)'."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f} ({len(values)} draws of the noise)"
