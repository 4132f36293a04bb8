"""The readers against files that PyTorch and NumPy wrote, and wrong ones. Hostile files: test_hostile_files.py."""

import argparse
import collections
import datetime
import decimal
import enum
import io
import json
import pathlib
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from elk_jax.weights import convert, pickles
from elk_jax.weights.reading import read_tensors
from tests.refusals import refused

FILES = Path(__file__).parent.parent / "golden" / "torch_files"  # written by tests/golden/make_torch_files.py

WRITTEN_BY_TORCH = {
    "contiguous": np.arange(6, dtype="f4").reshape(2, 3),
    "transposed": np.arange(6, dtype="f4").reshape(3, 2).T,
    "channels_last": np.arange(24, dtype="f4").reshape(1, 2, 3, 4),
    "shared_head": np.arange(4, dtype="f4"),
    "shared_tail": np.array([[4, 6], [8, 10]], "f4"),
    "expanded": np.full(3, 7, "f4"),
    "parameter": np.arange(4, dtype="f4"),
    "half": np.arange(5, dtype="f2"),
    "bfloat16": np.array([1.0, -2.5, 3.140625], "f4"),
    "double": np.arange(3, dtype="f8"),
    "long": np.array(41, "i8"),
    "int": np.arange(3, dtype="i4"),
    "uint8": np.arange(3, dtype="u1"),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 4), "f4"),
}


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_both_torch_formats(name):
    tensors = read_tensors(FILES / name)
    assert list(tensors) == list(WRITTEN_BY_TORCH)
    for key, expected in WRITTEN_BY_TORCH.items():
        assert tensors[key].dtype == expected.dtype and tensors[key].flags.c_contiguous, key
        np.testing.assert_array_equal(tensors[key], expected, err_msg=key)


def test_training_checkpoint_gives_its_model_alone():
    tensors = read_tensors(FILES / "checkpoint.pth")
    assert sorted(tensors) == sorted(
        [
            "0.weight",
            "0.bias",
            "1.weight",
            "1.bias",
            "1.running_mean",
            "1.running_var",
            "1.num_batches_tracked",
        ]
    )


