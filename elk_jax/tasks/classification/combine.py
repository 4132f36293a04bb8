"""Combine classifiers into one, the mean of their predictions. The stage leaves `model/`, which contains them all."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from elk_jax import files
from elk_jax.data.sources import patients
from elk_jax.data.sources.labels import class_counts, image_labels
from elk_jax.errors import UserError
from elk_jax.evaluation import ensembles, thresholds
from elk_jax.features import store
from elk_jax.privacy.mechanism import together
from elk_jax.tasks import folds, training
from elk_jax.tasks.classification import model
from elk_jax.tasks.classification.recipe import CombineClassifiersStage, NetworkRecipe, TrainClassifierStage
from elk_jax.tasks.classification.train import protection_words, said_by_folds, say_thresholds
from elk_jax.tasks.run import Run, skipped_images
from elk_jax.tasks.task import Summary
from elk_jax.weights import model_folder


def check_combine(run: Run, stage: CombineClassifiersStage, recipe: None, names: Collection[str]) -> None:
    """UserError for members with different folds, and for members that exist already and are not classifiers."""
    folds.dealt_alike(run.experiment, stage)
    for number, name in enumerate(stage.members):
        folder = run.model_folder(name)
        if name not in names and model_folder.architecture_of(folder) not in model.ARCHITECTURES:
            where = f"config.stages.{stage.name}.members[{number}]"
            raise UserError(f"not a classifier: {folder}", where=where, todo="name a stage that fits or trains one")


def combine(run: Run, stage: CombineClassifiersStage, recipe: None) -> Summary:
    """Write `<stage>/model/`, with thresholds for the mean chosen on the validation split; if the members have folds,
    on the predictions of the folds for the patients they had not seen."""
    count = folds.dealt_alike(run.experiment, stage)
    seeing = folds.of_everyone(run, stage.validate_on, count) if count else run
    on = seeing.fold.in_words if seeing.fold else "validation"
    validation = seeing.open(stage.validate_on, "val")
    if not run.is_main:
        return {}
    folders = [run.model_folder(name) for name in stage.members]
    read = [model_folder.load_params(folder) for folder in folders]
    members = [model.of(params, content, folder) for (params, content), folder in zip(read, folders)]
    for folder, member in zip(folders, members):
        model.check_classes(member.description, validation)
        model.check_alike(member.description, members[0].description, folder)
    first, contained = members[0].description, [getattr(member.description, "contains", "") for member in members]
    trained = model_folder.of_members([content.training for _, content in read])
    everyone = all(content.training and content.training.promises for _, content in read)
    epsilon = together(trained.inherited) if everyone else None
    description = model.MeanDescription(
        architecture=model.MEAN,
        classes=first.classes,
        positive=first.positive,
        mean=stage.mean,
        members=tuple(content.entries for _, content in read),
        operating_points=(),
        trained=trained,
        contains=next(filter(None, contained), ""),
    )
    if count:
        mean_of = ensembles.mean_of_probabilities if stage.mean == "probabilities" else ensembles.mean_of_logits
        predicted = mean_of([said_by_folds(folds.held_out(run, name)) for name in stage.members])
    else:
        scores = model.MeanOfClassifiers(tuple(members), description).probabilities(
            validation, run.folder / store.FOLDER
        )
        predicted = model.predictions(scores[0], validation, image_labels(validation), first.positive)
    points = thresholds.by_rules(predicted, first.positive, stage.rules, on)
    folder = files.make_folder(run.folder / stage.name)
    model.save_mean(folder / "model", [params for params, _ in read], replace(description, operating_points=points))
    auroc = model.auroc(predicted.scores(first.positive), predicted.truth(first.positive))
    run.say(f"  mean of {len(members)} classifiers; AUROC {auroc:.3f} on {on}")
    warning = say_thresholds(run, points)
    return {
        "kind": "combine",
        "data": {on: class_counts(validation)},
        "units": {},
        "skipped": skipped_images(validation),
        "notes": [],
        "warning": warning,
        "withheld": False,
        "unnamed": not patients.named(validation.infos),
        "epsilon": epsilon or 0.0,
        "protection": f"epsilon {epsilon:.3g}, all members together" if epsilon else protection_words(None),
        "promise": trained.sentence(),
        "contains": description.contains,
        "chosen_on": on,
        "members": list(stage.members),
        "mean": stage.mean,
        "auroc": [auroc],
    }


def join_folds(run: Run, stage: TrainClassifierStage, recipe: NetworkRecipe) -> Summary:
    """Write `<stage>/model/`, the mean of the stage's folds (`tasks.folds`), of their log odds.

    Each patient was seen by all members but one. The predictions of that one choose the thresholds, which are therefore
    those of a single member.
    """
    assert run.fold is not None
    folders = folds.members(run, stage)
    read = [model_folder.load_params(folder) for folder in folders]
    members = [model.of(params, content, folder) for (params, content), folder in zip(read, folders)]
    validation = run.open(stage.validate_on, "val")
    run.say(f"  mean of {len(members)} classifiers, the {run.fold.in_words}")
    predicted, on = said_by_folds(folds.to_read(run, stage)), f"{run.fold.in_words}, {folds.UNSEEN}"
    first, trained = members[0].description, model_folder.of_members([content.training for _, content in read])
    points = thresholds.by_rules(predicted, first.positive, recipe.rules, on)
    description = model.MeanDescription(
        architecture=model.MEAN,
        classes=first.classes,
        positive=first.positive,
        mean="log_odds",
        members=tuple(content.entries for _, content in read),
        operating_points=points,
        trained=trained,
    )
    if run.is_main:
        own = files.make_folder(run.folder / stage.name)
        model.save_mean(own / "model", [params for params, _ in read], description)
    warning = say_thresholds(run, points)
    return {
        "kind": "train",
        "data": {"validation": class_counts(validation)},
        "units": {},
        "skipped": skipped_images(validation),
        "notes": [],
        "warning": warning,
        "withheld": False,
        "unnamed": not patients.named(validation.infos),
        "epsilon": 0.0,
        "protection": protection_words(None),
        "promise": trained.sentence(),
        "parameters": sum(training.parameter_count(params) for params, _ in read),
        "best_step": run.fold.steps,
    }
