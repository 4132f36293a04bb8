"""The report of detection, read from the files of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from elk_jax import files
from elk_jax.data.sources.source import ImageSource
from elk_jax.evaluation import outcomes
from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.hits import Criterion
from elk_jax.reporting.pictures import Picture
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part
from elk_jax.tasks import training
from elk_jax.tasks.detection.page import DetectionRun, Evaluated, Pictures, detection_part
from elk_jax.tasks.detection.volumes_page import metric_section
from elk_jax.tasks.run import Run

SHOWN = 6
"""Number of best and of worst images shown for each model."""
SHOWN_RATE = 1.0
"""The gallery's threshold is the operating point with this many false positives per image."""


def part(run: Run, summaries: Mapping[str, Any]) -> Part:
    """The part of the report on the finished stages of detection. summaries: by stage."""
    trained = {name: s for name, s in summaries.items() if s["kind"] == "train"}
    measured = {name: s for name, s in summaries.items() if s["kind"] == "evaluate"}
    of_volumes = {name: s for name, s in measured.items() if s.get("metric") == "dbtex"}
    steps = {name: s["best_step"] for name, s in trained.items()}  # the model folder of joined folds names none
    found = detection_part(
        DetectionRun(
            evaluated=[_evaluated(run, name, s) for name, s in measured.items() if name not in of_volumes],
            trainings=replace(training.recorded(run, summaries), chosen_steps=steps),
            combined={name: s for name, s in summaries.items() if s["kind"] == "combine"},
            views=trained,
        )
    )
    return replace(found, sections=[*found.sections, *(_volumes(run, name, s) for name, s in of_volumes.items())])


def _volumes(run: Run, name: str, summary: Mapping[str, Any]) -> Section:
    folder = run.folder / name
    evaluations = {m: files.read_object(folder / m / "evaluation.json", "metrics") for m in summary["models"]}
    place = f"{summary['split']} split of {summary['on']}"
    return metric_section(place, evaluations, files.read_object(folder / "comparisons.json"))


def _evaluated(run: Run, name: str, summary: Mapping[str, Any]) -> Evaluated:
    """The results of a finished evaluation stage. Only the images of the gallery are decoded."""
    folder, source = run.folder / name, run.list(summary["on"], summary["split"])
    chosen = files.read_object(folder / "gallery.json")
    return Evaluated(
        on=f"{summary['split']} split of {summary['on']}",
        evaluations={m: files.read_object(folder / m / "evaluation.json") for m in summary["models"]},
        comparisons=files.read_object(folder / "comparisons.json"),
        pictures=[pictures(m, chosen[m], source) for m in summary["models"]],
        gains=summary.get("gains", {}),  # missing in earlier versions
    )


def choose_pictures(
    results: Sequence[ImageResult], criterion: Criterion, evaluation: Mapping[str, Any], count: int = SHOWN
) -> dict[str, Any]:
    """The best and worst images at the operating point of one false positive per image, as JSON-able data."""
    threshold = next((p["threshold"] for p in evaluation["operating_points"] if p["rate"] == SHOWN_RATE), None)
    limit = 0.5 if threshold is None else threshold
    by_id = {result.image_id: result for result in results}
    best, worst = outcomes.best_and_worst(outcomes.image_outcomes(results, criterion, limit), count)
    entries = lambda chosen: [_entry(by_id[o["image_id"]], o, limit) for o in chosen]
    return {"threshold": limit, "worst": entries(worst), "best": entries(best)}


def _entry(result: ImageResult, outcome: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    kept = result.scores >= threshold
    return {
        **outcome,
        "gt_boxes": np.asarray(result.gt_boxes, float).tolist(),
        "gt_ignore": np.asarray(result.gt_ignore, bool).tolist(),
        "gt_labels": np.asarray(result.gt_labels, int).tolist(),
        "boxes": result.boxes[kept].tolist(),
        "scores": result.scores[kept].tolist(),
        "labels": result.labels[kept].tolist(),
    }


def pictures(model: str, chosen: Mapping[str, Any], source: ImageSource) -> Pictures:
    """The chosen images with their pixels, without those removed from the source since the evaluation."""
    position = {info.image_id: i for i, info in enumerate(source.infos)}
    several = len(source.classes) > 1

    def names(entry: Mapping[str, Any], labels: str) -> list[str]:
        return [source.classes[label] for label in entry.get(labels, ())] if several else []  # not in earlier versions

    def draw(entry: Mapping[str, Any]) -> Picture:
        record = source[position[entry["image_id"]]]
        return Picture(
            image=record.image[..., :1],
            title=record.info.file_name or entry["image_id"],
            caption=outcomes.describe_outcome(entry),
            gt_boxes=np.reshape(np.asarray(entry["gt_boxes"], float), (-1, 4)),
            gt_ignore=np.asarray(entry["gt_ignore"], bool),
            boxes=np.reshape(np.asarray(entry["boxes"], float), (-1, 4)),
            scores=np.asarray(entry["scores"], float),
            gt_names=names(entry, "gt_labels"),
            names=names(entry, "labels"),
        )

    present = lambda kind: [entry for entry in chosen[kind] if entry["image_id"] in position]
    kinds = {kind: [draw(entry) for entry in present(kind)] for kind in ("worst", "best")}
    return Pictures(model=model, threshold=chosen["threshold"], **kinds)