@pytest.mark.parametrize(
    "name", ["torchvision_training.pth", "lightning.ckpt", "averaged.pth", "beside.pth", "beside_legacy.pth"]
)
def test_what_stands_beside_the_weights_of_a_training_is_left_out(name):
    """Plain objects, functions, types, other tensors, containers within themselves; wrappers in the names."""
    tensors = convert.strip_wrappers(read_tensors(FILES / name))
    shapes = {"0.weight": (2, 1, 3, 3), "0.bias": (2,), **{f"1.{k}": (2,) for k in ("weight", "bias")}}
    shapes |= {"1.running_mean": (2,), "1.running_var": (2,), "1.num_batches_tracked": ()}
    assert list(tensors) == list(shapes)
    for number, (key, shape) in enumerate(shapes.items()):
        expected = np.arange(np.prod(shape, dtype=int)).reshape(shape) + number
        np.testing.assert_array_equal(tensors[key], expected)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_objects_beside_the_weights(tmp_path, protocol):
    beside = {
        "objects": [argparse.Namespace(lr=0.1), collections.Counter("aab"), collections.deque([1]), decimal.Decimal(1)],
        "values": [{1, 2}, frozenset([1]), 1 + 2j, bytearray(b"ab"), range(3), b"ab", 1 << 100, None, -0.5, len],
        "arrays": [np.array(["text"]), np.array([None, {}]), *(np.zeros(2, kind) for kind in ("c8", "M8[s]", "f4,i4"))],
        "places": {(1, (2, 3)): pathlib.PurePosixPath("x"), 4: datetime.timedelta(1), None: enum.Enum},
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": {"w": np.arange(3.0)}, **beside}, protocol))
    np.testing.assert_array_equal(read_tensors(path)["w"], [0, 1, 2])


def test_a_state_dict_may_be_two_levels_deep(tmp_path):
    path, w = tmp_path / "a.pkl", np.arange(3.0)
    for content in (
        {"model": {"state_dict": {"w": w}, "name": "r18"}},
        {"state_dict": {"model": {"w": w}}, "epoch": 1},
    ):
        path.write_bytes(pickle.dumps(content, 4))
        np.testing.assert_array_equal(read_tensors(path)["w"], w)
    for content in ({"model": {"heads": {"w": w}}}, {"model": {"model": {"model": {"w": w}}}}):
        path.write_bytes(pickle.dumps(content, 4))
        with refused("model", where=path):
            read_tensors(path)


@pytest.mark.parametrize(
    "averaged, plain",
    [("state_dict_ema", "state_dict"), ("model_ema", "model"), ("ema", "model"), ("ema_state_dict", "net")],
)
@pytest.mark.parametrize("within", [lambda w: w, lambda w: {"module": w, "updates": 3}])
def test_averaged_weights_are_read_where_a_checkpoint_has_both(tmp_path, averaged, plain, within):
    """timm, effdet and torchvision's reference scripts evaluate these."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({plain: {"w": np.zeros(2)}, averaged: within({"w": np.ones(2)}), "epoch": 1}, 4))
    np.testing.assert_array_equal(read_tensors(path)["w"], 1)


def test_settings_of_an_average_are_not_the_weights(tmp_path):
    path = tmp_path / "a.pkl"
    for ema in (None, {"decay": 0.9, "step": np.ones(1)}):
        path.write_bytes(pickle.dumps({"ema": ema, "model": {"w": np.zeros(2)}, "schema": {"w": np.ones(2)}}, 4))
        np.testing.assert_array_equal(read_tensors(path)["w"], 0)


def test_two_names_of_one_tensor_are_refused():
    """The later one counted."""
    w = np.zeros(1)
    for names in (("_orig_mod.a.w", "a.w"), ("a.w", "a._orig_mod.w"), ("_orig_mod.a.w", "a._orig_mod.w")):
        with refused(*names):
            convert.strip_wrappers(dict.fromkeys(names, w))
    assert list(convert.strip_wrappers({"_orig_mod.a.w": w, "b._orig_mod.w": w, "n_averaged": w})) == ["a.w", "b.w"]


def test_an_entry_that_is_no_tensor_is_named(tmp_path):
    with refused("'epoch'", "int", where="not_a_tensor.pth"):
        read_tensors(FILES / "not_a_tensor.pth")
    path, w = tmp_path / "a.pkl", np.zeros(1)
    for content, words in (
        ({"model": {"w": w, "extra": None}, "other": {"w": w}}, ["'extra'", "'model'", "NoneType"]),
        ({"w": w, "counts": collections.Counter("ab")}, ["'counts'", "collections.Counter"]),
        ({"model": {"w": w, 3: w}}, ["not a string"]),
        ({"model": {"w": w, "n" * 2000: w}}, ["nnn..."]),
        ({"model": collections.Counter("ab"), "other": {"w": w}}, ["refused", "collections.Counter"]),
    ):
        path.write_bytes(pickle.dumps(content, 4))
        with refused(*words, where=path):
            read_tensors(path)


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickles_of_newer_numpy(protocol):
    """Since 2.3 an array of other order than C and Fortran is pickled in the order of memory, with its axes."""
    tensors, cube = read_tensors(FILES / f"numpy_protocol{protocol}.pkl"), np.arange(24, dtype="f4").reshape(2, 3, 4)
    expected = {"c": cube, "fortran": cube, "axes": cube.transpose(1, 0, 2), "strided": cube[:, ::2]}
    expected |= {"scalar": np.array(2.5), "whole": np.array(7), "big_endian": cube}
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
        assert tensors[name].dtype == value.dtype and tensors[name].flags.c_contiguous


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_detectron2_pickle(protocol):
    tensors = read_tensors(FILES / f"detectron2_protocol{protocol}.pkl")
    expected = np.arange(6, dtype="f4").reshape(2, 3)
    assert set(tensors) == {"stem.conv1.weight", "fortran", "scalar"}
    np.testing.assert_array_equal(tensors["stem.conv1.weight"], expected)
    np.testing.assert_array_equal(tensors["fortran"], expected)
    assert tensors["scalar"] == np.float32(2.5)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8", "|u1", "|b1"])
def test_numpy_pickles_round_trip(tmp_path, protocol, dtype):
    whole = np.arange(6).reshape(2, 3).astype(dtype)
    arrays = {"a": whole, "b": whole[:0], "c": whole[1, 0:1].reshape(())}
    path = tmp_path / "flat.pkl"
    path.write_bytes(pickle.dumps(collections.OrderedDict(arrays), protocol))
    tensors = read_tensors(path)
    for name, expected in arrays.items():
        np.testing.assert_array_equal(tensors[name], expected)
        assert tensors[name].dtype == expected.dtype.newbyteorder("=")
        assert tensors[name].shape == expected.shape


class _Python2Array:
    """Pickles as Python 2 pickled an array: the bytes as a `str`, which `latin1` turns into text."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        state = (1, self.array.shape, self.array.dtype, False, self.array.tobytes().decode("latin1"))
        return np.ndarray, ((0,), np.dtype("f4")), state


def test_python2_strings(tmp_path):
    array = np.array([1.5, -2.0], "<f4")
    path = tmp_path / "R-50.pkl"
    blobs = {"conv1_w": _Python2Array(array), "lr": np.float32(1), "conv1_w_momentum": array}
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "x"}, 2))
    tensors = read_tensors(path)
    assert sorted(tensors) == ["conv1_w", "lr"]
    np.testing.assert_array_equal(tensors["conv1_w"], array)


