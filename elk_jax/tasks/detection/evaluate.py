"""Evaluate detectors as a stage of an experiment, or any detector or predictions of another program on any source.

The stage leaves `<model>/predictions.json`, `<model>/evaluation.json`, `comparisons.json`, `gallery.json` and
`truth.json`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from elk_jax import files
from elk_jax.data.flips import Flip
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.source import ImageSource, counted, one_of, summary
from elk_jax.data.sources.spec import OnError, SourceSpec
from elk_jax.detection import detectors
from elk_jax.detection.volumes import Rule
from elk_jax.errors import UserError
from elk_jax.evaluation import detections, fusion, operating
from elk_jax.evaluation import evaluate as metrics
from elk_jax.evaluation.bootstrap import PatientStatistic, Resamples
from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.hits import Criterion, criterion_from_text
from elk_jax.evaluation.truth import read_measured, write_truth
from elk_jax.fields import SHARE, check
from elk_jax.progress import progress_bar
from elk_jax.reporting.detections import MAIN, results_table
from elk_jax.reporting.report import Report, write_report
from elk_jax.reporting.run import RunRecord, run_report
from elk_jax.tasks.detection import predict, report, volumes
from elk_jax.tasks.detection.model import ARCHITECTURES, Ensemble, Scales, Trained, load, with_views
from elk_jax.tasks.detection.page import DetectionRun, Evaluated, detection_part, gain_sentences, notes_of
from elk_jax.tasks.detection.recipe import DetectionRecipe, EvaluateDetectorsStage, Metric
from elk_jax.tasks.detection.train import say_skipped
from elk_jax.tasks.results import check_output, new_evaluation
from elk_jax.tasks.run import (
    Experiment,
    Run,
    new_console,
    patients_seen,
    skipped_images,
    unread_partners,
    write_skipped,
)
from elk_jax.tasks.stages import CombineStage, Need
from elk_jax.tasks.task import Summary
from elk_jax.training import mesh as meshes
from elk_jax.weights import model_folder

TRUTH = "truth.json"

# ---- As a stage ------------------------------------------------------------------------------------------------------


def needs(experiment: Experiment, stage: EvaluateDetectorsStage, recipe: DetectionRecipe) -> list[Need]:
    """Whole volumes if their findings are evaluated; both images of a breast if a detector reads them."""
    (data,) = stage.data()
    found = [f"{name} reads pairs" for name in stage.models if reads_pairs(experiment, name)]
    found += ["boxes of both images are to be fused"] if stage.late else []
    volumes = [Need(data, "volumes", "findings of volumes are evaluated")] if stage.metric == "dbtex" else []
    return [*volumes, *(Need(data, "pairs", why) for why in found)]


def reads_pairs(experiment: Experiment, model: str) -> bool:
    """Whether the detector of a stage, or one of its members, reads pairs; False for a model that is not in the
    experiment."""
    stage = experiment.stages.get(model)
    if isinstance(stage, CombineStage):
        return any(reads_pairs(experiment, member) for member in stage.members)
    return stage is not None and detectors.build(experiment.recipe_of(stage).model).tested_images > 1


def check_start(run: Run, stage: EvaluateDetectorsStage, recipe: DetectionRecipe, names: Collection[str]) -> None:
    """Raise UserError for incomplete volumes, and for fusing boxes of detectors that read pairs."""
    if stage.metric == "dbtex":
        volumes.check_start(run, stage)
    for model in (name for pair in stage.late for name in pair):
        if reads_pairs(run.experiment, model):
            what = f"{model} reads pairs, but only boxes of detectors of single images are fused"
            raise UserError(what, where=f"config.stages.{stage.name}.late", todo="name others, or leave it out")


def evaluate(run: Run, stage: EvaluateDetectorsStage, recipe: DetectionRecipe) -> Summary:
    """Evaluate trained stages on one split; with several, compare each with the first."""
    if stage.metric == "dbtex":
        return volumes.evaluate(run, stage, recipe)
    loaded = {model: load(run.folder / model / "model") for model in stage.trained()}
    images = max([2 if stage.late else 1, *(loaded[model].tested_images for model in stage.models)])
    source, folder = run.open(stage.on, stage.split, images), run.folder / stage.name
    run.say(f"  {stage.split}: {counted(source.infos)}")
    say_skipped(run, source)
    criterion = criterion_from_text(stage.criterion)
    floor = recipe.score_floor
    trainings = {model: loaded[model].description.trained for model in stage.models}
    results: dict[str, list[ImageResult]] = {}
    evaluations: dict[str, Any] = {}
    thresholds: dict[str, dict[str, Any]] = {}
    for model in stage.models:
        if len(stage.models) > 1:
            run.say(f"  model {model}")
        found = predict.detect_with(loaded[model], source, run.mesh, _lowest(loaded[model], floor))
        thresholds[model] = promises_kept(loaded[model], found, recipe.bootstrap)
        results[model] = detections.above(found, floor)
    for own, other in stage.late:
        views = [
            predict.detect_with(loaded[model], one_of(source, number), run.mesh, floor)
            for number, model in enumerate((own, other))
        ]
        results[f"{own}+{other}"] = detections.above(fusion.fuse(views), floor)
    how: dict[str, Any] = {
        "criterion": criterion,
        "score_floor": floor,
        "resamples": recipe.bootstrap,
        "several": metrics.SEVERAL,
        "classes": source.classes,
    }
    for model in stage.subjects:
        evaluations[model] = metrics.evaluate_detections(results[model], **how)
        if model in thresholds:
            evaluations[model]["own_thresholds"] = thresholds[model]
            evaluations[model]["notes"] += predict.unlearned(loaded[model], model)
        if run.is_main:
            place = files.make_folder(folder / model)
            detections.write_results(place / "predictions.json", results[model], source.category_ids)
            files.write_json(place / "evaluation.json", evaluations[model])
    first = stage.models[0]
    comparisons = {
        other: metrics.compare_detections(results[first], results[other], **how) for other in stage.subjects[1:]
    }
    gains = _gains(references(trainings, evaluations), results, first, criterion, recipe)
    if run.is_main:
        chosen = {model: report.choose_pictures(results[model], criterion, evaluations[model]) for model in results}
        files.write_json(folder / "comparisons.json", comparisons)
        files.write_json(folder / "gallery.json", chosen)
        write_truth(folder / TRUTH, source.infos, source.category_ids or range(1, len(source.classes) + 1))
        run.console.print(results_table(evaluations, comparisons, f"{stage.split} split of {stage.on}"))
        for sentence in gain_sentences(gains):
            run.say(f"  {sentence}")
    return {
        "kind": "evaluate",
        "on": stage.on,
        "split": stage.split,
        "data": summary(source.infos),
        "skipped": skipped_images(source),
        "models": list(stage.subjects),
        "gains": gains,
    }


def _gains(
    references: Mapping[str, str],
    results: Mapping[str, list[ImageResult]],
    first: str,
    criterion: Criterion,
    recipe: DetectionRecipe,
) -> dict[str, dict[str, Any]]:
    """Private model -> its reference, and the share of the reference's gain over the first model that it keeps."""
    how: dict[str, Any] = {"score_floor": recipe.score_floor, "resamples": recipe.bootstrap}
    share = lambda *models: metrics.share_of_gain(*(results[one] for one in models), criterion=criterion, **how)
    return {model: {"reference": other, **share(first, model, other)} for model, other in references.items()}


