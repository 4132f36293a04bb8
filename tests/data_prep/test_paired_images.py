"""From two sources of views to one COCO file of pairs in the frame of the first image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paired_images
import pairing
import pytest
from pair_sets import SHIFT, SIDE, phantom, write_set

from elk_jax.data.registration import chest_wall, warp
from elk_jax.data.sources.decode import encode_png
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.files import read_json, write_json
from elk_jax.images.breast import breast_mask
from tests.refusals import refused


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """(subtracted, low energy): the latter is moved by SHIFT."""
    folder = tmp_path_factory.mktemp("sets")
    return write_set(folder / "subtracted", "subtracted"), write_set(folder / "low", "low_energy")


def prepare(first, second, output, *more):
    specs = (one if ":" in str(one) else f"coco:{one}" for one in (first, second))
    paired_images.main(
        [*(f"--{name}={spec}" for name, spec in zip(("first", "second"), specs)), f"--output={output}", *more]
    )


@pytest.fixture(scope="module")
def built(sets, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "pairs"
    prepare(*sets, output, "--least_overlap=0.9")
    return output


def distances(found, true, mask):
    """In pixels, between where two matrices take the pixels of a mask."""
    rows, columns = np.nonzero(mask)
    return np.hypot(*((np.asarray(found) - true) @ np.stack([columns, rows, np.ones_like(rows)])))


def test_a_known_move_is_undone(built):
    source = open_source(SourceSpec(f"coco:{built / 'pairs.json'}", partner="partner"))
    assert [info.patient_id for info in source.infos] == ["P0", "P1"] and source.images == 2
    for index, info in enumerate(source.infos):
        breast, both = phantom(index), source[index].image
        assert distances(info.meta["matrix"], SHIFT, breast_mask(breast.subtracted)).mean() < 1
        np.testing.assert_allclose(both[..., 0], breast.subtracted, atol=0.5 / 255 + 1e-6)
        shown = (both[..., 1] > 0.02) & (breast.low_energy > 0.02)
        assert np.abs(both[..., 1] - breast.low_energy)[shown].mean() < 0.03
        assert info.meta["overlap"] > 0.95 and info.meta["likeness"] > 0.4
        assert info.meta["second_file"] == f"{index}_low_energy.png" and info.split == ("train", "test")[index]
        np.testing.assert_allclose(info.boxes, breast.boxes[:1], atol=2e-3)


def test_the_summary_counts_what_was_left_out(built):
    summary = read_json(built / "summary.json")
    assert summary["pairs"] == 2 and [name for name, _ in summary["not_registered"]] == ["2_subtracted.png"]
    assert {name: one["images"] for name, one in summary["splits"].items()} == {"test": 1, "train": 1}
    least, median, most = summary["overlap_least_median_most"]
    assert 0.9 <= least <= median <= most <= 1
    assert len(list((built / "overlays").iterdir())) == 3 and len(list(built.rglob("*.png"))) == 4


def test_breasts_are_matched_by_their_rectangles(sets, tmp_path):
    prepare(*sets, tmp_path / "out", "--register=breast", "--least_overlap=0")
    for info in open_source(SourceSpec(f"coco:{tmp_path / 'out' / 'pairs.json'}")).infos[:2]:
        index = int(info.patient_id[1:])
        assert distances(info.meta["matrix"], SHIFT, breast_mask(phantom(index).subtracted)).mean() < 4
        assert info.meta["overlap"] > 0.9


def test_unregistered_pairs_stay_and_are_dropped_for_their_overlap(sets, tmp_path):
    prepare(*sets, tmp_path / "all", "--register=none", "--least_overlap=0")
    images = read_json(tmp_path / "all" / "pairs.json")["images"]
    assert len(images) == 3 and all(image["matrix"] == [[1, 0, 0], [0, 1, 0]] for image in images)
    limit = images[0]["overlap"] - 1e-3
    assert 0.5 < limit < 0.97 and images[0]["overlap"] > images[2]["overlap"]
    prepare(*sets, tmp_path / "some", "--register=none", f"--least_overlap={limit}")
    summary = read_json(tmp_path / "some" / "summary.json")
    kept = [image["overlap"] for image in read_json(tmp_path / "some" / "pairs.json")["images"]]
    dropped = [overlap for _, overlap in summary["below_overlap"]]
    assert min(kept) >= limit > max(dropped) and len(kept) + len(dropped) == 3 and not summary["not_registered"]
    with refused("3", "overlap", where=sets[1]):
        prepare(*sets, tmp_path / "none", "--register=none", "--least_overlap=1")
    assert not (tmp_path / "none").exists()


def test_sizes_that_differ_need_the_size_of_a_pixel(tmp_path):
    """Pixels of half the size show the same field of view."""
    first = write_set(tmp_path / "first", "subtracted", 1, pixel_spacing=[0.2, 0.2])
    content = read_json(first)
    halves = {"width": SIDE // 2, "height": SIDE // 2, "pixel_spacing": [0.4, 0.4]}
    small = np.round(phantom(0).subtracted.reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3)) * 255).astype(np.uint8)

    def second(name, **changes):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "0_subtracted.png").write_bytes(encode_png(small))
        write_json(
            folder / "a.json", {**content, "images": [content["images"][0] | halves | changes], "annotations": []}
        )
        return folder / "a.json"

    prepare(first, second("half"), tmp_path / "out", "--register=none")
    (info,) = open_source(SourceSpec(f"coco:{tmp_path / 'out' / 'pairs.json'}")).infos
    np.testing.assert_allclose(info.meta["matrix"], [[0.5, 0, -0.25], [0, 0.5, -0.25]])  # (x + 0.5) / 2 - 0.5
    assert info.meta["overlap"] > 0.97
    for name, changes, word in (
        ("unknown", {"pixel_spacing": None}, "pixel_spacing"),
        ("other", {"pixel_spacing": [0.3, 0.4]}, "field"),
    ):
        with refused(f"{SIDE // 2} x {SIDE // 2}", word):
            prepare(first, second(name, **changes), tmp_path / name / "out", "--register=none")
    with refused("'0.4 mm'", "mm", where="image 1 (0_subtracted.png)"):
        prepare(first, second("text", pixel_spacing="0.4 mm"), tmp_path / "text" / "out", "--register=none")


def test_a_misplacement_is_random_known_and_repeated(sets, tmp_path):
    """The images of a phantom are aligned: what is left is the misplacement that was asked for."""
    spec = "phantom_volumes:size=64,count=12,modality={}"
    first, second = (spec.format(name) for name in ("synthetic_2d", "mammogram"))
    flags = ("--register=none", "--least_overlap=0.9", "--shift=4", "--zoom=0.05")
    prepare(first, second, tmp_path / "a", *flags)
    prepare(first, second, tmp_path / "b", *flags)
    prepare(first, second, tmp_path / "c", *flags, "--seed=1")
    entries = {name: read_json(tmp_path / name / "pairs.json")["images"] for name in "abc"}
    assert entries["a"] == entries["b"] and [e["moved"] for e in entries["a"]] != [e["moved"] for e in entries["c"]]
    for path in sorted((tmp_path / "a").rglob("*.png")):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()
    assert len({tuple(entry["moved"]) for entry in entries["a"]}) == len(entries["a"]) == 12
    source = open_source(SourceSpec(f"coco:{tmp_path / 'a' / 'pairs.json'}", partner="partner"))
    mammograms = {info.image_id: image for info, image in zip(*aligned(second))}
    for info, record in zip(source.infos, source):
        zoom, moved = info.meta["zoomed"], np.array(info.meta["moved"])
        assert 0.95 <= zoom <= 1.05 and (np.abs(moved) <= 4).all() and info.meta["overlap"] > 0.9
        # a place p of the first image is shown at held + zoom * (p - held) + moved
        held = np.array(chest_wall(record.image[..., 0]))
        there = np.array(info.meta["matrix"]) @ [*(held + moved - 0.5), 1]
        np.testing.assert_allclose(there, held - 0.5, atol=1e-3)
        before = mammograms[f"{info.patient_id}_{info.meta['laterality']}_{info.meta['view']}"]
        shown = warp(before, np.array(info.meta["matrix"]), before.shape)
        np.testing.assert_allclose(record.image[..., 1], shown, atol=0.6 / 255)


def aligned(spec):
    source = open_source(SourceSpec(spec))
    return source.infos, [record.image[..., 0] for record in source]


def test_several_images_of_a_view_are_matched_by_their_acquisition(tmp_path):
    """Of one patient: three images against two, of which the ids tell another order than the acquisition."""
    one = {"patient_id": "P", "laterality": "L", "view": "CC", "split": "train"}
    first = write_set(tmp_path / "first", "subtracted", 3, lambda index: {"acquisition": (10, 9, None)[index]}, **one)
    second = write_set(tmp_path / "second", "low_energy", 2, lambda index: {"id": (10, 9)[index]}, **one)
    prepare(first, second, tmp_path / "out", "--register=none", "--least_overlap=0")
    images = read_json(tmp_path / "out" / "pairs.json")["images"]
    assert {image["first_file"]: image["second_file"] for image in images} == {
        "1_subtracted.png": "1_low_energy.png",
        "0_subtracted.png": "0_low_energy.png",
    }
    assert len({image["file_name"].casefold() for image in images}) == 2
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["surplus"] == ["2_subtracted.png"] and not summary["without_partner"]


def test_exams_of_other_dates_are_no_pair(tmp_path):
    first = write_set(tmp_path / "first", "subtracted", 2, study_date="2020-01-02")
    dates = lambda index: {"study_date": ("2020-01-02", "2021-03-04")[index]}
    prepare(first, write_set(tmp_path / "second", "low_energy", 2, dates), tmp_path / "out")
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["pairs"] == 1 and summary["without_partner"] == ["1_subtracted.png", "1_low_energy.png"]


def test_sets_that_are_no_pairs_are_refused(sets, tmp_path):
    out = tmp_path / "out"
    for name, changes, words in (
        ("other", {"view": "ML"}, ("P0 L CC", "P0 L ML")),
        ("bare", {"laterality": None}, ("'laterality'", "(0_low_energy.png)")),
        ("split", {"split": "val"}, ("0_low_energy.png", "'val'", "'train'")),
    ):
        with refused() as raised:
            prepare(sets[0], write_set(tmp_path / name, "low_energy", 1, **changes), out)
        assert all(word in str(raised.value) for word in words), raised.value
    with refused("same images", where=sets[0].parent / ".." / sets[0].parent.name / sets[0].name):
        prepare(sets[0], sets[0].parent / ".." / sets[0].parent.name / sets[0].name, out)
    for flag, value in (("least_overlap", 1.5), ("shift", -1.0), ("zoom", 0.7), ("seed", -1)):
        with refused(value, where=f"--{flag}"):
            prepare(*sets, out, f"--{flag}={value}")
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_names_are_plain_and_each_given_once(sets):
    infos = open_source(SourceSpec(f"coco:{sets[0]}")).infos[:1]
    patients = ["a/b", "a-b", "A-B", "a_b", "../x"]
    names = pairing.file_names([replace(infos[0], patient_id=patient) for patient in patients])
    assert len({name.casefold() for name in names}) == 5 and not any("/" in name for name in names)
