"""Detectors on tomosynthesis volumes: slices form the batches, and their detections become findings of the volume.

Shapes: S slices of a volume, padded to a multiple of SLICES_STEP; K detections of a slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from elk_jax import files
from elk_jax.data.flips import Flip
from elk_jax.data.sources import bcs_dbt, checks
from elk_jax.data.sources.open import has_volumes, open_source
from elk_jax.data.sources.source import ImageSource, read_at, summary
from elk_jax.data.sources.spec import OnError, SourceSpec
from elk_jax.data.sources.volumes import Volume, as_source, find_volumes, volumes_of
from elk_jax.detection.volumes import RULES, Rule, VolumeRule, find
from elk_jax.errors import UserError
from elk_jax.evaluation import bootstrap, detections, submission, volume_results
from elk_jax.evaluation.bootstrap import PatientStatistic
from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.volumes import (
    LEAST_DISTANCE,
    PRIMARY,
    VolumeDetections,
    VolumeResult,
    VolumeStatistic,
    VolumeTruth,
    evaluate_volumes,
)
from elk_jax.images import boxes as box_ops
from elk_jax.progress import progress_bar
from elk_jax.reporting.report import write_report
from elk_jax.tasks.detection import predict
from elk_jax.tasks.detection.model import Ensemble, Trained, load, with_views
from elk_jax.tasks.detection.recipe import DetectionRecipe, EvaluateDetectorsStage
from elk_jax.tasks.detection.volumes_page import evaluation_page, findings_page
from elk_jax.tasks.results import check_output, new_evaluation
from elk_jax.tasks.run import Run, new_console, patients_seen, report_skipped, write_skipped
from elk_jax.tasks.task import Summary
from elk_jax.training import mesh as meshes

SLICES_STEP, DETECTIONS_STEP = 16, 16
"""Volumes with similar numbers of slices share one compilation."""
RESULTS = "volumes.json"
UNKNOWN = (math.inf, math.inf)
"""(width, height) for slices that were not read."""
SAME_LESION = 0.5
"""IoU from which boxes in neighbouring slices seem to mark one lesion."""
FULL_HEIGHT = 1000
"""Height of a slice from which the distances of the DBTex metric, which are in pixels, are small relative to it."""


def detect_volumes(
    trained: Trained | Ensemble,
    volumes: Sequence[Volume],
    mesh: Mesh,
    rule: VolumeRule,
    score_floor: float = 0.0,
) -> tuple[list[VolumeDetections], list[ImageResult]]:
    """(the findings of whole volumes, the detections in each slice that the rule uses, without the truth); only a few
    slices are in memory at a time.

    UserError for volumes with missing slices.
    """
    for volume in volumes:
        if len(volume) != volume.slices:
            what = f"only {len(volume)} of {volume.slices} slices of the volume {volume.name} are selected"
            raise UserError(what, where=volume.infos[0].file_name, todo="choose all slices of the volumes")
    seen = [_without_ends(volume, rule.margin) for volume in volumes]
    source = predict.without_truth(as_source(seen, trained.description.classes))
    results = predict.detect_with(trained, source, mesh, score_floor, whole_volumes=True)
    most = max(len(result.scores) for result in results)
    per_slice = max(1, -(-most // DETECTIONS_STEP)) * DETECTIONS_STEP
    found, start = [], 0
    for volume in seen:
        found.append(findings_of(rule, results[start : start + len(volume)], volume, per_slice))
        start += len(volume)
    return found, results


def _without_ends(volume: Volume, margin: int) -> Volume:
    """The slices that are used; all of them if a volume has no others."""
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


def measured(
    trained: Trained | Ensemble,
    volumes: Sequence[Volume],
    mesh: Mesh,
    rule: Rule,
    score_floor: float,
) -> tuple[list[VolumeResult], list[ImageResult]]:
    """The findings of whole volumes with their lesions, and detections by slice; arguments as in `detect_volumes`."""
    found, by_slice = detect_volumes(trained, volumes, mesh, RULES[rule], score_floor)
    return [VolumeResult(truth_of(volume), one) for volume, one in zip(volumes, found, strict=True)], by_slice


# ---- As a stage ------------------------------------------------------------------------------------------------------


def check_start(run: Run, stage: EvaluateDetectorsStage) -> None:
    """Raise UserError if the volumes of the data are incomplete: a COCO file must list all slices."""
    if has_volumes(run.spec(stage.on)):
        return
    place, todo = f"config.stages.{stage.name}.on", "name a source of whole volumes, or leave the stage out by --stages"
    volumes = volumes_of(run.list(stage.on, stage.split))
    for volume in volumes:
        if len(volume) != volume.slices:
            what = f"{stage.on} has only {len(volume)} of {volume.slices} slices of the volume {volume.name}"
            raise UserError(what, where=place, todo=todo)
    _check_views(volumes, place)


def evaluate(run: Run, stage: EvaluateDetectorsStage, recipe: DetectionRecipe) -> Summary:
    """Evaluate trained stages on the volumes of one split; with several, compare each with the first.

    Leaves `<model>/evaluation.json`, `<model>/volumes.json`, `<model>/submission.csv` and `comparisons.json`.
    """
    folder = run.folder / stage.name
    volumes = volumes_of(_opened(run.spec(stage.on), stage.split, run.seed))
    run.say(f"  {stage.split} {len(volumes)} volumes, {sum(map(len, volumes))} slices")
    evaluations, statistics = {}, {}
    for model in stage.models:
        trained = load(run.folder / model / "model")
        results, _ = measured(trained, volumes, run.mesh, stage.volume_rule, recipe.score_floor)
        evaluations[model] = evaluated(results, volumes, recipe.bootstrap, stage.volume_rule)
        statistics[model] = VolumeStatistic(results)
        if run.is_main:
            _write(files.make_folder(folder / model), evaluations[model], results)
            volume_results.write(folder / model / RESULTS, results)
    first, *others = stage.models
    patients = len(statistics[first].patients)
    comparisons = {
        other: bootstrap.compare(statistics[first], statistics[other], patients, resamples=recipe.bootstrap)
        for other in others
    }
    if run.is_main:
        files.write_json(folder / "comparisons.json", comparisons)
        for model, evaluation in evaluations.items():
            run.console.print(_table(evaluation, f"{model} on the {stage.split} split of {stage.on}"))
    for note in evaluations[first]["notes"]:
        run.say(f"  note: {note}")
    return {
        "kind": "evaluate",
        "metric": stage.metric,
        "on": stage.on,
        "split": stage.split,
        "data": summary([info for volume in volumes for info in volume.infos]),
        "skipped": [],
        "models": list(stage.models),
    }


def statistics(folder: Path, stage: EvaluateDetectorsStage) -> dict[str, PatientStatistic]:
    """The metrics of each model as functions of patients, from the output of the stage in `folder`."""
    found = {model: VolumeStatistic(volume_results.read(folder / model / RESULTS)) for model in stage.models}
    return {model: bootstrap.Prefixed(statistic, "metrics/") for model, statistic in found.items()}


def evaluated(results: Sequence[VolumeResult], volumes: Sequence[Volume], resamples: int, rule: Rule) -> dict[str, Any]:
    """The content of evaluation.json. volumes: their slices, if available, with findings by `rule`."""
    truths = [result.truth for result in results]
    notes = [*size_notes(volumes), *end_notes(volumes, RULES[rule].margin), *outside_notes(truths, volumes)]
    evaluation = evaluate_volumes(results, resamples=resamples)
    notes += bootstrap.doubts(resamples, evaluation["patients"], evaluation["metrics"][PRIMARY])
    found = [result.found for result in results]
    notes += [*repeated_notes(found), *classes_notes(found), *marked_again_notes(truths)]
    return evaluation | {"notes": notes}


def _write(folder: Path, evaluation: dict[str, Any], results: Sequence[VolumeResult]) -> None:
    files.write_json(folder / "evaluation.json", evaluation)
    files.write_text(folder / "submission.csv", submission.text(results))


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
    flips: Sequence[Flip] | None = None,
    scales: Sequence[float] | None = None,
    by_slice: bool = False,
) -> dict[str, Any]:
    """Write evaluation.json, submission.csv and report.html into `output`, print the table, return the evaluation.

    model: a model folder; None to evaluate `predictions`, a CSV file of the challenge, for which tables of BCS-DBT
    suffice without their images. flips, scales: as of `EvaluateSettings`. by_slice: also write predictions.json, the
    detections in each slice.
    """
    check_output(output, [] if predictions is None else [predictions])
    _check_stops(on_error)
    notes: list[str] = []
    volumes: tuple[Volume, ...] = ()
    shown: tuple[Volume, ...] = ()
    in_slices: list[ImageResult] = []
    categories: Sequence[int] | None = None
    if model is None and predictions is not None:
        truths, volumes = _truths(data, split)
        results = submission.read(predictions, truths)
    else:
        assert model is not None
        source = _opened(data, split)
        volumes, categories = volumes_of(source), source.category_ids
        _check_views(volumes, data.spec)
        shown = volumes
        trained = with_views(load(model), flips, scales)
        notes = patients_seen(model.name, model, [info for volume in volumes for info in volume.infos])
        notes += predict.unlearned(trained, "the model")
        results, in_slices = measured(trained, volumes, meshes.make_mesh(), rule, score_floor)
    evaluation = evaluated(results, volumes, resamples, rule)
    notes = evaluation["notes"] = [*notes, *evaluation["notes"]]
    place = f"{split or 'every'} split of {data.spec}"
    with new_evaluation(output) as written:
        _write(written, evaluation, results)
        if by_slice:
            detections.write_results(written / "predictions.json", in_slices, categories)
        write_report(
            written / "report.html", evaluation_page(str(model or predictions), place, evaluation, results, shown)
        )
    console = new_console()
    console.print(_table(evaluation, place))
    for note in notes:
        console.print(f"note: {note}")
    console.print(f"report: {output / 'report.html'}")
    return evaluation


def size_notes(volumes: Sequence[Volume]) -> list[str]:
    """A note if slices are so small that the hit distance of the metric in pixels covers much of the breast."""
    heights = [volume.infos[0].height for volume in volumes]
    if not heights or min(heights) >= FULL_HEIGHT:
        return []
    return [
        f"slices are {min(heights)} px high: the metric counts a hit within {LEAST_DISTANCE:.0f} px, which suits the "
        "challenge's slices of about 2,400 px and means little for smaller ones"
    ]


def end_notes(volumes: Sequence[Volume], margin: int) -> list[str]:
    """A note if lesions lie in the ignored slices at either end, as they may be missed only for that reason."""
    at = [(volume, slice) for volume in volumes for slice in volume.lesions()[1] if len(volume) > 2 * margin]
    ends = sum(not margin <= slice < len(volume) - margin for volume, slice in at)
    if not ends:
        return []
    whole = sum(len(volume.lesions()[1]) for volume in volumes)
    return [f"{ends} of {whole} lesions lie in the {margin} slices at either end, which this rule ignores"]


def outside_notes(truths: Sequence[VolumeTruth], volumes: Sequence[Volume]) -> list[str]:
    """Notes on lesions that extend beyond their slices, as tables may be wrong, and on slices where this cannot be
    checked."""
    sizes = {(volume.study, volume.view): volume.size for volume in volumes}
    line = checks.boxes_outside((" ".join(one.key), one.boxes, sizes.get(one.key, UNKNOWN)) for one in truths)
    unread = "the slices were not read, so boxes that extend beyond their right or lower edge go unnoticed"
    return [note for note in (line, "" if volumes else unread) if note]


def marked_again_notes(truths: Sequence[VolumeTruth]) -> list[str]:
    """A note if boxes in neighbouring slices overlap: one lesion that is marked in several slices counts several
    times."""
    again = 0
    for one in truths:
        same = (box_ops.iou(one.boxes, one.boxes) >= SAME_LESION) & (np.abs(one.at[:, None] - one.at[None]) == 1)
        again += int(same.any(axis=1).sum())
    if not again:
        return []
    what = f"{again} of {sum(len(one.boxes) for one in truths)} lesions overlap one in the next slice"
    return [f"{what}: a lesion that is marked in several slices counts in each, unless `lesion_slices` names its own"]


def repeated_notes(found: Sequence[VolumeDetections]) -> list[str]:
    """A note if findings occur more than once: each of them that hits nothing is a false positive."""
    rows = [np.column_stack([one.boxes, one.first, one.depth, one.scores]) for one in found if len(one.scores)]
    again = sum(len(one) - len(np.unique(one, axis=0)) for one in rows)
    return [f"duplicates among the findings: {again} of {sum(map(len, rows))}; each counts"] if again else []


def classes_notes(found: Sequence[VolumeDetections]) -> list[str]:
    """A note if findings are of several classes, which the metric does not distinguish."""
    count = len({int(label) for one in found for label in one.labels})
    if count < 2:
        return []
    return [f"findings of {count} classes: a finding of any class hits a lesion, whatever class the lesion has"]


def _opened(data: SourceSpec, split: str, seed: int = 0) -> ImageSource:
    """The slices of whole volumes, which are not kept in memory. seed: of the run, for drawing patients."""
    if data.partner:
        raise UserError("volumes have no partners", where=f"partner={data.partner}", todo="leave it out")
    whole = replace(data, slices="all") if has_volumes(data) else data
    bar = progress_bar("  opening")
    return open_source(whole, split, seed=seed, cache_bytes=0, progress=bar)


def _check_stops(on_error: OnError) -> None:
    if on_error != "stop":
        todo = "leave it at stop, and give only readable volumes"
        raise UserError("volumes are read during evaluation, so none can be skipped", where="--on_error", todo=todo)


def _truths(data: SourceSpec, split: str) -> tuple[list[VolumeTruth], tuple[Volume, ...]]:
    """The truth for evaluating predictions of other programs, and its volumes; without volumes for BCS-DBT, of which
    only the tables are read."""
    if data.kind != "bcs_dbt":
        volumes = volumes_of(_opened(data, split))
        return [truth_of(volume) for volume in volumes], volumes
    if data != SourceSpec(data.spec):
        todo = "leave conditions and other settings out"
        raise UserError("predictions are evaluated on all volumes of the tables", where=data.spec, todo=todo)
    entries = bcs_dbt.read_entries(Path(data.place), split)
    if not entries:
        raise UserError(f"no volume in split '{split}'", where=data.spec, todo="choose another split")
    if split and (unplaced := [one.name for one in entries if not one.split]):
        what = f"volumes without a split: {len(unplaced)}, for example {unplaced[0]}"
        todo = "write train, validation or test in the name of their table, or evaluate all volumes with --split="
        raise UserError(what, where=data.spec, todo=todo)
    truths = [VolumeTruth(one.patient_id, one.study, one.view, one.slices, one.boxes, one.at) for one in entries]
    return truths, ()


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
    """`predict.predict_files` for images, or `predict_volumes`, which stops at an unreadable volume."""
    if not settings.volumes:
        if tables := next((entry for entry in inputs if SourceSpec(entry).kind == "bcs_dbt"), None):
            raise UserError("tables of volumes, not images", where=tables, todo="add --volumes")
        return predict.predict_files(
            model=model, inputs=inputs, decoding=decoding, on_error=on_error, output=output, settings=settings
        )
    _check_stops(on_error)
    return predict_volumes(model=model, inputs=inputs, decoding=decoding, output=output, settings=settings)


def predict_volumes(
    *, model: Path, inputs: Sequence[str], decoding: SourceSpec, output: Path, settings: predict.PredictSettings
) -> list[VolumeResult]:
    """Write findings.csv (the challenge's columns), findings.json and report.html into `output`.

    inputs: DICOM files of several frames, folders of slices, folders of either, and `bcs_dbt:DIR`, whose tables name
    the volumes and their orientation.
    """
    pairs = [_find_volumes(entry, decoding) for entry in inputs]
    volumes = _each_once([volume for found, _ in pairs for volume in found])
    notes = _view_notes(volumes)
    trained = load(model)
    files.check_writable(output)
    points = trained.description.operating_points
    threshold = predict.chosen_threshold(points) if settings.threshold is None else settings.threshold
    results, _ = measured(trained, volumes, meshes.make_mesh(), settings.volume_rule, settings.score_floor)
    found = [result.found for result in results]
    classes = trained.description.classes
    entries = [entry for pair in zip(volumes, found) for entry in _entries(*pair, classes, threshold)]
    read = [info.file_name for volume in volumes for info in volume.infos]
    skipped = [(str(path), reason) for _, others in pairs for path, reason in others]
    with files.new_results(output, predict.FINDINGS, predict.WRITTEN, read) as place:
        write_skipped(place, skipped)
        files.write_text(place / "findings.csv", submission.text(results))
        files.write_json(place / predict.FINDINGS, entries)
        if settings.pictures:
            write_report(place / "report.html", findings_page(volumes, found, threshold))
    report_skipped([], skipped)
    for note in (*notes, *predict.notes(trained, settings)):
        new_console().print(f"note: {note}")
    count = sum(int((one.scores >= threshold).sum()) for one in found)
    new_console().print(f"{count} findings at or above {threshold:.3f} in {len(volumes)} volumes: {output}")
    return results


def _find_volumes(entry: str, decoding: SourceSpec) -> tuple[Sequence[Volume], Sequence[tuple[Path, str]]]:
    """(volumes, skipped files with the reason) from an input."""
    spec = replace(decoding, spec=entry)
    return (bcs_dbt.open_unlabelled(spec), ()) if spec.kind == "bcs_dbt" else find_volumes(Path(entry), decoding)


def _each_once(volumes: Sequence[Volume]) -> list[Volume]:
    """Each volume once, as first given, however its path is spelled.

    Two files that tables list under one name are two volumes, which `_view_notes` checks.
    """
    found: dict[tuple[Path, Path], Volume] = {}
    for volume in volumes:
        found.setdefault((Path(volume.name).resolve(), Path(volume.infos[0].file_name).resolve()), volume)
    return list(found.values())


def _check_views(volumes: Sequence[Volume], where: str) -> None:
    """UserError for two volumes of one study and view, before a detector spends hours on them: the metric, like the
    challenge, takes them for one."""
    for one, other in _of_one_view(volumes):
        what = f"two volumes of the study {one.study} and the view '{one.view}': {one.name} and {other.name}"
        raise UserError(what, where=where, todo="give each its own view, such as lcc and lcc2")


def _of_one_view(volumes: Sequence[Volume]) -> Iterator[tuple[Volume, Volume]]:
    """Volumes of the same study and view, each with the first of them."""
    of_view: dict[tuple[str, str], Volume] = {}
    for volume in volumes:
        if (first := of_view.setdefault((volume.study, volume.view), volume)) is not volume:
            yield first, volume


def _view_notes(volumes: Sequence[Volume]) -> list[str]:
    """A note on volumes of the same study and view, which rows of the challenge's file cannot distinguish.

    UserError for two files of one volume, whose findings would count twice.
    """
    of_instance: dict[str, Volume] = {}
    for volume in volumes:
        if volume.instance and (other := of_instance.setdefault(volume.instance, volume)) is not volume:
            what = f"two files for one volume: {other.infos[0].file_name} and {volume.infos[0].file_name}"
            raise UserError(what, where=f"SOPInstanceUID {volume.instance}", todo="keep one of them")
    return [
        f"two volumes of the study {one.study} and the view '{one.view}', {one.infos[0].file_name} and "
        f"{other.infos[0].file_name}: only findings.json distinguishes them, findings.csv does not"
        for one, other in _of_one_view(volumes)
    ]


def _entries(volume: Volume, found: VolumeDetections, classes: Sequence[str], threshold: float) -> list[dict[str, Any]]:
    """JSON-able findings: slices count from 0; `slices` is the first and the last one."""
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