def statistics(folder: Path, stage: EvaluateDetectorsStage, recipe: DetectionRecipe) -> dict[str, PatientStatistic]:
    """The metrics of each model as functions of patients, from the output of the stage in `folder`."""
    if stage.metric == "dbtex":
        return volumes.statistics(folder, stage)
    criterion = criterion_from_text(stage.criterion)

    def statistic(place: Path) -> metrics.DetectionStatistic:
        results = detections.above(read_measured(folder / TRUTH, place / "predictions.json"), recipe.score_floor)
        classes = tuple(files.read_object(place / "evaluation.json").get("classes", ()))
        return metrics.DetectionStatistic(results, criterion, several=metrics.SEVERAL, classes=classes)

    return {model: statistic(folder / model) for model in stage.subjects}


def _lowest(trained: Trained | Ensemble, score_floor: float) -> float:
    """The lowest score of the boxes that an evaluation needs, as they are also evaluated at the thresholds of the
    model."""
    return min(score_floor, predict.own_floor(trained, score_floor))


def promises_kept(trained: Trained | Ensemble, results: Sequence[ImageResult], resamples: int) -> dict[str, Any]:
    """The performance of a model's thresholds on images other than those they were chosen on, for evaluation.json and
    the report: {"on", "warning", "points": from `operating.kept`, each with the model's own figures, "in_model"}.

    results: all boxes with a score of at least `predict.own_floor`. The criterion for a hit is the one used to choose
    the thresholds (`operating.choose`), whatever the criterion and the lowest score of the evaluation.
    `operating_points` of an evaluation differ from them: their thresholds are chosen on the evaluated images."""
    description, floor = trained.description, predict.own_floor(trained, 0.0)
    points = [asdict(point) for point in description.operating_points if point.threshold is not None]
    found = operating.kept(results, description.operating_points, score_floor=floor, resamples=resamples)
    return {
        "on": description.chosen_on.counted,
        "warning": operating.doubt(description.operating_points, description.chosen_on),
        "points": [{"in_model": point, **one} for point, one in zip(points, found)],
    }


