"""The stages of lesion synthesis: train an inpainter, paint lesions into healthy breasts.

A train stage leaves `model/` (inpainting_model.py) and `pictures/` of its progress; a synthesis stage a COCO folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from elk_jax import files
from elk_jax.data.batches import crops as closeup_batches
from elk_jax.data.batches.crops import CloseupConfig
from elk_jax.data.batches.stream import Stream
from elk_jax.data.sources.source import ImageSource, summary
from elk_jax.diffusion import inpainter
from elk_jax.errors import UserError
from elk_jax.progress import Progress
from elk_jax.synthesis.placement import AREAS
from elk_jax.tasks import sampling as drawing
from elk_jax.tasks import training as recipe_training
from elk_jax.tasks.detection import settings as detection
from elk_jax.tasks.inpainting import (
    model as inpainting_model,
)
from elk_jax.tasks.inpainting import (
    settings as inpainting,
)
from elk_jax.tasks.inpainting import (
    synthesize as inpainting_synthesize,
)
from elk_jax.tasks.inpainting.settings import Inpainter
from elk_jax.tasks.run import Run, model_folder
from elk_jax.tasks.settings import as_dict
from elk_jax.training.model import Params, Task
from elk_jax.weights import model_folder as store
from elk_jax.weights import stable_diffusion, tokenizer
from elk_jax.weights.tokenizer import Tokenizer


def train(run: Run, name: str) -> dict[str, Any]:
    """Train an inpainter and write `<stage>/model/`. Returns a summary for the report."""
    config, stage = run.config, run.config.stages[name]
    recipe = config[stage.recipe]
    folder = run.folder / name

    # ---- Data ----------------------------------------------------------------------------------------------------
    source = detection.open_data(run.data, stage.train_on, "train", config.seed)
    validation = detection.open_data(run.data, (stage.validate_on,), "val", config.seed)
    start = starting_point(run, stage.init_from, recipe, source)
    parts, base = start.parts, start.params
    closeups = inpainting.closeup_config(recipe.closeups)
    if recipe.cached_windows:
        batches: Stream = _cached(run, parts, model_folder(run, stage.init_from), base, source, recipe)
    else:
        batches = closeup_batches.train_closeups(
            source, closeups, parts.model.size, config.seed, jax.process_index(), jax.process_count()
        )
    size, count = parts.model.size, recipe.validation_closeups
    shown = list(closeup_batches.eval_closeups(validation, closeups, size, config.seed, count))
    usable = len(closeup_batches.fitting_lesions(source.infos, closeups.largest))
    counts = summary(source.infos)
    run.say(
        f"  train {counts['images']} images, {usable} of {counts['lesions']} lesions fit into close-ups of "
        f"{closeups.window} px; model {recipe_training.parameter_count(base or _shapes(parts)):,} parameters"
    )

    # ---- Train ---------------------------------------------------------------------------------------------------
    adapters, loss = inpainting.lora_config(recipe.lora), inpainting.loss_config(recipe.loss)
    task = inpainting.build_task(parts, loss, adapters, recipe.train_text_encoder, base)
    initial = base
    if base is not None and adapters.rank:
        initial = inpainting.with_adapters(parts, adapters, base, config.seed)
    result = recipe_training.train(
        run,
        name,
        task,
        batches,
        initial=initial,
        evaluate=recipe_training.fixed_loss(task, shown, run.mesh),
        draw=_drawing(task, shown, config.seed, run.mesh),
        best_metric="loss",
        best_mode="min",
        model=dataclasses.asdict(parts.model) | inpainting.describe_noise(parts.noise),
        validation=validation.infos,
    )

    # ---- The model ----------------------------------------------------------------------------------------------
    params, trained = recipe_training.kept(run, name, result, source.infos, source.learned_from)
    if run.is_main:
        rules = {kind: closeup_batches.training_rule(source, closeups.largest, kind) for kind in AREAS}
        description = inpainting_model.describe(parts, start.prompts, closeups, rules, source.classes)
        description |= {**start.carried, "trained": trained}
        if start.tokenizer is not None:
            tokenizer.write_tokenizer(files.make_folder(folder / "model"), start.tokenizer)
        store.save_params(folder / "model", inpainting.merged(params, adapters), description)
    return {
        "kind": "train",
        "task": "inpainting",
        "data": {"train": counts, "validation": summary(validation.infos)},
        "skipped": [list(entry) for entry in (*source.skipped, *validation.skipped)],
        **recipe_training.outcome(result),
    }


def synthesize(run: Run, name: str) -> dict[str, Any]:
    """Paint lesions into the training images of a source: a COCO folder in `<stage>/`."""
    config, stage = run.config, run.config.stages[name]
    canvases = detection.open_data(run.data, (stage.canvases,), "train", config.seed)
    share_of = stage.get("share_of", stage.canvases)
    same = share_of == stage.canvases
    real = canvases if same else detection.open_data(run.data, (share_of,), "train", config.seed)
    lesions = summary(real.infos)["lesions"]
    count = stage.count or max(1, round(stage.share * lesions))
    written = inpainting_synthesize.synthesize(
        run,
        model=model_folder(run, stage.model),
        canvases=canvases,
        count=count,
        output=run.folder / name,
        area=stage.area,
        seed=config.seed,
        batch_size=stage.batch_size,
        lesion_free=stage.lesion_free,
        whole_window=stage.whole_window,
        grain=stage.grain,
    )
    return {"kind": "synthesize", "task": "inpainting", "count": written, "area": stage.area, "model": stage.model}


# ---- Parts -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Start:
    """What a training starts from. params: None for fresh ones. carried: into model.json, beside the description."""

    parts: Inpainter
    params: Params | None = None
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    carried: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def starting_point(run: Run, init_from: str, recipe: ConfigDict, source: ImageSource) -> Start:
    """A fresh model in pixel space, an inpainter that was trained before, or Stable Diffusion as it was imported.

    Sampler, guidance, prompts and the picture's size are the recipe's; the networks and the noise schedule of a model
    that was trained before are its own.
    """
    sampler, guidance = inpainting.sampler(recipe.sampler), float(recipe.guidance)
    if not init_from:
        contrast = _contrast(source, inpainting.closeup_config(recipe.closeups), recipe.model.size)
        model, noise = inpainting.pixel_model(recipe.model, contrast), inpainting.noise_schedule(recipe.noise)
        return Start(Inpainter(model, noise, sampler, guidance, inpainter.Words()))
    folder, networks = model_folder(run, init_from), as_dict(recipe.networks)
    params, description = store.load_params(folder)
    run.say(f"  starts from {folder}")
    if "parts" not in description:  # of pixel space, where no text is read
        parts = inpainting_model.parts_of(inpainting_model.checked(description, folder), **networks)
        model = inpainting.resized(parts.model, int(recipe.model.get("size", parts.model.size)))
        return Start(dataclasses.replace(parts, model=model, sampler=sampler, guidance=guidance), params)
    diffusion = stable_diffusion.load(folder)
    texts = as_dict(recipe.prompts)
    tokens = diffusion.tokenizer.encode([texts[name] for name in ("lesion", "tissue", "negative")])
    with_settings = lambda config: dataclasses.replace(config, **networks)
    model = inpainter.InpainterConfig(
        unet=with_settings(diffusion.unet),
        size=int(recipe.closeups.window),
        autoencoder=with_settings(diffusion.autoencoder),
        text=with_settings(diffusion.text),
    )
    words = inpainter.Words(*(tuple(int(token) for token in row) for row in tokens))
    parts = Inpainter(model, diffusion.schedule, sampler, guidance, words)
    return Start(parts, diffusion.params, texts, diffusion.tokenizer, {"parts": diffusion.parts})


def _cached(
    run: Run, parts: Inpainter, start: Path, params: Params | None, source: ImageSource, recipe: ConfigDict
) -> Stream:
    """Training batches of latents that are encoded once: every lesion in `recipe.cached_windows` random windows."""
    closeups = inpainting.closeup_config(recipe.closeups)
    changed = [k for k in ("tissue_share", "horizontal_flip", "vertical_flip", "gain") if getattr(closeups, k)]
    if params is None or parts.model.autoencoder is None:
        raise UserError(
            "only latents of an autoencoder are kept", where="cached_windows", todo="set it to 0, or give init_from"
        )
    if changed:
        raise UserError(
            f"close-ups that are encoded once cannot be changed by closeups.{changed[0]}",
            where="cached_windows",
            todo=f"set it to 0, or closeups.{changed[0]} to 0",
        )
    encode = inpainting.compile_encoder(parts, run.mesh)
    found: list[dict[str, np.ndarray]] = []
    seed, windows = run.config.seed, recipe.cached_windows
    with Progress("  encoding", windows * len(closeup_batches.fitting_lesions(source.infos, closeups.largest))) as bar:
        for window in range(windows):
            batches = closeup_batches.eval_closeups(source, closeups, parts.model.size, seed + window)
            for number, batch in enumerate(batches):
                rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), window), number)
                found.append(encode(params, {**batch}, rng))  # type: ignore[dict-item]
                bar.update(bar.done + int(batch["valid"].sum()))
    examples = {key: np.concatenate([batch[key] for batch in found]) for key in found[0]}
    origin = f"{closeup_batches.digest(source, closeups, parts.model.size, seed)} {windows} {files.fingerprint(start)}"
    return closeup_batches.cached_closeups(
        examples, closeups, origin, seed, jax.process_index(), jax.process_count()
    )


def _contrast(source: ImageSource, closeups: CloseupConfig, size: int) -> float:
    """Standard deviation of the grey values of some training close-ups around the level of their tissue."""
    found = []
    for batch in closeup_batches.eval_closeups(source, closeups, size, 0, 64):
        image, mask = batch["image"][batch["valid"]], batch["mask"][batch["valid"]]
        found.append(image - np.asarray(inpainter.tissue_level(image, mask)))
    return round(max(float(np.concatenate(found).std()), 1e-3), 4)


def _drawing(task: Task, shown: list, seed: int, mesh: jax.sharding.Mesh):
    """The first validation close-ups, what is covered, and what is painted there, from the same noise every time."""
    painter = drawing.compile_painter(task, mesh)
    first = shown[0]
    keep = np.flatnonzero(first["valid"])[:8]
    image, mask = first["image"][keep], first["mask"][keep]
    seeds = drawing.seeds(seed, np.arange(len(keep)))

    def draw(params: Params, step: int) -> dict[str, np.ndarray]:
        painted = painter(params, {"image": image, "mask": mask, "seed": seeds})
        covered = image * (1 - mask) + 0.5 * mask
        return {"painted": drawing.grid([image, covered, painted])}

    return draw


def _shapes(parts: Inpainter) -> Params:
    return jax.eval_shape(lambda rng: inpainter.init(parts.model, rng), jax.random.key(0))
