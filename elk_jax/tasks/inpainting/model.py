"""An inpainter as a model to train, and as a folder: weights, architecture, noise, sampler, words, lesion sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from elk_jax.data.batches.crops import CloseupConfig
from elk_jax.diffusion import inpainter, lora
from elk_jax.diffusion.inpainter import InpainterConfig, LossConfig, Words
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import Schedule
from elk_jax.errors import UserError
from elk_jax.fields import AtLeast
from elk_jax.synthesis.placement import AreaRule
from elk_jax.tasks import sampling
from elk_jax.tasks.inpainting.recipe import LoraConfig
from elk_jax.tasks.sampling import NoiseSettings, check_drawing, settings_of
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Model, Params
from elk_jax.weights import model_folder

ARCHITECTURE = "inpainter"


@dataclasses.dataclass(frozen=True)
class Inpainter:
    """Everything needed for painting besides the parameters."""

    model: InpainterConfig
    noise: Schedule
    sampler: SamplerConfig
    guidance: float
    words: Words

    def __post_init__(self) -> None:
        check_drawing(self.noise, self.sampler, self.guidance)


# ---- To train ------------------------------------------------------------------------------------------------------


def trainable(
    parts: Inpainter,
    loss: LossConfig,
    adapters: LoraConfig,
    train_text: bool,
    base: Params | None,
    tissue_share: float | None = None,
) -> Model:
    """An inpainter for the training loop.

    tissue_share: expected share of healthy tissue among the examples; if given, examples do not interact in the loss,
    which is then not divided by their numbers in a batch.

    base: the weights to start from, None for random ones. Its untrained parts are constants: the autoencoder,
    the text encoder without `train_text`, and with adapters everything; then only the adapters are parameters.
    """
    assert base is not None or not adapters.rank  # check_start
    untrained = ("vae",) if train_text else ("vae", "text_encoder")
    constants = {name: part for name, part in (base or {}).items() if adapters.rank or name in untrained}

    def init(rng: jax.Array) -> Params:
        if adapters.rank:
            shapes = jax.eval_shape(partial(inpainter.init, parts.model), rng)
            return _nested(lora.init_lora(rng, shapes, adapters.rank, adapters.targets))
        return {name: part for name, part in inpainter.init(parts.model, rng).items() if name not in constants}

    def whole(params: Params, constants: Params) -> Params:
        if adapters.rank:
            return lora.apply_lora(constants, _layers(params), adapters.alpha or None)
        return {**params, **constants}

    return Model(
        init=init,
        loss=lambda params, constants, batch, rng, map_images: inpainter.loss(
            parts.model, whole(params, constants), batch, rng, parts.noise, loss, parts.words, tissue_share
        ),
        predict=lambda params, constants, batch, map_images: {"image": _paint(parts, whole(params, constants), batch)},
        frozen=tuple(f"^{name}/" for name in untrained),
        constants=constants,
        per_example=tissue_share is not None,
    )


def initial_weights(model: Model, adapters: LoraConfig, base: Params | None) -> Params | None:
    """The trained part of `base`; None if the training starts from `model.init`."""
    if base is None or adapters.rank:
        return None
    return {name: part for name, part in base.items() if name not in model.constants}


def merged(host: Params, model: Model, adapters: LoraConfig) -> Params:
    """All parameters of the inpainter, adapters merged into them. host: those of the training, as NumPy arrays."""
    if adapters.rank:
        return lora.merge(model.constants, _layers(host), adapters.alpha or None)
    return {**host, **model.constants}


def resized(model: InpainterConfig, size: int) -> InpainterConfig:
    """The same networks, which accept any size, for pictures of `size` pixels."""
    unet = dataclasses.replace(model.unet, sample_size=model.unet.sample_size * size // model.size)
    return dataclasses.replace(model, unet=unet, size=size)


def compile_encoder(parts: Inpainter, mesh: Mesh) -> Callable[[Params, Mapping[str, np.ndarray], jax.Array], dict]:
    """(params, host batch of close-ups, key) -> its valid examples with `latents` and `masked_latents`
    instead of the image."""
    encode = meshes.traced_on(mesh, partial(inpainter.encode, parts.model))
    compiled = jax.jit(encode, out_shardings=meshes.replicated(mesh))

    def run(params: Params, batch: Mapping[str, np.ndarray], rng: jax.Array) -> dict[str, np.ndarray]:
        found = _encoded(batch, jax.device_get(compiled(params, batch["image"], batch["mask"], rng)))
        return {key: value[np.asarray(batch["valid"])] for key, value in found.items()}

    return run


def blank_latents(parts: Inpainter, params: Params, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The result of `compile_encoder` for a blank batch: zeros that take no memory. params: may be shapes."""
    encode = partial(inpainter.encode, parts.model)
    shapes = jax.eval_shape(encode, params, batch["image"], batch["mask"], jax.random.key(0))
    return _encoded(batch, [np.broadcast_to(np.zeros((), x.dtype), x.shape) for x in shapes])


