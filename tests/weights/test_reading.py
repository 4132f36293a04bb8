"""The readers against files that PyTorch and NumPy wrote, and against damaged, wrong and hostile ones."""

import argparse
import collections
import datetime
import decimal
import enum
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from elk_jax.budget import budget_for
from elk_jax.errors import UserError
from elk_jax.weights import convert, pickle_machine, pickles, reading
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


def assert_one_line(error: pytest.ExceptionInfo, *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


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


class _Hostile:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


_LEGACY_HEAD = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def _zip_of(pickled: bytes, path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            archive.writestr(f"archive/data/{name}", content)
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["pkl", "zip", "legacy"])
def test_hostile_pickle_is_refused_and_not_run(tmp_path, kind, protocol):
    trap = tmp_path / "trap"
    hostile = pickle.dumps({"model": {"w": _Hostile(os.system, f"touch {trap}")}}, protocol)
    path = tmp_path / "weights"
    if kind == "pkl":
        path.write_bytes(hostile)
    elif kind == "zip":
        _zip_of(hostile, path)
    else:
        path.write_bytes(_LEGACY_HEAD + hostile)
    with pytest.raises(UserError) as error:
        read_tensors(path)
    assert_one_line(error, "refused", "posix.system", path)
    assert not trap.exists()
    pickle.loads(hostile)  # the trap is a real one
    assert trap.exists()


@pytest.mark.parametrize(
    "function, args",
    [
        (eval, ("1",)),
        (getattr, ("", "join")),
        (subprocess.Popen, (["true"],)),
        (open, ("x", "w")),
        (complex, (1,)),
    ],
)
def test_other_globals_are_named(tmp_path, function, args):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([_Hostile(function, *args)], 2))
    with pytest.raises(UserError) as error:
        read_tensors(path)
    assert_one_line(error, f".{function.__name__},", path)


def test_object_arrays_are_refused(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"w": np.array([None, {}], object)}, 2))
    with refused("dtype 'O8'", where=path):
        read_tensors(path)


def test_attributes_of_stand_ins_cannot_be_set(tmp_path):
    # GLOBAL torch._utils._rebuild_tensor_v2, then BUILD with the state (None, {"function": 1})
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x08\x00\x00\x00functionK\x01s\x86b.")
    with refused("state", where=path):
        read_tensors(path)
    assert read_tensors(FILES / "zip.pth")


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", *(f"detectron2_protocol{n}.pkl" for n in (2, 4, 5))])
def test_every_truncation_is_one_clear_line(tmp_path, name):
    whole = (FILES / name).read_bytes()
    path = tmp_path / name
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError) as error:
            read_tensors(path)
        assert_one_line(error, path)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "detectron2_protocol2.pkl"])
def test_flipped_bytes_never_escape_as_other_errors(tmp_path, name):
    whole = bytearray((FILES / name).read_bytes())
    rng = np.random.default_rng(0)
    path = tmp_path / name
    for position in rng.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_tensors(path)  # flipped bits of a number leave a readable file
        except UserError as error:
            assert "\n" not in str(error)


def _tensor(numel=4, offset=0, shape=(2, 2), strides=(2, 1), key="0"):
    """A pickle, put together by hand, of {"w": a float tensor} with these sizes."""
    storage = _text("storage") + b"ctorch\nFloatStorage\n" + _text(key) + _text("cpu") + _int(numel)
    tensor = b"((" + storage + b"tQ" + _int(offset) + _tuple(shape) + _tuple(strides) + b"\x89NtR"
    return b"\x80\x02}" + _text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + tensor + b"s."


def _text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _int(value):
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def _tuple(values):
    return b"(" + b"".join(map(_int, values)) + b"t"


