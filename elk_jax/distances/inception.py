"""The features of Inception-v3 used by the published Frechet inception distance, from a weights file of the user.

Shapes: B batch, H W size of an image, C channels (2,048 of the last map).
The layers come from the file; nothing is trained. Batch normalisation is folded into the kernels.

Sources: Szegedy et al. 2016; torchvision's `inception_v3`; pytorch-fid's port of the network of Heusel et al. 2017,
which pools differently in four places.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.distances.network import Pooled, pooled
from elk_jax.errors import UserError
from elk_jax.weights import convert, reading

SIDE = 299
"""Side in pixels of the images that the network was trained on."""

EPSILON = 0.001
"""Epsilon of its batch normalisation."""

FID_CLASSES = 1008
"""Number of classes of the FID network, which identifies its file; torchvision's network has 1,000."""

HALVING = (
    *("Conv2d_1a_3x3", "Mixed_6a.branch3x3", "Mixed_6a.branch3x3dbl_3"),
    *("Mixed_7a.branch3x3_2", "Mixed_7a.branch7x7x3_4"),
)
"""Layers with stride 2, which also have no padding."""

UNPADDED = (*HALVING, "Conv2d_2a_3x3", "Conv2d_4a_3x3")

Kernels = Mapping[str, tuple[Any, Any]]
"""Name of a layer -> kernel [h, w, in, out] and bias [out]."""


class Inception(NamedTuple):
    """kernels: of all layers; of_fid: whether it pools like the FID network."""

    kernels: Kernels
    of_fid: bool


BRANCHES = {  # block -> its branches, each a chain of layers; a tuple in a chain is applied to the same map and joined
    **dict.fromkeys(
        ("Mixed_5b", "Mixed_5c", "Mixed_5d"),
        (("branch1x1",), ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")),
    ),
    "Mixed_6a": (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")),
    **dict.fromkeys(
        ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        (
            ("branch1x1",),
            ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
            ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
        ),
    ),
    "Mixed_7a": (
        ("branch3x3_1", "branch3x3_2"),
        ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"),
    ),
    **dict.fromkeys(
        ("Mixed_7b", "Mixed_7c"),
        (
            ("branch1x1",),
            ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
            ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
        ),
    ),
}
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "pool", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "pool")


def load(path: Path) -> Pooled:
    """The network in a file of torchvision or pytorch-fid. UserError for a file that lacks its layers."""
    network = read(convert.strip_wrappers(reading.read_tensors(path)), path)
    return pooled(f"Inception of {path.name}", partial(last_map, of_fid=network.of_fid), network.kernels, SIDE)


def read(tensors: reading.Tensors, where: object) -> Inception:
    """The layers among the tensors of a file."""
    kernels = {}
    for name in layers():
        missing = [part for part in ("conv.weight", *(f"bn.{one}" for one in _NORM)) if f"{name}.{part}" not in tensors]
        if missing:
            what = f"no tensor {name}.{missing[0]}: not the weights of an Inception-v3"
            raise UserError(what, where=where, todo="give the file of pytorch-fid or of torchvision's inception_v3")
        kernel = tensors[f"{name}.conv.weight"].astype(np.float32)
        scale, bias, mean, variance = (tensors[f"{name}.bn.{one}"].astype(np.float64) for one in _NORM)
        if kernel.ndim != 4 or {one.shape for one in (scale, bias, mean, variance)} != {kernel.shape[:1]}:
            raise UserError(f"{name} has tensors of the wrong shapes", where=where, todo="download the file again")
        factor = scale / np.sqrt(variance + EPSILON)
        folded = kernel.transpose(2, 3, 1, 0) * factor
        kernels[name] = folded.astype(np.float32), (bias - mean * factor).astype(np.float32)
    return Inception(kernels, len(tensors.get("fc.bias", ())) == FID_CLASSES)


_NORM = ("weight", "bias", "running_mean", "running_var")


def layers() -> list[str]:
    """The names of all layers."""
    names = [name for name in STEM if name != "pool"]
    for block, branches in BRANCHES.items():
        for branch in branches:
            for step in branch:
                names += [f"{block}.{name}" for name in ((step,) if isinstance(step, str) else step)]
        if block not in ("Mixed_6a", "Mixed_7a"):
            names.append(f"{block}.branch_pool")
    return names


def last_map(kernels: Kernels, images: jax.Array, *, of_fid: bool) -> jax.Array:
    """Images [B, H, W, 1 or 3] in [0, 1] -> the last map [B, h, w, C], which is averaged."""
    x = jnp.broadcast_to(images, (*images.shape[:3], 3)) * 2 - 1
    for name in STEM:
        x = _largest(x, 2) if name == "pool" else _layer(kernels, name, x)
    for block, branches in BRANCHES.items():
        parts = []
        for branch in branches:
            found = [x]
            for step in branch:
                names = (step,) if isinstance(step, str) else step
                found = [_layer(kernels, f"{block}.{name}", one) for one in found for name in names]
            parts += found
        if block in ("Mixed_6a", "Mixed_7a"):
            parts.append(_largest(x, 2))
        else:
            around = _largest(x, 1) if of_fid and block == "Mixed_7c" else _mean(x, of_fid)
            parts.append(_layer(kernels, f"{block}.branch_pool", around))
        x = jnp.concatenate(parts, axis=-1)
    return x


def _layer(kernels: Kernels, name: str, x: jax.Array) -> jax.Array:
    kernel, bias = kernels[name]
    height, width = (0, 0) if name in UNPADDED else (kernel.shape[0] // 2, kernel.shape[1] // 2)
    stride = 2 if name in HALVING else 1
    padding = ((height, height), (width, width))
    found = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(found + bias)


def _largest(x: jax.Array, stride: int) -> jax.Array:
    """Max pooling over 3 x 3; with stride 1 also at the border, over the existing pixels."""
    pad = ((0, 0), (0, 0)) if stride == 2 else ((1, 1), (1, 1))
    window = (1, 3, 3, 1), (1, stride, stride, 1), ((0, 0), *pad, (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *window)


def _mean(x: jax.Array, inside: bool) -> jax.Array:
    """Mean pooling over 3 x 3. inside: at the border average only existing pixels, as in the FID network; else include
    zeros."""
    window = (1, 3, 3, 1), (1, 1, 1, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, *window)
    if not inside:
        return total / 9
    return total / jax.lax.reduce_window(jnp.ones_like(x[:1, ..., :1]), 0.0, jax.lax.add, *window)
