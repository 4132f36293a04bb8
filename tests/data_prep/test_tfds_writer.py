"""Any list of annotated images as a TFDS data set, and any COCO folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import coco_to_tfds
import numpy as np
import pytest
import tfds_writer
from cdd_layout import circle, image_row, write_tables
from folders import new_folder

from elk_jax.data.sources.coco import write_coco
from elk_jax.data.sources.decode import encode_png
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.images.schema import ImageInfo
from tests.interruption import changes, killed
from tests.refusals import refused

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
PIXELS = {f"i{n}": RNG.integers(0, 65536, (20 + n, 30), dtype=np.uint16) for n in range(4)}


def info(name: str, boxes=(), split="train", **meta) -> ImageInfo:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    height, width = PIXELS[name].shape
    labels = np.arange(len(boxes), dtype=np.int32) % 2
    return ImageInfo(name, f"p{name}", width, height, boxes, labels, labels == 1, split, f"{name}.png", meta)


INFOS = [
    info("i0", [[1, 2, 10.5, 12], [3, 4, 8, 9]], view="CC", age=50, score=1, dense=True),
    info("i1", view="MLO", age=61, score=0.5, dense=False, pixel_spacing=[0.1, 0.2], codes=[1, 2]),
    info("i2", [[0, 0, 30, 22]], split="odd", view="CC", age=70, score=2.5, dense=False),
]


def test_round_trip(tmp_path, tmp_path_factory, monkeypatch):
    import tensorflow_datasets as tfds

    seen, temporary = [], tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    tfds_writer.write_tfds(
        tmp_path / "set",
        "toy",
        INFOS,
        ("mass", "other"),
        lambda i: PIXELS[i.image_id],
        bits=16,
        on_image=lambda: seen.append(1),
    )
    assert len(seen) == 3 and [path.name for path in tmp_path.iterdir()] == ["set"]
    assert not list(temporary.iterdir())
    builder = tfds.builder_from_directory(tmp_path / "set")
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 2, "odd": 1}
    (record,) = builder.as_data_source("odd")
    np.testing.assert_array_equal(record["image"][..., 0], PIXELS["i2"])
    source = open_source(SourceSpec(f"tfds:{tmp_path / 'set'}"))
    assert source.classes == ("mass", "other")
    for position, found in enumerate(source.infos):
        (wanted,) = [i for i in INFOS if i.image_id == found.image_id]
        np.testing.assert_array_equal(found.boxes, wanted.boxes)
        np.testing.assert_array_equal(found.labels, wanted.labels)
        np.testing.assert_array_equal(found.ignore, wanted.ignore)
        assert (found.patient_id, found.split, found.width) == (wanted.patient_id, wanted.split, wanted.width)
        assert all(found.meta[key] == wanted.meta[key] for key in ("view", "age", "score", "dense"))
        np.testing.assert_allclose(source[position].image[..., 0], PIXELS[found.image_id] / 65535, atol=1e-7)
    (one,) = [i for i in source.infos if i.image_id == "i1"]
    assert one.meta["codes"] == "[1, 2]" and one.meta["pixel_spacing"] == [0.1, 0.2]


def test_meta_features_keep_kinds():
    import tensorflow_datasets as tfds

    metas, features = tfds_writer.meta_features(
        [{"a": True, "b": 1, "c": 1, "d": "x", "e": 1}, {"a": False, "b": 2, "c": 0.5}]
    )
    assert (features["a"], features["b"], features["c"].np_dtype) == (np.bool_, np.int64, np.float64)
    assert isinstance(features["d"], tfds.features.Text) and isinstance(features["e"], tfds.features.Text)
    assert metas == [{"a": True, "b": 1, "c": 1, "d": "x", "e": "1"}, {"a": False, "b": 2, "c": 0.5, "d": "", "e": ""}]
    assert tfds_writer.meta_features([]) == ([], {})
    (spaced,), _ = tfds_writer.meta_features([{"pixel_spacing": np.array([0.1, 0.2])}])
    assert spaced["pixel_spacing"].tolist() == [0.1, 0.2]
    mixed, features = tfds_writer.meta_features([{"a": True}, {"a": 3}])
    assert isinstance(features["a"], tfds.features.Text) and mixed == [{"a": "true"}, {"a": "3"}]


FIELDS = [
    {"score": 0.1, "uid": 10**30, "pixel_spacing": [None, None], "count": 2**62 + 1, "odd": 1},
    {"score": 1 / 3, "uid": 7, "pixel_spacing": None, "count": 3, "odd": 0.5},
    {"score": 2, "uid": 8, "pixel_spacing": [0.1, 0.2], "count": 4, "odd": 2**53 + 1},
]


def test_fields_survive_exactly(tmp_path):
    """TFDS stores floats in 32 bits, and integers beyond 64 not at all; a list by box is one again."""
    infos = [replace(one, meta=meta) for one, meta in zip(INFOS, FIELDS)]
    infos[1] = replace(infos[1], volume="v", slice=4, boxes=INFOS[0].boxes, labels=INFOS[0].labels)
    infos[1] = replace(infos[1], ignore=INFOS[0].ignore, meta=FIELDS[1] | {"lesion_slices": [4, 5]})
    read = lambda one: PIXELS[one.image_id]
    tfds_writer.write_tfds(tmp_path / "set", "toy", infos, ("mass", "other"), read, bits=16)
    found = {info.image_id: info.meta for info in open_source(SourceSpec(f"tfds:{tmp_path / 'set'}")).infos}
    assert [found[f"i{n}"]["score"] for n in range(3)] == [0.1, 1 / 3, 2]
    assert [found[f"i{n}"]["uid"] for n in range(3)] == [str(10**30), "7", "8"]
    assert [found[f"i{n}"]["count"] for n in range(3)] == [2**62 + 1, 3, 4]
    assert [found[f"i{n}"]["pixel_spacing"] for n in range(3)] == [None, None, [0.1, 0.2]]
    assert found["i2"]["odd"] == str(2**53 + 1)
    assert found["i1"]["lesion_slices"] == [4, 5] and "lesion_slices" not in found["i0"]


@pytest.mark.parametrize("value", ["0.1 mm", 0.1, [0.1], ["0.1", "0.1"], [0.1, None], [0, 0.1], [True, np.inf]])
def test_a_pixel_spacing_that_is_not_two_numbers_is_refused(tmp_path, value):
    """One text made texts of those of all images."""
    infos = [INFOS[1], replace(INFOS[0], meta={"pixel_spacing": value})]
    with refused("pixel_spacing", str(value)[:5], "mm", where="image i0 (i0.png)"):
        tfds_writer.write_tfds(tmp_path / "set", "toy", infos, ("a", "b"), lambda i: PIXELS[i.image_id], bits=16)
    assert not list(tmp_path.iterdir())


def test_a_text_among_numbers_is_noted():
    fields = [{"age": 50, "view": "CC", "flag": True}, {"age": "61y", "view": "MLO"}, {"age": 7.5, "view": 3}, {}]
    infos = [replace(INFOS[n % 3], image_id=f"i{n}", meta=meta) for n, meta in enumerate(fields)]
    (line,) = tfds_writer.texts_among_numbers(infos)
    assert "'age'" in line and "i1" in line and "'61y'" in line and "2 a number" in line


@pytest.mark.parametrize("meta", [{"note": "a\ud800"}, {"a\udcff": 1}])
def test_text_that_has_no_utf_8_is_refused(tmp_path, meta):
    with refused(repr(next(iter(meta))), "UTF-8", where="image i0 (i0.png)"):
        infos = [replace(INFOS[0], meta=meta)]
        tfds_writer.write_tfds(tmp_path / "set", "toy", infos, ("a", "b"), lambda i: PIXELS[i.image_id], bits=16)


@pytest.mark.parametrize("name", ["image_id", "image", "objects"])
def test_a_field_with_the_name_of_a_feature_is_refused(tmp_path, name):
    """It took the place of the feature: images had other ids, or could not be read."""
    infos = [INFOS[0], replace(INFOS[1], meta={name: 7})]
    with refused(f"'{name}'", where="image i1 (i1.png)"):
        tfds_writer.write_tfds(tmp_path / "set", "toy", infos, ("a", "b"), lambda i: PIXELS[i.image_id], bits=16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["fold 1", "a/b", "all"])
def test_a_split_that_tfds_cannot_have_is_refused(tmp_path, split):
    with refused(f"'{split}'", where="image i1 (i1.png)"):
        infos = [INFOS[0], replace(INFOS[1], split=split)]
        tfds_writer.write_tfds(tmp_path / "set", "toy", infos, ("a", "b"), lambda i: PIXELS[i.image_id], bits=16)
    assert not list(tmp_path.iterdir())


def test_a_split_may_have_a_dash(tmp_path):
    infos = [replace(INFOS[0], split="fold-1_ä")]
    tfds_writer.write_tfds(tmp_path / "set", "toy", infos, ("a", "b"), lambda i: PIXELS[i.image_id], bits=16)
    (found,) = open_source(SourceSpec(f"tfds:{tmp_path / 'set'}"), "fold-1_ä").infos
    assert found.image_id == "i0"


def test_eight_bit_images_are_widened_in_a_sixteen_bit_set(tmp_path):
    narrow = (PIXELS["i0"] >> 8).astype(np.uint8)
    tfds_writer.write_tfds(tmp_path / "set", "toy", INFOS[:1], ("a", "b"), lambda i: narrow, bits=16)
    (record,) = open_source(SourceSpec(f"tfds:{tmp_path / 'set'}"))
    np.testing.assert_allclose(record.image[..., 0], narrow / 255, atol=1e-6)


def test_bad_images_leave_nothing(tmp_path):
    with refused("30 x 21", "30 x 20", where="i0.png"):
        tfds_writer.write_tfds(tmp_path / "set", "toy", INFOS, ("a", "b"), lambda i: PIXELS["i1"], bits=16)
    with refused("i0", 2):
        tfds_writer.write_tfds(tmp_path / "set", "toy", [INFOS[0]] * 2, ("a", "b"), lambda i: PIXELS["i0"], bits=16)
    assert not list(tmp_path.iterdir())


def coco_folder(folder):
    """The last image has 12 bits and says so."""
    (folder / "images").mkdir(parents=True)
    for each in INFOS:
        pixels = PIXELS[each.image_id] >> (4 if each is INFOS[-1] else 0)
        (folder / "images" / each.file_name).write_bytes(encode_png(pixels))
    infos = [*INFOS[:-1], replace(INFOS[-1], meta=INFOS[-1].meta | {"bit_depth": 12})]
    write_coco(folder / "mine.json", infos, ("mass", "other"))
    return folder / "mine.json"


def test_any_coco_folder(tmp_path, capsys):
    path = coco_folder(tmp_path / "in")
    coco_to_tfds.main([f"--input={path}", f"--output={tmp_path / 'out'}", "--name=mine"])
    assert "3 images, 3 boxes, 16 bits" in capsys.readouterr().out
    one, other = open_source(SourceSpec(f"coco:{path}")), open_source(SourceSpec(f"tfds:{tmp_path / 'out'}"))
    place = {each.image_id: position for position, each in enumerate(other.infos)}
    for position, each in enumerate(one.infos):
        same = other[place[each.image_id]]
        np.testing.assert_allclose(one[position].image, same.image, atol=1e-5 if position == len(INFOS) - 1 else 0)
        np.testing.assert_array_equal(each.boxes, same.info.boxes)
        assert each.split == same.info.split and each.patient_id == same.info.patient_id
        assert "bit_depth" not in same.info.meta
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_coco_to_tfds_reports_what_is_wrong(tmp_path):
    path = coco_folder(tmp_path / "in")
    out = f"--output={tmp_path / 'out'}"
    with refused("'My Set'", where="--name"):
        coco_to_tfds.main([f"--input={path}", out, "--name=My Set"])
    with refused(where="gone.json"):
        coco_to_tfds.main([f"--input={tmp_path / 'gone.json'}", out])
    (tmp_path / "in" / "images" / "i1.png").write_bytes(b"no image")
    with refused("PNG", where="i1.png"):
        coco_to_tfds.main([f"--input={path}", out])
    write_coco(path, INFOS, ("mass", "other"), seen_patients=["ab"])
    with refused("TFDS", where=path):
        coco_to_tfds.main([f"--input={path}", out])
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_new_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), new_folder(target, "a") as folder:
        (folder / "half").write_text("written")
        raise RuntimeError
    assert not target.exists() and not list(target.parent.iterdir())
    with new_folder(target, "a") as folder:
        (folder / "a").write_text("whole")
        assert not target.exists()
    assert (target / "a").read_text() == "whole"
    with pytest.raises(KeyboardInterrupt), new_folder(target, "a", overwrite=True):
        raise KeyboardInterrupt
    assert [path.name for path in target.iterdir()] == ["a"]
    with new_folder(target, "a", overwrite=True) as folder:
        (folder / "b").touch()
    assert [path.name for path in target.parent.rglob("*")] == ["out", "b"]
    (tmp_path / "file").touch()
    with refused("folder", where=tmp_path / "file"), new_folder(tmp_path / "file", "a"):
        pass


def test_a_killed_build_leaves_the_old_folder_or_the_new_one_to_the_next(tmp_path):
    def build(content):
        with new_folder(target, "a", overwrite=True) as folder:
            (folder / "a").write_text(content)

    target = tmp_path / "deep" / "out"
    build("old")
    for at in range(1, changes(tmp_path, lambda: build("new")) + 1):
        shutil.rmtree(tmp_path / "deep")
        build("old")
        killed(tmp_path, at, lambda: build("new"))
        killed(tmp_path, at // 3 + 1, lambda: build("new"))
        with refused("not empty", where=target), new_folder(target, "a"):  # it is put back
            pass
        assert (target / "a").read_text() in ("old", "new"), at
        build("newer")
        assert [path.name for path in target.parent.rglob("*")] == ["out", "a"], at
        assert (target / "a").read_text() == "newer"


def test_an_interrupt_between_the_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    target, move = tmp_path / "out", os.replace
    with new_folder(target, "a") as folder:
        (folder / "a").write_text("1")

    def interrupted(source, goal):
        if Path(source).name == "new":
            raise KeyboardInterrupt
        move(source, goal)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(target, "a", overwrite=True):
        pass
    assert (target / "a").read_text() == "1" and list(tmp_path.iterdir()) == [target]


def test_a_folder_is_built_by_one_process(tmp_path):
    with new_folder(tmp_path / "out", "a") as folder:
        (folder / "a").touch()
        with refused("another process", where=".out.partial"), new_folder(tmp_path / "out", "a"):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]


def test_overwrite_replaces_neither_inputs_nor_what_others_wrote(tmp_path):
    """It deletes the folder that was there."""
    path = coco_folder(tmp_path / "in")
    folder = path.parent
    for place in (folder, folder / "images", tmp_path):
        with refused("dataset_info.json", where=place):
            coco_to_tfds.main([f"--input={path}", f"--output={place}", "--overwrite"])
    (folder / "dataset_info.json").touch()
    with refused("input", "another folder", where=folder):
        coco_to_tfds.main([f"--input={path}", f"--output={folder}", "--overwrite"])
    assert len(list((folder / "images").iterdir())) == len(INFOS)
    (tmp_path / "link").symlink_to(folder)
    with refused("input", where="link"):
        coco_to_tfds.main([f"--input={path}", f"--output={tmp_path / 'link'}", "--overwrite"])
    for flags in ([], ["--overwrite"]):
        coco_to_tfds.main([f"--input={path}", f"--output={folder / 'tfds'}", *flags])
    assert (folder / "tfds" / "dataset_info.json").is_file()


@pytest.mark.parametrize("script", ["coco_to_tfds", "cdd_cesm"])
def test_tfds_is_imported_before_a_progress_bar_starts(script, tmp_path):
    """Its import replaces the import function of all threads, and the thread of a bar imports modules too."""
    if script == "cdd_cesm":
        write_tables(tmp_path / "in", [image_row("P1_L_CM_CC")], [("P1_L_CM_CC", circle(9, 9, 2))], "csv")
        (tmp_path / "in" / "P1_L_CM_CC.png").write_bytes(encode_png(PIXELS["i0"]))
    source = tmp_path / "in" if script == "cdd_cesm" else coco_folder(tmp_path / "in")
    code = (
        f"import sys, {script} as script\n"
        "script.Progress = lambda *_, **__: sys.exit(7 if 'tensorflow_datasets' in sys.modules else 8)\n"
        "script.main(sys.argv[1:])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "data_prep"))}
    flags = [f"--input={source}", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 7, done.stderr
