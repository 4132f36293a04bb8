"""Train a network on images of two classes. The stage leaves `model/` (model.py).

Shapes: N images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import jax
import numpy as np

from elk_jax.data.batches import labelled, poisson
from elk_jax.data.batches.labelled import Labelled
from elk_jax.data.sources import duplicates, patients
from elk_jax.data.sources.labels import check_both_classes, class_counts, image_labels, lacking_class
from elk_jax.data.sources.source import ImageSource, concatenate
from elk_jax.errors import UserError
from elk_jax.evaluation import predictions, thresholds
from elk_jax.evaluation.predictions import Predictions
from elk_jax.evaluation.thresholds import OperatingPoint
from elk_jax.privacy.accounting import Unit
from elk_jax.privacy.mechanism import Statement
from elk_jax.tasks import folds, private, training
from elk_jax.tasks.classification import model
from elk_jax.tasks.classification.model import NetworkDescription, TrainedNetwork
from elk_jax.tasks.classification.recipe import DecisionRecipe, NetworkRecipe, TrainClassifierStage
from elk_jax.tasks.labelled import openly, privately
from elk_jax.tasks.run import Fold, Run, skipped_images
from elk_jax.tasks.stages import Data, TrainStage
from elk_jax.tasks.task import Summary, Workload
from elk_jax.training import mesh as meshes
from elk_jax.training import prediction
from elk_jax.training.model import Model, Params
from elk_jax.weights import classifiers, model_folder

PREDICTED = "predictions.json"
"""File of a fold."""
FREE = ("num_classes", "hidden", "image_size", "drop_path", "dropout", "frozen_stages", "remat", "dtype")
"""Settings of a network that may differ from those of the initial weights."""


# ---- Before anything runs --------------------------------------------------------------------------------------------


def check_train(run: Run, stage: TrainClassifierStage, recipe: NetworkRecipe, names: Collection[str]) -> None:
    """UserError for data without two classes, frozen layers without weights, weights that do not fit, and units that
    are unnamed or that the weights have seen."""
    private.check_public(stage, recipe)
    listed = check_classes(run, stage, recipe, names)
    if recipe.privacy is not None and recipe.privacy.unit == "patient" and "train" in listed:
        check_named(listed["train"], f"config.{stage.recipe}.privacy.unit")
    private.check_start(run, stage, recipe)
    network = model.trainable(recipe.model)
    training.check_model(stage, recipe, network)
    fresh = jax.eval_shape(network.init, jax.random.key(0))
    if stage.init_from and stage.init_from not in names:
        _start(run.model_folder(stage.init_from), stage, recipe, listed["val"].classes, fresh)


def check_classes(
    run: Run, stage: TrainStage, recipe: DecisionRecipe, names: Collection[str]
) -> dict[str, ImageSource]:
    """The listed sources of both splits, {"train": ..., "val": ...}. UserError for data that do not have the two
    classes, and the positive one among them.

    names: stages that will run. Their output does not exist yet and is left out; "train" then has the other sources,
    and is missing if there are none.
    """
    made = {source for source, writer in run.experiment.writers.items() if writer in names}
    there = [source for source in stage.train_on if source not in made]
    listed = {"train": run.list(there, "train")} if there else {}
    listed["val"] = run.list(stage.validate_on, "val")
    for split, source in listed.items():
        if split == "val" or not made & set(stage.train_on):
            check_both_classes(image_labels(source), source, split)
        model.check_positive(recipe.positive, source.classes, f"config.{stage.recipe}.positive")
    return listed


def lacks(recipe: NetworkRecipe, source: ImageSource) -> str:
    """A class without images in a fold; "" if nothing is missing."""
    return lacking_class(source)


def check_named(source: ImageSource, where: str) -> None:
    """UserError if images name no patient."""
    try:
        units_of(source, "patient")
    except UserError as error:
        todo = "set data.NAME.patient_pattern, give the field patient_id, or set unit=image"
        raise UserError(error.what, where=where, todo=todo) from error


def units_of(source: ImageSource, unit: Unit) -> tuple[np.ndarray, int]:
    """(the unit of every image [N], the number of units)."""
    groups = poisson.members(source.infos, unit)
    units = np.zeros(len(source), np.int64)
    for number, positions in enumerate(groups):
        units[list(positions)] = number
    return units, len(groups)


def _start(
    folder: Path,
    stage: TrainClassifierStage,
    recipe: NetworkRecipe,
    classes: Sequence[str],
    fresh: Params,
) -> Params:
    """`fresh` with the weights of a folder: all of a trained network; all except the class layers of an imported one.
    UserError for any other folder, and for weights that do not all fit."""
    if model_folder.architecture_of(folder) == model.NETWORK:
        trained = model.load(folder)
        assert isinstance(trained, TrainedNetwork)
        before, params, drop = trained.description.model, trained.params, []
        if trained.description.classes != tuple(classes):
            what = f"the weights are for the classes {', '.join(trained.description.classes)}, not {', '.join(classes)}"
            raise UserError(what, where=folder, todo="rename the classes of the data, or use other weights")
        free = [name for name in FREE if name != "hidden"]
    else:
        before, params = classifiers.load(folder)
        params, free = model.without_class_layers(params), list(FREE)
        drop = [f"^{name}/" for name in model.CLASS_LAYERS]
    conventions = [field.name for field in fields(recipe.model) if field.name not in free]
    model_folder.check_same(before, recipe.model, conventions, folder, f"{stage.recipe}.model")
    return model_folder.restore_into(fresh, params, drop, where=folder)


# ---- Training --------------------------------------------------------------------------------------------------------


def train(run: Run, stage: TrainClassifierStage, recipe: NetworkRecipe) -> Summary:
    """Train a network, choose its checkpoint on the validation split, and write `<stage>/model/`."""
    # ---- Data ----------------------------------------------------------------------------------------------------
    found, validation = run.open(stage.train_on, "train"), run.open(stage.validate_on, "val")
    images, of_val = (Labelled(one, image_labels(one), recipe.size) for one in (found, validation))
    check_both_classes(images.labels, found, "train")  # images made by an earlier stage are first seen here
    findings = copies(run, stage, recipe.size)
    network = model.trainable(recipe.model, recipe.label_smoothing)
    if recipe.privacy:
        learned = privately(run, stage, recipe, network, images, recipe.images)
    else:
        learned = openly(run, stage, images, recipe.images)

    # ---- Train ---------------------------------------------------------------------------------------------------
    initial = None
    if stage.init_from:
        folder = run.model_folder(stage.init_from)
        run.say(f"  starts from {folder}")
        fresh = jax.device_get(network.init(jax.random.key(run.seed)))
        initial = _start(folder, stage, recipe, found.classes, fresh)
    result = training.train(
        run,
        stage,
        recipe,
        network,
        learned.batches,
        initial=initial,
        evaluate=_validating(run, stage, network, of_val, recipe, found),
        best_metric="auroc",
        settings=asdict(recipe.model) | {"size": recipe.size, "label_smoothing": recipe.label_smoothing},
        validation=validation.infos,
        protection=learned.protection,
    )

    # ---- The model -----------------------------------------------------------------------------------------------
    params, trained = training.kept_weights(
        run, stage, result, recipe.choose, found, learned.protection, learned.public
    )
    warning = ""
    if run.is_main:
        description = _described(params, recipe, of_val, trained, run.fold, folds.to_read(run, stage))
        model_folder.save_params(run.folder / stage.name / "model", params, description)
        warning = "" if run.in_fold else say_thresholds(run, description.operating_points)
    withheld = private.is_withheld(run.experiment, stage)
    return {
        "kind": "train",
        "data": {**learned.counts, "validation": class_counts(validation)},
        "units": {f"{recipe.privacy.unit}s": learned.counts["train"]["units"]} if recipe.privacy else {},
        "skipped": skipped_images(*([] if withheld else [found]), validation),
        "notes": [] if withheld else findings,
        "warning": warning,
        "withheld": withheld,
        "unnamed": not patients.named(validation.infos),
        "epsilon": 0.0 if recipe.privacy is None else recipe.privacy.epsilon,
        "protection": protection_words(trained.privacy),
        "promise": trained.sentence(),
        **training.outcome(result),
    }


def _validating(
    run: Run, stage: TrainClassifierStage, network: Model, images: Labelled, recipe: NetworkRecipe, data: ImageSource
) -> Callable[[Params, int], dict[str, float]]:
    """AUROC, and the mean cross entropy without smoothing, on the validation images. A fold stores its predictions for
    them, made as in testing. data: of the training."""
    mesh = run.mesh
    predict = prediction.on_mesh(network, mesh, ("valid",))
    constants = meshes.place_constants(network.constants, mesh)
    own, rows = list(images.source.classes).index(recipe.positive), np.arange(len(images))

    def evaluate(params: Params, step: int) -> dict[str, float]:
        found = []
        for batch in labelled.eval_batches(images, recipe.images):
            answer, echo = jax.device_get(predict(params, constants, meshes.spread_batch(batch, mesh)))
            found.append(answer["probability"][echo["valid"]])
        probability = np.concatenate(found).astype(np.float64)
        training.keep_member(
            run, stage, recipe, params, step, data, lambda trained: _description(recipe, images.source, trained)
        )
        if (place := folds.to_write(run, stage, step)) is not None:
            tested = _predicted(meshes.on_host(params, mesh), recipe, images)
            if run.is_main:
                predictions.write_predictions(place / PREDICTED, tested)
        of_label = np.maximum(probability[rows, images.labels], np.finfo(np.float32).tiny)
        return {
            "auroc": model.auroc(probability[:, own], images.labels == own),
            "loss": float(-np.log(of_label).mean()),
        }

    return evaluate


def _description(recipe: NetworkRecipe, source: ImageSource, trained: model_folder.Training) -> NetworkDescription:
    """Without operating points."""
    return NetworkDescription(
        architecture=model.NETWORK,
        classes=tuple(source.classes),  # type: ignore[arg-type]
        positive=recipe.positive,
        size=recipe.size,
        model=recipe.model,
        operating_points=(),
        trained=trained,
        test_symmetries=recipe.test_symmetries,
    )


def _predicted(params: Params, recipe: NetworkRecipe, images: Labelled) -> Predictions:
    """The predictions of a network for images in testing."""
    source = images.source
    description = _description(recipe, source, model_folder.Training())
    probability = TrainedNetwork(params, description).probabilities(source)[0]
    return model.predictions(probability, source, images.labels, recipe.positive)


def said_by_folds(places: Sequence[Path]) -> Predictions:
    """The predictions of all folds for the patients that they had not seen. places: `folds.to_read`."""
    return predictions.joined([predictions.read_predictions(place / PREDICTED) for place in places])


def _described(
    params: Params,
    recipe: NetworkRecipe,
    images: Labelled,
    trained: model_folder.Training,
    fold: Fold | None,
    held_out: Sequence[Path],
) -> NetworkDescription:
    """The description of a network, with thresholds by the rules of the recipe, chosen on the validation images, or on
    the predictions of folds in the folders `held_out` for the patients that they had not seen."""
    description, on = _description(recipe, images.source, trained), "validation"
    if held_out and fold is not None:
        on = fold.in_words
        predicted = said_by_folds(held_out)
    else:
        predicted = _predicted(params, recipe, images)
    return replace(description, operating_points=thresholds.by_rules(predicted, recipe.positive, recipe.rules, on))


def workload(stage: TrainClassifierStage, recipe: NetworkRecipe, batch_size: int | None) -> Workload:
    """The training of a network."""
    count = batch_size or recipe.images.batch_size
    blank = {f"{recipe.size}x{recipe.size}": {**labelled.blank_batch(count, recipe.size)}}
    return Workload(model.trainable(recipe.model, recipe.label_smoothing), count, blank, blank)


# ---- Notes of every training of a classifier on its data ------------------------------------------------------------


def copies(run: Run, stage: TrainStage, size: int) -> list[str]:
    """Notes on images that are copies of each other, within and between the splits of a stage's data.

    They are printed. size: to which the images are scaled for the comparison.
    """
    run = replace(run, fold=None)  # the training after the folds has every image in both splits
    places = [*(Data(name, "train") for name in stage.train_on), Data(stage.validate_on, "val")]
    for name in dict.fromkeys((*stage.train_on, stage.validate_on)):
        others = {info.split for info in run.list(name, "").infos} - {"train", "val", ""}
        places += [Data(name, split) for split in sorted(others)]
    everything = concatenate([run.open(*place) for place in places])
    hashes = [one for place in places for one in run.pixel_hashes(*place, size)]
    classes = [everything.classes[label] for label in image_labels(everything)]
    found = duplicates.notes(duplicates.find(everything.infos, hashes, classes), everything.infos, classes)
    for line in found:
        run.say(f"  note: {line}")
    return found


def say_thresholds(run: Run, points: Sequence[OperatingPoint]) -> str:
    """Print the thresholds of a model with their intervals and a warning, which is returned."""
    warning = thresholds.doubt(points)
    run.say(f"  thresholds: {thresholds.in_words(points)}")
    if warning:
        run.say(f"  warning: {warning}")
    return warning


def protection_words(promise: Statement | None) -> str:
    """'epsilon 6, per patient'."""
    if promise is None:
        return "without privacy"
    said = f"epsilon {promise.epsilon:.3g}, per {promise.ledger.unit}"
    if not promise.private:
        return "not private: known noise"
    return f"not private: {said}, of the last training alone" if promise.exposed else said
