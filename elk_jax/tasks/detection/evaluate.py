"""Evaluate any detector, or predictions made elsewhere, on any data source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from elk_jax import files
from elk_jax.data.flips import check_flips
from elk_jax.data.sources import source as sources
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import OnError, SourceSpec
from elk_jax.errors import UserError
from elk_jax.evaluation import detections
from elk_jax.evaluation import evaluate as metrics
from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.hits import criterion_from_text
from elk_jax.progress import progress_bar
from elk_jax.reporting.report import write_report
from elk_jax.reporting.run import RunRecord, run_report
from elk_jax.tasks import trained
from elk_jax.tasks.detection import model as detection_model
from elk_jax.tasks.detection import report as reports
from elk_jax.tasks.detection.page import DetectionRun, Evaluated, detection_part
from elk_jax.tasks.run import new_console
from elk_jax.training import mesh as meshes


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model folder, or COCO results made elsewhere."""

    place: Path
    is_model: bool

    @property
    def parts(self) -> tuple[str, ...]:
        """Of the path, without what says nothing: the last ones name the subject."""
        path = self.place.absolute()
        if self.is_model:
            return (path.parent if path.name == "model" else path).parts
        return path.with_suffix("").parts


def evaluate_source(
    *,
    data: SourceSpec,
    split: str,
    model: Path | None,
    predictions: str | None,
    output: Path,
    on_error: OnError = "stop",
    criterion: str = "iou:0.3",
    score_floor: float = 0.01,
    froc_images: metrics.FrocImages = "with_lesions",
    resamples: int = 2000,
    flips: Sequence[str] | None = None,
    against: Path | None = None,
) -> dict[str, Any]:
    """Write evaluation.json, predictions.json and report.html into `output`, print the table, return the evaluation.

    Exactly one of `model` (a model folder) and `predictions` (COCO results) is given; the other fields are the flags of
    launch/evaluate.py.
    against: a run or model folder, or COCO results, to compare with on the same images: comparisons.json holds the
        paired differences, in the report and the table too.
    """
    subject = Subject(model, True) if model is not None else Subject(Path(predictions or ""), False)
    other = None
    if against is not None:
        other = Subject(detection_model.find(against), True) if against.is_dir() else Subject(against, False)
    name, other_name = _names(subject, other)
    rule = criterion_from_text(criterion)
    check_flips(flips or ())
    source = open_source(data, split, on_error=on_error, progress=progress_bar("  opening"))
    files.check_writable(output)
    subjects = sorted(filter(None, (subject, other)), key=lambda one: one.is_model)  # files first: mistakes show early
    found = {one: _detect(one, source, score_floor, flips) for one in subjects}
    results, notes = found[subject]
    measure = partial(
        metrics.evaluate_detections,
        criterion=rule,
        score_floor=score_floor,
        froc_images=froc_images,
        resamples=resamples,
    )
    evaluation = measure(results)
    evaluation["notes"] += notes
    evaluations, comparisons = {name: evaluation}, {}
    if other is not None:
        theirs, notes = found[other]
        evaluations = {other_name: measure(theirs), name: evaluation}  # what is compared with comes first
        evaluations[other_name]["notes"] += notes
        comparisons[name] = metrics.compare_detections(
            theirs, results, criterion=rule, score_floor=score_floor, froc_images=froc_images, resamples=resamples
        )
    files.make_folder(output)
    detections.write_results(output / "predictions.json", results, source.category_ids)
    files.write_json(output / "evaluation.json", evaluation)
    files.write_json(output / "comparisons.json", comparisons)
    shown = reports.choose_pictures(results, rule, evaluation)
    place = f"{split or 'every'} split of {data.spec}"
    evaluated = Evaluated(place, evaluations, comparisons, [reports.pictures(name, shown, source)])
    run = RunRecord(
        name=name,
        title=f"{name} on {place}",
        data={split or "all": sources.summary(source.infos)},
        skipped=source.skipped,
    )
    write_report(output / "report.html", run_report(run, [detection_part(DetectionRun([evaluated]))]))
    console = new_console()
    console.print(reports.results_table(evaluations, comparisons, place))
    for note in dict.fromkeys(note for one in evaluations.values() for note in one["notes"]):
        console.print(f"note: {note}", markup=False)
    console.print(f"report: {output / 'report.html'}", markup=False)
    return evaluation


def _names(subject: Subject, other: Subject | None) -> tuple[str, str]:
    """What they are called: as few of the last parts of their paths as tell them apart."""
    own = subject.parts
    if other is None:
        return own[-1], ""
    theirs = other.parts
    if own == theirs:
        raise UserError("--against names what is evaluated", where=other.place, todo="name another run or file")
    alike = next(i for i in range(len(own) + 1) if own[-1 - i :] != theirs[-1 - i :])
    return "/".join(own[-1 - alike :]), "/".join(theirs[-1 - alike :])


def _detect(
    subject: Subject,
    source: ImageSource,
    score_floor: float,
    flips: Sequence[str] | None,
) -> tuple[list[ImageResult], list[str]]:
    """(its detections beside the truth, notes). One class of a model and one of the data are taken for the same."""
    if not subject.is_model:
        numbers = source.category_ids or range(1, len(source.classes) + 1)
        found = detections.read_results(subject.place, source.infos, numbers)
        return detections.join(source.infos, found), []
    known, notes = tuple(detection_model.load(subject.place)[2]["classes"]), []
    if len(known) == len(source.classes) == 1 and known != source.classes:
        notes = [f"the class '{known[0]}' of the model is taken for '{source.classes[0]}' of the data"]
        source = replace(source, classes=known)
    patients = {info.patient_id for info in source.infos}
    seen = trained.those_marked(trained.named_patients(source.infos), trained.patient_marks(subject.place))
    if seen:
        notes.append(
            f"{subject.parts[-1]} was trained on {len(seen)} of these {len(patients)} patients, such as {seen[0]}: of "
            "others it may find less"
        )
    return detection_model.detect_with(subject.place, source, meshes.make_mesh(), score_floor, flips), notes