def views_notes(own: Trained | Ensemble, used: Trained | Ensemble) -> list[str]:
    """A note if a model looks at other views than its own, with which its thresholds were chosen."""

    def views(model: Trained | Ensemble) -> list[Any]:
        scales = model.description.scales if isinstance(model, Ensemble) else (1.0,)
        entries = [member.description.input for member in model.members]
        return [(set(one.flips), {own * scale for own in one.scales for scale in scales}) for one in entries]

    if own is used or views(own) == views(used):
        return []
    return [
        "the model's thresholds were chosen in other views than those of --flips and --scales: the rates may differ"
    ]


def references(
    trainings: Mapping[str, model_folder.Training | None], evaluations: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Private model -> the best model without privacy, among the models whose training started from the first.

    Comparing their gains over the first shows the cost of privacy.
    """
    first = next(iter(trainings))
    tuned = {name: one.privacy is not None for name, one in trainings.items() if one and one.init_from == first}
    without = {name: evaluations[name][MAIN]["value"] for name, private in tuned.items() if not private}
    if not without or None in without.values():
        return {}
    return {name: max(without, key=lambda other: without[other]) for name, private in tuned.items() if private}


# ---- On any source ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateSettings:
    """The flags of launch/evaluate.py for detectors.

    predictions: COCO results to evaluate instead of a model. against: a run or model folder, or COCO results, to
    compare with on the same images. criterion: for a hit. all_images: also count false positives of lesion-free images
    in FROC. bootstrap: number of resamples of patients. flips: mirrored views, scales: factors on the size of the
    input; None: those of the model's training. metric: froc for images, or dbtex for tomosynthesis volumes, whose
    predictions are a CSV file of the challenge. volume_rule: how detections of slices become findings of a volume.
    by_slice: for volumes, also write the detections of slices.
    """

    predictions: str = ""
    against: str = ""
    criterion: str = "iou:0.3"
    score_floor: Annotated[float, SHARE] = 0.01
    all_images: bool = False
    bootstrap: Resamples = 2000
    flips: tuple[Flip, ...] | None = None
    scales: Scales | None = None
    metric: Metric = "froc"
    volume_rule: Rule = "group"
    by_slice: bool = False

    def __post_init__(self) -> None:
        check(self)
        criterion_from_text(self.criterion)


@dataclass(frozen=True)
class Subject:
    """The subject of an evaluation: a model folder, or COCO results of another program."""

    place: Path
    is_model: bool

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the path without those common to all models; the last ones name the subject."""
        path = self.place.absolute()
        if self.is_model:
            return (path.parent if path.name == "model" else path).parts
        return path.with_suffix("").parts


def evaluate_source(
    *,
    model: Path | None,
    data: SourceSpec,
    split: str,
    on_error: OnError,
    output: Path,
    settings: EvaluateSettings,
) -> dict[str, Any]:
    """Write evaluation.json, predictions.json and report.html into `output`, print the table, return the evaluation.

    model: a model folder; None to evaluate `settings.predictions`. With `settings.against`, comparisons.json holds the
    paired differences, which the report and the table show too.
    """
    if settings.by_slice and (settings.metric != "dbtex" or model is None):
        what = "detections of slices are written only when a model is run on volumes"
        raise UserError(what, where="--by_slice", todo="give a model and --metric=dbtex, or leave it out")
    _check_looked(model, settings)
    if settings.metric == "dbtex":
        return _evaluate_volumes(model, data, split, on_error, output, settings)
    subject = Subject(Path(settings.predictions), False) if model is None else Subject(model, True)
    other = _compared_with(settings.against) if settings.against else None
    name, other_name = _names(subject, other)
    criterion = criterion_from_text(settings.criterion)
    check_output(output, [one.place for one in (subject, other) if one and not one.is_model])
    # files are read first, so that mistakes are reported early
    subjects = sorted(filter(None, (subject, other)), key=lambda one: one.is_model)
    own = {one: load(one.place) for one in subjects if one.is_model}
    loaded = {one: with_views(trained, settings.flips, settings.scales) for one, trained in own.items()}
    images = max([1, *(one.tested_images for one in loaded.values())])
    source = _open(data, split, on_error, images)
    console = new_console()
    console.print(f"{split or 'all'}: {counted(source.infos)}")
    categories = source.category_ids
    found = {one: _detect(one, loaded.get(one), source, categories, settings) for one in subjects}
    everything, notes = found[subject]
    results = everything if model is None else detections.above(everything, settings.score_floor)
    notes += unread_partners(data) if images == 1 else []
    how: dict[str, Any] = {
        "criterion": criterion,
        "score_floor": settings.score_floor,
        "froc_images": "all" if settings.all_images else "with_lesions",
        "resamples": settings.bootstrap,
        "several": metrics.SEVERAL,
        "classes": source.classes,
    }
    measure = lambda found: metrics.evaluate_detections(found, **how)
    evaluation = measure(results)
    evaluation["notes"] += notes
    if model is not None:
        evaluation["own_thresholds"] = promises_kept(loaded[subject], everything, settings.bootstrap)
        evaluation["notes"] += views_notes(own[subject], loaded[subject])
    evaluations, comparisons = {name: evaluation}, {}
    if other is not None:
        theirs, notes = found[other]
        evaluations = {other_name: measure(theirs), name: evaluation}  # the others are compared with the first
        evaluations[other_name]["notes"] += notes
        comparisons[name] = metrics.compare_detections(theirs, results, **how)
    place = f"{split or 'every'} split of {data.spec}"
    with new_evaluation(output) as written:
        detections.write_results(written / "predictions.json", results, categories)
        files.write_json(written / "evaluation.json", evaluation)
        files.write_json(written / "comparisons.json", comparisons)
        write_skipped(written, source.skipped)
        pictures = report.pictures(name, report.choose_pictures(results, criterion, evaluation), source)
        evaluated = Evaluated(place, evaluations, comparisons, [pictures])
        write_report(written / "report.html", _page(name, evaluated, split, source))
    console.print(results_table(evaluations, comparisons, place))
    for note in notes_of(evaluations):
        console.print(f"note: {note}")
    console.print(f"report: {output / 'report.html'}")
    return evaluation


def _open(data: SourceSpec, split: str, on_error: OnError, images: int) -> ImageSource:
    """The data with this many images of a breast. UserError if they have only one."""
    if images > 1 and not data.partner:
        what = f"the detector reads {images} images of a breast, but the data have one"
        raise UserError(what, where=data.spec, todo="give the second with --partner, or choose another --stage")
    return open_source(data, split, on_error=on_error, progress=progress_bar("  opening"), images=images)


def _page(name: str, evaluated: Evaluated, split: str, source: ImageSource) -> Report:
    """The report of an evaluation of the model `name` on a split of a source; "": all splits."""
    counts = {split or "all": summary(source.infos)}
    record = RunRecord(name, f"{name} on {evaluated.on}", data=counts, skipped=source.skipped)
    return run_report(record, [detection_part(DetectionRun([evaluated]))])


def _check_looked(model: Path | None, settings: EvaluateSettings) -> None:
    """UserError for settings of running a model if there is no model to run."""
    if settings.volume_rule != EvaluateSettings().volume_rule and (settings.metric != "dbtex" or model is None):
        what = "the rule is for volumes, but no model is run on volumes"
        raise UserError(what, where="--volume_rule", todo="give a model and --metric=dbtex, or leave it out")
    looks = model is not None or (settings.against and Path(settings.against).is_dir())
    for name in ("flips", "scales"):
        if getattr(settings, name) is not None and not looks:
            what = f"{'mirrored views' if name == 'flips' else 'sizes'} are given, but no model is run on them"
            raise UserError(what, where=f"--{name}", todo="give a model, or leave it out")


def _evaluate_volumes(
    model: Path | None, data: SourceSpec, split: str, on_error: OnError, output: Path, settings: EvaluateSettings
) -> dict[str, Any]:
    """Evaluate with the DBTex metric. UserError for settings that do not apply to it."""
    plain = EvaluateSettings()
    for name in ("against", "criterion", "all_images"):
        if getattr(settings, name) != getattr(plain, name):
            what = f"--{name} applies to images, not to volumes"
            raise UserError(what, where=f"--{name}", todo="leave it out, or leave --metric out")
    if model is None and settings.score_floor != plain.score_floor:
        what = "all rows of a CSV file count, whatever their score, as in the challenge"
        raise UserError(what, where="--score_floor", todo="leave it out, or remove the rows")
    return volumes.evaluate_dbtex(
        model=model,
        predictions=Path(settings.predictions) if model is None else None,
        data=data,
        split=split,
        on_error=on_error,
        output=output,
        rule=settings.volume_rule,
        score_floor=settings.score_floor,
        resamples=settings.bootstrap,
        flips=settings.flips,
        scales=settings.scales,
        by_slice=settings.by_slice,
    )


def _compared_with(against: str) -> Subject:
    place = Path(against)
    return (
        Subject(model_folder.find(place, None, ARCHITECTURES, "a detector"), True)
        if place.is_dir()
        else Subject(place, False)
    )


def _names(subject: Subject, other: Subject | None) -> tuple[str, str]:
    """Names of the subjects: as few of the last parts of their paths as distinguish them."""
    own = subject.parts
    if other is None:
        return own[-1], ""
    theirs = other.parts
    if own == theirs:
        raise UserError(
            "the same model or file as the one being evaluated", where="--against", todo="name another run or file"
        )
    alike = next(i for i in range(len(own) + 1) if own[-1 - i :] != theirs[-1 - i :])
    return "/".join(own[-1 - alike :]), "/".join(theirs[-1 - alike :])


def _detect(
    subject: Subject,
    trained: Trained | Ensemble | None,
    source: ImageSource,
    categories: Sequence[int] | None,
    settings: EvaluateSettings,
) -> tuple[list[ImageResult], list[str]]:
    """(its detections with the truth, notes). A single class of a model and a single class of the data count as the
    same.

    trained: the model, whose detections include those needed for its own thresholds; None for detections of another
    program.
    """
    if trained is None:
        numbers = categories or range(1, len(source.classes) + 1)
        found = detections.read_results(subject.place, source.infos, numbers)
        return detections.join(source.infos, found), []
    notes: list[str] = []
    known = trained.description.classes
    if len(known) == len(source.classes) == 1 and known != source.classes:
        notes = [f"the class '{known[0]}' of the model counts as '{source.classes[0]}' of the data"]
        source = replace(source, classes=known)
    notes += patients_seen(subject.parts[-1], subject.place, source.infos)
    notes += predict.unlearned(trained, subject.parts[-1])
    if source.images > 1 and trained.tested_images == 1:
        notes.append(f"{subject.parts[-1]} reads one image of a breast: it was given the first of each pair")
    lowest = _lowest(trained, settings.score_floor)
    results = predict.detect_with(trained, source, meshes.make_mesh(), lowest)
    return results, notes
