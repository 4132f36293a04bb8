"""The stages of a detection experiment: train a detector, evaluate trained detectors.

A train stage leaves `model/` (see detection_model.py): all that evaluation, prediction and the fine-tuning of another
stage need. An evaluate stage leaves `<model>/predictions.json`, `<model>/evaluation.json` and `comparisons.json`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax

from elk_jax import files
from elk_jax.data import breast
from elk_jax.data.batches import detection as loader
from elk_jax.data.batches import plan
from elk_jax.data.flips import check_flips
from elk_jax.data.sources import checks
from elk_jax.data.sources.source import ImageSource, category_ids, summary
from elk_jax.detection import detectors
from elk_jax.detection.detector import Detector, has_anchors
from elk_jax.errors import UserError
from elk_jax.evaluation import detections
from elk_jax.evaluation import evaluate as metrics
from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.hits import criterion_from_text
from elk_jax.tasks import training as recipe_training
from elk_jax.tasks.detection import model as detection_model
from elk_jax.tasks.detection import report as detection_report
from elk_jax.tasks.detection import settings as detection
from elk_jax.tasks.run import Run, model_folder
from elk_jax.tasks.settings import named
from elk_jax.tasks.watching import watched
from elk_jax.training import optimizer as optimizers
from elk_jax.training.model import Params
from elk_jax.weights import model_folder as store


def check_start(run: Run, name: str, names: Collection[str]) -> None:
    """Raise UserError where the recipe of train stage `name` names layers that its model has not, freezes weights
    that nothing has trained, or starts from weights that are not of its model.

    names: stages that will run; the weights of one of them are not there yet. Nothing is computed: parameters are
    shapes. The class layers, which follow from the data, are left to the stage.
    """
    stage = run.config.stages[name]
    recipe = run.config[stage.recipe]
    if recipe.optimizer.frozen and not stage.init_from:
        raise UserError(
            f"stage {name} starts from random weights, and {', '.join(recipe.optimizer.frozen)} would keep them",
            where=f"config.{stage.recipe}.optimizer.frozen",
            todo=f"name weights to start from, --config.stages.{name}.init_from=DIR, or freeze nothing: '()'",
        )
    model = detection.model_config(recipe.model)
    if recipe.plan_anchors and has_anchors(model):
        model = dataclasses.replace(model, anchor_sizes=tuple(sizes[:1] for sizes in model.anchor_sizes))
    detector = detectors.build(model)
    task = detection.build_task(detector, run.mesh)
    fresh = jax.eval_shape(task.init, jax.random.key(0))
    settled = partial(optimizers.build, schedule=optax.constant_schedule(1.0), params=fresh, frozen=task.frozen)
    named(f"config.{stage.recipe}", settled, recipe.optimizer)
    if stage.init_from and stage.init_from not in names:
        shapes = store.flatten(fresh).items()
        layers = {path: shape for path, shape in shapes if not re.search(detector.class_layers, path)}
        _from_weights(model_folder(run, stage.init_from), store.nest(layers), detector, stage.recipe)


def train(run: Run, name: str) -> dict[str, Any]:
    """Train one detector and write `<stage>/model/`. Returns a summary for the report."""
    config, stage = run.config, run.config.stages[name]
    recipe = config[stage.recipe]
    folder = run.folder / name
    flips = check_flips(recipe.test_flips)

    # ---- Data ------------------------------------------------------------------------------------------------
    source = detection.open_data(run.data, stage.train_on, "train", config.seed)
    validation = detection.open_data(run.data, (stage.validate_on,), "val", config.seed)
    if source.classes != validation.classes:
        raise UserError(
            f"training has the classes {source.classes}, validation {validation.classes}", where=f"stage {name}"
        )
    run.say(f"  train {_counts(source)}; validation {_counts(validation)}")
    _say_skipped(run, source, validation)
    if not summary(source.infos)["lesions"]:
        raise checks.no_lesions("train", source.name)
    if not summary(validation.infos)["lesions"]:
        run.say("  warning: no lesion in validation: checkpoints cannot be told apart, the last one is kept")
    if recipe.crop_to_breast:
        source, _ = breast.crop_to_breast(source, watched("  finding the breasts"))
    shown = detection_model.show(validation, recipe.crop_to_breast)  # as in testing: the truth widens no window
    training_loader = detection.loader_config(recipe.loader, stage.get("weights", ()))
    test_loader = detection.test_loader_config(recipe)
    batches = loader.train_batches(source, training_loader, config.seed, jax.process_index(), jax.process_count())

    # ---- Model -----------------------------------------------------------------------------------------------
    model = detection.model_config(recipe.model, num_classes=len(source.classes), score_floor=recipe.score_floor)
    if recipe.plan_anchors and has_anchors(model):
        sizes = detection.planned_anchor_sizes(source.infos, test_loader, levels=len(model.anchor_sizes))
        model = dataclasses.replace(model, anchor_sizes=sizes)
        run.say(f"  anchor sizes from the lesions: {', '.join(f'{size:.0f}' for (size,) in sizes)} px")
    detector = detectors.build(model)
    task = detection.build_task(detector, run.mesh)
    initial = None
    if stage.init_from:
        weights, fresh = model_folder(run, stage.init_from), jax.device_get(task.init(jax.random.key(config.seed)))
        initial = _from_weights(weights, fresh, detector, stage.recipe)
        run.say(f"  starts from {weights}")

    # ---- Train, choosing the checkpoint on the validation split ------------------------------------------------
    predictor = detection.compile_predictor(task, run.mesh)

    def evaluate_params(params, step) -> dict[str, float]:
        floor = recipe.choose_score_floor
        results = detection_model.detect_shown(predictor, params, shown, test_loader, run.mesh, floor, progress=False)
        scores = metrics.scalars(metrics.evaluate_detections(results, score_floor=floor, resamples=0))
        # before the first hit a metric is not defined: nothing was found
        return {recipe.best_metric: 0.0, **scores}

    result = recipe_training.train(
        run,
        name,
        task,
        batches,
        initial=initial,
        evaluate=evaluate_params,
        best_metric=recipe.best_metric,
        model=dataclasses.asdict(model),
        validation=validation.infos,
        buckets=len(batches.canvases),
    )

    # ---- The model with its operating points -------------------------------------------------------------------
    floor = recipe.score_floor
    results = detection_model.detect_shown(predictor, result.best_params, shown, test_loader, run.mesh, floor, flips)
    evaluation = metrics.evaluate_detections(results, score_floor=floor, resamples=0)
    params, training = recipe_training.kept(run, name, result, source.infos, source.learned_from)
    if run.is_main:
        description = detection_model.describe(
            model, source.classes, test_loader, recipe.crop_to_breast, flips, evaluation
        )
        store.save_params(folder / "model", params, description | {"trained": training})
    value = _best(result, recipe.best_metric)
    run.say(f"  best checkpoint: step {result.best_step}, {recipe.best_metric} {value} on validation")
    return {
        "kind": "train",
        "task": "detection",
        "data": {"train": summary(source.infos), "validation": summary(validation.infos)},
        "draws_per_epoch": plan.describe(_strata(source, training_loader, batches), source.infos),
        "skipped": [list(entry) for entry in (*source.skipped, *validation.skipped)],
        **recipe_training.outcome(result),
    }


def evaluate(run: Run, name: str) -> dict[str, Any]:
    """Evaluate trained stages on one split; with several, compare each with the first. Writes evaluation.json."""
    config, stage = run.config, run.config.stages[name]
    recipe = config[stage.recipe]
    source = detection.open_data(run.data, (stage.on,), stage.split, config.seed)
    run.say(f"  {stage.split} {_counts(source)}")
    _say_skipped(run, source)
    criterion = criterion_from_text(stage.criterion)
    floor = recipe.score_floor
    results: dict[str, list[ImageResult]] = {}
    evaluations: dict[str, Any] = {}
    for model in stage.models:
        results[model] = detection_model.detect_with(run.folder / model / "model", source, run.mesh, floor)
        evaluations[model] = metrics.evaluate_detections(
            results[model], criterion=criterion, score_floor=floor, resamples=recipe.bootstrap
        )
        if run.is_main:
            place = files.make_folder(run.folder / name / model) / "predictions.json"
            detections.write_results(place, results[model], category_ids(run.data[stage.on].spec))
            files.write_json(run.folder / name / model / "evaluation.json", evaluations[model])
    first = stage.models[0]
    comparisons = {
        other: metrics.compare_detections(
            results[first], results[other], criterion=criterion, score_floor=floor, resamples=recipe.bootstrap
        )
        for other in stage.models[1:]
    }
    if run.is_main:
        files.write_json(run.folder / name / "comparisons.json", comparisons)
        files.write_json(
            run.folder / name / "gallery.json",
            {m: detection_report.choose_pictures(results[m], criterion, evaluations[m]) for m in stage.models},
        )
        run.console.print(
            detection_report.results_table(evaluations, comparisons, f"{stage.split} split of {stage.on}")
        )
    return {
        "kind": "evaluate",
        "task": "detection",
        "on": stage.on,
        "split": stage.split,
        "data": summary(source.infos),
        "skipped": [list(entry) for entry in source.skipped],
        "models": list(stage.models),
    }


# ---- Parts ----------------------------------------------------------------------------------------------------------


def _from_weights(folder: Path, fresh: Params, detector: Detector, recipe: str) -> Params:
    """`fresh`, parameters of `detector` or their shapes, with the weights of a model folder where they agree.

    UserError where they are of another architecture, or of conventions that `detector` does not have. recipe: its
    name, for the error.
    """
    loaded, description = store.load_params(folder)
    params = store.restore_into(fresh, loaded, (detector.class_layers, *description.get("absent", ())), where=folder)
    if "model" in description:
        given, wanted = store.flatten(loaded), store.flatten(fresh)
        taken = [name for name, leaf in wanted.items() if name in given and given[name].shape == leaf.shape]
        before = detection.model_config(description["model"])
        store.check_same(before, detector.config, detector.settled_by(taken), folder, recipe)
    return params


def _counts(source: ImageSource) -> str:
    counts = summary(source.infos)
    return ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in counts.items())


def _say_skipped(run: Run, *opened: ImageSource) -> None:
    for source in opened:
        for image_id, reason in source.skipped:
            run.say(f"  skipped image {image_id}: {reason}")


def _strata(source: ImageSource, config: loader.LoaderConfig, batches: loader.TrainBatches):
    buckets = plan.assign_buckets(source.infos, batches.canvases, config.resize, config.augmentation)
    return plan.plan_strata(source.infos, buckets, config.batch_size, config.weights, config.lesion_share)


def _best(result, metric: str) -> str:
    value = result.best_metrics.get(metric)
    return "not measured" if value is None else f"{value:.3f}"
