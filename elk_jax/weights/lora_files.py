"""Low-rank adapters as safetensors, with the names of diffusers and peft: pipe.load_lora_weights(FILE) reads them.

Ours: {part: {layer: {"a": [I, r], "b": [r, O]}}}, part `unet` or `text_encoder` (diffusion/lora.py).
Theirs: PART.LAYER.lora_A.weight [r, I] and PART.LAYER.lora_B.weight [O, r], in a convolution [r, C_in, kh, kw] and
[O, r, 1, 1]. A strength other than 1 is multiplied into B, so that no reader has to know it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.weights import diffusers, store
from elk_jax.weights.reading import read_safetensors

Adapters = dict[str, dict[str, dict[str, np.ndarray]]]

PARTS = ("unet", "text_encoder")
_PLACES = (
    (re.compile(r"(.*)\.lora_A(?:\.default)?\.weight"), r"\1", "a"),
    (re.compile(r"(.*)\.lora_B(?:\.default)?\.weight"), r"\1", "b"),
    (re.compile(r"(.*)\.(?:lora|lora_linear_layer)\.down\.weight"), r"\1", "a"),
    (re.compile(r"(.*)\.(?:lora|lora_linear_layer)\.up\.weight"), r"\1", "b"),
    (re.compile(r"(.*)\.processor\.(to_[qkv])_lora\.down\.weight"), r"\1.\2", "a"),
    (re.compile(r"(.*)\.processor\.(to_[qkv])_lora\.up\.weight"), r"\1.\2", "b"),
    (re.compile(r"(.*)\.processor\.to_out_lora\.down\.weight"), r"\1.to_out.0", "a"),
    (re.compile(r"(.*)\.processor\.to_out_lora\.up\.weight"), r"\1.to_out.0", "b"),
    (re.compile(r"(.*)\.alpha"), r"\1", "alpha"),
)
"""Today's names, then those of diffusers' older scripts."""


def write_lora(
    path: str | os.PathLike, adapters: Mapping[str, Any], params: Mapping[str, Any], alpha: float | None = None
) -> None:
    """Write the adapters of one or more parts, float32, atomically.

    params: {part: the parameters that are adapted, or their shapes}, which say what is a convolution. alpha: as in
    `lora.apply_lora`; alpha / r goes into B.
    """
    tensors: dict[str, np.ndarray] = {}
    for part, layers in adapters.items():
        _check_part(part, path)
        flat = store.flatten(params[part])
        for layer, factors in layers.items():
            a, b = (np.asarray(factors[name], np.float32) for name in ("a", "b"))
            rank, kernel = a.shape[1], flat[f"{layer}/kernel"].shape
            strength = np.float32(1 if alpha is None else alpha / rank)
            down, up = a.T, (b * strength).T
            if len(kernel) == 4:
                down, up = a.reshape(*kernel[:3], rank).transpose(3, 2, 0, 1), up[:, :, None, None]
            name = _foreign_name(part, layer)
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(down)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(up)
    files.write_bytes(path, safetensors.numpy.save(tensors, {"format": "pt"}))


def read_lora(path: str | os.PathLike) -> Adapters:
    """The adapters of every part in a file, float32, for `lora.apply_lora` with alpha None.

    Raises UserError when a name is not understood or half of a layer's adapter is missing.
    """
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name, tensor in read_safetensors(path).items():
        layer, which = _understand(name.removeprefix("base_model.model."), path)
        part, _, rest = layer.partition(".")
        _check_part(part, path, name)
        where = (part, diffusers.to_path(f"{rest}.weight").removesuffix("/weight"))
        found.setdefault(where, {})[which] = np.asarray(tensor, np.float32)
    adapters: Adapters = {}
    for (part, layer), given in found.items():
        if "a" not in given or "b" not in given:
            lacking = " and ".join(name for name in ("a", "b") if name not in given)
            raise UserError(f"the adapter of {part} {layer} has no {lacking.upper()}", where=path)
        adapters.setdefault(part, {})[layer] = _ours(given, f"{part} {layer}", path)
    if not adapters:
        raise UserError("no adapters in this file", where=path, todo="give a LoRA file of diffusers or peft")
    return adapters


def _ours(given: Mapping[str, np.ndarray], layer: str, path: object) -> dict[str, np.ndarray]:
    down, up = given["a"], given["b"]
    rank = down.shape[0]
    if up.shape[1] != rank or down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[2:] not in ((), (1, 1)):
        raise UserError(f"the adapter of {layer} is {down.shape} and {up.shape}", where=path)
    strength = np.float32(float(given["alpha"]) / rank if "alpha" in given else 1)
    a = down.T if down.ndim == 2 else down.transpose(2, 3, 1, 0).reshape(-1, rank)
    return {"a": np.ascontiguousarray(a), "b": np.ascontiguousarray(up.reshape(up.shape[:2]).T * strength)}


def _understand(name: str, path: object) -> tuple[str, str]:
    for pattern, layer, which in _PLACES:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(layer), which
    hint = "convert it with diffusers (pipe.load_lora_weights, then save_lora_weights)"
    raise UserError(f"a tensor called {name}, which is not an adapter of diffusers or peft", where=path, todo=hint)


def _foreign_name(part: str, layer: str) -> str:
    name = diffusers.to_name(f"{layer}/kernel").removesuffix(".weight")
    return f"{part}.{'text_model.' if part == 'text_encoder' else ''}{name}"


def _check_part(part: str, path: object, name: str = "") -> None:
    if part not in PARTS:
        raise UserError(f"an adapter of '{part}' {name}", where=path, todo=f"known parts: {', '.join(PARTS)}")
