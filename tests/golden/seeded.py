"""Weights and images that anybody can make again from their names: fixtures need not store them.

NumPy's RandomState has a frozen stream, so every NumPy version gives the same numbers. Used by the scripts that run
the reference libraries and by the tests that compare with their output; needs NumPy alone.
"""

import re
import zlib

import numpy as np

CANVAS = (224, 256)
SIZES = ((224, 256), (184, 208))  # (height, width) of the two images of a batch, at the top left of the canvas
BOXES = (
    ((30.0, 40.0, 92.0, 110.0), (120.0, 60.0, 235.0, 200.0), (50.0, 150.0, 80.0, 175.0)),
    ((20.0, 30.0, 150.0, 160.0),),
)
LABELS = ((0, 1, 1), (0,))  # of two classes, background not counted
NUM_CLASSES = 2
ROWS = (
    ("proposals", "class_logits", "box_deltas"),
    ("detected_boxes", "detected_scores", "detected_labels"),
)
STRIDE_OF_DELTAS = 7  # every 7th anchor's deltas are stored


def uniform(name, shape, low, high):
    """Numbers [shape] that depend on `name` alone, float32."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return (low + (high - low) * random.random_sample(shape)).astype(np.float32)


def tensor(name, shape, norms, gains):
    """The tensor called `name`: He-uniform kernels times a gain, norms near the identity, small biases.

    norms: names of normalisation layers. gains: [(regex, factor, centred), ...], the first found in the name counts;
    centred kernels have rows of mean 0, so that the common part of the features (after a ReLU) adds no constant.
    """
    layer, _, kind = name.rpartition(".")
    gain, centred = next((rule[1:] for rule in gains if re.search(rule[0], name)), (1.0, False))
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if layer in norms:
        low, high = {"weight": (0.6, 1.4), "running_var": (0.5, 1.5)}.get(kind, (-0.2, 0.2))
        return uniform(name, shape, low, high) * np.float32(gain)
    if kind == "bias":
        return uniform(name, shape, -0.2, 0.2)
    bound = gain * np.sqrt(6.0 / np.prod(shape[1:]))
    kernel = uniform(name, shape, -bound, bound)
    return kernel - kernel.mean(axis=tuple(range(1, len(shape))), keepdims=True) if centred else kernel


def state_dict(shapes, gains, added):
    """name -> array for name -> shape; `added` (name -> numbers) is added to single tensors."""
    norms = {name.removesuffix(".running_mean") for name in shapes if name.endswith(".running_mean")}
    tensors = {name: tensor(name, tuple(shape), norms, gains) for name, shape in shapes.items()}
    for name, numbers in added.items():
        tensors[name] = tensors[name] + np.asarray(numbers, np.float32)
    return tensors


def images():
    """[B, H, W, 1] float32 in [0, 1], zero outside SIZES: blotches of several sizes."""
    canvas = np.zeros((len(SIZES), *CANVAS, 1), np.float32)
    for i, (height, width) in enumerate(SIZES):
        layers = [
            np.kron(uniform(f"image {i} {cell}", (-(-height // cell), -(-width // cell)), 0, 1), np.ones((cell, cell)))
            for cell in (4, 12, 40, 90)
        ]
        picture = sum(layer[:height, :width] for layer in layers) / len(layers)
        canvas[i, :height, :width, 0] = picture
    return canvas


def nearest(reference, other):
    """The permutation that brings the rows of `other` [N, D] nearest to those of `reference` [N, D].

    Equal scores but for rounding may come in any order. Raises ValueError where the rows do not pair off.
    """
    index = np.abs(reference[:, None] - other[None]).max(-1).argmin(1)
    if len(set(index)) != len(reference) or len(reference) != len(other):
        raise ValueError("the rows do not pair off")
    return index


def pair_rows(exact, other):
    """Bring the proposals and detections of `other` into the order of `exact`: by box, and by class if they have one.

    Changes `other`. Raises ValueError where they do not pair off.
    """
    rows = [keys for keys in ROWS if keys[0] in exact]
    for keys, counts in zip(rows, exact["counts"].astype(int), strict=True):
        for i, count in enumerate(counts):
            order = nearest(_identity(exact, keys, i)[:count], _identity(other, keys, i)[:count])
            for key in keys:
                other[key][i][:count] = other[key][i][:count][order]


def _identity(out, keys, i):
    """Box, and class as a fifth number far from any other: one row for each slot of image `i`."""
    classes = [1000.0 * out[key][i][:, None] for key in keys if key.endswith("labels")]
    return np.concatenate([out[keys[0]][i], *classes], axis=1)


def project(features):
    """[B, H, W, C] -> [B, H, W, 2]: two sums over the channels with random signs, over sqrt(C)."""
    channels = features.shape[-1]
    signs = np.sign(uniform(f"signs {channels}", (channels, 2), -1, 1)) / np.sqrt(channels)
    return (features.astype(np.float64) @ signs).astype(np.float32)


def padded(rows, length):
    """Rows [N_i, ...] of every image, filled with zeros to [B, length, ...]."""
    rows = [np.asarray(r) for r in rows]
    assert all(len(r) <= length for r in rows)
    return np.stack([np.concatenate([r, np.zeros((length - len(r), *r.shape[1:]), r.dtype)]) for r in rows])


def check_stability(name, exact, other):
    """Raises unless both hold the same proposals and detections, in any order, within half the tolerances."""
    assert (exact["counts"] == other["counts"]).all(), (name, exact["counts"], other["counts"])
    pair_rows(exact, other)
    worst = {k: float(np.abs(exact[k] - other[k]).max()) for k in exact}
    print(name, {k: float(f"{v:.2g}") for k, v in worst.items()})
    assert worst.get("proposals", 0) < 0.03 and worst["detected_boxes"] < 0.03 and worst["detected_scores"] < 5e-4
    assert worst["detected_labels"] == 0


def diffusion_tensors(shapes):
    """name -> array for name -> shape of a network of Stable Diffusion: norms are told by their names."""
    norms = {name.rpartition(".")[0] for name in shapes if "norm" in name.split(".")[-2]}
    return {name: tensor(name, tuple(shape), norms, [(r"", 0.7, False)]) for name, shape in shapes.items()}


def diffusion_inputs(channels, text_channels):
    """A sample [2, 8, 12, channels] and text [2, 5, text_channels], or None for no text."""
    text = None if text_channels is None else uniform("text", (2, 5, text_channels), -1, 1)
    return uniform("sample", (2, 8, 12, channels), -1, 1), text


def token_ids(vocabulary):
    """[2, 77] tokens: all of them words, and a short prompt with padding."""
    ids = (uniform("ids", (2, 77), 0, 1) * (vocabulary - 2)).astype(np.int64)
    ids[:, 0], ids[0, -1], ids[1, 6:] = vocabulary - 2, vocabulary - 1, vocabulary - 1
    return ids


def swin_tensors(shapes):
    """name -> array for name -> shape of a Swin transformer: vectors of weights are those of norms."""
    norms = {name.rpartition(".")[0] for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 1}
    return {name: tensor(name, tuple(shape), norms, [(r"", 0.7, False)]) for name, shape in shapes.items()}


def efficientnet_images():
    """Two colour images [2, 62, 45, 3] in [0, 1]."""
    return uniform("efficientnet images", (2, 62, 45, 3), 0, 1)


def parameter(name, shape):
    """The parameter of a network of elk_jax with this name: kernels [in, out] by their inputs, scales near 1."""
    if name.endswith("scale"):
        return uniform(name, shape, 0.6, 1.4)
    bound = (3 / shape[0]) ** 0.5 if name.endswith("kernel") else 0.2
    return uniform(name, shape, -bound, bound)
