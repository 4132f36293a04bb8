"""The inpainting task: a diffusion inpainter as a `Task`, and its parts from configuration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from elk_jax.data.batches.crops import CloseupConfig
from elk_jax.diffusion import inpainter, lora
from elk_jax.diffusion.autoencoder import AutoencoderConfig
from elk_jax.diffusion.inpainter import InpainterConfig, LossConfig, Words
from elk_jax.diffusion.samplers import SamplerConfig, plan
from elk_jax.diffusion.schedule import Schedule, make_schedule
from elk_jax.diffusion.text_encoder import TextConfig
from elk_jax.diffusion.unet import UNetConfig
from elk_jax.errors import UserError
from elk_jax.tasks import sampling as drawing
from elk_jax.tasks.settings import as_dict, build, named
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Params, Task
from elk_jax.training.optimizer import compile_pattern


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters instead of the whole model. rank: 0 for none. alpha: 0 for the rank (strength 1).

    targets: regular expression of the layers, such as 'unet/.*attn\\d/to_(q|k|v|out_0)$'.
    """

    rank: int = 0
    alpha: float = 0.0
    targets: str = f"({lora.ATTENTION})|({lora.TEXT_ATTENTION})"

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}", where=f"lora.{name}", todo="give 0 or more")
        compile_pattern(self.targets, "lora.targets")


@dataclasses.dataclass(frozen=True)
class Inpainter:
    """Everything that painting needs beside the parameters."""

    model: InpainterConfig
    noise: Schedule
    sampler: SamplerConfig
    guidance: float
    words: Words

    def __post_init__(self) -> None:
        check_drawing(self.noise, self.sampler, self.guidance)


def build_task(
    parts: Inpainter, loss: LossConfig, adapters: LoraConfig, train_text: bool, base: Params | None
) -> Task:
    """An inpainter for the training loop.

    With adapters the parameters are {"base": the model's, "lora": the adapters'}, and the base is never trained;
    `base` is then the model to adapt, and what is trained is what `adapters.targets` finds. The autoencoder is never
    trained, without adapters the text encoder where `train_text`.
    """
    frozen = ("^vae/",) if train_text else ("^vae/", "^text_encoder/")
    if not adapters.rank:
        return Task(
            init=lambda rng: inpainter.init(parts.model, rng),
            loss=lambda params, batch, rng: inpainter.loss(
                parts.model, params, batch, rng, parts.noise, loss, parts.words
            ),
            predict=lambda params, batch: {"image": _paint(parts, params, batch)},
            frozen=frozen,
        )
    if base is None:
        raise UserError("adapters of a model that is not there", where="lora.rank", todo="give init_from, or rank 0")

    def init(rng: jax.Array) -> Params:
        return {"base": inpainter.init(parts.model, rng), "lora": _nested(_init_adapters(parts, adapters, rng))}

    def whole(params: Params) -> Params:
        return lora.apply_lora(params["base"], _layers(params["lora"]), adapters.alpha or None)

    return Task(
        init=init,
        loss=lambda params, batch, rng: inpainter.loss(
            parts.model, whole(params), batch, rng, parts.noise, loss, parts.words
        ),
        predict=lambda params, batch: {"image": _paint(parts, whole(params), batch)},
        frozen=("^base/",),
    )


def with_adapters(parts: Inpainter, adapters: LoraConfig, base: Params, seed: int) -> Params:
    """The parameters that a training with adapters starts from: `base` and adapters that change nothing yet."""
    return {"base": base, "lora": _nested(_init_adapters(parts, adapters, jax.random.key(seed)))}


def merged(host: Params, adapters: LoraConfig) -> Params:
    """The model's own parameters, adapters merged into them. host: parameters of the training, as NumPy arrays."""
    return lora.merge(host["base"], _layers(host["lora"]), adapters.alpha or None) if adapters.rank else host


def _init_adapters(parts: Inpainter, adapters: LoraConfig, rng: jax.Array) -> lora.Lora:
    shapes = jax.eval_shape(lambda rng: inpainter.init(parts.model, rng), rng)
    return lora.init_lora(rng, shapes, adapters.rank, adapters.targets)


