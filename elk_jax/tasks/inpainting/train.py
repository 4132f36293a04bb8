"""Train an inpainter. The stage leaves `model/` (model.py), and `pictures/` of its progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from elk_jax import files
from elk_jax.data.batches import crops
from elk_jax.data.batches.stream import Stream
from elk_jax.data.sources import checks, labels
from elk_jax.data.sources.source import ImageSource, summary
from elk_jax.diffusion import inpainter
from elk_jax.diffusion.autoencoder import AutoencoderConfig
from elk_jax.diffusion.text_encoder import TextConfig
from elk_jax.diffusion.unet import UNetConfig
from elk_jax.errors import UserError
from elk_jax.progress import Progress
from elk_jax.randomness import WORD
from elk_jax.synthesis.closeups import fitting_lesions
from elk_jax.synthesis.placement import AREAS, AreaRule
from elk_jax.tasks import private, sampling, training
from elk_jax.tasks.inpainting import model as inpainters
from elk_jax.tasks.inpainting.model import Inpainter
from elk_jax.tasks.inpainting.recipe import InpaintingRecipe, TrainInpainterStage
from elk_jax.tasks.private import Learned, Public
from elk_jax.tasks.run import Run, skipped_images
from elk_jax.tasks.task import Summary, Workload
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Model, Params
from elk_jax.weights import model_folder, stable_diffusion, tokenizer
from elk_jax.weights.tokenizer import Tokenizer


def check_start(run: Run, stage: TrainInpainterStage, recipe: InpaintingRecipe, names: Collection[str]) -> None:
    """UserError without a model to train, if patients of a private training are known elsewhere, or if the recipe
    cannot train its model."""
    private.check_public(stage, recipe)
    private.check_start(run, stage, recipe)
    if not stage.init_from and recipe.model is None:
        raise UserError(
            "there is no model to start from",
            where=f"config.stages.{stage.name}.init_from",
            todo="name a folder written by launch/import_weights.py --format=diffusers",
        )
    if not stage.init_from:
        training.check_model(stage, recipe, workload(stage, recipe, 1).model)


def lacks(recipe: InpaintingRecipe, source: ImageSource) -> str:
    """A lesion, where images of a fold have none; "" for nothing."""
    return checks.lacking_lesion(source.infos)


def _check_no_adapters(stage: TrainInpainterStage, recipe: InpaintingRecipe) -> None:
    if recipe.lora.rank:
        raise UserError(
            "adapters need a pretrained model",
            where=f"config.{stage.recipe}.lora.rank",
            todo="give init_from, or set rank=0",
        )


def train(run: Run, stage: TrainInpainterStage, recipe: InpaintingRecipe) -> Summary:
    """Train an inpainter and write `<stage>/model/`."""
    # ---- Data ----------------------------------------------------------------------------------------------------
    source, validation = run.open(stage.train_on, "train"), run.open(stage.validate_on, "val")
    classes = (labels.lesion_class(source),)
    told = validation if recipe.privacy else source  # whose contrast and lesion sizes the model folder has
    start = starting_point(run, stage, recipe, told)
    parts, base, closeups = start.parts, start.params, recipe.closeups
    shown = list(crops.eval_closeups(validation, closeups, parts.model.size, run.seed, recipe.validation_closeups))
    shapes = base or jax.eval_shape(lambda rng: inpainter.init(parts.model, rng), jax.random.key(0))
    run.say(f"  model {training.parameter_count(shapes):,} parameters")

    # ---- Train ---------------------------------------------------------------------------------------------------
    tissue_share = closeups.tissue_share if recipe.privacy else None
    model = inpainters.trainable(parts, recipe.loss, recipe.lora, recipe.train_text_encoder, base, tissue_share)
    # one copy of the constants on the devices, shared by steps, validation and pictures
    placed = dataclasses.replace(model, constants=meshes.place_constants(model.constants, run.mesh))
    if recipe.privacy:
        learned = _privately(
            run, stage, recipe, placed, parts.model.size, source, crops.lesion_sizes(told, closeups.largest)
        )
    else:
        learned = _openly(run, stage, recipe, start, source)
    result = training.train(
        run,
        stage,
        recipe,
        placed,
        learned.batches,
        initial=inpainters.initial_weights(model, recipe.lora, base),
        evaluate=sampling.fixed_loss(placed, shown, run.mesh),
        draw=_drawing(placed, shown, run.seed, run.mesh),
        best_metric="loss",
        best_mode="min",
        settings=[dataclasses.asdict(parts.model), dataclasses.asdict(sampling.settings_of(parts.noise))],
        validation=validation.infos,
        protection=learned.protection,
    )

    # ---- The model ----------------------------------------------------------------------------------------------
    params, trained = training.kept_weights(
        run, stage, result, recipe.choose, source, learned.protection, learned.public
    )
    if run.is_main:
        folder = run.folder / stage.name / "model"
        rules = {kind: crops.lesion_sizes(told, closeups.largest, kind) for kind in AREAS}
        described = (parts, start.prompts, closeups, rules, classes, start.networks, trained)
        if start.tokenizer is not None:
            tokenizer.write_tokenizer(files.make_folder(folder), start.tokenizer)
        weights = inpainters.merged(params, model, recipe.lora)
        model_folder.save_params(folder, weights, inpainters.describe(*described))
    withheld = private.is_withheld(run.experiment, stage)
    return {
        "kind": "train",
        "data": {**learned.counts, "validation": summary(validation.infos)},
        "skipped": skipped_images(*([] if withheld else [source]), validation),
        **training.outcome(result),
    }


def _openly(
    run: Run, stage: TrainInpainterStage, recipe: InpaintingRecipe, start: Start, source: ImageSource
) -> Learned:
    """Every lesion once an epoch, in new windows or in windows that are encoded once."""
    closeups, counts = recipe.closeups, summary(source.infos)
    usable = len(fitting_lesions(source.infos, closeups.largest))
    run.say(
        f"  train: {counts['images']} images, {usable} of {counts['lesions']} lesions fit into close-ups of "
        f"{closeups.window} px, {counts['ignored_boxes']} ignored boxes"
    )
    if recipe.cached_windows:
        stream: Stream = _cached(run, stage, recipe, start.parts, start.params, source)
    else:
        size, processes = start.parts.model.size, (jax.process_index(), jax.process_count())
        stream = crops.train_closeups(source, closeups, size, run.seed, *processes)
    return private.openly(run, stage, stream, counts)


def _privately(
    run: Run,
    stage: TrainInpainterStage,
    recipe: InpaintingRecipe,
    model: Model,
    size: int,
    source: ImageSource,
    sizes: AreaRule,
) -> Learned:
    """Batches of units, together with public close-ups if there are any. sizes: of masks over healthy tissue."""
    closeups, public = recipe.closeups, None
    if stage.public:
        data = run.open(stage.public, "train")
        make = crops.shuffled(data, closeups, size, run.seed, jax.process_index(), jax.process_count())
        public = Public(data, make, summary(data.infos), crops.records(data))
    example, infos = crops.apart(source, closeups, size, sizes)
    return private.privately(
        run,
        stage,
        recipe,
        model,
        example=example,
        infos=infos,
        batch_size=closeups.batch_size,
        reading=closeups,
        public=public,
        identity=[size, dataclasses.asdict(sizes), crops.records(source)],
    )


def workload(stage: TrainInpainterStage, recipe: InpaintingRecipe, batch_size: int | None) -> Workload:
    """The training of an inpainter; Stable Diffusion 1.5 if the recipe defines no model."""
    count = batch_size or recipe.closeups.batch_size
    assumed: tuple[str, ...] = ()
    if recipe.model is not None:
        config, words = recipe.model.config(contrast=1.0), inpainter.Words()
        if stage.init_from:
            assumed = ("the recipe's own model; the weights of init_from are not read",)
    else:
        assumed = ("Stable Diffusion 1.5 inpainting; the weights of init_from are not read",)
        networks = vars(recipe.networks)
        config = inpainter.InpainterConfig(
            unet=UNetConfig(in_channels=9, **networks),
            size=recipe.closeups.window,
            autoencoder=AutoencoderConfig(**networks),
            text=TextConfig(**networks),
        )
        words = inpainter.Words(*((0,) * TextConfig.max_position_embeddings,) * 3)
    base: Params | None = None
    if stage.init_from or recipe.model is None:
        base = jax.eval_shape(lambda rng: inpainter.init(config, rng), jax.random.key(0))
    else:
        _check_no_adapters(stage, recipe)
    parts = Inpainter(config, recipe.noise.schedule(), recipe.sampler, float(recipe.guidance), words)
    tissue_share = recipe.closeups.tissue_share if recipe.privacy else None
    model = inpainters.trainable(parts, recipe.loss, recipe.lora, recipe.train_text_encoder, base, tissue_share)
    blank: dict[str, Any] = {**crops.blank_batch(count, config.size)}
    drawn = {key: blank[key] for key in ("image", "mask")} | {"seed": sampling.seeds(0, range(count))}
    if recipe.cached_windows:
        blank = inpainters.blank_latents(parts, _check_cached(stage, recipe, parts, base), blank)
    name = f"{config.size}x{config.size}"
    return Workload(model, count, {name: blank}, {name: drawn}, assumed)


@dataclasses.dataclass(frozen=True)
class Start:
    """The starting point of a training. params: None for random ones. networks: `Description.parts` of model.json."""

    parts: Inpainter
    params: Params | None = None
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    networks: Mapping[str, Any] | None = None


def starting_point(run: Run, stage: TrainInpainterStage, recipe: InpaintingRecipe, source: ImageSource) -> Start:
    """A fresh model in pixel space, a previously trained inpainter, or Stable Diffusion as imported.

    Sampler, guidance, prompts and the size of pictures come from the recipe; a previously trained model keeps its own
    networks and noise schedule.
    """
    sampler, guidance = recipe.sampler, float(recipe.guidance)
    if not stage.init_from:
        assert recipe.model is not None  # check_start
        config = recipe.model.config(_contrast(source, recipe))
        return Start(Inpainter(config, recipe.noise.schedule(), sampler, guidance, inpainter.Words()))
    folder, networks = run.model_folder(stage.init_from), vars(recipe.networks)
    run.say(f"  starts from {folder}")
    if model_folder.read(folder).entries.get("parts") is None:  # models in pixel space read no text
        parts, params, _ = inpainters.load(folder)
        config = inpainters.computed(parts.model, **networks)
        config = inpainters.resized(config, recipe.model.size if recipe.model else config.size)
        return Start(dataclasses.replace(parts, model=config, sampler=sampler, guidance=guidance), params)
    diffusion = stable_diffusion.load(folder)
    texts = vars(recipe.prompts)
    tokens = diffusion.tokenizer.encode([texts[name] for name in ("lesion", "tissue", "negative")])
    with_settings = lambda config: dataclasses.replace(config, **networks)
    config = inpainter.InpainterConfig(
        unet=with_settings(diffusion.unet),
        size=recipe.closeups.window,
        autoencoder=with_settings(diffusion.autoencoder),
        text=with_settings(diffusion.text),
    )
    words = inpainter.Words(*(tuple(int(token) for token in row) for row in tokens))
    parts = Inpainter(config, diffusion.schedule, sampler, guidance, words)
    return Start(parts, diffusion.params, texts, diffusion.tokenizer, diffusion.parts)


def _check_cached(
    stage: TrainInpainterStage, recipe: InpaintingRecipe, parts: Inpainter, params: Params | None
) -> Params:
    """The parameters whose latents are cached. UserError if there are none, or if close-ups change in every step."""
    changed = [k for k in ("tissue_share", "horizontal_flip", "vertical_flip", "gain") if getattr(recipe.closeups, k)]
    where = f"config.{stage.recipe}.cached_windows"
    if params is None or parts.model.autoencoder is None:
        raise UserError(
            "only latents of an autoencoder can be cached", where=where, todo="set it to 0, or give init_from"
        )
    if changed:
        raise UserError(
            f"close-ups that are encoded once cannot vary with closeups.{changed[0]}",
            where=where,
            todo=f"set it to 0, or closeups.{changed[0]} to 0",
        )
    return params


def _cached(
    run: Run,
    stage: TrainInpainterStage,
    recipe: InpaintingRecipe,
    parts: Inpainter,
    params: Params | None,
    source: ImageSource,
) -> Stream:
    """Training batches of latents that are encoded once, for `recipe.cached_windows` random windows of every lesion."""
    closeups, size = recipe.closeups, parts.model.size
    params = _check_cached(stage, recipe, parts, params)
    encode = inpainters.compile_encoder(parts, run.mesh)
    found: list[dict[str, np.ndarray]] = []
    seed, windows = run.seed, recipe.cached_windows
    with Progress("  encoding", windows * len(fitting_lesions(source.infos, closeups.largest))) as bar:
        for window in range(windows):
            for number, batch in enumerate(crops.eval_closeups(source, closeups, size, (seed + window) % WORD)):
                rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), window), number)
                found.append(encode(params, {**batch}, rng))  # type: ignore[dict-item]
                bar.update(bar.done + int(batch["valid"].sum()))
    examples = {key: np.concatenate([batch[key] for batch in found]) for key in found[0]}
    weights = files.fingerprint(run.model_folder(stage.init_from))
    origin = f"{crops.digest(source, closeups, size, seed)} {windows} {weights}"
    return crops.cached_closeups(examples, closeups, origin, seed, jax.process_index(), jax.process_count())


def _contrast(source: ImageSource, recipe: InpaintingRecipe) -> float:
    """Standard deviation of the grey values of some training close-ups around the level of their tissue."""
    assert recipe.model is not None
    found = []
    for batch in crops.eval_closeups(source, recipe.closeups, recipe.model.size, 0, 64):
        image, mask = batch["image"][batch["valid"]], batch["mask"][batch["valid"]]
        found.append(image - np.asarray(inpainter.tissue_level(image, mask)))
    return round(max(float(np.concatenate(found).std()), 1e-3), 4)


def _drawing(model: Model, shown: Sequence[Any], seed: int, mesh: jax.sharding.Mesh):
    """The first validation close-ups, their visible part, and the lesions painted there, always from the same noise."""
    sample = sampling.compile_sampler(model, mesh)
    first = shown[0]
    keep = np.flatnonzero(first["valid"])[:8]
    image, mask = first["image"][keep], first["mask"][keep]
    seeds = sampling.seeds(seed, np.arange(len(keep)))

    def draw(params: Params, step: int) -> dict[str, np.ndarray]:
        painted = sample(params, {"image": image, "mask": mask, "seed": seeds})
        covered = image * (1 - mask) + 0.5 * mask
        return {"painted": sampling.grid([image, covered, painted])}

    return draw
