"""Folders of classes as a source: which images, classes, splits and patients, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from elk_jax.data.sources.coco import SYNTHETIC, behind_folder, write_coco
from elk_jax.data.sources.open import list_source, open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.privacy.accounting import Ledger, Phase
from elk_jax.privacy.mechanism import Statement
from tests.refusals import refused

NAMES = ("train/benign/P_01_a.png", "train/benign/P_02_a.png", "train/malignant/P_02_b.png", "test/malignant/P_3.png")


@pytest.fixture
def at(tmp_path):
    """(names, **settings) -> the spec of a folder with pictures of these names."""

    def make(names=NAMES, **settings) -> SourceSpec:
        for number, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((4, 6 + number), 10 * number, np.uint8))
        return SourceSpec(f"folders:{tmp_path}", **settings)

    return make


def test_every_image_is_one_box_of_the_class_of_its_folder(at):
    source = open_source(at(patient_pattern=r"P_(\d+)"), "train")
    assert source.classes == ("benign", "malignant")
    found = [(info.image_id, info.patient_id, info.meta["class"], info.split) for info in source.infos]
    assert found == [
        ("train/benign/P_01_a.png", "01", "benign", "train"),
        ("train/benign/P_02_a.png", "02", "benign", "train"),
        ("train/malignant/P_02_b.png", "02", "malignant", "train"),
    ]
    last = source[2]
    assert last.info.labels.tolist() == [1] and last.info.boxes.tolist() == [[0, 0, 8, 4]]
    assert last.image.shape == (4, 8, 1) and last.image.max() == pytest.approx(20 / 255)


def test_links_to_folders_are_followed(at, tmp_path):
    """A class whose folder is a link was left out."""
    spec = at(("set/train/benign/0.png", "elsewhere/1.png", "elsewhere/2.png"))
    folder = tmp_path / "set"
    (folder / "train" / "malignant").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    source = open_source(replace(spec, spec=f"folders:{folder}"), "train")
    assert source.classes == ("benign", "malignant") and len(source) == 3 and source[2].image.shape == (4, 8, 1)


def test_a_folder_of_a_misspelt_split_is_refused(at):
    with refused("'tarin'", "'train'", 1):
        list_source(at((*NAMES, "tarin/benign/P_9.png")), "train")


def test_what_is_behind_drawn_images_goes_with_them(tmp_path):
    """Read as folders, a drawn set has still seen the patients of its generator, and promises what that promised."""
    root = tmp_path / "set"
    for folder in ("images/benign", "images/malignant", "images/other/benign"):
        (root / folder).mkdir(parents=True)
    for name in ("images/benign/0.png", "images/malignant/0.png"):
        cv2.imwrite(str(root / name), np.zeros((4, 4), np.uint8))
    promise = Statement(True, 1.0, 1e-5, "pld", Ledger((Phase(1.0, 4.0, 3),), "patient"), identity="a")
    write_coco(root / SYNTHETIC, [], ["benign"], seen_patients=["ab"], promises=[promise])
    (tmp_path / "link").symlink_to(root / "images")
    for place in (root, root / "images", tmp_path / "link", f"{root}/images/../images"):
        found = list_source(SourceSpec(f"folders:{place}"))
        assert len(found) == 2 and found.seen_patients == {"ab"} and found.promises == (promise,), place
    real = tmp_path / "real"
    (real / "benign").mkdir(parents=True)
    (real / "malignant").symlink_to(root / "images" / "malignant")
    (real / "benign" / "0.png").symlink_to(root / "images" / "benign" / "0.png")
    found = list_source(SourceSpec(f"folders:{real}"))
    assert len(found) == 2 and found.seen_patients == {"ab"} and found.promises == (promise,), "once, of both links"
    elsewhere = root / "images" / "other" / "benign"
    assert behind_folder(elsewhere) == (frozenset(), ()), "of images without such a file nothing is known"
    (root / SYNTHETIC).write_text("{")
    with refused("JSON", where=SYNTHETIC):
        list_source(SourceSpec(f"folders:{root / 'images'}"))


def test_every_setting_of_a_source_holds(at):
    ids = lambda split="", **settings: [info.image_id for info in open_source(at(**settings), split).infos]
    assert ids(where="class=malignant") == ["test/malignant/P_3.png", "train/malignant/P_02_b.png"]
    assert len(ids("train", patients=1, patient_pattern=r"P_(\d+)")) in (1, 2)
    shared = at(split_shares=(1, 1, 1))
    with refused("train", "split_shares", where=shared.place):
        list_source(shared)


def test_without_splits_patients_are_dealt_out(at):
    names = [f"{kind}/P_{number}_{kind[0]}.png" for number in range(6) for kind in ("benign", "malignant")]
    spec = at(names, split_shares=(0.6, 0.2, 0.2), patient_pattern=r"P_(\d+)")
    patients = [{info.patient_id for info in list_source(spec, split).infos} for split in ("train", "val", "test")]
    assert sorted(map(len, patients)) == [1, 1, 4] and len(frozenset().union(*patients)) == 6
    with refused("split_shares", where=spec.place):
        list_source(at(names), "train")


def test_without_a_pattern_every_image_is_its_own_patient(at):
    infos = list_source(at()).infos
    assert [info.patient_id for info in infos] == [info.image_id for info in infos]


def test_an_image_without_a_patient_in_its_name_is_named(at):
    with refused("P_3.png", "patient_pattern", where="image test/malignant/P_3.png"):
        list_source(at(patient_pattern=r"P_(\d\d)"))


def test_the_pattern_names_the_patients_of_any_kind_of_source():
    spec = SourceSpec("phantom:size=64,count=12", patient_pattern=r"P(\d+)")
    assert {info.patient_id for info in list_source(spec, "val").infos} == {f"{1_000_000 // 4:05d}"}


@pytest.mark.parametrize(
    "pattern, words", [("P_(", ["regular"]), (r"P_\d+", ["0 groups"]), (r"(P)_(\d+)", ["2 groups", "(?:"])]
)
def test_a_pattern_that_cannot_be(pattern, words):
    with refused(*words, where="patient_pattern"):
        SourceSpec("folders:a", patient_pattern=pattern)


@pytest.mark.parametrize(
    "names, where, words",
    [
        ((*NAMES, "stray.png"), "stray.png", ["0 folders", "DIR/CLASS"]),
        ((*NAMES, "train/benign/more/a.png"), "train/benign/more/a.png", ["3 folders"]),
        (("a.png", "b.png"), "a.png", ["0 folders"]),
        (("train/benign/a.png", "test/Benign/a.png"), "", ["Benign", "benign"]),
        (("train/none/a.png",), "train/none/a.png", ["none"]),
        ((), "", ["no image"]),
    ],
)
def test_layouts_that_are_refused(at, names, where, words):
    spec = at(names)
    with refused(*words, where=Path(spec.place) / where):
        list_source(spec)


def test_a_place_that_is_no_folder(at, tmp_path):
    at()
    for place in ("", "/nowhere", tmp_path / NAMES[0]):
        with refused("folder", where=f"folders:{place}"):
            list_source(SourceSpec(f"folders:{place}"))


def test_other_files_and_damaged_images(at, tmp_path):
    spec = at()
    for name in ("README.md", "train/benign/Thumbs.db", "test/malignant/notes.txt", "train/benign/.DS_Store"):
        (tmp_path / name).write_text("text")
    (tmp_path / "train/benign/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    source = list_source(spec, "train")
    assert source.skipped == (("train/benign/Thumbs.db", "not an image"),)
    broken = next(i for i, info in enumerate(source.infos) if "broken" in info.image_id)
    with refused("image", where="broken.png"):
        source[broken]
    with refused("image", where="broken.png"):
        open_source(spec, "train")
    skipping = open_source(spec, "train", on_error="skip")
    assert len(skipping) == len(source) - 1
    assert [name for name, _ in skipping.skipped] == ["train/benign/Thumbs.db", "train/benign/broken.png"]


def test_made_images_without_a_split_are_for_training(at):
    names = ("benign/1.png", "malignant/2.png")
    with refused("train", where=""):
        list_source(at(names), "train")
    made = list_source(at(names, made_from=("patches",)), "train")
    assert [info.split for info in made.infos] == ["train", "train"]
    with refused("train (2)", where=""):
        list_source(at(names, made_from=("patches",)), "test")
