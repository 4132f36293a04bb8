"""Pairs of the phantom and of COCO folders."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from elk_jax.data.sources import pairs
from elk_jax.data.sources.decode import encode_png
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.files import write_json
from elk_jax.synthesis.phantom import PhantomConfig, sample
from tests.refusals import refused

SPEC = "phantom:size=64,count=24,seed=3"


def opened(spec, size, split="", **settings):
    subtracted = open_source(SourceSpec(spec), split)
    return pairs.cut_pairs(pairs.pair_up(subtracted, SourceSpec(spec)), subtracted, size, **settings)


def coco_folder(folder, count=3, side=8, **changes):
    """`count` pairs of 8-bit images: low energy 100 + its number, subtracted 10 + its number, upper half black."""
    for name in ("low", "subtracted"):
        (folder / "images" / name).mkdir(parents=True)
    images = []
    for i in range(count):
        for name, grey in (("low", 100 + i), ("subtracted", 10 + i)):
            pixels = np.full((side, side), grey, np.uint8)
            pixels[: side // 2] = 0
            pixels[-1, -1] = 255  # where left and right, up and down can be told
            (folder / "images" / name / f"{i}.png").write_bytes(encode_png(pixels))
        entry = {"id": i + 1, "file_name": f"subtracted/{i}.png", "low_energy": f"low/{i}.png"}
        images.append(entry | {"width": side, "height": side, "patient_id": f"P{i}", "split": "train"} | changes)
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 4, 4]}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "lesion"}]}
    write_json(folder / "tiles.json", content)
    return f"coco:{folder / 'tiles.json'}"


def test_a_pair_of_the_phantom_is_one_breast():
    found = opened(SPEC, 64, "val")
    config = PhantomConfig(size=64)
    for i in range(len(found)):
        position, window = found.places[i]
        phantom = sample(3, 1_000_000 + position, config)
        assert found.infos[i].patient_id == phantom.patient_id and window == (0, 0, 64, 64)
        for image, drawn in zip(found[i], (phantom.low_energy, phantom.subtracted)):
            assert image.shape == (64, 64, 1) and image.dtype == np.float32
            np.testing.assert_allclose(image[..., 0], drawn, atol=0.5 / 255 + 1e-6)


def test_larger_images_are_cut_and_black_tiles_left_out():
    whole, cut = opened(SPEC, 64, "val", max_black=1.0), opened(SPEC, 32, "val")
    places = set(cut.places)
    for i in range(len(whole)):
        low, subtracted = whole[i]
        for window in ((0, 0, 32, 32), (32, 0, 64, 32), (0, 32, 32, 64), (32, 32, 64, 64)):
            x0, y0, x1, y1 = window
            black = (low[y0:y1, x0:x1] <= 0.02).mean()
            assert ((i, window) in places) == (black <= 0.7)
            if (i, window) in places:
                at = cut.places.index((i, window))
                np.testing.assert_array_equal(cut[at][1], subtracted[y0:y1, x0:x1])
    assert 0 < len(cut) < 4 * len(whole)


def test_a_coco_file_names_both_images_and_boxes_move_with_the_tile(tmp_path):
    found = opened(coco_folder(tmp_path), 4)
    assert len(found) == 3 * 2  # the upper half is black
    assert [window for _, window in found.places[:2]] == [(0, 4, 4, 8), (4, 4, 8, 8)]
    low, subtracted = found[3]
    assert low[0, 0, 0] == pytest.approx(101 / 255) and subtracted[0, 0, 0] == pytest.approx(11 / 255)
    np.testing.assert_allclose(found.infos[0].boxes, [[2, 0, 4, 3]])
    assert found.infos[0].width == 4 and len(found.infos[2].boxes) == 0


def test_several_sources_in_a_row(tmp_path):
    parts = [opened(coco_folder(tmp_path / n, count), 4) for n, count in (("a", 1), ("b", 3))]
    both = pairs.concatenate(parts)
    assert len(both) == 2 + 6 and [i.patient_id for i in both.infos] == ["P0"] * 4 + ["P1"] * 2 + ["P2"] * 2
    for i in range(len(both)):
        expected = parts[0][i] if i < 2 else parts[1][i - 2]
        np.testing.assert_array_equal(both[i], expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(both))[5], both[5])  # for worker processes
    again = pairs.concatenate([both, parts[0]])
    np.testing.assert_array_equal(again[9], parts[0][1])


def test_bad_pairs_are_named(tmp_path):
    spec = coco_folder(tmp_path / "a", low_energy=None)
    with refused("'low_energy'", where="image 1 (subtracted/0.png)"):
        opened(spec, 8)
    spec = coco_folder(tmp_path / "b")
    image = encode_png(np.full((8, 9), 90, np.uint8))
    (tmp_path / "b" / "images" / "low" / "1.png").write_bytes(image)
    with refused(9, 8, where="image 2 (low/1.png)"):
        opened(spec, 8, max_black=1.0)
    left = opened(spec, 8, max_black=1.0, on_error="skip")
    assert [i.patient_id for i in left.infos] == ["P0", "P2"] and left.skipped[0][0] == "2"
    with refused(16, where="subtracted/0.png"):
        opened(spec, 16)
    with refused(8, 3, "max_black", 0.1, where="c/tiles.json"):
        opened(coco_folder(tmp_path / "c"), 8, max_black=0.1)
    with refused("modality", where=SPEC + ",modality=low_energy"):
        opened(SPEC + ",modality=low_energy", 64)
    with refused("pairs", "coco:FILE.json", where="tfds:there"):
        pairs.pair_up(open_source(SourceSpec(spec)), SourceSpec("tfds:there"))
