"""Extract the ResNet-50 of half the width of open_nsfw from its ONNX file, with torchvision's names.

The file is parsed here, as only its tensors are needed. A protobuf message consists of fields (number, wire type,
content), of which these matter:

  model: 7 graph.  graph: 1 nodes, 5 tensors.  node: 1 inputs, 2 outputs, 4 operation.
  tensor: 1 dimensions, 2 type (1: float32), 8 name, 9 its bytes, little endian.

The file has its batch norms folded into the convolutions; they become norms of mean 0 and variance 1 that add the bias.
Its max-pool pads only below and on the right; ours, like torchvision's, on all sides, so features are shifted by 2 px
of the image.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from elk_jax.errors import UserError

EPS = 1e-5
"""Epsilon of torchvision's norms, which would otherwise change the scale."""
NAMES = {
    "proj_shortcut": ("downsample.0", "downsample.1"),
    "branch2a": ("conv1", "bn1"),
    "branch2b": ("conv2", "bn2"),
    "branch2c": ("conv3", "bn3"),
}
FLOAT32 = 1
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types."""


def tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Every convolution and its norm, by torchvision's names. UserError for any other file."""
    found = {}
    try:
        layers = list(convolutions(Path(path).read_bytes()))
    except (IndexError, KeyError, ValueError) as error:
        raise UserError("not an ONNX file of this network", where=path, todo="download it again") from error
    for output, kernel, bias in layers:
        conv, norm = names(output)
        found[f"{conv}.weight"] = kernel
        found[f"{norm}.weight"] = np.ones_like(bias)
        found[f"{norm}.bias"] = bias
        found[f"{norm}.running_mean"] = np.zeros_like(bias)
        found[f"{norm}.running_var"] = np.full_like(bias, 1 - EPS)
    return found


def names(output: str) -> tuple[str, str]:
    """Torchvision's names of a convolution and of its norm: 'bn_stage0_block1_branch2a/...' -> layer1.1.conv1, .bn1."""
    found = re.match(r"bn_stage(\d)_block(\d)_(\w+)/", output)
    if not found:
        return "conv1", "bn1"
    stage, block, part = found.groups()
    conv, norm = NAMES[part]
    return f"layer{int(stage) + 1}.{block}.{conv}", f"layer{int(stage) + 1}.{block}.{norm}"


def convolutions(model: bytes) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name of the output, kernel [out, in, h, w], bias [out]) of every convolution of an ONNX model."""
    graph = message(message(memoryview(model))[7][0])
    arrays = dict(named_array(message(one)) for one in graph[5])
    for node in map(message, graph[1]):
        if text(node[4][0]) == "Conv":
            _, kernel, bias = map(text, node[1])
            yield text(node[2][0]), arrays[kernel], arrays[bias]


def named_array(tensor: dict[int, list]) -> tuple[str, np.ndarray]:
    """The name and the content of a tensor; no content for types other than float32."""
    name = text(tensor[8][0])
    if tensor[2][0] != FLOAT32:
        return name, np.empty(0, np.float32)
    shape = [size for one in tensor[1] for size in ([one] if isinstance(one, int) else packed(one))]
    return name, np.frombuffer(tensor[9][0], "<f4").reshape(shape).copy()


def message(content: memoryview) -> dict[int, list]:
    """Field number -> its values in order: int, or bytes for types with a length."""
    fields: dict[int, list] = defaultdict(list)
    at = 0
    while at < len(content):
        key, at = varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = varint(content, at)
            fields[number].append(value)
            continue
        size = {FIXED64: 8, FIXED32: 4}.get(kind)
        if size is None:
            if kind != LENGTH:
                raise ValueError(f"wire type {kind}")
            size, at = varint(content, at)
        if at + size > len(content):
            raise ValueError(f"{size} bytes at {at} of {len(content)}")
        fields[number].append(content[at : at + size])
        at += size
    return fields


def varint(content: memoryview, at: int) -> tuple[int, int]:
    """(a number stored with seven bits per byte, lowest first; the position of the next field)."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def packed(content: memoryview) -> Iterator[int]:
    """The numbers packed into a field."""
    at = 0
    while at < len(content):
        value, at = varint(content, at)
        yield value


def text(content: memoryview) -> str:
    """The content of a text field."""
    return bytes(content).decode()
