"""Run a trained detector over image files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from elk_jax import files
from elk_jax.data.sources import folder
from elk_jax.evaluation.detections import ImageResult
from elk_jax.progress import progress_bar
from elk_jax.tasks.detection import model as detection_model
from elk_jax.tasks.run import new_console, say_left_out
from elk_jax.training import mesh as meshes

CHOSEN_RATE = 1.0
"""False positives per image, on the validation split, of the threshold that is taken when none is given."""
COLOUR = (64, 196, 255)  # BGR


def predict_files(
    *,
    model: Path,
    inputs: Sequence[str],
    output: Path,
    threshold: float | None = None,
    score_floor: float = 0.01,
    pictures: bool = True,
    on_error: str = "stop",
    bit_depth: int = 0,
) -> list[ImageResult]:
    """Write findings.json, findings.csv and (pictures) one PNG an image into `output`. See launch/predict.py."""
    paths, left_out = folder.find_images(inputs)
    _, _, description = detection_model.load(model)
    classes = tuple(description["classes"])
    source = folder.open_files(paths, classes, on_error, progress=progress_bar("  decoding"), bit_depth=bit_depth)
    files.check_writable(output)
    threshold = chosen_threshold(description) if threshold is None else threshold
    results = detection_model.detect_with(model, source, meshes.make_mesh(), score_floor)
    files.make_folder(output)
    files.write_json(
        output / "findings.json", [entry for r in results for entry in _entries(r, description, threshold)]
    )
    files.write_text(output / "findings.csv", _csv(results, description["classes"], threshold))
    if pictures:
        picture_folder = files.make_folder(output / "pictures")
        for index, result in enumerate(results):
            drawn = draw(source[index].image, result, threshold)
            name = f"{index:04d}_{Path(result.image_id).stem}.png"
            files.write_bytes(picture_folder / name, cv2.imencode(".png", drawn)[1].tobytes())
    say_left_out(left_out, source.skipped)
    marked = sum(int((r.scores >= threshold).sum()) for r in results)
    told = f"{marked} findings at or above {threshold:.3f} in {len(results)} images: {output}"
    new_console().print(told, markup=False)
    return results


def chosen_threshold(description: Mapping[str, Any]) -> float:
    """The operating point that training saved with the model; 0.5 where the model found nothing in validation."""
    for point in description.get("operating_points", ()):
        if point["false_positives_per_image"] == CHOSEN_RATE and point["threshold"] is not None:
            return float(point["threshold"])
    return 0.5


def draw(image: np.ndarray, result: ImageResult, threshold: float) -> np.ndarray:
    """[H, W, 1] in [0, 1] -> [H, W, 3] uint8 BGR with the boxes that reach the threshold."""
    canvas = cv2.cvtColor((np.clip(image[..., 0], 0, 1) * 255).round().astype(np.uint8), cv2.COLOR_GRAY2BGR)
    thickness = max(1, round(max(canvas.shape) / 400))
    for box, score in zip(result.boxes, result.scores):
        if score >= threshold:
            x0, y0, x1, y1 = (round(float(v)) for v in box)
            cv2.rectangle(canvas, (x0, y0), (x1, y1), COLOUR, thickness)
            place = (x0, max(y0 - 3 * thickness, 14 * thickness))
            cv2.putText(canvas, f"{score:.2f}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * thickness, COLOUR, thickness)
    return canvas


def _entries(result: ImageResult, description: Mapping[str, Any], threshold: float) -> list[dict[str, Any]]:
    return [
        {
            "file": result.image_id,
            "class": description["classes"][int(label)],
            "box_xyxy": [round(float(v), 2) for v in box],
            "score": round(float(score), 5),
            "finding": bool(score >= threshold),
        }
        for box, score, label in zip(result.boxes, result.scores, result.labels)
    ]


def _csv(results: Sequence[ImageResult], classes: Sequence[str], threshold: float) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "class", "x0", "y0", "x1", "y1", "score", "finding"])
    for result in results:
        for box, score, label in zip(result.boxes, result.scores, result.labels):
            corners = [f"{float(v):.2f}" for v in box]
            writer.writerow([result.image_id, classes[int(label)], *corners, f"{score:.5f}", int(score >= threshold)])
    return text.getvalue()