def test_a_negated_view_is_no_tensor_of_the_stored_numbers():
    """As of `imag` of a conjugated tensor, which PyTorch saves without negating the storage."""
    negated = _tensor().replace(b"\x89NtR", b"\x89N}" + _text("neg") + b"\x88stR")
    for content, kind in ((_tensor(), pickles.TensorRef), (negated, pickles.Inert)):
        value, _ = pickle_machine.load(io.BytesIO(content), len(content), budget_for(len(content), "a"))
        assert type(value["w"]) is kind


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_storage_has_one_type(tmp_path, kind):
    one, other = (_tensor()[3:-2].replace(b"w", name) for name in (b"w", b"v"))
    path, stored = tmp_path / "a", np.arange(4, dtype="f4").tobytes()
    for second in (other, other.replace(b"Float", b"Int")):
        pickled = b"\x80\x02}(" + one + second + b"u."
        if kind == "zip":
            _zip_of(pickled, path, **{"0": stored})
        else:
            tail = pickle.dumps(["0"], 2) + (4).to_bytes(8, "little") + stored
            path.write_bytes(_LEGACY_HEAD + pickled + tail)
        if second is other:
            np.testing.assert_array_equal(read_tensors(path)["v"], [[0, 1], [2, 3]])
    with refused("two types", where=path):
        read_tensors(path)


def test_members_of_a_zip_archive_that_say_what_is_not_so(tmp_path):
    whole = _zip_of(_tensor(), tmp_path / "a.pth", **{"0": bytes(16)}).read_bytes()
    path, at = tmp_path / "b.pth", whole.index(b"PK\1\2") + 20
    path.write_bytes(whole[:at] + (1 << 30).to_bytes(4, "little") * 2 + whole[at + 8 :])
    with refused("larger than the file", where=path):
        read_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", _tensor())
        archive.writestr("a/byteorder", "middle")
    with refused("byte order", where=path):
        read_tensors(path)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1},
        {"offset": -1},
        {"strides": (1000000, 1)},
        {"strides": (-2, 1)},
        {"shape": (3, 2)},
        {"shape": (1 << 30, 1 << 30), "strides": (0, 0)},
        {"shape": (2,)},
        {"numel": 5},
        {"numel": -4},
        {"numel": 1 << 60},
        {"key": "1"},
        {"key": "../data.pkl"},
    ],
)
def test_tensors_cannot_reach_outside_their_storage(tmp_path, change):
    stored = {"0": np.arange(4, dtype="f4").tobytes()}
    path = _zip_of(_tensor(), tmp_path / "good.pth", **stored)
    np.testing.assert_array_equal(read_tensors(path)["w"], [[0, 1], [2, 3]])
    path = _zip_of(_tensor(**change), tmp_path / "bad.pth", **stored)
    with pytest.raises(UserError) as error:
        read_tensors(path)
    assert_one_line(error, path)


def test_containers_within_themselves(tmp_path):
    loop: list = []
    loop += [loop, loop]
    shared: list = [np.zeros(1)]
    for _ in range(60):  # 2^60 leaves when walked without noticing what is shared
        shared = [shared, shared]
    for content in ({"w": loop}, {"w": shared}):
        path = tmp_path / "a.pkl"
        path.write_bytes(pickle.dumps(content, 2))
        with pytest.raises(UserError):
            read_tensors(path)


def _calls(function, argument, count):
    """function(argument) so many times, on an argument that is pickled once."""
    module, _, name = function.rpartition(".")
    call = f"c{module}\n{name}\n".encode() + b"h\x01\x85R"
    return b"\x80\x02](" + argument + b"q\x010" + call * count + b"e."


