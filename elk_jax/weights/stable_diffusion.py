"""A Stable Diffusion model: import from a folder of diffusers, our model folder, and export for diffusers.

Our folder has params.safetensors (unet/*, vae/*, text_encoder/*, float32), model.json (architecture ARCHITECTURE; under
`parts` the four JSON files of diffusers), and the files of the tokenizer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elk_jax.diffusion import autoencoder, scheduler_config, text_encoder, unet
from elk_jax.diffusion.autoencoder import AutoencoderConfig
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import Schedule
from elk_jax.diffusion.text_encoder import TextConfig
from elk_jax.diffusion.unet import UNetConfig
from elk_jax.errors import UserError
from elk_jax.output import Console
from elk_jax.weights import classifiers, convert, diffusers, diffusers_folder, model_folder, tokenizer
from elk_jax.weights.diffusers import PARTS
from elk_jax.weights.tokenizer import Tokenizer

ARCHITECTURE = "stable_diffusion"
INPAINTER_CHANNELS = 9
SCHEDULER = "scheduler/scheduler_config.json"
STEPS = 50
"""Default sampling steps of diffusers' pipelines."""


@dataclasses.dataclass(frozen=True)
class Description:
    """The content of `model.json`. parts: as in `StableDiffusion`. source: the folder of the import."""

    architecture: str
    parts: Mapping[str, Any]
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """params: dict of `unet`, `vae`, `text_encoder`, nested dicts of float32 arrays.

    parts: 'unet', 'vae', 'text_encoder', 'scheduler' -> the JSON that diffusers reads. The typed configurations below
    are parsed from it; it also contains the settings that only diffusers needs.
    """

    params: dict[str, model_folder.Params]
    parts: dict[str, dict[str, Any]]
    tokenizer: Tokenizer

    @property
    def unet(self) -> UNetConfig:
        return unet.unet_config(self.parts["unet"], "unet/config.json")

    @property
    def autoencoder(self) -> AutoencoderConfig:
        return autoencoder.autoencoder_config(self.parts["vae"], "vae/config.json")

    @property
    def text(self) -> TextConfig:
        return text_encoder.text_config(self.parts["text_encoder"], "text_encoder/config.json")

    @property
    def schedule(self) -> Schedule:
        return scheduler_config.read_schedule(self.parts["scheduler"], SCHEDULER)


