"""Read and write the folder of a Stable Diffusion pipeline in the format of diffusers, without diffusers.

model_index.json                      list of the parts
unet/ vae/ text_encoder/              config.json and weights: .safetensors or .bin, whole or in shards with an
                                      index, with or without a variant such as fp16 in the file's name
tokenizer/ scheduler/                 further files
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.weights import model_folder, reading
from elk_jax.weights.diffusers import PARTS, to_tensors
from elk_jax.weights.tokenizer import Tokenizer, read_tokenizer, write_tokenizer

INDEX = "model_index.json"
TEXT_TO_IMAGE, INPAINT = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline"
KNOWN = (TEXT_TO_IMAGE, INPAINT, "StableDiffusionInpaintPipelineLegacy", "StableDiffusionImg2ImgPipeline")
_STEMS = {
    "unet": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model",),
    "text_encoder": ("model", "pytorch_model"),
}
_FOREIGN_PIPELINE = "give the folder of a Stable Diffusion 1.x or 2.x pipeline"


@dataclass(frozen=True)
class Pipeline:
    """The unconverted content of a folder. configs: PARTS and 'scheduler' -> JSON. tensors: PARTS -> name -> array.

    files: PARTS -> the weights file, or index of shards, that was read, relative to the folder.
    """

    kind: str
    configs: dict[str, dict[str, Any]]
    tensors: dict[str, reading.Tensors]
    tokenizer: Tokenizer
    files: dict[str, str]


def read_pipeline(folder: str | os.PathLike, variant: str | None = None) -> Pipeline:
    """The parts of a Stable Diffusion 1.x or 2.x folder, without safety checker and image encoder.

    variant: 'fp16', 'non_ema', ... selects files with that word in their names, and files without a variant for parts
    that do not have it; at least one part must have it. Default: files without a variant, or fp16 if a part has no such
    files. Raises UserError if something is missing, damaged or of another kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(what, where=folder, todo=_FOREIGN_PIPELINE)
    if not (folder / INDEX).is_file():
        raise UserError(f"{INDEX} is missing", where=folder, todo=_FOREIGN_PIPELINE)
    index = read_config(folder / INDEX)
    kind = str(index.get("_class_name"))
    if kind not in KNOWN or any(name not in index for name in PARTS):
        raise UserError(f"the pipeline is a {kind}", where=folder / INDEX, todo=_FOREIGN_PIPELINE)
    configs = {part: read_config(folder / part / "config.json") for part in PARTS}
    configs["scheduler"] = read_config(folder / "scheduler" / "scheduler_config.json")
    tokenizer = read_tokenizer(folder / "tokenizer")
    words = ("", "fp16") if variant is None else (variant,)
    if variant and any(_present(folder / part, _STEMS[part], words) for part in PARTS):
        words = (variant, "")
    weights = {part: find_weights(folder / part, _STEMS[part], words) for part in PARTS}
    tensors = {part: read_weights(path) for part, path in weights.items()}
    names = {part: str(path.relative_to(folder)) for part, path in weights.items()}
    return Pipeline(kind, configs, tensors, tokenizer, names)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file whose content is an object; UserError otherwise."""
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError("not a JSON object", where=path, todo="download it again")
    for key in [key for key, value in content.items() if (key, value) == ("lambda_min_clipped", -math.inf)]:
        del content[key]  # its default, which proper JSON cannot express
    try:
        json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise UserError("a value is NaN or infinite", where=path, todo="correct or remove it") from error
    return content


def find_weights(folder: Path, stems: tuple[str, ...], variants: Sequence[str]) -> Path:
    """The weights file, or the index of its shards, to read in `folder`: first by variant, then safetensors before
    .bin.

    `<stem>.safetensors` and `.bin`, `<stem>.safetensors.index.json`, and with a variant v `<stem>.v.safetensors`,
    `<stem>.safetensors.index.v.json`. UserError if there is none.
    """
    if found := _present(folder, stems, variants):
        return found[0]
    present = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".msgpack"))
    has = f"it has {model_folder.first_few(present)}" if present else "it has no weights"
    raise UserError(
        f"{_names(stems, variants)[0]} is missing; {has}",
        where=folder,
        todo="download it, or select a variant with --variant",
    )


def _names(stems: tuple[str, ...], variants: Sequence[str]) -> list[str]:
    words = [f".{variant}" if variant else "" for variant in variants]
    of = lambda stem, word, kind: (f"{stem}{word}.{kind}", f"{stem}.{kind}.index{word}.json")
    kinds = ("safetensors", "bin")
    return [name for word in words for kind in kinds for stem in stems for name in of(stem, word, kind)]


def _present(folder: Path, stems: tuple[str, ...], variants: Sequence[str]) -> list[Path]:
    return [folder / name for name in _names(stems, variants) if os.path.isfile(folder / name)]


def read_weights(path: Path) -> reading.Tensors:
    """The tensors of a weights file, or of all shards listed in an index; raises UserError if one is missing."""
    if path.suffix != ".json":
        return reading.read_tensors(path)
    weight_map = read_config(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError("the index of shards has no weight_map", where=path, todo="download it again")
    tensors: reading.Tensors = {}
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name:
            raise UserError(f"{name} is outside the folder of the index", where=path, todo="download it again")
        tensors |= reading.read_tensors(path.parent / name)
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise UserError(f"the shards have no {model_folder.first_few(absent)}", where=path, todo="download them again")
    return tensors


def write_pipeline(
    folder: str | os.PathLike,
    params: Mapping[str, model_folder.Params],
    configs: Mapping[str, Mapping[str, Any]],
    tokenizer: Tokenizer,
    dtype: str = "float32",
) -> Path:
    """Write a folder that diffusers loads. params: PARTS -> nested dict; configs: PARTS and 'scheduler' -> JSON.

    dtype: 'float32' (exact) or 'float16', of the stored numbers. Raises UserError if the folder is not empty, or a
    number exceeds float16. A folder with model_index.json is complete, and after an error nothing remains.
    """
    folder = Path(folder)
    with files.whole_folder(folder, last=INDEX) as place:
        _write_parts(place, params, configs, tokenizer, dtype)
    return folder


def _write_parts(
    folder: Path,
    params: Mapping[str, model_folder.Params],
    configs: Mapping[str, Mapping[str, Any]],
    tokenizer: Tokenizer,
    dtype: str,
) -> None:
    for part in PARTS:
        tensors = _in_type(to_tensors(params[part]), dtype, part)
        if part == "text_encoder":  # the prefix that every version of transformers reads
            tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
        stem = _STEMS[part][0]
        inner = files.make_folder(folder / part)
        # the number format as which transformers loads the weights
        stored = {name: dtype for name in ("dtype", "torch_dtype") if name in configs[part]}
        files.write_json(inner / "config.json", {**configs[part], **stored})
        files.write_bytes(inner / f"{stem}.safetensors", safetensors.numpy.save(tensors, {"format": "pt"}))
    write_tokenizer(folder / "tokenizer", tokenizer)
    scheduler = dict(configs["scheduler"])
    files.write_json(files.make_folder(folder / "scheduler") / "scheduler_config.json", scheduler)
    kind, sampler = pipeline_kind(params, configs), str(scheduler.get("_class_name", "PNDMScheduler"))
    files.write_json(folder / INDEX, model_index(kind, sampler))


def pipeline_kind(params: Mapping[str, model_folder.Params], configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The pipeline class of diffusers for the model: text-to-image, or inpainting if the U-Net has mask channels."""
    latents = configs["vae"].get("latent_channels", 4)
    return INPAINT if params["unet"]["conv_in"]["kernel"].shape[2] > latents else TEXT_TO_IMAGE


def _in_type(tensors: reading.Tensors, dtype: str, part: str) -> reading.Tensors:
    with np.errstate(over="ignore"):
        cast = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    beyond = [name for name, tensor in cast.items() if not np.isfinite(tensor).all()]
    if beyond:
        what = f"{model_folder.first_few(beyond)} exceeds {dtype}"
        raise UserError(what, where=part, todo="export with --dtype=float32")
    return cast


def model_index(kind: str, scheduler: str) -> dict[str, Any]:
    """The content of model_index.json."""
    return {
        "_class_name": kind,
        "_diffusers_version": "0.21.0",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