def _encoded(batch: Mapping[str, np.ndarray], latents: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """A batch with latents instead of its image."""
    arrays = {key: np.asarray(batch[key]) for key in ("mask", "lesion", "valid")}
    return arrays | {"latents": latents[0], "masked_latents": latents[1]}


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
    keys, image, mask, p = sampling.keys_of(batch["seed"]), batch["image"], batch["mask"], parts
    return inpainter.paint(p.model, params, image, mask, keys, p.noise, p.sampler, p.guidance, p.words)


# ---- As a folder ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Description:
    """The content of `model.json`.

    prompts: the texts of `words`, by name. window, margin: of the close-ups in training. areas: sizes of the lesions of
    the training split, or of the validation split if the training is private, by kind ('free', 'medium'). classes: the
    one of the lesions; all of the data in folders of earlier versions. parts: the configurations of diffusers that the
    networks were imported with; None in pixel space.
    """

    architecture: str
    model: InpainterConfig
    noise: NoiseSettings
    sampler: SamplerConfig
    guidance: Annotated[float, AtLeast(0)]
    words: Words
    prompts: Mapping[str, str]
    window: Annotated[int, AtLeast(1)]
    margin: Annotated[float, AtLeast(0)]
    areas: Mapping[str, AreaRule]
    classes: tuple[str, ...]
    parts: Mapping[str, Any] | None = None
    trained: model_folder.Training | None = None


EARLIER = {"prompts": {}, "margin": 0.0, "areas": {}}
"""Fields that model folders of earlier versions lack."""


class Trained(NamedTuple):
    """The content of an inpainter's model folder."""

    parts: Inpainter
    params: Params
    description: Description


def describe(
    parts: Inpainter,
    prompts: Mapping[str, str],
    closeups: CloseupConfig,
    areas: Mapping[str, AreaRule],
    classes: tuple[str, ...],
    networks: Mapping[str, Any] | None = None,
    trained: model_folder.Training | None = None,
) -> Description:
    """The description of an inpainter. closeups: of the training; networks: `Description.parts`."""
    return Description(
        architecture=ARCHITECTURE,
        model=parts.model,
        noise=settings_of(parts.noise),
        sampler=parts.sampler,
        guidance=parts.guidance,
        words=parts.words,
        prompts=prompts,
        window=closeups.window,
        margin=closeups.margin,
        areas=areas,
        classes=classes,
        parts=networks,
        trained=trained,
    )


def load(folder: Path) -> Trained:
    """Read an inpainter's model folder. UserError for a folder of another kind."""
    params, content = model_folder.load_params(folder)
    if content.architecture != ARCHITECTURE:
        raise model_folder.of_another_kind(content, folder, "an inpainter", "an inpainting stage")
    known = content.build(Description, EARLIER)
    parts = Inpainter(known.model, known.noise.schedule(), known.sampler, known.guidance, known.words)
    return Trained(parts, params, known)


def computed(model: InpainterConfig, **changes: Any) -> InpainterConfig:
    """The same networks with other settings of computation. changes: dtype, remat, attention."""
    networks = {name: getattr(model, name) for name in ("unet", "autoencoder", "text")}
    changed = {name: dataclasses.replace(one, **changes) for name, one in networks.items() if one is not None}
    return dataclasses.replace(model, **changed)


def rule(areas: Mapping[str, AreaRule], kind: str) -> AreaRule:
    """Sizes of the lesions to paint; `kind` is 'free' or 'medium'."""
    if kind not in areas:
        known = ", ".join(areas) or "none, because the model was imported and not trained on lesions"
        raise UserError(f"the model knows no lesion area '{kind}'", where="area", todo=f"it knows {known}")
    return areas[kind]
