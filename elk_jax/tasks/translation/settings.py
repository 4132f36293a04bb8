"""The translation task: a Brownian bridge as a `Task`, its pairs and its parts from configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from elk_jax.data.batches.pairs import PairConfig
from elk_jax.data.sources import coco, pairs
from elk_jax.data.sources.checks import check_files
from elk_jax.data.sources.pairs import Pairs
from elk_jax.data.tiles import check_stride, tile_windows
from elk_jax.diffusion import translator
from elk_jax.diffusion.bridge import Bridge, plan
from elk_jax.diffusion.translator import LOSSES, TranslatorConfig
from elk_jax.diffusion.unet import UNetConfig
from elk_jax.errors import UserError
from elk_jax.images.breast import breast_mask
from elk_jax.spread import spread
from elk_jax.tasks import sampling as drawing
from elk_jax.tasks.detection import settings as detection
from elk_jax.tasks.settings import as_dict, build
from elk_jax.tasks.watching import watched
from elk_jax.training.model import Params, Task

LEAST_DEVIATION = 1e-3


@dataclass(frozen=True)
class BridgeSampler:
    """How an answer is drawn. steps: of the network. eta: fresh noise, 1 as published, 0 for none but the first."""

    steps: int = 200
    eta: float = 1.0


@dataclass(frozen=True)
class Greys:
    """Grey values inside the breast, over pixels of training pairs: what the plain baselines know."""

    low_energy_mean: float
    low_energy_std: float
    subtracted_mean: float
    subtracted_std: float

    def matched(self, low_energy: np.ndarray) -> np.ndarray:
        """The low-energy image with the mean and deviation of subtracted ones, in [0, 1]."""
        scale = self.subtracted_std / max(self.low_energy_std, LEAST_DEVIATION)
        return np.clip((low_energy - self.low_energy_mean) * scale + self.subtracted_mean, 0, 1)


@dataclass(frozen=True)
class Translator:
    """Everything that translating needs beside the parameters."""

    model: TranslatorConfig
    sampler: BridgeSampler
    greys: Greys


def build_task(parts: Translator, loss: str) -> Task:
    """A translator for the training loop. `predict` takes `image` [B, S, S, 1], low-energy, and `seed` [B, 2]."""

    def predict(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        keys, sampler = drawing.keys_of(batch["seed"]), parts.sampler
        found = translator.translate(parts.model, params, batch["image"], keys, sampler.steps, sampler.eta)
        return {"image": found}

    return Task(
        init=lambda rng: translator.init(parts.model, rng),
        loss=lambda params, batch, rng: translator.loss(parts.model, params, batch, rng, loss),
        predict=predict,
    )


# ---- Data ---------------------------------------------------------------------------------------------------------


def open_pairs(
    data: ConfigDict, names: Sequence[str], split: str, seed: int, config: PairConfig, size: int
) -> Pairs:
    """The pairs of the named sources of `config.data` as one collection of tiles."""
    opened = []
    for name in names:
        subtracted = detection.open_data(data, (name,), split, seed)
        low = pairs.pair_up(subtracted, data[name].spec, data[name].get("bit_depth", 0), watched("  opening"))
        tiling = (size, config.stride, config.max_black)
        opened.append(pairs.cut_pairs(low, subtracted, *tiling, data.on_error, watched("  cutting tiles")))
    return pairs.concatenate(opened)


def check_pairs(data: ConfigDict, name: str, split: str, seed: int, size: int) -> None:
    """Raise UserError where images have no partners, or are smaller than a tile. Decodes none, and draws no phantom."""
    kind, _, place = data[name].spec.partition(":")
    if kind == "phantom":
        return
    subtracted = detection.open_data(data, (name,), split, seed)
    partners = pairs.pair_up(subtracted, data[name].spec)
    if data.on_error != "stop":
        return
    for info in subtracted.infos:
        tile_windows(info.height, info.width, size, where=f"{name}, {info.file_name}")
    check_files(partners.infos, coco.image_folder(place), name)


def measure_greys(found: Pairs, count: int = 256) -> Greys:
    """Of `count` tiles spread over the collection. UserError where none shows a breast."""
    chosen = spread(len(found), count)
    low, subtracted = [], []
    for index in chosen:
        images = found[int(index)]
        mask = breast_mask(images[0])
        low.append(images[0][mask])
        subtracted.append(images[1][mask])
    greys = [np.concatenate(values).astype(np.float64) for values in (low, subtracted)]
    if not greys[0].size:
        raise UserError("no breast to be seen in the low-energy images", where=found.name, todo="look at the images")
    return Greys(*(round(float(value), 6) for one in greys for value in (one.mean(), one.std())))


def summary(found: Pairs) -> dict[str, int]:
    """Counts for logs and reports."""
    return {
        "images": len({position for position, _ in found.places}),
        "patients": len({info.patient_id for info in found.infos}),
        "tiles": len(found),
        "lesions": int(sum((~info.ignore).sum() for info in found.infos)),
    }


# ---- From configuration to plain values ---------------------------------------------------------------------------


def model_config(settings: Mapping[str, Any]) -> TranslatorConfig:
    """`recipe.model`: size, patch, condition, answer, bridge, and the U-Net's. UserError for what cannot be."""
    values = as_dict(settings)
    own = {name: values.pop(name) for name in ("size", "patch", "condition", "answer")}
    bridge = build(Bridge, values.pop("bridge"), "model.bridge")
    depth = int(own["patch"]) ** 2
    channels = {
        "in_channels": depth * (2 if own["condition"] == "source" else 1),
        "out_channels": depth,
        "cross_attention_dim": None,
        "sample_size": int(own["size"]) // max(1, int(own["patch"])),
    }
    return TranslatorConfig(unet=build(UNetConfig, values | channels, "model"), bridge=bridge, **own)


def model_from_json(content: Mapping[str, Any]) -> TranslatorConfig:
    """The configuration as `dataclasses.asdict` and JSON left it."""
    values = dict(content)
    values |= {"unet": build(UNetConfig, values["unet"], "unet"), "bridge": build(Bridge, values["bridge"], "bridge")}
    return build(TranslatorConfig, values, "model")


def sampler(settings: Mapping[str, Any], bridge: Bridge) -> BridgeSampler:
    """`recipe.sampler`. UserError for steps that the bridge does not have."""
    found: BridgeSampler = build(BridgeSampler, settings, "sampler")
    plan(bridge, found.steps, found.eta)
    return found


def pair_config(settings: Mapping[str, Any], size: int) -> PairConfig:
    """`recipe.pairs` for a model of tiles of `size` px."""
    config: PairConfig = build(PairConfig, settings, "pairs")
    try:
        check_stride(config.stride, size)
    except UserError as error:
        raise error.within("pairs") from error
    return config


def check_recipe(recipe: ConfigDict) -> None:
    """Raise UserError for the first value of a translation recipe that cannot be."""
    model = model_config(recipe.model)
    sampler(recipe.sampler, model.bridge)
    pair_config(recipe.pairs, model.size)
    if recipe.loss not in LOSSES:
        raise UserError(f"loss is '{recipe.loss}'", where="loss", todo=f"choose one of {', '.join(LOSSES)}")
