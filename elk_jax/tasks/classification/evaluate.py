"""Evaluate classifiers: as a stage of an experiment, or any classifier on any source.

The stage leaves `<model>/evaluation.json`, `<model>/predictions.json`, `<model>/predictions.csv`, `comparisons.json`,
`draws.json` and `gallery.json`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elk_jax import files
from elk_jax.data.sources import patients
from elk_jax.data.sources.labels import class_counts, image_labels
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import OnError, SourceSpec
from elk_jax.errors import UserError
from elk_jax.evaluation.bootstrap import PatientStatistic, Resamples
from elk_jax.evaluation.classification import (
    ClassificationStatistic,
    compare_classification,
    confident_errors,
    evaluate_classification,
)
from elk_jax.evaluation.predictions import Predictions, read_predictions, write_predictions
from elk_jax.features import store
from elk_jax.progress import progress_bar
from elk_jax.reporting.report import write_report
from elk_jax.reporting.run import RunRecord, run_report
from elk_jax.tasks.classification import model, report
from elk_jax.tasks.classification.fit import with_draws
from elk_jax.tasks.classification.model import ARCHITECTURES, Trained, load
from elk_jax.tasks.classification.page import ClassificationRun, Evaluated, classification_part, terminal_table
from elk_jax.tasks.classification.recipe import EvaluateClassifiersStage
from elk_jax.tasks.results import check_output, new_evaluation
from elk_jax.tasks.run import Run, new_console, patients_seen, skipped_images, unread_partners, write_skipped
from elk_jax.tasks.task import Summary
from elk_jax.weights import model_folder

OF_DRAWS = ("auroc", "average_precision")
"""Metrics that are evaluated for every draw of the noise."""


class Evaluation(NamedTuple):
    """The results of one classifier on one split. draws: values of every draw of the noise, by metric."""

    predictions: Predictions
    metrics: dict[str, Any]
    draws: dict[str, list[float]]
    errors: list[dict[str, Any]]


# ---- As a stage ------------------------------------------------------------------------------------------------------


def evaluate(run: Run, stage: EvaluateClassifiersStage, recipe: None) -> Summary:
    """Evaluate trained stages on one split; with several, compare each with the first."""
    source, folder = run.open(stage.on, stage.split), run.folder / stage.name
    counts = class_counts(source)
    run.say(f"  {stage.split or 'all'} {', '.join(f'{value} {key}' for key, value in counts.items())}")
    if not run.is_main:
        return {}
    found: dict[str, Evaluation] = {}
    trained = {name: with_draws(model.load(run.folder / name / "model"), run.folder / name) for name in stage.models}
    for name, one in trained.items():
        found[name] = measure(one, source, stage.bootstrap, run.folder / store.FOLDER)
    comparisons = compare(trained, found, stage.bootstrap)
    for name in found:
        _write(files.make_folder(folder / name), found[name], trained[name], source)
    files.write_json(folder / "comparisons.json", comparisons)
    files.write_json(folder / "draws.json", {name: one.draws for name, one in found.items()})
    files.write_json(folder / "gallery.json", {name: one.errors for name, one in found.items()})
    title = f"{stage.split} split of {stage.on}" if stage.split else stage.on
    evaluations = {name: one.metrics for name, one in found.items()}
    run.console.print(terminal_table(evaluations, comparisons, {name: one.draws for name, one in found.items()}, title))
    return {
        "kind": "evaluate",
        "on": stage.on,
        "split": stage.split,
        "data": counts,
        "skipped": skipped_images(source),
        "models": list(stage.models),
        "unnamed": not patients.named(source.infos),
    }


def statistics(folder: Path, stage: EvaluateClassifiersStage, recipe: None) -> dict[str, PatientStatistic]:
    """The metrics of each model as functions of patients, from the output of the stage in `folder`."""
    found: dict[str, PatientStatistic] = {}
    for name in stage.models:
        positive = files.read_object(folder / name / "evaluation.json", "positive")["positive"]
        found[name] = ClassificationStatistic(read_predictions(folder / name / "predictions.json"), positive)
    return found


def measure(trained: Trained, source: ImageSource, resamples: int, shelf: Path | None = None) -> Evaluation:
    """The results of one classifier on one split. shelf: folder of frozen features.

    UserError for classes other than those of the model.
    """
    description, labels = trained.description, image_labels(source)
    model.check_classes(description, source)
    positive, points = description.positive, model.points_of(trained)
    predicted, *draws = (
        model.predictions(one, source, labels, positive) for one in trained.probabilities(source, shelf)
    )
    metrics = evaluate_classification(predicted, positive=positive, points=points, resamples=resamples)
    metrics["notes"] += model.unchosen(trained)
    return Evaluation(
        predicted,
        metrics,
        _of_draws(draws, positive),
        confident_errors(predicted, positive, points[0].threshold),
    )


def compare(
    trained: Mapping[str, Trained], found: Mapping[str, Evaluation], resamples: int
) -> dict[str, dict[str, dict[str, float | None]]]:
    """The paired differences of every model from the first one."""
    first, *others = found
    positive = trained[first].description.positive
    return {
        name: compare_classification(
            found[first].predictions,
            found[name].predictions,
            positive=positive,
            first_points=model.points_of(trained[first]),
            second_points=model.points_of(trained[name]),
            resamples=resamples,
        )
        for name in others
    }


def _of_draws(sets: Sequence[Predictions], positive: str) -> dict[str, list[float]]:
    """Values of each draw, by metric; {} without draws."""
    found: dict[str, list[float]] = {}
    for one in sets:
        statistic = ClassificationStatistic(one, positive)
        values = statistic(np.ones((1, len(statistic.patients))))
        for name, value in values.items():
            if name.partition("/")[0] in OF_DRAWS:
                found.setdefault(name, []).append(float(value[0]))
    return found


def _write(folder: Path, found: Evaluation, trained: Trained, source: ImageSource) -> None:
    files.write_json(folder / "evaluation.json", found.metrics)
    write_predictions(folder / "predictions.json", found.predictions)
    files.write_text(folder / "predictions.csv", table(found.predictions, trained, source))


def table(predicted: Predictions, trained: Trained, source: ImageSource) -> str:
    """Predictions as CSV: image, file, patient, class, probability of the positive class, predicted class."""
    description, output = trained.description, io.StringIO()
    positive, point = description.positive, model.points_of(trained)[0]
    (other,) = set(description.classes) - {positive}
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(["image_id", "file_name", "patient_id", "class", f"probability_of_{positive}", "called"])
    for row, (info, score) in enumerate(zip(source.infos, predicted.scores(positive))):
        label = predicted.classes[predicted.labels[row]]
        called = positive if score >= point.threshold else other
        writer.writerow([info.image_id, info.file_name, info.patient_id, label, f"{score:.6f}", called])
    return output.getvalue()


# ---- On any source ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateSettings:
    """The flags of launch/evaluate.py for classifiers. against: a run or model folder, to compare with on the same
    images. bootstrap: resamples of patients."""

    against: str = ""
    bootstrap: Resamples = 2000


def evaluate_source(
    *, model: Path, data: SourceSpec, split: str, on_error: OnError, output: Path, settings: EvaluateSettings
) -> dict[str, Any]:
    """Write evaluation.json, predictions.json, predictions.csv and report.html into `output`, print the table, return
    the evaluation. With `settings.against`, comparisons.json holds the paired differences from that model."""
    folders = {_name(model): model}
    if settings.against:
        other = model_folder.find(Path(settings.against), None, ARCHITECTURES, "a classifier")
        if other.resolve() == model.resolve():
            what = "the same model as the one being evaluated"
            raise UserError(what, where="--against", todo="name another run or model")
        folders = {_name(other) if _name(other) != _name(model) else str(other): other} | folders
    check_output(output)
    source = open_source(data, split, on_error=on_error, progress=progress_bar("  opening"), images=1)
    console, counts = new_console(), class_counts(source)
    console.print(f"{split or 'all'} {', '.join(f'{value} {key}' for key, value in counts.items())}")
    trained = {name: load(folder) for name, folder in folders.items()}
    found = {name: measure(one, source, settings.bootstrap) for name, one in trained.items()}
    for name, one in found.items():
        one.metrics["notes"] += [*patients_seen(name, folders[name], source.infos), *unread_partners(data)]
    comparisons = compare(trained, found, settings.bootstrap)
    evaluations = {name: one.metrics for name, one in found.items()}
    own = _name(model)
    place = f"{split or 'every'} split of {data.spec}"
    with new_evaluation(output) as written:
        _write(written, found[own], trained[own], source)
        files.write_json(written / "comparisons.json", comparisons)
        write_skipped(written, source.skipped)
        pictures = {own: report.error_pictures(found[own].errors, source)}
        evaluated = Evaluated(place, evaluations, comparisons, pictures, unnamed=not patients.named(source.infos))
        record = RunRecord(name=own, title=f"{own} on {place}", data={split or "all": counts}, skipped=source.skipped)
        write_report(written / "report.html", run_report(record, [classification_part(ClassificationRun([evaluated]))]))
    console.print(terminal_table(evaluations, comparisons, {}, place))
    for note in dict.fromkeys(note for one in evaluations.values() for note in one["notes"]):
        console.print(f"note: {note}")
    console.print(f"report: {output / 'report.html'}")
    return evaluations[own]


def _name(folder: Path) -> str:
    path = folder.absolute()
    return path.parent.name if path.name == "model" else path.name
