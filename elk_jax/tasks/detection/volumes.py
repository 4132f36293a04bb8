"""Detectors over tomosynthesis volumes: slices are the batch, and their detections become findings of the volume.

Shapes: S slices of a volume, padded to a multiple of SLICES_STEP; K detections of a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from elk_jax import files
from elk_jax.data.sources import bcs_dbt
from elk_jax.data.sources.open import KINDS, open_source
from elk_jax.data.sources.source import read_at
from elk_jax.data.sources.spec import OnError, SourceSpec
from elk_jax.data.sources.volumes import Volume, as_source, find_volumes, volumes_of
from elk_jax.detection.volumes import COMOTO, VolumeRule, find
from elk_jax.errors import UserError
from elk_jax.evaluation import submission
from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.volumes import LEAST_DISTANCE, VolumeDetections, VolumeResult, VolumeTruth, evaluate_volumes
from elk_jax.progress import progress_bar
from elk_jax.reporting.report import write_report
from elk_jax.tasks.detection import predict
from elk_jax.tasks.detection.model import Trained, load
from elk_jax.tasks.detection.volumes_page import evaluation_page, findings_page
from elk_jax.tasks.run import new_console, patients_seen, report_skipped
from elk_jax.training import mesh as meshes

SLICES_STEP, DETECTIONS_STEP = 16, 16
"""Volumes of similar numbers share one compilation."""
FULL_HEIGHT = 1000
"""Pixels of a slice from which on the distances of the DBTex metric, which are pixels, are a small part of it."""

Rule = Literal["group", "comoto"]
"""A setting: how detections of slices become findings."""
RULES: dict[Rule, VolumeRule] = {"group": VolumeRule(), "comoto": COMOTO}


def detect_volumes(
    trained: Trained,
    volumes: Sequence[Volume],
    mesh: Mesh,
    rule: VolumeRule,
    score_floor: float = 0.0,
    flips: Sequence[str] | None = None,
) -> list[VolumeDetections]:
    """The findings of whole volumes; a few slices are in memory at a time.

    flips: as in `predict.detect_with`. UserError for volumes of which slices are left out.
    """
    for volume in volumes:
        if len(volume) != volume.slices:
            what = f"{len(volume)} of {volume.slices} slices of the volume {volume.name}"
            raise UserError(what, where=volume.infos[0].file_name, todo="choose all slices of the volumes")
    seen = [_without_ends(volume, rule.margin) for volume in volumes]
    source = predict.without_truth(as_source(seen, trained.description.classes))
    results = predict.detect_with(trained, source, mesh, score_floor, flips)
    most = max(len(result.scores) for result in results)
    per_slice = max(1, -(-most // DETECTIONS_STEP)) * DETECTIONS_STEP
    found, start = [], 0
    for volume in seen:
        found.append(findings_of(rule, results[start : start + len(volume)], volume, per_slice))
        start += len(volume)
    return found


def _without_ends(volume: Volume, margin: int) -> Volume:
    """The slices that are looked at: all of a volume that has no others."""
    positions = tuple(range(margin, len(volume) - margin))
    if not positions:
        return volume
    return Volume(tuple(volume.infos[k] for k in positions), partial(read_at, volume.read, positions))


_find = jax.jit(find, static_argnums=0)


def findings_of(rule: VolumeRule, results: Sequence[ImageResult], volume: Volume, per_slice: int) -> VolumeDetections:
    """The findings from the detections of the slices of a volume, in order. per_slice: K, enough for all."""
    slices = -(-len(results) // SLICES_STEP) * SLICES_STEP
    boxes, scores = np.zeros((slices, per_slice, 4), np.float32), np.zeros((slices, per_slice), np.float32)
    labels, valid = np.zeros((slices, per_slice), np.int32), np.zeros((slices, per_slice), bool)
    for k, result in enumerate(results):
        count = len(result.scores)
        boxes[k, :count], scores[k, :count], labels[k, :count] = result.boxes, result.scores, result.labels
        valid[k, :count] = True
    found = jax.device_get(_find(rule, boxes, scores, labels, valid, np.int32(len(results))))
    kept, at = found.valid, np.array([info.slice for info in volume.infos])
    best, first, last = (at[places[kept]] for places in (found.best, found.first, found.last))
    return VolumeDetections(
        found.boxes[kept].astype(float),
        first.astype(float),
        (last - first).astype(float),
        best,
        found.scores[kept].astype(float),
        found.labels[kept].astype(int),
    )


def truth_of(volume: Volume) -> VolumeTruth:
    """The lesions of a volume of a source, for the metric."""
    return VolumeTruth(volume.patient_id, volume.study, volume.view, volume.slices, *volume.lesions())


# ---- launch/evaluate.py --metric=dbtex -------------------------------------------------------------------------------


def evaluate_dbtex(
    *,
    model: Path | None,
    predictions: Path | None,
    data: SourceSpec,
    split: str,
    on_error: OnError,
    output: Path,
    rule: Rule,
    score_floor: float,
    resamples: int,
    flips: Sequence[str] | None,
) -> dict[str, Any]:
    """Write evaluation.json, submission.csv and report.html into `output`, print the table, return the evaluation.

    model: a model folder; None to evaluate `predictions`, a CSV file of the challenge, for which tables of BCS-DBT
    suffice without their images.
    """
    files.check_writable(output)
    notes: list[str] = []
    volumes: tuple[Volume, ...] = ()
    if model is None and predictions is not None:
        results = submission.read(predictions, _truths(data, split, on_error))
    else:
        assert model is not None
        volumes = _opened(data, split, on_error)
        trained = load(model)
        notes = patients_seen(model.name, model, [info for volume in volumes for info in volume.infos])
        found = detect_volumes(trained, volumes, meshes.make_mesh(), RULES[rule], score_floor, flips)
        results = [VolumeResult(truth_of(volume), one) for volume, one in zip(volumes, found, strict=True)]
    evaluation = evaluate_volumes(results, resamples=resamples) | {"notes": notes}
    notes += size_notes(volumes)
    place = f"{split or 'every'} split of {data.spec}"
    with files.locked(files.make_folder(output)):
        files.write_json(output / "evaluation.json", evaluation)
        files.write_text(output / "submission.csv", submission.text(results))
        write_report(
            output / "report.html", evaluation_page(str(model or predictions), place, evaluation, results, volumes)
        )
    console = new_console()
    console.print(_table(evaluation, place))
    for note in notes:
        console.print(f"note: {note}")
    console.print(f"report: {output / 'report.html'}")
    return evaluation


def size_notes(volumes: Sequence[Volume]) -> list[str]:
    """A line where slices are so small that the pixels within which the metric counts a hit are much of the breast."""
    heights = [volume.infos[0].height for volume in volumes]
    if not heights or min(heights) >= FULL_HEIGHT:
        return []
    return [
        f"slices are {min(heights)} px high: the metric counts a hit within {LEAST_DISTANCE:.0f} px, as fits those of "
        "the challenge, about 2,400 px high; of smaller ones it says little"
    ]


def _opened(data: SourceSpec, split: str, on_error: OnError) -> tuple[Volume, ...]:
    """Whole volumes of a source, whose slices are not kept in memory."""
    whole = replace(data, slices="all") if data.kind in KINDS and KINDS[data.kind].of_volumes else data
    return volumes_of(open_source(whole, split, on_error=on_error, cache_bytes=0, progress=progress_bar("  opening")))


def _truths(data: SourceSpec, split: str, on_error: OnError) -> list[VolumeTruth]:
    """The volumes that predictions made elsewhere are of. Of BCS-DBT the tables are read alone."""
    if data.kind != "bcs_dbt":
        return [truth_of(volume) for volume in _opened(data, split, on_error)]
    if data != SourceSpec(data.spec):
        todo = "leave conditions and other settings out"
        raise UserError("predictions are evaluated on all volumes of the tables", where=data.spec, todo=todo)
    entries = bcs_dbt.read_entries(Path(data.place), split)
    if not entries:
        raise UserError(f"no volume in split '{split}'", where=data.spec, todo="choose another split")
    return [VolumeTruth(one.patient_id, one.study, one.view, one.slices, one.boxes, one.at) for one in entries]


def _table(evaluation: dict[str, Any], place: str) -> Table:
    counts = "volumes", "volumes_with_lesions", "lesions", "patients"
    said = ", ".join(f"{evaluation[name]} {name.replace('_', ' ')}" for name in counts)
    table = Table(title=f"{place}: {said}")
    for column in ("Metric", "Value", "95 % interval"):
        table.add_column(column)
    for name, entry in evaluation["metrics"].items():
        value = "not defined" if entry["value"] is None else f"{entry['value']:.3f}"
        bounds = "" if entry["low"] is None else f"{entry['low']:.3f} to {entry['high']:.3f}"
        table.add_row(name.replace("_", " "), value, bounds)
    return table


# ---- launch/predict.py --volumes -------------------------------------------------------------------------------------


def predict_inputs(
    *,
    model: Path,
    inputs: Sequence[str],
    decoding: SourceSpec,
    on_error: OnError,
    output: Path,
    settings: predict.PredictSettings,
) -> object:
    """`predict.predict_files` of images, or `predict_volumes`, of which an unreadable one stops."""
    if not settings.volumes:
        return predict.predict_files(
            model=model, inputs=inputs, decoding=decoding, on_error=on_error, output=output, settings=settings
        )
    if on_error != "stop":
        todo = "leave it out, and give the volumes that can be read"
        raise UserError("volumes are read while they are looked at: none can be skipped", where="--on_error", todo=todo)
    return predict_volumes(model=model, inputs=inputs, decoding=decoding, output=output, settings=settings)


def predict_volumes(
    *, model: Path, inputs: Sequence[str], decoding: SourceSpec, output: Path, settings: predict.PredictSettings
) -> list[VolumeResult]:
    """Write findings.csv (the challenge's columns), findings.json and report.html into `output`.

    inputs: DICOM files of several frames, folders of slices, and folders of such.
    """
    pairs = [find_volumes(Path(entry), decoding) for entry in inputs]
    by_name = {volume.name: volume for volumes, _ in pairs for volume in volumes}
    volumes = list(by_name.values())
    trained = load(model)
    files.check_writable(output)
    points = trained.description.operating_points
    threshold = predict.chosen_threshold(points) if settings.threshold is None else settings.threshold
    rule = RULES[settings.volume_rule]
    found = detect_volumes(trained, volumes, meshes.make_mesh(), rule, settings.score_floor)
    results = [VolumeResult(truth_of(volume), one) for volume, one in zip(volumes, found, strict=True)]
    classes = trained.description.classes
    entries = [entry for pair in zip(volumes, found) for entry in _entries(*pair, classes, threshold)]
    with files.locked(files.make_folder(output)):
        files.write_text(output / "findings.csv", submission.text(results))
        files.write_json(output / "findings.json", entries)
        if settings.pictures:
            write_report(output / "report.html", findings_page(volumes, found, threshold))
    report_skipped([], [(str(path), reason) for _, skipped in pairs for path, reason in skipped])
    count = sum(int((one.scores >= threshold).sum()) for one in found)
    new_console().print(f"{count} findings at or above {threshold:.3f} in {len(volumes)} volumes: {output}")
    return results


def _entries(volume: Volume, found: VolumeDetections, classes: Sequence[str], threshold: float) -> list[dict[str, Any]]:
    """JSON-able findings: slices count from 0, `slices` is the first and the last."""
    return [
        {
            "volume": volume.name,
            "class": classes[int(found.labels[k])],
            "slice": int(found.best[k]),
            "slices": [int(found.first[k]), int(found.first[k] + found.depth[k])],
            "box_xyxy": [round(float(side), 2) for side in found.boxes[k]],
            "score": round(float(found.scores[k]), 5),
            "finding": bool(found.scores[k] >= threshold),
        }
        for k in range(len(found.scores))
    ]
