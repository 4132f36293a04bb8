"""Weight public patches so that they resemble the private ones of every class; leaves `<stage>/model/`, a generator.

Statistics of the private patches are released with noise: a classifier (`privacy.head`), mean features or votes
(`privacy.release`), each accounted as full batches. The noise comes from the operating system, and its seed is never
written: an interrupted attempt has published nothing, and starts again with other noise. The patches themselves are
public.

Shapes: N private images, M patches of the pool, S their side, Q classes, D features.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from elk_jax.data import patches
from elk_jax.data.sources import patients
from elk_jax.data.sources.labels import class_counts, image_labels
from elk_jax.data.sources.source import ImageSource
from elk_jax.errors import UserError
from elk_jax.features import store, tilt, whitening
from elk_jax.heads import linear
from elk_jax.privacy import accounting, release, secret
from elk_jax.privacy import head as descent
from elk_jax.privacy.accounting import Ledger, Phase
from elk_jax.privacy.mechanism import Statement
from elk_jax.privacy.secret import Secret
from elk_jax.progress import progress_bar
from elk_jax.tasks import frozen, private
from elk_jax.tasks.classification import fit as heads
from elk_jax.tasks.classification import model as classifiers
from elk_jax.tasks.classification import search
from elk_jax.tasks.classification import train as units
from elk_jax.tasks.frozen import NetworkFeatures
from elk_jax.tasks.generation.model import POOL, PoolDescription, check_names
from elk_jax.tasks.generation.recipe import FitPoolStage, Guidance, Means, PoolRecipe, Votes
from elk_jax.tasks.run import Run, skipped_images
from elk_jax.tasks.task import Summary
from elk_jax.weights import model_folder

TINY = 1e-12
"""Standard deviation of log odds below which they count as uninformative."""


def check_fit(run: Run, stage: FitPoolStage, recipe: PoolRecipe, names: Collection[str]) -> None:
    """UserError for images without a class, classes without images, public images of private patients or made by models
    that have learned from them, unnamed units, weights that have seen patients, and patches that are too small."""
    if not recipe.used():
        todo = f"set config.{stage.recipe}.features.NAME.weights, or name others"
        raise UserError("none of the features is available", where=f"config.{stage.recipe}.features", todo=todo)
    heads.check_scattering(recipe, stage.recipe)
    heads.check_places(run, stage, stage.public)
    private.check_start(run, stage, recipe)
    private.noise_of(stage)
    listed = {"train": run.list(stage.train_on, "train"), "val": run.list(stage.validate_on, "val")}
    for split, source in listed.items():
        _check_classes(source, split)
    known = listed["train"].classes
    if isinstance(recipe.release, Guidance) and len(known) != 2:
        what, where = f"a classifier of {len(known)} classes: {', '.join(known)}", f"config.{stage.recipe}.release.name"
        raise UserError(what, where=where, todo="give data with two classes, or set means or votes")
    if listed["train"].classes != listed["val"].classes:
        own, others = (", ".join(source.classes) for source in listed.values())
        where = f"config.stages.{stage.name}.validate_on"
        raise UserError(
            f"{own} for training, but {others} for validation", where=where, todo="name data of the same classes"
        )
    if stage.is_private and stage.unit == "patient":
        units.check_named(listed["train"], f"config.stages.{stage.name}.unit")
    heads.check_unseen(recipe, listed, stage.is_private)
    keys = {patients.patient_key(patient) for patient in patients.named(listed["train"].infos)}
    for name in filter(run.is_listed, stage.public):
        both = [one for one in sorted(patients.named(run.list(name, "").infos)) if patients.patient_key(one) in keys]
        if both:
            what = f"'{name}' contains patient {both[0]} of the training data"
            todo = "name data of other people; if only the IDs are equal, rename it in one of them"
            raise UserError(what, where=f"config.stages.{stage.name}.public", todo=todo)


def _check_classes(source: ImageSource, split: str) -> None:
    check_names(source.classes, source.name)
    counts = np.bincount(image_labels(source), minlength=len(source.classes))
    for name, count in zip(source.classes, counts):
        if not count:
            what = f"no image of the class {name} in the split '{split}'"
            raise UserError(what, where=source.name, todo="leave the class out, or give images of it")


def fit(run: Run, stage: FitPoolStage, recipe: PoolRecipe) -> Summary:
    """Release statistics of the private patches, weight the public ones by them, and write `<stage>/model/`.

    Only the main process works, as the noise of several processes would differ.
    """
    training, validation = run.open(stage.train_on, "train"), run.open(stage.validate_on, "val")
    public = [run.open(name, "") for name in stage.public]
    shown = frozenset[str]().union(*map(_seen, public))
    if stage.is_private and (known := patients.among(patients.named(training.infos), shown)):
        what = f"the public images show, or were made from, patient {known[0]} of the training data"
        raise UserError(what, where=f"config.stages.{stage.name}.public", todo="name data of other people")
    group, count = units.units_of(training, stage.unit if stage.is_private else "image")
    if not run.is_main:
        return {}

    # ---- Features --------------------------------------------------------------------------------------------------
    cut = partial(patches.around_boxes, size=recipe.size, cutting=recipe.cutting, centre=recipe.centre)
    cuts = np.concatenate([cut(one, progress=progress_bar("  reading")) for one in public])
    pool = distinct(cuts)
    own, of_val = (frozen.patches_of(one, recipe.size) for one in (training, validation))
    heads.check_public(pool, own, stage.name)
    parts, shelf = classifiers.read_frozen(recipe), run.folder / store.FOLDER
    of_pool, of_training, of_validation = _whitened(
        [frozen.features_of(parts, one, shelf) for one in (pool, own, of_val)], recipe, stage
    )
    labels, val_labels = image_labels(training), image_labels(validation)
    private_side = Private(of_training, labels, group, count, len(training.classes))

    # ---- Release ---------------------------------------------------------------------------------------------------
    noise = private.noise_of(stage)
    origin = secret.fresh() if stage.known_seed is None else secret.known(stage.known_seed)
    where = f"config.{stage.recipe}.release"
    weights, unvoted = weigh(recipe.release, private_side, of_pool, noise, origin, where)
    copies = len(cuts) - len(pool)
    notes = [f"{copies} of {len(cuts)} public patches are copies of others and left out"] if copies else []
    notes += [
        f"no public patch has enough votes for the class {training.classes[label]}, so all have equal weights"
        for label in unvoted
    ]

    # ---- The model -------------------------------------------------------------------------------------------------
    ledger = Ledger(phases(recipe.release, noise), stage.unit) if stage.is_private else None
    seen = shown if stage.is_private else shown | _seen(training)
    trained = _history(run, stage, recipe, seen, ledger, origin)
    description = PoolDescription(POOL, tuple(training.classes), recipe.size, recipe.centre, trained)
    params = {"patches": pool, "weights": weights.astype(np.float32)}
    model_folder.save_params(run.folder / stage.name / "model", params, description)

    # ---- Its properties --------------------------------------------------------------------------------------------
    effective = {name: tilt.effective_number(_logs(one)) for name, one in zip(training.classes, weights)}
    auroc = _auroc(weights @ unit(of_pool), unit(of_validation), val_labels)
    even = ", ".join(f"{value:.0f} {name}" for name, value in effective.items())
    run.say(f"  {len(pool)} public patches; effective number with the weights: {even}")
    for note in notes:
        run.say(f"  {note}")
    if auroc is not None:
        run.say(f"  validation AUROC of the difference between the classes' means: {auroc:.3f}")
    sentence = trained.sentence()
    private.say_promise(run, stage, sentence, count)
    withheld = private.is_withheld(run.experiment, stage)
    return {
        "kind": "fit",
        "data": {
            **({} if withheld else {"train": class_counts(training)}),
            "validation": class_counts(validation),
        },
        "units": {f"{stage.unit}s": count} if stage.is_private else {},
        "skipped": skipped_images(validation, *public, *([] if withheld else [training])),
        "protection": units.protection_words(trained.privacy),
        "promise": sentence,
        "release": recipe.release.name,
        "pool": len(pool),
        "effective": effective,
        "auroc": auroc,
        "notes": notes,
    }


def _history(
    run: Run, stage: FitPoolStage, recipe: PoolRecipe, seen: frozenset[str], ledger: Ledger | None, origin: Secret
) -> model_folder.Training:
    """The provenance of the weights. seen: hashes of the patients in the data that are not secret. ledger: of a private
    release; None without privacy."""
    networks = [Path(one.weights) for one in recipe.used().values() if isinstance(one, NetworkFeatures)]
    seen = seen.union(private.painters_saw(run, stage.origin().sources), *map(model_folder.seen_patients, networks))
    inherited, promise = private.promises_before(run, stage, networks), None
    if ledger is not None:
        spent = accounting.epsilon_of(ledger.phases, stage.delta)
        promise = Statement(not origin.known, spent, stage.delta, "pld", ledger).named()
    return model_folder.Training(1, (*stage.train_on, *stage.public), "", tuple(sorted(seen)), promise, inherited)


# ---- Parts ---------------------------------------------------------------------------------------------------------


class Private(NamedTuple):
    """Private images: whitened features [N, D], labels [N] of Q classes, and units [N], numbered among U."""

    features: np.ndarray
    labels: np.ndarray
    units: np.ndarray
    num_units: int
    classes: int


def phases(settings: Any, noise: float) -> tuple[Phase, ...]:
    """The phases of a release, which costs as much as one full batch with the noise multiplier `noise`."""
    if not isinstance(settings, Guidance):
        return (Phase(1.0, noise, 1),)
    of_mean, of_steps = descent.split_noise(noise, settings.mean_share, settings.steps)
    return Phase(1.0, of_mean, 1), Phase(1.0, of_steps, settings.steps)


class Weighted(NamedTuple):
    """weights: [Q, M] of public patches, with sum 1 for each class. unvoted: classes for which no patch had enough
    votes, so that all patches have equal weights."""

    weights: np.ndarray
    unvoted: tuple[int, ...] = ()


def weigh(settings: Any, data: Private, pool: np.ndarray, noise: float, origin: Secret, where: str) -> Weighted:
    """Weights of public patches with whitened features [M, D], from one release.

    noise: see `phases`; 0 is not private. origin: of the noise. where: of the settings, for errors. UserError for more
    neighbours than patches. No error is raised after the release, as another attempt would spend the budget again.
    """
    from scipy import special  # takes seconds

    if isinstance(settings, Guidance):
        odds = _log_odds(settings, data, pool, noise, origin)
        scores = settings.contrast * (odds - odds.mean()) / max(float(odds.std()), TINY)
        return Weighted(np.stack([special.softmax(sign * scores) for sign in (-1.0, 1.0)]))
    key, of_units = origin.noise_key(), {"classes": data.classes, "num_units": data.num_units}
    data, pool = data._replace(features=unit(data.features)), unit(pool)
    if isinstance(settings, Means):
        scale = settings.count_scale
        said = release.class_features(data.features, data.labels, data.units, count_scale=scale, **of_units)
        means = release.class_means(release.released(said, noise, key), scale)
        middle, own = means.mean(0), pool.mean(0)
        wanted = own + settings.shift * (middle - own) + settings.contrast * (means - middle)
        return Weighted(np.exp([tilt.tilted(pool, one, settings.penalty) for one in wanted]))
    assert isinstance(settings, Votes)
    if settings.neighbours > len(pool):
        what = f"votes for {settings.neighbours} patches each, but there are only {len(pool)} public ones"
        raise UserError(what, where=f"{where}.neighbours", todo="give fewer, or more public images")
    chosen = release.nearest(data.features, pool, settings.neighbours)
    said = release.votes(chosen, data.labels, data.units, pool=len(pool), **of_units)
    found = release.released(said, noise, key)
    kept = np.where(found > settings.threshold * noise, found, 0.0)
    unvoted = np.flatnonzero(~kept.any(1))
    kept[unvoted] = 1.0
    return Weighted(kept / kept.sum(1, keepdims=True), tuple(unvoted.tolist()))


def _log_odds(settings: Guidance, data: Private, pool: np.ndarray, noise: float, origin: Secret) -> np.ndarray:
    """Log odds [M] of the second class, from a classifier of the private images: a private mean, then private
    descent."""
    of_mean, of_steps = (phase.noise_multiplier for phase in phases(settings, noise)) if noise else (0.0, 0.0)
    mean_clip, clip = search.UNBOUNDED, search.UNBOUNDED
    if noise:
        mean_clip, clip = settings.mean_clip * pool.shape[1] ** 0.5, settings.clip_norm
    first, second = jax.random.split(origin.noise_key())
    features, group, count = data.features.astype(np.float32), data.units.astype(np.int32), data.num_units
    mean = np.asarray(descent.private_mean(features, group, mean_clip, of_mean, first, num_units=count))
    steps = settings.steps
    descending = descent.Descent(settings.learning_rate, steps, clip, of_steps, averaged=settings.averaged)
    inputs, truth = linear.inputs(features, mean), data.labels.astype(np.float32)
    weights = descent.train(inputs, truth, group, descending, second, num_units=count, most_steps=steps)
    return linear.inputs(pool.astype(np.float32), mean).astype(np.float64) @ np.asarray(weights, np.float64)


def distinct(patches: np.ndarray) -> np.ndarray:
    """Patches [M, S, S, 1] without those that repeat an earlier one, pixel by pixel: a repeated patch would be drawn
    twice as often, and take votes from itself."""
    hashes = frozen.hashes_of(patches)
    return patches[np.sort(np.unique(hashes, return_index=True)[1])]


def unit(features: np.ndarray) -> np.ndarray:
    """Features [N, D] with norm 1, in double precision, as needed for nearest patches and sums over thousands."""
    return whitening.unit_norm(features.astype(np.float64))


def _whitened(found: list[dict[str, np.ndarray]], recipe: PoolRecipe, stage: FitPoolStage) -> list[np.ndarray]:
    """Features [N, D] of the pool, which comes first, and of other sets, whitened by the pool."""
    where = f"stage {stage.name}.public"
    by = {name: whitening.fit(one, recipe.components, where) for name, one in found[0].items()}
    return [linear.whitened(one, by) for one in found]


def _seen(source: ImageSource) -> frozenset[str]:
    """Hashes of the patients in a source, including those seen by its painter."""
    return frozenset(map(patients.patient_hash, patients.named(source.infos))) | source.seen_patients


def _auroc(means: np.ndarray, features: np.ndarray, labels: np.ndarray) -> float | None:
    """AUROC of the second class against the first along the difference of their means [Q, D]; None unless there are
    two."""
    if len(means) != 2:
        return None
    return classifiers.auroc(features @ (means[1] - means[0]), labels == 1)


def _logs(weights: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(weights))
