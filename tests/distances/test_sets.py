import json

import cv2
import numpy as np
import pytest

from elk_jax import host_memory
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.distances import sets
from elk_jax.evaluation import radiomics_table
from tests.golden import textures
from tests.refusals import refused


@pytest.fixture
def folder(tmp_path):
    for label in ("benign", "malignant"):
        (tmp_path / label).mkdir()
        for number in range(4):
            image = textures.image("rough", 12, 10 + 2 * (number % 2), number + 10 * (label == "benign"))
            cv2.imwrite(str(tmp_path / label / f"P{number // 2}_{label[0]}{number}.png"), image)
    return tmp_path


def test_read(folder):
    found = sets.read(SourceSpec(f"folders:{folder}", patient_pattern=r"(P\d)_"), "")
    assert len(found) == 8 and found.classes == ("benign",) * 4 + ("malignant",) * 4
    assert found.patients[:4] == ("P0", "P0", "P1", "P1") and found.titles[0] == "P0_b0"
    np.testing.assert_allclose(found.images[1] * 255, textures.image("rough", 12, 12, 11), atol=1e-4)
    assert found.sizes() == [(10, 12), (12, 12)] and sets.copies(found) == 0
    assert sets.of_class(found, "malignant").tolist() == [4, 5, 6, 7]


def test_images_without_patient_leave_a_doubt_about_halves(folder):
    """Images of a patient in both halves make the reference too small."""
    unnamed = sets.read(SourceSpec(f"folders:{folder}"), "")
    assert "8 of 8 real images name no patient" in unnamed.doubt
    assert sets.read(SourceSpec(f"folders:{folder}", patient_pattern=r"(P\d)_"), "").doubt == ""


def test_some_are_drawn_by_the_seed(folder):
    spec = SourceSpec(f"folders:{folder}")
    three = sets.read(spec, "", most=3, seed=1)
    assert len(three) == 3 and three.titles == sets.read(spec, "", most=3, seed=1).titles
    assert len({sets.read(spec, "", most=3, seed=seed).titles for seed in range(8)}) > 1
    assert len(sets.read(spec, "", most=30)) == 8


def test_an_unreadable_image_is_skipped_where_that_is_asked_for(folder):
    (folder / "benign" / "P0_b0.png").write_bytes(b"no picture")
    found = sets.read(SourceSpec(f"folders:{folder}"), "", on_error="skip")
    assert len(found) == 7 and "b0" in found.skipped[0][0]
    with refused(where="benign/P0_b0.png"):
        sets.read(SourceSpec(f"folders:{folder}"), "")


def test_copies_and_shared_images(folder):
    found = sets.read(SourceSpec(f"folders:{folder}"), "")
    with refused("8 images are in both", where=found.name):
        sets.check_apart(found, found)
    cv2.imwrite(str(folder / "malignant" / "again.png"), (found.images[0] * 255).round().astype(np.uint8))
    assert sets.copies(sets.read(SourceSpec(f"folders:{folder}"), "")) == 1


def test_pairs_are_refused():
    with refused("partner"):
        sets.read(SourceSpec("phantom:size=64,count=12", partner="low_energy"), "")


def test_more_than_fits_memory_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(host_memory, "installed", lambda: 4 * 3 * 12 * 12 * 4)  # a quarter holds three
    spec = SourceSpec(f"folders:{folder}")
    with refused("8 images", "--count", where=str(folder)):
        sets.read(spec, "")
    assert len(sets.read(spec, "", most=3)) == 3


def test_regions_of_lesions(tmp_path):
    """A mask, where there is one; else all boxes, those to ignore left out; else the whole image."""
    boxes = {"a.png": [[1, 2, 4, 3]], "b.png": [[0, 0, 2, 2], [6, 7, 3, 2]], "c.png": [], "d.png": [[0, 0, 12, 10]]}
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number, (name, given) in enumerate(boxes.items(), start=1):
        cv2.imwrite(str(tmp_path / "images" / name), textures.image("rough", 10, 12, number))
        images.append({"id": number, "file_name": name, "width": 12, "height": 10})
        annotations += [{"image_id": number, "category_id": 1, "bbox": box} for box in given]
    annotations.append({"image_id": 3, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1})
    annotations = [one | {"id": number} for number, one in enumerate(annotations)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "mass"}]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    spec = SourceSpec(f"coco:{tmp_path / 'set.json'}")
    assert sets.read(spec, "").regions == ()
    a, b, c, d = sets.read(spec, "", regions="boxes").regions
    expected = np.zeros((2, 10, 12), bool)
    expected[0, 2:5, 1:5] = expected[1, :2, :2] = expected[1, 7:9, 6:9] = True
    np.testing.assert_array_equal([a, b], expected)
    assert c is None and d is None
    with refused("masks", where=spec.spec):
        sets.read(spec, "", regions="masks")
    (tmp_path / "masks").mkdir()
    with refused("name of an image", where=tmp_path / "masks"):
        sets.read(spec, "", regions="masks")
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), 255 * np.tri(10, 12, dtype=np.uint8))
    found = sets.read(spec, "", regions="masks")
    np.testing.assert_array_equal(found.regions[:2], [np.tri(10, 12, dtype=bool), expected[1]])
    table = radiomics_table.table([255 * found.images[0]], radiomics_table.V0, found.regions[:1])
    assert table.values[0, table.names.index("shape2D_PixelSurface")] == np.tri(10, 12).sum()
