"""The public weights of half a ResNet-50 become ours: every layer, and its folded norm."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from docs import open_nsfw_weights
from elk_jax.backbones.conv import ConvNorm
from elk_jax.backbones.norms import FrozenBatchNorm
from elk_jax.weights import classifiers, resnet

WIDTH, STEM = 2, 4


def layers():
    """(name in the file, shape of the kernel) of all convolutions, as the file has them: the norm's name leads."""
    yield "bn_1/FusedBatchNormV3:0", (STEM, 3, 7, 7)
    inputs = STEM
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = WIDTH * 2**stage
        for block in range(blocks):
            at = f"bn_stage{stage}_block{block}_"
            if block == 0:
                yield f"{at}proj_shortcut/FusedBatchNormV3:0", (4 * width, inputs, 1, 1)
            yield f"{at}branch2a/FusedBatchNormV3:0", (width, inputs, 1, 1)
            yield f"{at}branch2b/FusedBatchNormV3:0", (width, width, 3, 3)
            yield f"{at}branch2c/FusedBatchNormV3:0", (4 * width, width, 1, 1)
            inputs = 4 * width


def test_every_convolution_has_its_place_and_its_bias(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    drawn = [(name, *(rng.normal(size=s).astype("f4") for s in (shape, shape[:1]))) for name, shape in layers()]
    monkeypatch.setattr(open_nsfw_weights, "convolutions", lambda path: iter(drawn))
    monkeypatch.setattr(sys, "argv", ["", "--input=open-nsfw.onnx", f"--output={tmp_path / 'half.safetensors'}"])
    open_nsfw_weights.main()

    imported = classifiers.convert_resnet(resnet.foreign(load_file(tmp_path / "half.safetensors"), "torchvision"))
    assert (imported.model.depth, imported.model.width, imported.model.stem_width) == (50, WIDTH, STEM)
    assert imported.model.num_classes == 0
    _, kernel, bias = drawn[0]
    image = rng.normal(size=(1, 9, 9, 3)).astype("f4")
    stem = ConvNorm(STEM, 7, 2, norm=FrozenBatchNorm).apply(
        {"params": imported.params["backbone"]["stem"]["conv"]}, image
    )
    seen = np.einsum("hwc,ochw->o", image[0, 1:8, 1:8], kernel) + bias  # by the output at 2, 2
    np.testing.assert_allclose(stem[0, 2, 2], seen, rtol=1e-4, atol=1e-4)
