"""From what the stages of lesion synthesis leave behind to the page."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from elk_jax import files
from elk_jax.data.sources import coco
from elk_jax.experiments import report
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.inpainting import report as inpainting_report
from elk_jax.tasks.run import SYNTHETIC, Run

SIDE = 48


def info(name: str, boxes: list, **meta) -> ImageInfo:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    none = np.zeros(len(boxes), np.int32), np.zeros(len(boxes), bool)
    return ImageInfo(name, f"patient of {name}", SIDE, SIDE, boxes, *none, "train", f"image{name}.png", meta)


def write_set(folder, file: str, infos: list[ImageInfo], grey: int) -> None:
    files.make_folder(folder / "images")
    for number, one in enumerate(infos):
        image = np.full((SIDE, SIDE), grey, np.uint8)
        image[:, : SIDE // 2] += np.arange(SIDE // 2, dtype=np.uint8) * (number + 1)
        cv2.imwrite(str(folder / "images" / one.file_name), image)
    coco.write_coco(folder / file, infos, ("lesion",))


@pytest.fixture
def run(tmp_path) -> Run:
    """Three finished stages: trained, painted, compared."""
    reals = [info(name, [[4, 4, 16, 18], [30, 8, 36, 16]]) for name in "123"]
    write_set(tmp_path / "data", "real.json", reals, 60)
    where = {"box": [20, 20, 30, 32], "window": [8, 10, 40, 42]}
    painted = [info(f"{i:06d}", [where["box"]], canvas=canvas, **where) for i, canvas in enumerate("231")]
    write_set(tmp_path / "lesions", SYNTHETIC, painted, 90)

    train = files.make_folder(tmp_path / "inpainter")
    files.write_text(train / "metrics.jsonl", '{"step": 5, "train/loss": 0.5}\n{"step": 5, "eval/loss": 0.4}\n')
    files.make_folder(train / "pictures")
    files.make_folder(train / "model")
    files.write_json(train / "model" / "model.json", {"trained": {"step": 5}})
    for step in (1, 2, 3, 4, 5):
        grid = np.repeat(np.array([10, 100, 40 * step], np.uint8), 8)[:, None].repeat(16, 1)
        cv2.imwrite(str(train / "pictures" / f"painted-{step:06d}.png"), grid)

    known = {"synthetic": "0", "training": "1", "lesion": 1, "similarity": 0.75, "flip": "both"}
    distance = {"distance": 1.0, "real_to_real": 2.0, "synthetic_to_real": 3.0, "half": 3}
    evaluation = {
        "counts": {"real": 6, "real_patients": 3, "synthetic": 3},
        "radiomics": distance,
        "real_or_synthetic": {"auc": 0.5, "low": 0.4, "high": 0.6},
        "memorised": {
            "threshold": 0.9, "memorised": [], "synthetic": 0.5, "real": 0.6, "similarity": [0.1] * 3,
            "pairs": [known, {**known, "synthetic": "of an older set"}],
        },
        "statistics": {},
        "notes": [],
    }  # fmt: skip
    files.make_folder(tmp_path / "evaluate")
    files.write_json(tmp_path / "evaluate" / "evaluation.json", evaluation)
    for stage in ("inpainter", "lesions", "evaluate"):
        files.write_json(tmp_path / stage / "finished.json", {"seconds": 1.0})
    for name in ("config.json", "versions.json"):
        files.write_json(tmp_path / name, {})

    entry = {"where": "", "train_where": "", "clean_boxes": False, "ignore_over": 0.0, "patients": 0}
    data = {
        "on_error": "stop",
        "real": {**entry, "spec": f"coco:{tmp_path / 'data' / 'real.json'}"},
        "synthetic": {**entry, "spec": "stage:lesions"},
    }
    stages = {
        "inpainter": {"kind": "train", "train_on": ("real",)},
        "lesions": {"kind": "synthesize", "model": "inpainter", "canvases": "real"},
        "evaluate": {"kind": "evaluate", "on": "real", "synthetic": "synthetic"},
    }
    return Run(ConfigDict({"name": "two", "seed": 0, "data": data, "stages": stages}), tmp_path, mesh=None)


SUMMARIES = {
    "inpainter": {"kind": "train", "best_step": 2, "data": {"train": {"images": 3}}},
    "lesions": {"kind": "synthesize", "count": 3},
    "evaluate": {"kind": "evaluate", "on": "real", "split": "train", "synthetic": "synthetic", "data": {"images": 3}},
}


def test_the_page_shows_what_every_stage_left(run):
    summaries = {name: {"task": "inpainting", **summary} for name, summary in SUMMARIES.items()}
    page = report.write(run, summaries).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Synthetic lesions",
        "Painted lesions",
        "Most like a training lesion",
        "Progress of the inpainter",
        "Inpainter training",
        "Data",
        "Environment",
    ]
    assert "Lesion synthesis · two" in page
    assert "and lesion 2 of image1, mirrored both ways; likeness 0.75" in page
    assert "inpainter at step 5" in page, "the step that the model folder names, not the best one"
    assert run.config.data.on_error == "stop"


def test_the_progress_shows_the_first_the_middle_and_the_last(run):
    found = inpainting_report.progress(run.folder / "inpainter", "inpainter")
    assert [one.step for one in found.steps] == [1, 3, 5]
    assert [int(one.image[0, 0]) for one in found.steps] == [40, 120, 200]
    assert {name: int(row[0, 0]) for name, row in found.known.items()} == {"Real": 10, "Covered": 100}
    assert inpainting_report.progress(run.folder / "lesions", "lesions") is None


def test_a_painted_lesion_is_shown_in_its_window_before_and_after(run):
    summary = SUMMARIES["lesions"]
    (first, *_) = inpainting_report._painted(run, "lesions", summary).painted
    before, after = first.closeups
    assert before.image.shape == after.image.shape == (32, 32)
    np.testing.assert_allclose(before.box, [12, 10, 22, 22])
    assert before.image[0, -1] == pytest.approx(60 / 255) and after.image[0, -1] == pytest.approx(90 / 255)
    assert before.image[0, 0] == pytest.approx((60 + 8 * 2) / 255), "canvas 2 is the second image"
    assert first.caption == "in image2, 10 × 12 px"


def test_real_lesions_are_shown_in_windows_of_that_size(run):
    shown = inpainting_report._painted(run, "lesions", SUMMARIES["lesions"]).real
    assert [strip.title for strip in shown] == ["image1", "image1", "image2", "image2", "image3", "image3"]
    for strip in shown:
        (closeup,) = strip.closeups
        assert closeup.image.shape == (32, 32)
        assert (closeup.box >= 0).all() and (closeup.box <= 32).all()
