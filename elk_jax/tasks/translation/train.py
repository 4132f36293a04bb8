"""Train a translator. The stage leaves `model/` (model.py), and `pictures/` of its progress."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from elk_jax.data.batches import pairs as batches
from elk_jax.data.batches.pairs import PairConfig
from elk_jax.data.sources import coco, pairs
from elk_jax.data.sources.checks import check_files
from elk_jax.data.sources.pairs import Pairs
from elk_jax.data.tiles import tile_windows
from elk_jax.diffusion import translator
from elk_jax.progress import progress_bar
from elk_jax.spread import spread
from elk_jax.tasks import private, sampling, training
from elk_jax.tasks.private import Learned, Public
from elk_jax.tasks.run import Run, skipped_images
from elk_jax.tasks.stages import Stage
from elk_jax.tasks.task import Summary, Workload
from elk_jax.tasks.translation.model import Greys, Translator, describe, load, measure_greys, trainable
from elk_jax.tasks.translation.recipe import TrainTranslatorStage, TranslationRecipe
from elk_jax.training.model import Model, Params
from elk_jax.weights import model_folder

SHOWN = 6
"""Number of validation pairs in the picture grid."""


def check_pairs(run: Run, stage: Stage, recipe: TranslationRecipe, names: Collection[str]) -> None:
    """Raise UserError if images have no partners, or are smaller than a tile, or if the recipe cannot train the model.
    Decodes no image and draws no phantom."""
    if isinstance(stage, TrainTranslatorStage):
        private.check_public(stage, recipe)
        private.check_start(run, stage, recipe)
        training.check_model(stage, recipe, workload(stage, recipe, 1).model)
    for source, split in stage.data():
        if not run.is_listed(source):
            continue
        spec = run.spec(source)
        subtracted = run.list(source, split)
        partners = pairs.pair_up(subtracted, spec)
        if run.experiment.on_error == "stop":
            for info in subtracted.infos:
                tile_windows(info.height, info.width, recipe.model.size, where=f"{source}, {info.file_name}")
            check_files(partners.infos, coco.image_folder(spec.place), source)


def open_pairs(run: Run, sources: Sequence[str], split: str, settings: PairConfig, size: int) -> Pairs:
    """The pairs of the named sources as one collection of tiles of `size` px."""
    opened = []
    for source in sources:
        subtracted, spec = run.open(source, split), run.spec(source)
        low = pairs.pair_up(subtracted, spec, progress_bar("  opening"))
        opened.append(
            pairs.cut_pairs(
                low,
                subtracted,
                size,
                settings.stride,
                settings.max_black,
                run.experiment.on_error,
                progress_bar("  cutting tiles"),
            )
        )
    return pairs.concatenate(opened)


def train(run: Run, stage: TrainTranslatorStage, recipe: TranslationRecipe) -> Summary:
    """Train a translator and write `<stage>/model/`."""
    # ---- Data ----------------------------------------------------------------------------------------------------
    config, settings = recipe.model.config(), recipe.pairs
    found = open_pairs(run, stage.train_on, "train", settings, config.size)
    validation = open_pairs(run, (stage.validate_on,), "val", settings, config.size)
    shown = list(batches.eval_pairs(validation, settings, recipe.validation_pairs))
    # a private training publishes only the number of units of its pairs
    parts = Translator(config, recipe.sampler, measure_greys(validation if recipe.privacy else found))
    shapes = jax.eval_shape(lambda rng: translator.init(config, rng), jax.random.key(0))
    model = trainable(parts, recipe.loss)
    learned = (_privately if recipe.privacy else _openly)(run, stage, recipe, model, found)
    run.say(f"  tiles of {config.size} px; model {training.parameter_count(shapes):,} parameters")

    # ---- Train ---------------------------------------------------------------------------------------------------
    initial = None
    if stage.init_from:
        folder = run.model_folder(stage.init_from)
        run.say(f"  starts from {folder}")
        before = load(folder)
        conventions = ("patch", "condition", "answer", "bridge")
        model_folder.check_same(before.parts.model, config, conventions, folder, f"{stage.recipe}.model")
        initial = model_folder.restore_into(shapes, before.params, where=folder)
    result = training.train(
        run,
        stage,
        recipe,
        model,
        learned.batches,
        initial=initial,
        evaluate=sampling.fixed_loss(model, shown, run.mesh),
        draw=_drawing(model, shown, run.seed, run.mesh),
        best_metric="loss",
        best_mode="min",
        settings=asdict(config),
        validation=validation.infos,
        protection=learned.protection,
    )

    # ---- The model ----------------------------------------------------------------------------------------------
    params, trained = training.kept_weights(
        run, stage, result, recipe.choose, found, learned.protection, learned.public
    )
    if run.is_main:
        model_folder.save_params(run.folder / stage.name / "model", params, describe(parts, trained))
    withheld = private.is_withheld(run.experiment, stage)
    return {
        "kind": "train",
        "data": {**learned.counts, "validation": summary(validation)},
        "skipped": skipped_images(*([] if withheld else [found]), validation),
        **training.outcome(result),
    }


def _openly(run: Run, stage: TrainTranslatorStage, recipe: TranslationRecipe, model: Model, found: Pairs) -> Learned:
    """Every pair once an epoch."""
    counts = summary(found)
    run.say(
        f"  train: {counts['tiles']} tiles from {counts['images']} images of {counts['patients']} patients, "
        f"{counts['ignored_boxes']} ignored boxes"
    )
    stream = batches.train_pairs(found, recipe.pairs, run.seed, jax.process_index(), jax.process_count())
    return private.openly(run, stage, stream, counts)


def _privately(run: Run, stage: TrainTranslatorStage, recipe: TranslationRecipe, model: Model, found: Pairs) -> Learned:
    """Batches of units, together with public pairs if there are any."""
    settings, public = recipe.pairs, None
    if stage.public:
        pairs = open_pairs(run, stage.public, "train", settings, recipe.model.size)
        make = batches.shuffled(pairs, settings, run.seed, jax.process_index(), jax.process_count())
        public = Public(pairs, make, summary(pairs), batches.records(pairs))
    return private.privately(
        run,
        stage,
        recipe,
        model,
        example=batches.Augmented(found, settings),
        infos=found.infos,
        batch_size=settings.batch_size,
        reading=settings,
        public=public,
        identity=batches.records(found),
    )


def workload(stage: TrainTranslatorStage, recipe: TranslationRecipe, batch_size: int | None) -> Workload:
    """The training of a translator."""
    config, count = recipe.model.config(), batch_size or recipe.pairs.batch_size
    model = trainable(Translator(config, recipe.sampler, Greys(0.0, 1.0, 0.0, 1.0)), recipe.loss)
    blank = batches.blank_batch(count, config.size)
    drawn = {"image": blank["low_energy"], "seed": sampling.seeds(0, range(count))}
    name = f"{config.size}x{config.size}"
    return Workload(model, count, {name: {**blank}}, {name: drawn})


def summary(found: Pairs) -> dict[str, int]:
    """Counts for logs and reports."""
    return {
        "images": len({position for position, _ in found.places}),
        "patients": len({info.patient_id for info in found.infos}),
        "tiles": len(found),
        "lesions": int(sum((~info.ignore).sum() for info in found.infos)),
        "ignored_boxes": int(sum(info.ignore.sum() for info in found.infos)),
    }


def _drawing(model: Model, shown: Sequence[Any], seed: int, mesh: jax.sharding.Mesh):
    """Some validation pairs: low energy on top, the translation from fixed noise in the middle, real at the bottom."""
    sample = sampling.compile_sampler(model, mesh)
    whole = {key: np.concatenate([batch[key][batch["valid"]] for batch in shown]) for key in shown[0]}
    chosen = spread(len(whole["index"]), SHOWN)
    low, real = whole["low_energy"][chosen], whole["subtracted"][chosen]
    seeds = sampling.seeds(seed, np.arange(len(chosen)))

    def draw(params: Params, step: int) -> dict[str, np.ndarray]:
        translated = sample(params, {"image": low, "seed": seeds})
        return {"translated": sampling.grid([low, translated, real])}

    return draw
