"""The training of a stage by its recipe, the same for every task."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax

from elk_jax.data.batches import poisson
from elk_jax.data.batches.stream import Stream
from elk_jax.data.sources import patients
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.privacy.mechanism import Statement
from elk_jax.reporting.training import Trainings
from elk_jax.tasks import folds
from elk_jax.tasks.private import exposure, painters_saw, promises_before
from elk_jax.tasks.run import Opened, Run
from elk_jax.tasks.stages import TrainStage
from elk_jax.training import loop
from elk_jax.training import mesh as meshes
from elk_jax.training import optimizer as optimizers
from elk_jax.training.loop import Evaluation, Intervals, TrainResult
from elk_jax.training.model import DISCRIMINATOR, GENERATOR, Game, Model, Params
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import AdversarialRecipe, TrainingRecipe
from elk_jax.training.step.adversarial import adversarial
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.private import private
from elk_jax.training.step.private_adversarial import judge, private_adversarial
from elk_jax.training.step.separable import check_model as check_separable
from elk_jax.training.step.step import Protection, Step
from elk_jax.training.writer import read_metrics
from elk_jax.weights import model_folder


def check_model(
    stage: TrainStage, recipe: TrainingRecipe, model: Model | Game, infos: Sequence[ImageInfo] = ()
) -> None:
    """UserError for a model or two players that the recipe cannot train. Nothing is computed: parameters are shapes.

    If the recipe protects its data: for a model or discriminator in whose loss examples interact; and if it protects
    patients and the training images `infos` do not name them. For expressions of an optimiser that match no parameter.
    For a training from random weights that would leave some of them untrained.
    """
    if recipe.privacy is not None:
        try:
            check_separable(judge(model) if isinstance(model, Game) else model)
            poisson.members(infos, recipe.privacy.unit)
        except UserError as error:
            raise error.within(f"config.{stage.recipe}") from error
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    if isinstance(model, Game):
        assert isinstance(recipe, AdversarialRecipe)
        _check_optimizer(stage, "", recipe.optimizer, shapes[GENERATOR])
        _check_optimizer(stage, "discriminator_", recipe.discriminator_optimizer, shapes[DISCRIMINATOR])
    else:
        _check_optimizer(stage, "", recipe.optimizer, shapes, model.frozen, model.statistics)


def _check_optimizer(
    stage: TrainStage,
    player: str,
    optimizer: OptimizerConfig,
    params: Params,
    frozen: Iterable[str] = (),
    statistics: Iterable[str] = (),
) -> None:
    """See `check_model`. player: prefix of the names of its settings. frozen, statistics: as in `Model`.

    Norms of random weights may be frozen: they start as the identity.
    """
    place = f"config.{stage.recipe}.{player}"
    try:
        optimizers.build(optimizer, optax.constant_schedule(1.0), params, frozen, statistics)
    except UserError as error:
        raise UserError(error.what, where=f"{place}{error.where}", todo=error.todo) from error
    if stage.starts_trained:
        return
    random = [name for name in model_folder.flatten(params) if "/norm/" not in name]
    todo = f"name weights to start from, --config.stages.{stage.name}.init_from=DIR, or freeze"
    for setting, patterns, instead in (
        ("optimizer.frozen", optimizer.frozen, "nothing: '()'"),
        ("model", frozen, "no stages"),
    ):
        kept = [name for name in random if any(re.search(pattern, name) for pattern in patterns)]
        if kept:
            what = f"stage {stage.name} starts from random weights but freezes {kept[0]}"
            raise UserError(what, where=f"{place}{setting}", todo=f"{todo} {instead}")


def train(
    run: Run,
    stage: TrainStage,
    recipe: TrainingRecipe,
    model: Model | Game,
    batches: Stream,
    *,
    initial: Params | None,
    evaluate: Callable[[Params, int], dict[str, float]],
    best_metric: str,
    best_mode: Literal["max", "min"] = "max",
    draw: Callable[[Params, int], dict[str, np.ndarray]] | None = None,
    settings: Any,
    validation: Sequence[ImageInfo],
    buckets: int = 1,
    seed: int | None = None,
    protection: Protection | None = None,
) -> TrainResult:
    """Train a model or two players by gradients; reading ahead always stops with it. See `training.loop`.

    protection: of a private training, whose batches are of units (`tasks.private.privately`). settings, validation: the
    model's configuration, for JSON, and the images that its checkpoints are chosen on; a training is only resumed from
    a checkpoint with the same ones. seed: None for that of the run. The training after folds (`tasks.folds`) runs for
    the number of steps that they chose, with the same schedule and without evaluation.
    """
    seed = run.seed if seed is None else seed
    try:
        step = step_of(model, recipe, run.mesh, seed, protection)
    except UserError as error:  # only here where the model is that of the weights to start from
        raise error.within(f"config.{stage.recipe}") from error
    for warning in recipe.warnings():
        run.say(f"  warning: {warning}")
    folder, steps = run.folder / stage.name, None if run.fold is None else run.fold.steps
    evaluation = Evaluation(evaluate, best_metric, best_mode, draw) if steps is None else None  # none is left out of it
    try:
        result = loop.train(
            step,
            workdir=folder,
            data_iterator=batches,
            total_steps=steps or recipe.steps,
            mesh=run.mesh,
            initial_params=initial,
            intervals=Intervals(recipe.log_every, recipe.checkpoint_every, recipe.eval_every),
            evaluation=evaluation,
            identity={"model": _hash(settings), "validation split": _hash(annotated(validation))},
            buckets=buckets,
            title=stage.name,
        )
    finally:
        batches.close()
    if run.fold is not None and steps is None and run.is_main:
        folds.write_curve(folder, best_metric, best_mode)
    return result


def step_of(
    model: Model | Game,
    recipe: TrainingRecipe,
    mesh: jax.sharding.Mesh,
    seed: int,
    protection: Protection | None = None,
) -> Step:
    """The training step of a recipe for a model or for two players. UserError for a private recipe without
    protection."""
    if protection is not None:
        if isinstance(model, Game):
            assert isinstance(recipe, AdversarialRecipe)
            return private_adversarial(model, recipe, protection, mesh, seed)
        return private(model, recipe, protection, mesh, seed)
    if recipe.privacy is not None:
        check_separable(judge(model) if isinstance(model, Game) else model)
        todo = "leave privacy out; also for tasks that do not make batches of units"
        what = "a private step needs the data, because the number of units determines its noise"
        raise UserError(what, where="privacy", todo=todo)
    if isinstance(model, Game):
        assert isinstance(recipe, AdversarialRecipe)
        return adversarial(model, recipe, mesh, seed)
    return gradient(model, recipe, mesh, seed)


def kept_weights(
    run: Run,
    stage: TrainStage,
    result: TrainResult,
    choose: Literal["best", "last"],
    data: Opened,
    protection: Protection | None = None,
    public: Opened | None = None,
) -> tuple[Params, model_folder.Training]:
    """(the parameters that a train stage keeps, on the host; their provenance).

    For a private training the provenance contains its promise and the patients of its public data, but not its own
    patients, as it hides whose data it contains. All processes must call it: each may hold a part of the parameters.
    """
    last = (result.params, int(result.state.step))
    params, step = (result.best_params, result.best_step) if choose == "best" else last
    open_data, promise = [*([] if protection else [data]), *([] if public is None else [public])], None
    if protection is not None:
        exposed = exposure(run, stage, run.experiment.recipe_of(stage))
        promise = protection.mechanism.statement(last[1], not protection.secret.known, exposed).named()
    return meshes.on_host(params, run.mesh), history(run, stage, step, open_data, promise)


def history(
    run: Run, stage: TrainStage, step: int, open_data: Sequence[Opened], promise: Statement | None = None
) -> model_folder.Training:
    """The provenance of the weights of a train stage. open_data: data whose patients are not secret."""
    seen = {patients.patient_hash(patient) for one in open_data for patient in patients.named(one.infos)}
    seen = seen.union(*(one.seen_patients for one in open_data))
    before = [run.model_folder(name) for name in dict.fromkeys(stage.named_models().values())]
    seen = seen.union(*(model_folder.seen_patients(folder) for folder in before))
    sources = stage.origin().sources
    seen |= painters_saw(run, sources)
    inherited = promises_before(run, stage)
    return model_folder.Training(step, sources, stage.init_from, tuple(sorted(seen)), promise, inherited)


def keep_member(
    run: Run,
    stage: TrainStage,
    recipe: TrainingRecipe,
    params: Params,
    step: int,
    data: Opened,
    describe: Callable[[model_folder.Training], Any],
) -> None:
    """Write the model of a fold at a step as a model folder, if the folds are to become an ensemble; the step is chosen
    once all folds are trained. All processes must call it.

    describe: provenance of the weights -> the description of the model.
    """
    place = folds.to_write(run, stage, step)
    if place is None or recipe.refit:
        return
    weights = meshes.on_host(params, run.mesh)
    if run.is_main:
        model_folder.save_params(place / folds.MEMBER, weights, describe(history(run, stage, step, [data])))


def outcome(result: TrainResult) -> dict[str, Any]:
    """The training in the summary of a train stage. best_step: on the validation data."""
    return {
        "parameters": parameter_count(result.params),
        "best_step": result.best_step,
        "best": dict(result.best_metrics),
        "seconds_before": result.seconds_before,
    }


def recorded(run: Run, summaries: Mapping[str, Any]) -> Trainings:
    """The finished trainings of a task, for its report. summaries: of its stages, by name."""
    trained = {name: run.folder / name for name, summary in summaries.items() if summary["kind"] == "train"}
    return Trainings(
        {name: read_metrics(folder / "metrics.jsonl") for name, folder in trained.items()},
        {n: model_folder.kept_step(folder / "model", summaries[n]["best_step"]) for n, folder in trained.items()},
        {name: said for name, folder in trained.items() if (said := model_folder.promise(folder / "model"))},
    )


def parameter_count(params: Params) -> int:
    return int(sum(np.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params)))


def annotated(infos: Sequence[ImageInfo]) -> list:
    """The annotations of images for JSON: ids, patients, boxes, classes, and which boxes are ignored."""
    return [
        [info.image_id, info.patient_id, info.boxes.tolist(), info.labels.tolist(), info.ignore.tolist()]
        for info in infos
    ]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
