"""Fit a head on frozen features, privately or not. The stage leaves `model/` (model.py) and, of a linear head,
`draws.safetensors`.

Shapes: N images, F features of a kind, D components of all kinds together, S settings, K draws of the noise.

Nothing is published while a private head is fitted, so nothing has to be resumed: an interrupted attempt starts again
with other noise. The seeds of the noise exist only in the memory of the process.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from elk_jax import files
from elk_jax.data import patches
from elk_jax.data.sources import patients
from elk_jax.data.sources.labels import check_both_classes, class_counts, image_labels
from elk_jax.data.sources.source import ImageSource
from elk_jax.errors import UserError
from elk_jax.evaluation import calibration, thresholds
from elk_jax.features import scattering, store
from elk_jax.heads import kernel
from elk_jax.heads.heads import Head, architecture_of, probability
from elk_jax.heads.kernel import Kernel
from elk_jax.heads.linear import Linear
from elk_jax.privacy import accounting
from elk_jax.privacy.accounting import Ledger, Phase, Unit
from elk_jax.privacy.mechanism import Statement
from elk_jax.progress import progress_bar
from elk_jax.tasks import frozen, private
from elk_jax.tasks.classification import model, search, train
from elk_jax.tasks.classification.recipe import FitHeadStage, FrozenRecipe, HeadRecipe, Search
from elk_jax.tasks.classification.search import Choice, Fitted
from elk_jax.tasks.frozen import Frozen, NetworkFeatures, ScatteringFeatures
from elk_jax.tasks.run import Run, skipped_images
from elk_jax.tasks.stages import TrainStage
from elk_jax.tasks.task import Summary
from elk_jax.weights import classifiers, model_folder

DRAWS = "draws.safetensors"
"""File with the linear heads of all draws of the noise. Only the first head of a private fit may be published:
publishing all weakens the promise."""
OF_A_DRAW = ("mean", "weights", "bias")
"""Fields of a linear head that differ between draws."""


class Labelled(NamedTuple):
    """One split: its images, their classes [N], and their frozen features by name."""

    source: ImageSource
    labels: np.ndarray
    features: dict[str, np.ndarray]


# ---- Before anything runs --------------------------------------------------------------------------------------------


def check_fit(run: Run, stage: FitHeadStage, recipe: HeadRecipe, names: Collection[str]) -> None:
    """UserError for data without two classes, a private kernel head, a linear one without public images, a public
    source that is the private one, unnamed units, weights that have seen patients, and patches that are too small."""
    where = f"stage {stage.name}"
    _check_kind(stage, recipe)
    if stage.network:
        _check_network(run, stage, recipe, names)
        recipe = recipe.on(str(run.model_folder(stage.network)))
    if not recipe.combinations():
        todo = "set config.RECIPE.features.NAME.weights, or let search.features name others"
        raise UserError(
            "none of the features of search.features is available", where=f"config.{stage.recipe}", todo=todo
        )
    check_scattering(recipe, stage.recipe)
    if stage.is_private:
        check_places(run, stage, stage.public)
    listed = train.check_classes(run, stage, recipe, names)
    if stage.is_private and stage.unit == "patient" and "train" in listed:
        train.check_named(listed["train"], f"{where}.unit")
    private.check_start(run, stage, recipe)
    private.noise_of(stage)
    own = {run.model_folder(stage.network)} if stage.exposed and stage.network else set()
    check_unseen(recipe, listed, stage.is_private, said=own)


def check_scattering(recipe: FrozenRecipe, name: str) -> None:
    """UserError for patches that are too small for their features. name: of the recipe."""
    for kind, one in recipe.used().items():
        if isinstance(one, ScatteringFeatures):
            scattering.check_size((recipe.size, recipe.size), one.scales, f"config.{name}.features.{kind}")


def check_places(run: Run, stage: TrainStage, public: Sequence[str]) -> None:
    """UserError for public data from the same place as the training data."""
    places = {run.spec(name).spec: name for name in stage.train_on}
    for name in public:
        if twin := places.get(run.spec(name).spec):
            what = f"'{name}' is the same as the training data '{twin}', whose content it would publish"
            raise UserError(what, where=f"stage {stage.name}.public", todo="name a data source of public images")


def _check_network(run: Run, stage: FitHeadStage, recipe: HeadRecipe, names: Collection[str]) -> None:
    where = f"config.stages.{stage.name}.network"
    if not any(isinstance(one, NetworkFeatures) and not one.weights for one in recipe.features.values()):
        todo = f"give config.{stage.recipe}.features one of a network without weights, or leave network empty"
        raise UserError("no features for the network", where=where, todo=todo)
    folder = run.model_folder(stage.network)
    if stage.network not in names and classifiers.network_of(model_folder.read(folder)) is None:
        raise UserError(f"not a network: {folder}", where=where, todo="name a stage that trains one")


def _check_kind(stage: FitHeadStage, recipe: HeadRecipe) -> None:
    where = f"config.stages.{stage.name}"
    if isinstance(recipe.search, Search):
        if not stage.public:
            todo = "name data sources of other people's images"
            raise UserError(
                "a linear head needs public images to whiten its features", where=f"{where}.public", todo=todo
            )
        return
    if stage.is_private:
        what = "a kernel head contains the features of its training images, which noise cannot protect"
        todo = f"set epsilon=0, or fit a linear head: config.{stage.recipe}.search.name=linear"
        raise UserError(what, where=f"{where}.epsilon", todo=todo)
    if stage.public:
        what = "a kernel head is scaled by its training images and uses no public ones"
        raise UserError(what, where=f"{where}.public", todo="leave it empty")


def check_unseen(
    recipe: FrozenRecipe, listed: Mapping[str, ImageSource], is_private: bool, said: Collection[Path] = ()
) -> None:
    """UserError for a network that has seen a patient: it leaks private patients, and makes validation optimistic.
    listed: by split. said: networks that the stage declares to expose the patients."""
    for one in recipe.used().values():
        if not isinstance(one, NetworkFeatures):
            continue
        seen = model_folder.seen_patients(Path(one.weights))
        for split, source in listed.items():
            known = patients.among(patients.named(source.infos), seen)
            if known and (split == "val" or (is_private and Path(one.weights) not in said)):
                what = f"the network was trained on patient {known[0]} of the split '{split}'"
                raise UserError(what, where=one.weights, todo="use weights trained on other patients")


# ---- Fitting ---------------------------------------------------------------------------------------------------------


def fit(run: Run, stage: FitHeadStage, recipe: HeadRecipe) -> Summary:
    """Fit heads with all settings of the search, choose the best, and write `<stage>/model/`.

    Only the main process works, as the noise of several processes would differ.
    """
    if stage.network:
        recipe = recipe.on(str(run.model_folder(stage.network)))
    training, validation = run.open(stage.train_on, "train"), run.open(stage.validate_on, "val")
    public = [run.open(name, "") for name in stage.public]
    check_both_classes(image_labels(training), training, "train")  # generated images are first seen here
    unit: Unit = stage.unit if stage.is_private else "image"
    units, count = train.units_of(training, unit)
    others = f"; whitened by {sum(map(len, public))} public images" if public else ""
    run.say(f"  train {count} {unit}s; validation {len(validation)} images{others}")
    if not run.is_main:
        return {}
    folder = files.make_folder(run.folder / stage.name)
    own, of_val = (frozen.patches_of(source, recipe.size) for source in (training, validation))
    cut = partial(patches.around_boxes, size=recipe.size, cutting=recipe.cutting, centre=recipe.centre)
    pool = np.concatenate([cut(one, progress=progress_bar("  reading")) for one in public]) if public else own[:0]
    findings = train.copies(run, stage, recipe.size)
    if stage.is_private:
        check_public(pool, own, stage.name)
    parts, shelf = model.read_frozen(recipe), run.folder / store.FOLDER
    public_features = frozen.features_of(parts, pool, shelf) if public else {}
    learned, val = (
        Labelled(source, image_labels(source), frozen.features_of(parts, images, shelf))
        for source, images in ((training, own), (validation, of_val))
    )
    positive = training.classes.index(recipe.positive)
    noise = private.noise_of(stage)
    problem = search.Problem(learned.labels == positive, val.labels == positive, units, count, noise, stage, recipe)
    if isinstance(recipe.search, Search):
        found = search.linear_head(problem, recipe.search, learned.features, val.features, public_features)
    else:
        people = np.unique([patients.patient_key(info.patient_id) for info in training.infos], return_inverse=True)[1]
        found = search.kernel_head(problem, recipe.search, learned.features, val.features, people, run.seed)

    # ---- The model ---------------------------------------------------------------------------------------------------
    calibrated = [calibrate(one, val.features, problem.val_truth) for one in found.heads]
    trained = _trained(run, stage, recipe, parts, calibrated[0], found, learned.source, val)
    model.save(folder / "model", trained)
    if isinstance(trained.head, Linear):
        files.write_private(folder / DRAWS, safetensors.numpy.save(_draws(calibrated)))
    within = "" if found.within is None else f", {found.within:.3f} by cross-validation"
    run.say(f"  {found.choice}; validation AUROC {_spread(found.aurocs)}{within}")
    warning = train.say_thresholds(run, trained.description.operating_points)
    if trained.description.contains:
        run.say(f"  the model folder contains {trained.description.contains}")
    made = trained.description.trained
    assert made is not None
    promise = made.sentence()
    private.say_promise(run, stage, promise, count)
    withheld = private.is_withheld(run.experiment, stage)
    return {
        "kind": "fit",
        "head": recipe.search.name,
        "data": {
            **({} if withheld else {"train": class_counts(learned.source)}),
            "validation": class_counts(val.source),
        },
        "units": {f"{stage.unit}s": count} if stage.is_private else {},
        "skipped": skipped_images(validation) if withheld else skipped_images(training, validation),
        "notes": [] if withheld else findings,
        "warning": warning,
        "withheld": withheld,
        "contains": trained.description.contains,
        "unnamed": not patients.named(validation.infos),
        "epsilon": stage.epsilon,
        "protection": train.protection_words(made.privacy),
        "promise": promise,
        "chosen": str(found.choice),
        "public": len(pool),
        "auroc": found.aurocs.tolist(),
        "cross_validated": None if withheld else found.within,
        "tried": found.tried,
    }


def calibrate(head: Head, features: Mapping[str, np.ndarray], truth: np.ndarray) -> Head:
    """The head with its log odds scaled and shifted to match the classes of the validation images, features [N, F].

    Platt scaling. If the best scale is not positive, log odds keep their own.
    """
    ones, odds = np.ones((1, len(truth))), head.log_odds(features)
    slope = float(calibration.slope(probability(odds), truth, ones)[0])
    scale = slope if np.isfinite(slope) and slope > 0 else 1.0
    shift = float(calibration.intercept(probability(scale * odds), truth, ones)[0])
    return head.scaled(scale, shift if np.isfinite(shift) else 0.0)


def with_draws(trained: model.Trained, folder: Path) -> model.Trained:
    """A linear head together with those of all draws of its stage, if available; other models are unchanged, whatever
    an attempt with another head has left in the folder."""
    if not isinstance(trained, model.FittedHead) or not isinstance(trained.head, Linear):
        return trained
    if not (folder / DRAWS).is_file():
        return trained
    head, found = trained.head, safetensors.numpy.load(files.read_bytes(folder / DRAWS))
    draws = zip(*(found[name] for name in OF_A_DRAW))
    return trained._replace(draws=tuple(head._replace(mean=m, weights=w, bias=float(b)) for m, w, b in draws))


# ---- Parts -----------------------------------------------------------------------------------------------------------


def check_public(public: np.ndarray, private: np.ndarray, stage: str) -> None:
    """UserError if patches occur in both. stage: its name."""
    both = set(frozen.hashes_of(public)) & set(frozen.hashes_of(private))
    if both:
        what = f"{len(both)} of the public images are training images, whose content they would publish"
        raise UserError(what, where=f"stage {stage}.public", todo="name a data source of other images")


def _trained(
    run: Run,
    stage: FitHeadStage,
    recipe: HeadRecipe,
    parts: Frozen,
    head: Head,
    found: Fitted,
    training: ImageSource,
    validation: Labelled,
) -> model.FittedHead:
    """The model of the stage. A private one does not record whose data it was trained on."""
    promise: Statement | None = None
    seen, choice = frozenset[str](), found.choice
    steps = choice.steps if isinstance(choice, Choice) else 0
    if stage.is_private:
        of_mean, of_steps = found.noise
        ledger = Ledger((Phase(1.0, of_mean, 1), Phase(1.0, of_steps, steps)), stage.unit)
        spent = accounting.epsilon_of(ledger.phases, stage.delta)
        exposed = private.exposure(run, stage, recipe)
        promise = Statement(stage.known_seed is None, spent, stage.delta, "pld", ledger, exposed).named()
    else:
        seen = frozenset(map(patients.patient_hash, patients.named(training.infos))) | training.seen_patients
    chosen = parts.only(choice.features)
    seen |= private.painters_saw(run, stage.train_on)
    networks = [Path(one.weights) for one in chosen.features.values() if isinstance(one, NetworkFeatures)]
    seen = seen.union(*map(model_folder.seen_patients, networks))
    inherited = private.promises_before(run, stage, networks)
    of_positive = probability(head.log_odds(validation.features))
    predicted = model.predictions(of_positive, validation.source, validation.labels, recipe.positive)
    nameless = {
        n: replace(one, weights="") if isinstance(one, NetworkFeatures) else one for n, one in chosen.features.items()
    }
    description = model.Description(
        architecture=architecture_of(head),
        classes=tuple(training.classes),  # type: ignore[arg-type]
        positive=recipe.positive,
        size=recipe.size,
        centre=recipe.centre,
        features=nameless,
        networks={name: one.config for name, one in chosen.networks.items()},
        operating_points=thresholds.by_rules(predicted, recipe.positive, recipe.rules),
        trained=model_folder.Training(steps, tuple(stage.train_on), "", tuple(sorted(seen)), promise, inherited),
        contains="the features of its training images, as private as these" if _keeps_images(head) else "",
    )
    return model.FittedHead(chosen, head, description)


def _keeps_images(head: Head) -> bool:
    return isinstance(head, Kernel) and head.width != kernel.LINEAR


def _draws(found: Sequence[Head]) -> dict[str, np.ndarray]:
    return {name: np.stack([np.float32(getattr(head, name)) for head in found]) for name in OF_A_DRAW}


def _spread(values: np.ndarray) -> str:
    """'0.712 ± 0.015 (10 draws of the noise)'."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f} ({len(values)} draws of the noise)"
