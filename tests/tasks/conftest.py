"""What a small run of lesion synthesis leaves behind, for the reports of its tasks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from elk_jax import files
from elk_jax.data.sources import coco
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.inpainting.recipe import InpaintingRecipe, PaintStage, TrainInpainterStage
from elk_jax.tasks.lesion_quality.recipe import LesionQualityStage
from elk_jax.tasks.run import Experiment, MeshSettings, Run

SIDE = 48

SUMMARIES = {
    "inpainter": {"kind": "train", "best_step": 2, "data": {"train": {"images": 3}}},
    "lesions": {"kind": "synthesize", "count": 3},
    "quality": {"kind": "evaluate", "on": "real", "split": "train", "synthetic": "synthetic", "data": {"images": 3}},
}


@pytest.fixture
def summaries() -> dict:
    return SUMMARIES


@pytest.fixture
def painted_run(tmp_path) -> Run:
    """Three finished stages: trained, painted, compared."""
    reals = [info(name, [[4, 4, 16, 18], [30, 8, 36, 16]]) for name in "123"]
    write_set(tmp_path / "data", "real.json", reals, 60)
    where = {"box": [20, 20, 30, 32], "window": [8, 10, 40, 42]}
    painted = [info(f"{i:06d}", [where["box"]], canvas=canvas, **where) for i, canvas in enumerate("231")]
    write_set(tmp_path / "lesions", coco.SYNTHETIC, painted, 90)

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
    files.make_folder(tmp_path / "quality")
    files.write_json(tmp_path / "quality" / "evaluation.json", evaluation)
    for stage in SUMMARIES:
        files.write_json(tmp_path / stage / "finished.json", {"seconds": 1.0})
    for name in ("config.json", "versions.json"):
        files.write_json(tmp_path / name, {})

    data = {"real": SourceSpec(f"coco:{tmp_path / 'data' / 'real.json'}"), "synthetic": SourceSpec("stage:lesions")}
    stages = (
        TrainInpainterStage(name="inpainter", train_on=("real",), validate_on="real"),
        PaintStage(name="lesions", model="inpainter", canvases="real"),
        LesionQualityStage(name="quality", on="real", synthetic="synthetic"),
    )
    by_name = {stage.name: stage for stage in stages}
    experiment = Experiment("two", 0, MeshSettings(), "stop", data, {"inpainter": InpaintingRecipe()}, by_name)
    return Run(experiment, tmp_path, mesh=None)


def info(name: str, boxes: list, **meta) -> ImageInfo:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    none = np.zeros(len(boxes), np.int32), np.zeros(len(boxes), bool)
    patient, file = f"patient of {name}", f"image{name}.png"
    return ImageInfo(name, patient, SIDE, SIDE, boxes, *none, split="train", file_name=file, meta=meta)


def write_set(folder, file: str, infos: list[ImageInfo], grey: int) -> None:
    files.make_folder(folder / "images")
    for number, one in enumerate(infos):
        image = np.full((SIDE, SIDE), grey, np.uint8)
        image[:, : SIDE // 2] += np.arange(SIDE // 2, dtype=np.uint8) * (number + 1)
        cv2.imwrite(str(folder / "images" / one.file_name), image)
    coco.write_coco(folder / file, infos, ("lesion",))