BOMBS = {
    "tuples of tuples as a key": b"\x80\x02}(" + b")" + b"2\x86" * 100 + b"K\x01u.",
    "tuples of tuples in a set": b"\x80\x04\x8f(" + b")" + b"2\x86" * 100 + b"\x90.",
    "a place of the memo beyond memory": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "more bytes than there are": b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"ab.",
    "more text than there is": b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b"ab.",
    "less than no bytes": b"\x80\x02T\xff\xff\xff\xffab.",
    "a number of a million digits": b"\x80\x02\x8b" + (1 << 19).to_bytes(4, "little") + b"\x7f" * (1 << 19) + b".",
    "a number of a million decimal digits": b"I" + b"9" * (1 << 20) + b"\n.",
    "many copies of a mapping": _calls("collections.OrderedDict", b"]((" + b"K\x01\x88\x86" * 999 + b"le", 999),
    "many copies of a tuple": _calls("torch.Size", b"(" + b"N" * 999 + b"t", 999),
    "many copies of bytes": _calls("_codecs.encode", b"X" + (9999).to_bytes(4, "little") + b"a" * 9999, 999),
    "many objects": b"\x80\x02(" + b"]" * 99_999 + b"t.",
    "an array beyond its bytes": pickle.dumps({"w": np.zeros(2)}, 2).replace(b"K\x02\x85", b"J\0\0\0\x7f\x85"),
    "a tensor of a class within another": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\nq\x00"
    + b"(h\x00N" * 999
    + b")"
    + b"Nt" * 999
    + b"R.",
    "a name that grows": b"\x80\x02ca\nb\nq\x00"
    + (b"cbuiltins\ngetattr\nh\x00U\xff" + b"c" * 255 + b"\x86Rq\x00") * 99
    + b".",
    "out of band": b"\x80\x05\x97.",
    "a registered extension": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=list(BOMBS))
def test_small_files_that_ask_for_much(tmp_path, monkeypatch, content):
    monkeypatch.setattr(reading, "FLOOR", 1 << 20)
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    tracemalloc.start()
    with refused(where=path):
        read_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 << 20


def test_numbers_of_one_hash_are_not_hashed():
    numbers = b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, 9))
    content = b"\x80\x02}(K\x07N" + numbers + b"u."
    value, _ = pickle_machine.load(io.BytesIO(content), len(content), budget_for(len(content), "a"))
    assert len(value) == 9 and [key for key in value if isinstance(key, int)] == [7]


def test_expanded_tensors_in_total(tmp_path, monkeypatch):
    tensor = _tensor(shape=(1 << 10, 1 << 10), strides=(0, 0))
    path = _zip_of(tensor, tmp_path / "a.pth", **{"0": bytes(16)})
    assert read_tensors(path)["w"].shape == (1 << 10, 1 << 10)
    monkeypatch.setattr(reading, "FLOOR", 10 << 20)
    many = b"\x80\x02}(" + b"".join(_text(f"w{i}") + tensor[4 + len(_text("w")) - 1 : -2] for i in range(5)) + b"u."
    with refused("(1024, 1024)", where=_zip_of(many, tmp_path / "b.pth", **{"0": bytes(16)})):
        read_tensors(tmp_path / "b.pth")


def _safetensors(*entries, size=0, length=None):
    """A file of {name: [type, shape, offsets]} entries, one of which may occur twice."""
    one = '"{}": {{"dtype": "{}", "shape": {}, "data_offsets": {}}}'
    header = ("{" + ", ".join(one.format(*entry) for entry in entries) + "}").encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        _safetensors(),
        _safetensors(("w", "F32", [1 << 62, 1 << 62, 0], [0, 0])),
        _safetensors(("w", "F32", [0, 1 << 62, 1 << 62], [0, 0])),
        _safetensors(("w", "F32", [1 << 62], [0, 4]), size=4),
        _safetensors(("w", "F32", [1] * 65, [0, 4]), size=4),
        _safetensors(("w", "F32", [-1], [0, 4]), size=4),
        _safetensors(("w", "F32", [10**400], [0, 4]), size=4),
        _safetensors(("w", "F32", [1], [0, 4]), ("w", "F32", [1], [4, 8]), size=8),
        _safetensors(("w", "F32", [1], [0, 4]), ("v", "F32", [1], [0, 4]), size=4),
        _safetensors(("w", "F32", [1], [0, 4]), size=4, length=1 << 62),
        _safetensors(("w", "F32", [1], [0, 1 << 62]), size=4),
        _safetensors(("w", "F8_E4M3", [4], [0, 4]), size=4),
        (50_000).to_bytes(8, "little") + b"[" * 50_000,
    ],
)
def test_impossible_safetensors(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with refused(where=path):
        read_tensors(path)


def test_compressed_zip_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
    with refused("compressed", where=path):
        read_tensors(path)


def test_wrong_files(tmp_path):
    def check(content, *parts, name="file.pth"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as error:
            read_tensors(tmp_path / name)
        assert_one_line(error, tmp_path / name, *parts)

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