def test_safetensors_with_bfloat16(tmp_path):
    path = tmp_path / "model.safetensors"
    bits = (np.array([1.0, -2.5], "f4").view("u4") >> 16).astype("u2")
    header = json.dumps(
        {
            "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "h": {"dtype": "BF16", "shape": [2], "data_offsets": [16, 20]},
        }
    ).encode()
    whole = len(header).to_bytes(8, "little") + header + np.arange(4, dtype="f4").tobytes() + bits.tobytes()
    path.write_bytes(whole)
    tensors = read_tensors(path)
    np.testing.assert_array_equal(tensors["w"], np.arange(4, dtype="f4").reshape(2, 2))
    np.testing.assert_array_equal(tensors["h"], np.array([1.0, -2.5], "f4"))
    shutil.copy(path, tmp_path / "renamed.bin")  # told from the content
    assert set(read_tensors(tmp_path / "renamed.bin")) == {"w", "h"}
    path.write_bytes(whole[:-1])
    with refused("safetensors", where=path):
        read_tensors(path)


def test_wrong_files(tmp_path):
    def check(content, *parts, name="file.pth"):
        (tmp_path / name).write_bytes(content)
        with refused(*parts, where=tmp_path / name):
            read_tensors(tmp_path / name)

    check(b"", "empty")
    check(b"<!DOCTYPE html><html>", "web page")
    check(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS")
    check(b"\x89PNG\r\n\x1a\n" + bytes(40), "not a weights file")
    check(pickle.dumps([1, 2], 2), "holds a list")
    check(pickle.dumps({"epoch": 3, "best": 0.5}, 2), "no state dict", "best, epoch")
    check(pickle.dumps({"a": {"w": np.zeros(2)}, "b": {"w": np.zeros(2)}}, 2), "no state dict")
    check(b"not safetensors at all", "safetensors", name="x.safetensors")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    check(buffer.getvalue(), "zip archive")
    with refused("folder", where=tmp_path):
        read_tensors(tmp_path)
    with refused(where="absent.pth"):
        read_tensors(tmp_path / "absent.pth")
    with refused("torch.nn.modules.container.Sequential", where="whole_module.pth"):
        read_tensors(FILES / "whole_module.pth")


def test_reading_imports_no_torch():
    code = f"""import sys
from elk_jax.weights.reading import read_tensors
read_tensors({str(FILES / "zip.pth")!r})
sys.exit("torch" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_storage_type_of_the_table_has_a_numpy_type():
    for name, element in pickles.STORAGE_TYPES.items():
        assert element.to_array(bytes(8 * element.dtype.itemsize)).shape == (8,), name
