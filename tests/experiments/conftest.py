"""COCO files of a few patients and stand-ins for stages; the experiments of configs/ lie outside the package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from elk_jax import files
from elk_jax.experiments import report
from elk_jax.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.experiments import toy_task  # noqa: E402
from tests.experiments.checks import PATIENTS, stand_in  # noqa: E402


@pytest.fixture
def toy(monkeypatch):
    """The toy task among the tasks."""
    monkeypatch.setitem(TASKS, "toy", toy_task.TASK)


@pytest.fixture
def coco(tmp_path):
    """Writes FILE.json with an image of each patient, a lesion in each: (name, patients by split, lesions) -> spec."""

    def write(name: str, patients=PATIENTS, lesions=("train", "val", "test"), category: str = "mass") -> str:
        (tmp_path / "images").mkdir(exist_ok=True)
        images, annotations = [], []
        for split, patient in ((split, patient) for split, members in patients.items() for patient in members):
            number = len(images) + 1
            cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.zeros((48, 64), np.uint8))
            entry = {"id": number, "file_name": f"{number}.png", "width": 64, "height": 48, "split": split}
            images.append(entry | ({"patient_id": patient} if patient else {}))
            if split in lesions:
                annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [8, 8, 16, 16]})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": category}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return f"coco:{tmp_path / name}.json"

    return write


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The names of the stages that ran, in order: stand-ins that leave a checkpoint and a model."""
    names: list[str] = []

    def leave_files(run, stage, recipe):
        names.append(stage.name)
        folder = run.folder / stage.name
        if stage.kind == "train":
            files.make_folder(folder / "checkpoints" / "2")
            files.make_folder(folder / "model")
            files.write_json(folder / "model" / "model.json", {})
        return {"kind": stage.kind}

    for task in TASKS.values():
        for kind in task.stages:
            stand_in(monkeypatch, task.name, kind, leave_files)
    monkeypatch.setattr(report, "write", lambda run, summaries: "nowhere")
    return names
