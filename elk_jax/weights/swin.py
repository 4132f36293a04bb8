"""Names of the Swin transformers of torchvision, timm (and their authors), and Hugging Face transformers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from elk_jax import fields
from elk_jax.backbones.pixels import IMAGENET_MEAN, IMAGENET_STD
from elk_jax.backbones.swin import STAGES, SwinConfig
from elk_jax.errors import UserError
from elk_jax.weights.convert import (
    Format,
    Rule,
    Understood,
    find,
    indices,
    layer,
    out_in_to_in_out,
    pixels_of,
    sizes,
)
from elk_jax.weights.reading import Tensors

IGNORED = (r".*relative_position_index", r".*attn_mask")


class Spelling(NamedTuple):
    """A library's names for the parts. block, merge: prefixes by the number of the stage, from 0.

    attention, position, mlp: of a block. qkv: a joint layer for query, key and value; "": they are separate.
    """

    patches: str
    patches_norm: str
    block: Callable[[int], str]
    merge: Callable[[int], str]
    norms: tuple[str, str]
    qkv: str
    projection: str
    position: str
    mlp: tuple[str, str]
    norm: str
    head: str


TORCHVISION = Spelling(
    patches="features.0.0",
    patches_norm="features.0.2",
    block=lambda stage: f"features.{2 * stage + 1}",
    merge=lambda stage: f"features.{2 * stage}",
    norms=("norm1", "norm2"),
    qkv="attn.qkv",
    projection="attn.proj",
    position="attn.relative_position_bias_table",
    mlp=("mlp.0", "mlp.3"),
    norm="norm",
    head="head",
)
TIMM = TORCHVISION._replace(
    patches="patch_embed.proj",
    patches_norm="patch_embed.norm",
    block=lambda stage: f"layers.{stage}.blocks",
    merge=lambda stage: f"layers.{stage}.downsample",
    mlp=("mlp.fc1", "mlp.fc2"),
    head="head.fc",
)
PUBLISHED = TIMM._replace(merge=lambda stage: f"layers.{stage - 1}.downsample", head="head")
"""Names in the authors' own files, and in earlier versions of timm."""
TRANSFORMERS = Spelling(
    patches="embeddings.patch_embeddings.projection",
    patches_norm="embeddings.norm",
    block=lambda stage: f"encoder.layers.{stage}.blocks",
    merge=lambda stage: f"encoder.layers.{stage - 1}.downsample",
    norms=("layernorm_before", "layernorm_after"),
    qkv="attention.qkv",
    projection="attention.o_proj",
    position="attention.relative_position_bias.relative_position_bias_table",
    mlp=("mlp.fc1", "mlp.fc2"),
    norm="layernorm",
    head="classifier",
)
SPELLINGS = {"torchvision": TORCHVISION, "timm": TIMM, "transformers": TRANSFORMERS}
RENAMED = {
    r"attention\.self\.(q|k|v)(?:uery|ey|alue)\.": r"attention.\1_proj.",
    r"attention\.self\.relative_position_bias_table": TRANSFORMERS.position,
    r"attention\.output\.dense": TRANSFORMERS.projection,
    r"intermediate\.dense": TRANSFORMERS.mlp[0],
    r"output\.dense": TRANSFORMERS.mlp[1],
}
"""Names in the files of transformers before version 5, and since; the first one found in a name applies."""


def understand(tensors: Tensors, file_format: str, name: str, changes: Mapping[str, Any]) -> Understood:
    """The model of a file: `name` in the library `file_format`, with `changes`. Sizes and classes come from the file.

    UserError unless the tensors are those of a Swin transformer with the library's names.
    """
    if re.search("swin_?v2", name):
        raise UserError("version 2 of Swin is not supported", where="--model", todo="choose weights of version 1")
    if file_format not in SPELLINGS:
        todo = f"choose one of {', '.join(SPELLINGS)}"
        raise UserError(f"Swin transformers in the format '{file_format}' are not read", where="--format", todo=todo)
    spelling = SPELLINGS[file_format]
    if file_format == "timm" and not any(name.startswith(f"{spelling.merge(STAGES - 1)}.") for name in tensors):
        spelling = PUBLISHED
    if file_format == "transformers":
        tensors = _joined({_renamed(name.removeprefix("swin.")): tensor for name, tensor in tensors.items()})
    model = fields.build(SwinConfig, {**vars(SwinConfig()), **_settings(tensors, spelling), **changes}, "model")
    return Understood(tensors, model, Format(_rules(spelling), IGNORED, partial=False))