def _nested(adapters: lora.Lora) -> Params:
    flat = {f"{layer}/{part}": leaf for layer, factors in adapters.items() for part, leaf in factors.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _layers(nested: Params) -> lora.Lora:
    layers: lora.Lora = {}
    for name, leaf in traverse_util.flatten_dict(nested, sep="/").items():
        layer, _, part = name.rpartition("/")
        layers.setdefault(layer, {})[part] = leaf
    return layers


def _paint(parts: Inpainter, params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
    keys, image, mask, p = drawing.keys_of(batch["seed"]), batch["image"], batch["mask"], parts
    return inpainter.paint(p.model, params, image, mask, keys, p.noise, p.sampler, p.guidance, p.words)


def compile_encoder(parts: Inpainter, mesh: Mesh) -> Callable[[Params, Mapping[str, np.ndarray], jax.Array], dict]:
    """(params, host batch of close-ups, key) -> its valid examples with `latents` and `masked_latents`
    instead of the image."""

    def encode(params: Params, image: jax.Array, mask: jax.Array, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        return inpainter.encode(parts.model, params, image, mask, rng)

    compiled = jax.jit(encode, out_shardings=meshes.replicated(mesh))

    def run(params: Params, batch: Mapping[str, np.ndarray], rng: jax.Array) -> dict[str, np.ndarray]:
        latents, masked = jax.device_get(compiled(params, batch["image"], batch["mask"], rng))
        arrays = {key: np.asarray(batch[key]) for key in ("mask", "lesion", "valid")}
        found = arrays | {"latents": latents, "masked_latents": masked}
        return {key: value[np.asarray(batch["valid"])] for key, value in found.items()}

    return run


# ---- From configuration to plain values ---------------------------------------------------------------------------


def pixel_model(settings: Mapping[str, Any], contrast: float) -> InpainterConfig:
    """`recipe.model` of a model in pixel space: size, patch, scale, and the U-Net's settings.

    contrast: standard deviation of the grey values. scale: what it becomes beside noise of 1. Neighbouring pixels are
    alike, so that an image of scale 1 shows its shapes through nearly every noise, and a model learns little of what
    shapes there are (Hoogeboom et al. 2023, arXiv 2301.11093; Chen 2023, arXiv 2301.10972).
    """
    values = as_dict(settings)
    scale, patch, size = values.pop("scale"), values.pop("patch"), values.pop("size")
    if not scale > 0:
        raise UserError(f"scale is {scale}", where="model.scale", todo="give a number above 0")
    channels = {"in_channels": 4 * patch**2 + 1, "out_channels": patch**2, "cross_attention_dim": None}
    network = build(UNetConfig, values | channels | {"sample_size": size // max(1, patch)}, "model")
    return InpainterConfig(unet=network, size=size, patch=patch, std=contrast / scale)


def resized(model: InpainterConfig, size: int) -> InpainterConfig:
    """The same networks, which take every size, for pictures of `size` pixels."""
    unet = dataclasses.replace(model.unet, sample_size=model.unet.sample_size * size // model.size)
    return dataclasses.replace(model, unet=unet, size=size)


def model_from_json(content: Mapping[str, Any], **changes: Any) -> InpainterConfig:
    """The configuration as `dataclasses.asdict` and JSON left it; `changes` (dtype, remat, ...) go to all networks."""
    values = dict(content)
    for name, kind in (("unet", UNetConfig), ("autoencoder", AutoencoderConfig), ("text", TextConfig)):
        if values.get(name) is not None:
            values[name] = build(kind, {**values[name], **changes}, name)
    return build(InpainterConfig, values, "model")


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Raise UserError for the first value of an inpainting recipe that cannot be."""
    if recipe["model"]:
        named("model", lambda model: pixel_model(model, contrast=1.0), recipe["model"])
    closeup_config(recipe["closeups"])
    check_drawing(noise_schedule(recipe["noise"]), sampler(recipe["sampler"]), recipe["guidance"])
    loss_config(recipe["loss"])
    lora_config(recipe["lora"])
    named("networks", lambda networks: build(UNetConfig, networks, "networks"), recipe["networks"])


def check_drawing(noise: Schedule, drawn_by: SamplerConfig, guidance: float) -> None:
    """Raise UserError where nothing can be drawn: more steps than the noise has, a guidance that is no number."""
    plan(noise, drawn_by)
    if not 0 <= guidance < math.inf:
        raise UserError(f"guidance is {guidance}", where="guidance", todo="give 0 or more; 1 for none")


def noise_schedule(settings: Mapping[str, Any]) -> Schedule:
    """`recipe.noise`: name, steps, beta_start, beta_end, prediction, zero_terminal_snr."""
    return make_schedule(**as_dict(settings))


def describe_noise(noise: Schedule) -> dict[str, Any]:
    """What `noise_schedule` makes the same schedule of."""
    names = ("name", "beta_start", "beta_end", "prediction", "zero_terminal_snr")
    return {"steps": noise.steps, **{name: getattr(noise, name) for name in names}}


def sampler(settings: Mapping[str, Any]) -> SamplerConfig:
    return build(SamplerConfig, settings, "sampler")


def loss_config(settings: Mapping[str, Any]) -> LossConfig:
    return build(LossConfig, settings, "loss")


def lora_config(settings: Mapping[str, Any]) -> LoraConfig:
    return build(LoraConfig, settings, "lora")


def closeup_config(settings: Mapping[str, Any]) -> CloseupConfig:
    """`recipe.closeups`."""
    return build(CloseupConfig, settings, "closeups")