def parameter_shapes(configs: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """PARTS -> path -> shape of every parameter, without computing parameters. configs: PARTS -> typed
    configuration."""
    modules: dict[str, Any] = {"unet": unet, "vae": autoencoder, "text_encoder": text_encoder}
    return {part: _shapes(modules[part].init, configs[part]) for part in PARTS}


@functools.lru_cache(maxsize=8)
def _shapes(init: Callable[[Any, jax.Array], model_folder.Params], config: Any) -> dict[str, tuple[int, ...]]:
    return model_folder.shapes_of(lambda rng: init(config, rng))


def from_pipeline(
    pipeline: diffusers_folder.Pipeline, *, inpainting: bool = False, ignore: Sequence[str] = (), where: object = ""
) -> tuple[StableDiffusion, dict[str, convert.NameMap]]:
    """The model of a diffusers folder, and the name map of each part.

    inpainting: extend a text-to-image U-Net (4 input channels) to the 9 of an inpainter; the new channels start at
    zero, so that mask and masked image have no effect until they are trained. where: the folder, for errors. Raises
    UserError unless weights and configurations agree in every tensor.
    """
    parts = {name: dict(content) for name, content in pipeline.configs.items()}
    tensors = dict(pipeline.tensors)
    model = StableDiffusion({}, parts, pipeline.tokenizer)
    with _errors_within(where):
        _check_input(tensors["unet"], model.unet.in_channels)
        if inpainting:
            tensors["unet"] = diffusers.widen_input(tensors["unet"], INPAINTER_CHANNELS)
            parts["unet"]["in_channels"] = INPAINTER_CHANNELS
        shapes = parameter_shapes({"unet": model.unet, "vae": model.autoencoder, "text_encoder": model.text})
        _ = model.schedule  # raises UserError if it is not supported
        if scheduler_config.draws_here(parts["scheduler"]):
            scheduler_config.read_sampler(parts["scheduler"], STEPS, where=SCHEDULER)
    params, maps = {}, {}
    convert.check_used(ignore, [name for part in PARTS for name in tensors[part]], "--ignore")
    for part in PARTS:
        at, fmt = Path(str(where)) / part, diffusers.FORMAT
        params[part], maps[part] = convert.convert(tensors[part], fmt, shapes[part], ignore=ignore, where=at)
    with _errors_within(where):
        _check_together(model)
    return dataclasses.replace(model, params=params), maps


@contextlib.contextmanager
def _errors_within(folder: object) -> Iterator[None]:
    """Prefix the place in errors with `folder`."""
    try:
        yield
    except UserError as error:
        raise UserError(error.what, where=Path(str(folder)) / error.where, todo=error.todo) from error


def _check_input(tensors: Mapping[str, np.ndarray], channels: int) -> None:
    """UserError unless the first convolution has the configured `channels`: 4 and 9 are often confused."""
    first = tensors.get("conv_in.weight")
    if first is not None and first.ndim == 4 and first.shape[1] != channels:
        raise UserError(
            f"in_channels is {channels}, but conv_in.weight {first.shape} has {first.shape[1]}",
            where="unet/config.json",
            todo=f"set in_channels to {first.shape[1]}; --inpainting then extends 4 channels to {INPAINTER_CHANNELS}",
        )


def _check_together(model: StableDiffusion) -> None:
    """UserError unless the parts fit together."""
    text, takes, tokens = model.text, model.unet.cross_attention_dim, model.tokenizer
    if takes != text.hidden_size:
        what = f"text with {text.hidden_size} channels for a U-Net that takes {takes}"
        raise UserError(what, where="text_encoder", todo="use the text encoder of the same model")
    if max(tokens.vocab.values()) >= text.vocab_size:
        what = f"{len(tokens.vocab)} tokens for a text encoder with {text.vocab_size}"
        raise UserError(what, where="tokenizer", todo="use the tokenizer of the same model")
    if tokens.length > text.max_position_embeddings:
        what = f"texts with {tokens.length} tokens, the limit is {text.max_position_embeddings}"
        raise UserError(what, where="tokenizer", todo="lower model_max_length in tokenizer_config.json")


def save(folder: str | os.PathLike, model: StableDiffusion, source: Mapping[str, Any] | None = None) -> None:
    """Write our model folder. source: origin of the model, recorded in model.json."""
    tokenizer.write_tokenizer(folder, model.tokenizer)
    model_folder.save_params(folder, model.params, Description(ARCHITECTURE, model.parts, dict(source or {})))


def load(folder: str | os.PathLike) -> StableDiffusion:
    """Read a folder of `save`; raises UserError for another model or a damaged folder."""
    params, content = model_folder.load_params(folder)
    ours = content.architecture == ARCHITECTURE
    parts = content.build(Description).parts if ours else content.entries.get("parts")  # an inpainter trained from one
    if parts is None:
        raise UserError(
            f"a model of type {content.architecture}, not Stable Diffusion",
            where=folder,
            todo="give the output of launch/import_weights.py --format=diffusers, or a model trained from it",
        )
    if not isinstance(parts, dict) or not all(isinstance(parts.get(name), dict) for name in (*PARTS, "scheduler")):
        raise UserError("parts are missing", where=Path(folder) / model_folder.CONFIG, todo="write the folder again")
    model = StableDiffusion(params, parts, tokenizer.read_tokenizer(folder))
    shapes = parameter_shapes({"unet": model.unet, "vae": model.autoencoder, "text_encoder": model.text})
    wanted = {f"{part}/{path}": shape for part, paths in shapes.items() for path, shape in paths.items()}
    model_folder.check_fits(params, wanted, folder)
    return model


def import_folder(
    path: str | os.PathLike,
    output: str | os.PathLike,
    *,
    inpainting: bool = False,
    variant: str | None = None,
    ignore: Sequence[str] = (),
    console: Console | None = None,
    names: bool = False,
) -> StableDiffusion:
    """Read the diffusers folder `path`, print a summary (with the name map if `names`), write our model folder.

    Nothing is written on error. inpainting, ignore: see `from_pipeline`; variant: see `read_pipeline`.
    """
    console = console or Console()
    pipeline = diffusers_folder.read_pipeline(path, variant)
    model, maps = from_pipeline(pipeline, inpainting=inpainting, ignore=ignore, where=path)
    for part in PARTS:
        classifiers.say(console, f"{part}: {pipeline.files[part]}")
        if names:
            console.print(classifiers.name_table(maps[part]))
    classifiers.say(console, *summary(pipeline, model, maps))
    save(output, model, {"format": "diffusers", "folder": Path(path).name, "files": pipeline.files})
    classifiers.say(console, f"wrote {Path(output) / model_folder.PARAMS} and {model_folder.CONFIG}")
    return model


def summary(
    pipeline: diffusers_folder.Pipeline, model: StableDiffusion, maps: Mapping[str, convert.NameMap]
) -> list[str]:
    """A summary for the user: kinds and numbers of parameters, and the conversion of the input channels."""
    lines = []
    for part, name_map in maps.items():
        count = sum(int(np.prod(row.shape)) for row in name_map.rows)
        lines.append(
            f"{part}: {count:,} parameters in {len(name_map.rows)} tensors; ignored {len(name_map.ignored)}; "
            "no tensor unused or missing"
        )
    given, has = pipeline.configs["unet"].get("in_channels", 4), model.unet.in_channels
    kind = "an inpainter" if has == INPAINTER_CHANNELS else "text to image (--inpainting turns it into an inpainter)"
    added = f", {has - given} of them new and zero" if has != given else ""
    lines.append(f"{pipeline.kind}: {has} input channels{added}, {kind}; prediction {model.schedule.prediction}")
    return [*lines, _drawing(model.parts["scheduler"])]


def _drawing(scheduler: Mapping[str, Any]) -> str:
    """The role of the folder's scheduler: it defines the training noise; pictures are drawn by the recipe's sampler."""
    kind = scheduler.get("_class_name")
    if not scheduler_config.draws_here(scheduler):
        return f"{kind} defines the training noise; pictures are drawn by the recipe's sampler"
    asked, plain = scheduler_config.read_sampler(scheduler, STEPS), SamplerConfig()
    settings = {name: value for name, value in vars(asked).items() if value != getattr(plain, name)}
    flags = " ".join(f"--config.RECIPE.sampler.{name}={value}" for name, value in settings.items())
    return f"{kind} defines the training noise; to draw with it as well: {flags or 'a plain sampler'}"


def export_folder(
    folder: str | os.PathLike, output: str | os.PathLike, dtype: str = "float32", console: Console | None = None
) -> Path:
    """Export our model folder to one that diffusers can load; see `diffusers_folder.write_pipeline`."""
    model = load(folder)
    written = diffusers_folder.write_pipeline(output, model.params, model.parts, model.tokenizer, dtype)
    kind = diffusers_folder.pipeline_kind(model.params, model.parts)
    classifiers.say(console or Console(), f"wrote {written}: load it with {kind}.from_pretrained")
    return written
