"""Draws patches by class from the weights beside this file, with only NumPy and the standard library.

This file becomes the `__init__.py` of a package for medigan (https://github.com/RichardObi/medigan), which calls
`generate`. It is written by elk_jax but does not depend on it.

Shapes: B patches, S side in pixels, Z noise, H W a map, C channels.
"""

import json
import struct
import zlib
from pathlib import Path

import numpy as np

SLOPE = 0.1
"""Slope of leaky ReLUs."""
CONFIG = "config"
"""The entry, among the weights, with the JSON text of everything that is not an array."""
BATCH = 16


def generate(model_file, num_samples=10, output_path=None, save_images=True, condition=None, seed=None, **_ignored):
    """Draw `num_samples` patches: a list of uint8 [S, S], or PNG files NUMBER_CLASS.png in `output_path`.

    condition: a class, by name or number; None: a random one for each patch. seed: makes patches reproducible; None:
    new ones with every call. ValueError for an unknown class, and for files without a folder.
    """
    weights, config = load(model_file)
    rng = np.random.default_rng(seed)
    classes = config["classes"]
    noise = rng.standard_normal((num_samples, config["noise"]), np.float32)
    labels = rng.integers(0, len(classes), num_samples)
    if condition is not None:
        labels = np.full(num_samples, _number(condition, classes))
    parts = [draw(weights, config, noise[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, num_samples, BATCH)]
    pictures = [np.uint8(np.round(255 * patch)) for part in parts for patch in part]
    if not save_images:
        return pictures
    if output_path is None:
        raise ValueError("no output_path for the files: give a folder, or set save_images=False")
    folder = Path(output_path)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (picture, label) in enumerate(zip(pictures, labels)):
        (folder / f"{number:06d}_{_plain(classes[label])}.png").write_bytes(png(picture))
    return None


def load(model_file):
    """(arrays by name, settings) from the file of weights."""
    with np.load(model_file, allow_pickle=False) as stored:
        weights = {name: stored[name] for name in stored.files if name != CONFIG}
        return weights, json.loads(str(stored[CONFIG]))


def draw(weights, config, noise, labels):
    """Patches [B, S, S] in [0, 1] from noise [B, Z] and class numbers [B]."""
    if "condition/kernel" in weights:
        condition = weights["condition/embedding"][labels] @ weights["condition/kernel"] + weights["condition/bias"]
        noise = np.concatenate([np.where(condition > 0, condition, SLOPE * condition), noise], axis=1)
    count = sum(name.startswith("conv_") for name in weights)
    first = weights["conv_1/kernel"]
    x = np.einsum("bz,hwzc->bhwc", noise, first)
    enlarge = doubled if config["upsampling"] == "transposed" else resized
    for number in range(2, count + 1):
        if config["generator_norm"] == "instance":
            x = x - x.mean((1, 2), keepdims=True)
            x = x / np.sqrt((x**2).mean((1, 2), keepdims=True) + 1e-5)
        if config["generator_norm"] == "pixel":
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-8)
        x = enlarge(np.maximum(x, 0), weights[f"conv_{number}/kernel"])
    image = np.tanh(x[..., 0])
    if config["upsampling"] == "resize":
        image = smoothed(image)
    return np.clip((image + 1) / 2, 0, 1)


def doubled(x, kernel):
    """Transposed 4 x 4 convolution, stride 2, padding 1: [B, H, W, C] -> [B, 2H, 2W, C']."""
    height, width = x.shape[1:3]
    wide = np.zeros((len(x), 2 * height + 4, 2 * width + 4, kernel.shape[-1]), np.float32)
    for row in range(4):
        for column in range(4):
            wide[:, row : row + 2 * height : 2, column : column + 2 * width : 2] += x @ kernel[row, column]
    return wide[:, 1 : 1 + 2 * height, 1 : 1 + 2 * width]


def resized(x, kernel):
    """Every pixel repeated 2 x 2, then a 3 x 3 convolution, padding 1."""
    large = np.pad(x.repeat(2, 1).repeat(2, 2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = (side - 2 for side in large.shape[1:3])
    parts = ((row, column) for row in range(3) for column in range(3))
    return sum(large[:, row : row + height, column : column + width] @ kernel[row, column] for row, column in parts)


def smoothed(image):
    """Neighbours weighted (1, 2, 1) / 4 along both axes; border pixels are repeated beyond the border."""
    for axis in (1, 2):
        wide = np.pad(image, [(1, 1) if one == axis else (0, 0) for one in range(3)], mode="edge")
        size = image.shape[axis]
        before, own, behind = (wide.take(range(start, start + size), axis) for start in range(3))
        image = (before + 2 * own + behind) / 4
    return image


def png(picture):
    """The bytes of a grey PNG of uint8 [H, W]."""
    height, width = picture.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture], axis=1).tobytes()
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)))
    chunks = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + end


def _number(condition, classes):
    if condition in classes:
        return classes.index(condition)
    if isinstance(condition, int) and not isinstance(condition, bool) and 0 <= condition < len(classes):
        return condition
    raise ValueError(f"no class {condition!r}: choose from {', '.join(classes)}")


def _plain(name):
    """A class as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name)
