"""The readers against damaged and hostile files: nothing runs, memory stays bounded, and the error is one line."""

import io
import os
import pickle
import subprocess
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from elk_jax.budget import budget_for
from elk_jax.errors import UserError
from elk_jax.weights import pickle_machine, pickles, reading
from elk_jax.weights.reading import read_tensors
from tests.refusals import refused

FILES = Path(__file__).parent.parent / "golden" / "torch_files"  # written by tests/golden/make_torch_files.py


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
    with refused("refused", "posix.system", where=path):
        read_tensors(path)
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
    with refused(f".{function.__name__},", where=path):
        read_tensors(path)


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
        with refused(where=path):
            read_tensors(path)


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
    with refused(where=path):
        read_tensors(path)


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