def patches_to_rows(x: np.ndarray) -> np.ndarray:
    """The kernel for patches [out, in, p, p] -> [p p in, out]."""
    return x.transpose(2, 3, 1, 0).reshape(-1, len(x))


def _settings(tensors: Tensors, spelling: Spelling) -> dict[str, Any]:
    embed, channels, patch, _ = sizes(tensors, f"{spelling.patches}.weight", 4)
    blocks = [re.escape(spelling.block(stage)) for stage in range(STAGES)]
    depths = tuple(len(indices(tensors, rf"{block}\.(\d+)\..*")) for block in blocks)
    if not all(depths):
        raise UserError(f"the file has {list(depths)} blocks in four stages", todo="check --format and --input")
    tables = [sizes(tensors, f"{spelling.block(stage)}.0.{spelling.position}", 2) for stage in range(STAGES)]
    head = f"{spelling.head}.weight"
    window = (math.isqrt(tables[0][0]) + 1) // 2
    settings = {
        "num_classes": len(find(tensors, head)) if head in tensors else 0,
        "embed": embed,
        "patch": patch,
        "depths": depths,
        "heads": tuple(table[1] for table in tables),
        "window": window,
        "image_size": window * patch * 2 ** (STAGES - 1),  # one window in the last stage, as in all published ones
        "mlp_ratio": sizes(tensors, f"{spelling.block(0)}.0.{spelling.mlp[0]}.weight", 2)[0] // embed,
    }
    return settings | pixels_of(channels, IMAGENET_MEAN, IMAGENET_STD)


def _rules(spelling: Spelling) -> tuple[Rule, ...]:
    rules = (
        *layer(re.escape(spelling.patches), "backbone/patches/projection", patches_to_rows),
        *_norm(re.escape(spelling.patches_norm), "backbone/patches_norm"),
        *_norm(re.escape(spelling.norm), "norm"),
        *layer(re.escape(spelling.head), "classifier", out_in_to_in_out),
    )
    for stage in range(STAGES):
        block, ours = rf"{re.escape(spelling.block(stage))}\.(\d+)\.", rf"backbone/res{stage + 2}_\1/"
        rules += (
            *_norm(block + re.escape(spelling.norms[0]), ours + "norm1"),
            *layer(block + re.escape(spelling.qkv), ours + "attention/qkv", out_in_to_in_out),
            *layer(block + re.escape(spelling.projection), ours + "attention/projection", out_in_to_in_out),
            Rule(block + re.escape(spelling.position), ours + "attention/relative_position"),
            *_norm(block + re.escape(spelling.norms[1]), ours + "norm2"),
            *layer(block + re.escape(spelling.mlp[0]), ours + "mlp1", out_in_to_in_out),
            *layer(block + re.escape(spelling.mlp[1]), ours + "mlp2", out_in_to_in_out),
        )
        if stage:
            merge, ours = re.escape(spelling.merge(stage)), f"backbone/merge{stage + 2}"
            rules += _norm(rf"{merge}\.norm", f"{ours}/norm")
            rules += (Rule(rf"{merge}\.reduction\.weight", f"{ours}/reduction/kernel", out_in_to_in_out),)
    return rules


def _norm(pattern: str, target: str) -> tuple[Rule, ...]:
    return Rule(rf"{pattern}\.weight", f"{target}/scale"), Rule(rf"{pattern}\.bias", f"{target}/bias")


def _renamed(name: str) -> str:
    """A name of transformers in its current spelling."""
    return next((new for old, to in RENAMED.items() if (new := re.sub(old, to, name)) != name), name)


def _joined(tensors: Tensors) -> Tensors:
    """The tensors with query, key and value of every attention joined into one layer, at the place of the query."""
    joined: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.attention\.)(q|k|v)_proj\.(weight|bias)", name)
        if match is None:
            joined[name] = tensor
        elif match[2] == "q":
            parts = [find(tensors, f"{match[1]}{part}_proj.{match[3]}") for part in "qkv"]
            joined[f"{match[1]}qkv.{match[3]}"] = np.concatenate(parts)
    return joined
