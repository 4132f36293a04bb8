"""Evaluate any detector, or predictions made elsewhere, on any data source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elk_jax import files
from elk_jax.data import sources
from elk_jax.data.flips import check_flips
from elk_jax.evaluation import detections
from elk_jax.evaluation import evaluate as metrics
from elk_jax.evaluation.hits import criterion_from_text
from elk_jax.reporting.detection import DetectionRun, Evaluated, detection_part
from elk_jax.reporting.report import write_report
from elk_jax.reporting.run import RunRecord, run_report
from elk_jax.tasks import detection, detection_model
from elk_jax.tasks import detection_report as reports
from elk_jax.tasks.run import new_console
from elk_jax.tasks.watching import watched
from elk_jax.training import mesh as meshes


def evaluate_source(
    *,
    data: str,
    split: str,
    model: Path | None,
    predictions: str | None,
    output: Path,
    where: str = "",
    split_shares: Sequence[float] = (),
    clean_boxes: bool = False,
    on_error: str = "stop",
    criterion: str = "iou:0.3",
    score_floor: float = 0.01,
    froc_images: metrics.FrocImages = "with_lesions",
    resamples: int = 2000,
    flips: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write evaluation.json, predictions.json and report.html into `output`, print the table, return the evaluation.

    Exactly one of `model` (a model folder) and `predictions` (COCO results) is given; the other fields are the flags of
    launch/evaluate.py.
    """
    rule = criterion_from_text(criterion)
    check_flips(flips or ())
    chosen = detection.parse_where(where)
    source = sources.open_source(
        data,
        split,
        chosen,
        clean_boxes,
        on_error,
        keep_bytes=sources.KEPT_BYTES,
        watch=watched("  decoding"),
        split_shares=split_shares,
    )
    categories = sources.category_ids(data)
    files.check_writable(output)
    if model is not None:
        name = model.parent.name if model.name == "model" else model.name
        results = detection_model.detect_with(model, source, meshes.make_mesh(), score_floor, flips)
    else:
        assert predictions is not None
        name = Path(predictions).stem
        found = detections.read_results(predictions, source.infos, categories or range(1, len(source.classes) + 1))
        results = detections.join(source.infos, found)
    evaluation = metrics.evaluate_detections(
        results, criterion=rule, score_floor=score_floor, froc_images=froc_images, resamples=resamples
    )
    files.make_folder(output)
    detections.write_results(output / "predictions.json", results, categories)
    files.write_json(output / "evaluation.json", evaluation)
    shown = reports.choose_pictures(results, rule, evaluation)
    place = f"{split or 'every'} split of {data}"
    evaluated = Evaluated(place, {name: evaluation}, pictures=[reports.pictures(name, shown, source)])
    run = RunRecord(
        name=name,
        title=f"{name} on {place}",
        data={split or "all": sources.summary(source.infos)},
        skipped=source.skipped,
    )
    write_report(output / "report.html", run_report(run, [detection_part(DetectionRun([evaluated]))]))
    console = new_console()
    console.print(reports.results_table({name: evaluation}, {}, place))
    for note in evaluation["notes"]:
        console.print(f"note: {note}", markup=False)
    console.print(f"report: {output / 'report.html'}", markup=False)
    return evaluation
