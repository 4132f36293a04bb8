"""Parameter names of Stable Diffusion 1.x and 2.x in diffusers and transformers, converted in both directions.

Our paths mirror theirs (diffusion/unet.py): slashes for dots, and numbers joined to the preceding word by an
underscore.
`down_blocks.0.attentions.1.to_out.0.weight` is down_blocks_0/attentions_1/to_out_0/kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from elk_jax.errors import UserError
from elk_jax.weights import model_folder
from elk_jax.weights.convert import Format, Rule, oihw_to_hwio, out_in_to_in_out
from elk_jax.weights.reading import Tensors

PARTS = ("unet", "vae", "text_encoder")

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out_0"}
"""Names in autoencoders of diffusers before 0.18, and in every folder published at that time."""


def to_path(name: str) -> str:
    """Our path of a foreign name whose last word is already ours."""
    words = re.sub(r"\.(\d+)(?=[./])", r"_\1", name.removeprefix("text_model.")).replace(".", "/").split("/")
    if len(words) > 2 and words[-3].startswith("attentions_"):
        words[-2] = _OLD_ATTENTION.get(words[-2], words[-2])
    return "/".join(words)


def to_name(path: str) -> str:
    """diffusers' name of our path: the inverse of the format's rules."""
    *parents, last = path.split("/")
    words = [word if word.startswith("linear_") else re.sub(r"_(\d+)$", r".\1", word) for word in parents]
    return ".".join((*words, "bias" if last == "bias" else "weight"))


def kernel(x: np.ndarray) -> np.ndarray:
    """Kernels of dense layers or convolutions."""
    return out_in_to_in_out(x) if x.ndim == 2 else oihw_to_hwio(x)


def dense_kernel(x: np.ndarray) -> np.ndarray:
    """Kernels of dense layers, which the oldest folders store as 1x1 convolutions: [out, in(, 1, 1)] -> [in, out]."""
    return x.reshape(x.shape[:2]).transpose(1, 0)


_ATTENTION_KERNEL = r"(.*\.attentions\.\d+\.(?:to_[qkv]|to_out\.0|query|key|value|proj_attn))\.weight"

FORMAT = Format(
    rules=(
        Rule(r"((?:.*\.)?[^.]*norm[^.]*)\.weight", r"\1/scale"),
        Rule(r"(.*\.(?:token|position)_embedding)\.weight", r"\1/embedding"),
        Rule(_ATTENTION_KERNEL, r"\1/kernel", dense_kernel),
        Rule(r"(.*)\.weight", r"\1/kernel", kernel),
        Rule(r"(.*)\.bias", r"\1/bias"),
    ),
    ignored=(r"(text_model\.)?embeddings\.position_ids", r"text_projection\.weight"),
    path=to_path,
    partial=False,
)
"""Rules for all three networks. Ignored: the position ids 0..76, and the unused projection to CLIP's joint space."""


def to_tensors(params: model_folder.Params) -> Tensors:
    """The parameters of one network (nested dict) with diffusers' names and layouts."""
    tensors: Tensors = {}
    for path, leaf in model_folder.flatten(params).items():
        x = np.asarray(leaf)
        if path.endswith("/kernel"):
            x = x.transpose(1, 0) if x.ndim == 2 else x.transpose(3, 2, 0, 1)
        tensors[to_name(path)] = np.array(x, np.float32, order="C")
    return tensors


def widen_input(tensors: Mapping[str, np.ndarray], channels: int) -> Tensors:
    """The tensors of a U-Net extended to `channels` input channels by zeros, which do not change its output.

    It turns text-to-image (4 latents) into an inpainter (9: also mask and latents of the masked image). Raises
    UserError if the U-Net already has more channels.
    """
    name = "conv_in.weight"
    if name not in tensors:
        raise UserError(f"the U-Net has no {name}", where="unet", todo="give a Stable Diffusion 1.x or 2.x folder")
    first = np.asarray(tensors[name])
    if first.ndim != 4 or first.shape[1] > channels:
        raise UserError(f"{name} {first.shape} cannot be extended to {channels} input channels", where="unet")
    added = np.zeros((first.shape[0], channels - first.shape[1], *first.shape[2:]), first.dtype)
    return {**tensors, name: np.concatenate([first, added], axis=1)}
