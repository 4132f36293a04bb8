"""A translator as a model to train, and as a folder: weights, architecture, bridge, sampler, grey values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from elk_jax.data.sources.pairs import Pairs
from elk_jax.diffusion import translator
from elk_jax.diffusion.translator import TranslatorConfig
from elk_jax.errors import UserError
from elk_jax.images.breast import breast_mask
from elk_jax.spread import spread
from elk_jax.tasks import sampling
from elk_jax.tasks.translation.recipe import BridgeSampler
from elk_jax.training.model import Model, Params
from elk_jax.weights import model_folder

ARCHITECTURE = "translator"
LEAST_DEVIATION = 1e-3


@dataclass(frozen=True)
class Greys:
    """Statistics of grey values inside the breast over pixels of training pairs, used by the simple baselines."""

    low_energy_mean: float
    low_energy_std: float
    subtracted_mean: float
    subtracted_std: float

    def matched(self, low_energy: np.ndarray) -> np.ndarray:
        """The low-energy image with the mean and standard deviation of subtracted ones, in [0, 1]."""
        scale = self.subtracted_std / max(self.low_energy_std, LEAST_DEVIATION)
        return np.clip((low_energy - self.low_energy_mean) * scale + self.subtracted_mean, 0, 1)


def measure_greys(found: Pairs, count: int = 256) -> Greys:
    """Statistics of `count` tiles spread over the collection. UserError if none shows a breast."""
    low, subtracted = [], []
    for index in spread(len(found), count):
        images = found[index]
        mask = breast_mask(images[0])
        low.append(images[0][mask])
        subtracted.append(images[1][mask])
    greys = [np.concatenate(values).astype(np.float64) for values in (low, subtracted)]
    if not greys[0].size:
        raise UserError("no low-energy image shows a breast", where=found.name, todo="look at the images")
    return Greys(*(round(float(value), 6) for one in greys for value in (one.mean(), one.std())))


@dataclass(frozen=True)
class Translator:
    """Everything needed for translation besides the parameters."""

    model: TranslatorConfig
    sampler: BridgeSampler
    greys: Greys


def trainable(parts: Translator, loss: str = "l1") -> Model:
    """A translator for the training loop. `predict` takes `image` [B, S, S, 1], low-energy, and `seed` [B, 2]."""

    def predict(params: Params, constants: Params, batch: Mapping[str, jax.Array], map_images: Any) -> dict[str, Any]:
        keys, sampler = sampling.keys_of(batch["seed"]), parts.sampler
        found = translator.translate(parts.model, params, batch["image"], keys, sampler.steps, sampler.eta)
        return {"image": found}

    return Model(
        init=lambda rng: translator.init(parts.model, rng),
        loss=lambda params, constants, batch, rng, map_images: translator.loss(parts.model, params, batch, rng, loss),
        predict=predict,
        per_example=True,
    )


@dataclass(frozen=True)
class Description:
    """The content of `model.json`."""

    architecture: str
    model: TranslatorConfig
    sampler: BridgeSampler
    greys: Greys
    trained: model_folder.Training | None = None


class Trained(NamedTuple):
    """The content of a translator's model folder."""

    parts: Translator
    params: Params
    description: Description


def describe(parts: Translator, trained: model_folder.Training | None = None) -> Description:
    """The description of a translator."""
    return Description(ARCHITECTURE, parts.model, parts.sampler, parts.greys, trained)


def load(folder: Path) -> Trained:
    """Read a translator's model folder. UserError for a folder of another kind."""
    params, content = model_folder.load_params(folder)
    if content.architecture != ARCHITECTURE:
        raise model_folder.of_another_kind(content, folder, "a translator", "a translation stage")
    description = content.build(Description)
    return Trained(Translator(description.model, description.sampler, description.greys), params, description)
