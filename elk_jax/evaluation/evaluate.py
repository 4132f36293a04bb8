"""All detection metrics of a run, with confidence intervals over patients: the content of `evaluation.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from elk_jax.errors import UserError
from elk_jax.evaluation import bootstrap, coco, froc, mistakes
from elk_jax.evaluation.detections import ImageResult, above, checked, doubts, of_class
from elk_jax.evaluation.hits import ELK_RULE, Criterion, criterion_from_text
from elk_jax.fields import Range, described, fits

RATES = (0.5, 1.0, 2.0, 3.0)  # false positives per image of ELK's operating points
AREA_LIMITS = (1.0, 2.0, 3.0)
AP_THRESHOLDS = {
    "ap": coco.COCO_THRESHOLDS,
    "ap50": (0.5,),
    "ap10": (0.1,),
    "ap30": (0.3,),
    "ap10_50": tuple(np.round(np.linspace(0.1, 0.5, 9), 2)),  # MONAI's, by which CoMoTo selects its checkpoints
}
METRIC_NAMES = (  # names as in `scalars`; higher is better, so a checkpoint can be selected by any of them
    "mean_sensitivity",
    *(f"sensitivity_at_{rate:g}" for rate in RATES),
    *(f"aufroc_{limit:g}" for limit in AREA_LIMITS),
    *AP_THRESHOLDS,
)
SEVERAL = ("iou:0.3", "iou:0.1", "centre_in_box", "regions:0.3")
"""Criteria shown side by side in a report, in the form read by `hits.criterion_from_text`."""
AP_OF = {"iou:0.3": "ap30", "iou:0.1": "ap10"}
"""The AP with the same criterion, for those that have one."""
MISTAKES_RATE = 1.0
"""False positives per image at the operating point whose mistakes are counted by kind."""
OF_CLASS = ("mean_sensitivity", *(f"sensitivity_at/{rate:g}" for rate in RATES), "ap", "ap50", "ap30")
"""Metrics of each class, by the names of `DetectionStatistic`."""
CURVE_GRID = tuple(np.round(np.linspace(0.0, 4.0, 81), 6))

FrocImages = Literal["with_lesions", "all"]


class FrocStatistic:
    """The FROC metrics by one criterion, as a function of the weights of `patients` (see bootstrap.py)."""

    def __init__(self, results: Sequence[ImageResult], criterion: Criterion, patients: Sequence[str]):
        self.counts = froc.count(results, criterion, patients)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        x, y = froc.curves(self.counts, weights)
        areas = froc.area_up_to(x, y, AREA_LIMITS)
        return _sensitivities(x, y) | {f"aufroc_{limit:g}": areas[:, i] for i, limit in enumerate(AREA_LIMITS)}

    def sensitivities(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics without areas, which take most of the time."""
        return _sensitivities(*froc.curves(self.counts, weights))

    def curve(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Sensitivity on CURVE_GRID, {"sensitivity": [R, grid]}, for the band around the curve."""
        return {"sensitivity": froc.sensitivity_at(*froc.curves(self.counts, weights), rates=CURVE_GRID)}


def _sensitivities(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The sensitivities [R] at RATES, and their mean, on curves [R, corners]."""
    at_rates = froc.sensitivity_at(x, y, RATES)
    values = {"mean_sensitivity": at_rates.mean(axis=1)}
    return values | {f"sensitivity_at/{rate:g}": at_rates[:, i] for i, rate in enumerate(RATES)}


class DetectionStatistic:
    """The metrics of one run as a function of patient weights (see bootstrap.py). Predictions are sorted once.

    several: further criteria, by text, for which FROC is also measured: "criteria/TEXT/mean_sensitivity" and so on.
    classes: names in label order. If there is more than one, the metrics OF_CLASS are also measured on each class alone
    (`of_class`): "classes/NAME/mean_sensitivity" and so on.

    Attributes: patients (in order), froc, by_criterion, by_class, thresholds (score at the operating point of each
    rate, or None).
    """

    def __init__(
        self,
        results: Sequence[ImageResult],
        criterion: Criterion,
        froc_images: FrocImages = "with_lesions",
        several: Sequence[str] = (),
        classes: Sequence[str] = (),
    ):
        self.patients = sorted({result.patient_id for result in results})
        chosen = froc_results(results, froc_images)
        self.froc = FrocStatistic(chosen, criterion, self.patients)
        self.by_criterion = {text: FrocStatistic(chosen, criterion_from_text(text), self.patients) for text in several}
        self.by_class = {
            name: FrocStatistic(froc_results(of_class(results, label), froc_images), criterion, self.patients)
            for label, name in enumerate(classes if len(classes) > 1 else ())
        }
        self.thresholds = [froc.threshold_at(self.froc.counts, rate) for rate in RATES]
        iou_thresholds = sorted({float(t) for ts in AP_THRESHOLDS.values() for t in ts})
        self._ap_counts = coco.count(results, iou_thresholds, self.patients)
        lesion_free = [result for result in results if result.is_lesion_free]
        self._free_images, self._free_positives = _lesion_free_counts(lesion_free, self.patients, self.thresholds)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        values = self.froc(weights)
        precisions = coco.Precisions(self._ap_counts, weights)
        values |= {name: precisions.mean(thresholds) for name, thresholds in AP_THRESHOLDS.items()}
        free = froc.ratio(weights @ self._free_positives, (weights @ self._free_images)[:, None])
        for i, rate in enumerate(RATES):
            values[f"false_positives_per_lesion_free_image/{rate:g}"] = free[:, i]
        for text, statistic in self.by_criterion.items():
            values |= {f"criteria/{text}/{name}": own for name, own in statistic.sensitivities(weights).items()}
            if text in AP_OF:
                values[f"criteria/{text}/ap"] = values[AP_OF[text]]
        for label, (name, alone) in enumerate(self.by_class.items()):
            own = alone.sensitivities(weights)
            own |= {ap: precisions.mean(thresholds, label) for ap, thresholds in AP_THRESHOLDS.items()}
            values |= {f"classes/{name}/{metric}": own[metric] for metric in OF_CLASS}
        return values | self._operating_points(weights)

    def _operating_points(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Results at the thresholds chosen on the whole sample: thresholds are fixed, patients vary."""
        counts, values = self.froc.counts, {}
        images, lesions = weights @ counts.images, weights @ counts.lesions
        for rate, threshold in zip(RATES, self.thresholds, strict=True):
            if threshold is None:
                continue
            column = int(np.flatnonzero(counts.scores == threshold)[0])
            found, wrong = counts.found.at(column), counts.at_least.at(column)
            values[f"at_threshold/{rate:g}/sensitivity"] = froc.ratio(weights @ found, lesions)
            values[f"at_threshold/{rate:g}/false_positives_per_image"] = froc.ratio(weights @ wrong, images)
        return values


def evaluate_detections(
    results: Sequence[ImageResult],
    *,
    criterion: Criterion = ELK_RULE,
    score_floor: float = 0.01,
    froc_images: FrocImages = "with_lesions",
    resamples: int = 2000,
    seed: int = 0,
    several: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """All metrics of a detector on one split, ready for JSON.

    criterion: definition of a hit, for FROC (AP always uses IoU).
    score_floor: predictions with a lower score are dropped first (ELK: 0.01 in the test, 0.1 to select checkpoints).
    froc_images: ELK's FROC counts false positives only on images with lesions; "all" counts every image.
    resamples: of patients, for 95 % percentile intervals; 0 for none (faster, during training).
    several: further criteria to measure, such as SEVERAL.
    classes: names in label order. If there is more than one, each class is also measured alone.

    With several classes, a box finds lesions of its own class only, and is a false positive on those of others. FROC is
    of the lesions and boxes of all classes together; AP is the mean over the classes that have a lesion.

    A metric is {"value", "low", "high"}, with None if it is not defined ("notes" explain why): mean_sensitivity (over
    RATES), sensitivity_at {"0.5": ...}, aufroc_1, aufroc_2, aufroc_3, ap, ap50, ap10, ap30, ap10_50 (the mean from IoU
    0.1 to 0.5) and, at the thresholds of the operating points, false_positives_per_lesion_free_image {"0.5": ...}.
    Besides: operating_points [{rate, threshold, sensitivity, false_positives_per_image,
    false_positives_per_lesion_free_image}], curve {false_positives_per_image, sensitivity, band_at, low, high}, counts,
    notes, and the settings of the evaluation. criteria: for each of `several` its name, the number of lesions or
    regions `to_find`, mean_sensitivity, sensitivity_at, ap if one has this criterion, and the curve. mistakes: the
    kinds of false positives and misses at MISTAKES_RATE false positives per image (`mistakes.at_rate`).

    With several `classes`, also: classes {name: {lesions, images_with_lesions, mean_sensitivity, sensitivity_at, ap,
    ap50, ap30}}, each equal to an evaluation of this class alone, so that "with_lesions" means its own lesions; and
    confusion {rate, threshold, table}, of `mistakes.confusion` at MISTAKES_RATE false positives per image of all
    classes, or {} without a threshold.
    """
    _check_settings(criterion, score_floor, froc_images, resamples, seed)
    scored = above(checked(results), score_floor)
    _check_classes(scored, classes)
    statistic = DetectionStatistic(scored, criterion, froc_images, several, classes)
    patients = len(statistic.patients)
    estimates = bootstrap.estimate(statistic, patients, resamples=resamples, seed=seed)
    flat = {name: value for name, value in estimates.items() if "/" not in name}
    by_rate = {
        group: {f"{rate:g}": estimates[f"{group}/{rate:g}"] for rate in RATES}
        for group in ("sensitivity_at", "false_positives_per_lesion_free_image")
    }
    threshold = statistic.thresholds[RATES.index(MISTAKES_RATE)]
    chosen, found = froc_results(scored, froc_images), statistic.by_criterion
    return {
        **{"mean_sensitivity": flat.pop("mean_sensitivity"), **by_rate, **flat},
        "operating_points": _operating_points(statistic, estimates),
        "curve": _curve(statistic.froc, resamples, seed),
        "criteria": {text: _by_criterion(text, one, estimates, resamples, seed) for text, one in found.items()},
        "mistakes": mistakes.at_rate(chosen, criterion, MISTAKES_RATE, threshold),
        **(_by_class(scored, classes, criterion, threshold, estimates) if statistic.by_class else {}),
        "counts": _count_all(scored),
        "criterion": criterion.name,
        "froc_images": froc_images,
        "score_floor": score_floor,
        "bootstrap": {"over": "patients", "resamples": resamples, "seed": seed, "level": bootstrap.LEVEL},
        "notes": _notes(scored, statistic, resamples, estimates["mean_sensitivity"]),
    }


def compare_detections(
    first: Sequence[ImageResult],
    second: Sequence[ImageResult],
    *,
    criterion: Criterion = ELK_RULE,
    score_floor: float = 0.01,
    froc_images: FrocImages = "with_lesions",
    resamples: int = 2000,
    seed: int = 0,
    several: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Paired bootstrap of two runs over the same patients: second minus first, per metric.

    Returns {name: {"first", "second", "difference", "low", "high", "p_value"}} with the names of `scalars`; those of
    `several` criteria begin with "criteria_TEXT_". With more than one of `classes`, "classes" holds the same for each.
    Raises UserError if the runs were not evaluated on the same images and lesions.
    """
    _check_settings(criterion, score_floor, froc_images, resamples, seed)
    first, second = checked(first), checked(second)
    _same_images(first, second)
    _check_classes([*first, *second], classes)
    a, b = (
        DetectionStatistic(above(run, score_floor), criterion, froc_images, several, classes) for run in (first, second)
    )
    compared = bootstrap.compare(a, b, len(a.patients), resamples=resamples, seed=seed)
    pooled = {name: v for name, v in compared.items() if not name.startswith(("at_threshold/", "classes/"))}
    of_classes = {name: _metrics_of(name, compared) for name in a.by_class}
    flat = lambda values: {name.replace("/", "_"): one for name, one in values.items()}
    return flat(pooled) | ({"classes": {name: flat(own) for name, own in of_classes.items()}} if of_classes else {})


def share_of_gain(
    before: Sequence[ImageResult],
    after: Sequence[ImageResult],
    reference: Sequence[ImageResult],
    *,
    criterion: Criterion = ELK_RULE,
    score_floor: float = 0.01,
    froc_images: FrocImages = "with_lesions",
    resamples: int = 2000,
    seed: int = 0,
) -> bootstrap.Estimate:
    """The share {"value", "low", "high"} of the gain in mean sensitivity from `before` to `reference` that `after` has.

    1: as good as the reference, 0: no better than before. Undefined (None) if the reference is no better than before;
    the interval omits resamples in which this is so. UserError as in `compare_detections`.
    """
    _check_settings(criterion, score_floor, froc_images, resamples, seed)
    runs = [checked(run) for run in (before, after, reference)]
    for run in runs[1:]:
        _same_images(runs[0], run)
    statistics = [DetectionStatistic(above(run, score_floor), criterion, froc_images) for run in runs]

    def share(weights: np.ndarray) -> dict[str, np.ndarray]:
        first, own, best = (statistic(weights)["mean_sensitivity"] for statistic in statistics)
        gains = np.where(best > first, best - first, np.nan)
        return {"share": (own - first) / gains}

    return bootstrap.estimate(share, len(statistics[0].patients), resamples=resamples, seed=seed)["share"]


def _check_settings(
    criterion: object, score_floor: object, froc_images: object, resamples: object, seed: object
) -> None:
    bootstrap.check(resamples, seed)
    if not isinstance(criterion, Criterion):
        raise UserError(f"criterion is {criterion!r}", where="criterion", todo="give a criterion of evaluation/hits.py")
    if not Range().takes(score_floor):
        raise UserError(f"score_floor is {score_floor!r}", where="score_floor", todo="give a number")
    if not fits(froc_images, FrocImages):
        raise UserError(f"froc_images is {froc_images!r}", where="froc_images", todo=f"give {described(FrocImages)}")


def _check_classes(results: Sequence[ImageResult], classes: Sequence[str]) -> None:
    if len(set(classes)) < len(classes):
        raise UserError("two classes have the same name", where="classes", todo="rename one of them")
    last = max((int(label) for result in results for label in (*result.gt_labels, *result.labels)), default=0)
    if classes and last >= len(classes):
        what = f"label {last} is not one of the {len(classes)} classes"
        raise UserError(what, where="classes", todo="name every class, in label order")


def scalars(evaluation: dict[str, Any]) -> dict[str, float]:
    """The defined values of an evaluation as a flat dict (`sensitivity_at_0.5`, `ap50`, ...), for logs."""
    flat: dict[str, float] = {}
    for name, entry in evaluation.items():
        if not isinstance(entry, dict):
            continue
        named = {name: entry} if "value" in entry else {f"{name}_{key}": sub for key, sub in entry.items()}
        for key, estimate in named.items():
            if isinstance(estimate, dict) and estimate.get("value") is not None:
                flat[key] = estimate["value"]
    return flat


def _lesion_free_counts(
    results: Sequence[ImageResult], patients: Sequence[str], thresholds: Sequence[float | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Per patient: lesion-free images [P], and predictions on them above each threshold [P, T] (NaN for None)."""
    row_of = {patient: row for row, patient in enumerate(patients)}
    images = np.zeros(len(patients))
    positives = np.zeros((len(patients), len(thresholds)))
    limits = np.array([np.nan if threshold is None else threshold for threshold in thresholds], float)
    for result in results:
        images[row_of[result.patient_id]] += 1
        positives[row_of[result.patient_id]] += (result.scores[:, None] >= limits[None]).sum(axis=0)
    positives[:, np.isnan(limits)] = np.nan
    return images, positives


def _operating_points(statistic: DetectionStatistic, estimates: dict[str, bootstrap.Estimate]) -> list[dict[str, Any]]:
    nothing: bootstrap.Estimate = {"value": None, "low": None, "high": None}
    return [
        {
            "rate": rate,
            "threshold": threshold,
            "sensitivity": estimates.get(f"at_threshold/{rate:g}/sensitivity", nothing),
            "false_positives_per_image": estimates.get(f"at_threshold/{rate:g}/false_positives_per_image", nothing),
            "false_positives_per_lesion_free_image": estimates[f"false_positives_per_lesion_free_image/{rate:g}"],
        }
        for rate, threshold in zip(RATES, statistic.thresholds, strict=True)
    ]


def froc_results(results: Sequence[ImageResult], froc_images: FrocImages) -> list[ImageResult]:
    """The images of the curve."""
    return [result for result in results if froc_images == "all" or result.has_lesions]


def _by_criterion(
    text: str, statistic: FrocStatistic, estimates: Mapping[str, bootstrap.Estimate], resamples: int, seed: int
) -> dict[str, Any]:
    """The entry for one of several criteria."""
    criterion, within = criterion_from_text(text), f"criteria/{text}/"
    own = {name.removeprefix(within): one for name, one in estimates.items() if name.startswith(within)}
    return {
        "name": criterion.name,
        "to_find": statistic.counts.total_lesions,
        "mean_sensitivity": own["mean_sensitivity"],
        "sensitivity_at": {f"{rate:g}": own[f"sensitivity_at/{rate:g}"] for rate in RATES},
        **({"ap": own["ap"]} if "ap" in own else {}),
        "curve": _curve(statistic, resamples, seed),
    }


def _metrics_of(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics OF_CLASS of the class `name`, from the values of a `DetectionStatistic`."""
    return {metric: values[f"classes/{name}/{metric}"] for metric in OF_CLASS}


def _by_class(
    results: Sequence[ImageResult],
    classes: Sequence[str],
    criterion: Criterion,
    threshold: float | None,
    estimates: Mapping[str, bootstrap.Estimate],
) -> dict[str, Any]:
    """The entries of an evaluation of several classes."""
    found: dict[str, Any] = {}
    for label, name in enumerate(classes):
        counts, own = _count_all(of_class(results, label)), _metrics_of(name, estimates)
        found[name] = {
            "lesions": counts["lesions"],
            "images_with_lesions": counts["images_with_lesions"],
            "mean_sensitivity": own["mean_sensitivity"],
            "sensitivity_at": {f"{rate:g}": own[f"sensitivity_at/{rate:g}"] for rate in RATES},
            **{metric: own[metric] for metric in ("ap", "ap50", "ap30")},
        }
    if threshold is None:
        return {"classes": found, "confusion": {}}
    table = mistakes.confusion(results, len(classes), criterion, threshold)
    return {"classes": found, "confusion": {"rate": MISTAKES_RATE, "threshold": threshold, "table": table}}


def _curve(statistic: FrocStatistic, resamples: int, seed: int) -> dict[str, list[float] | None]:
    """The corners of the curve up to the end of the grid, and the band on the grid (None without intervals)."""
    patients = len(statistic.counts.images)
    curve: dict[str, list[float] | None] = {"false_positives_per_image": [], "sensitivity": []}
    curve |= dict.fromkeys(("band_at", "low", "high"))
    if statistic.counts.total_lesions == 0:
        return curve
    (x,), (y,) = froc.curves(statistic.counts, np.ones((1, patients)))
    end = CURVE_GRID[-1]
    curve["false_positives_per_image"] = [*x[x <= end].tolist(), end]
    curve["sensitivity"] = [*y[x <= end].tolist(), float(np.interp(end, x, y))]
    band = bootstrap.bands(statistic.curve, patients, resamples=resamples, seed=seed)
    if not band:
        return curve
    low, high = ([bounds[end] for bounds in band["sensitivity"]] for end in ("low", "high"))
    return curve | {"band_at": list(CURVE_GRID), "low": low, "high": high}  # type: ignore[dict-item]


def _count_all(results: Sequence[ImageResult]) -> dict[str, int]:
    return {
        "patients": len({result.patient_id for result in results}),
        "images": len(results),
        "images_with_lesions": sum(result.has_lesions for result in results),
        "lesion_free_images": sum(result.is_lesion_free for result in results),
        "lesions": int(sum((~result.gt_ignore).sum() for result in results)),
        "ignored_boxes": int(sum(result.gt_ignore.sum() for result in results)),
        "predictions": int(sum(len(result.scores) for result in results)),
    }


def _notes(
    results: Sequence[ImageResult], statistic: DetectionStatistic, resamples: int, main: bootstrap.Estimate
) -> list[str]:
    notes = doubts(results)
    found = {int(label) for result in results for label in (*result.gt_labels, *result.labels)}
    if (classes := max(len(found), len(statistic.by_class))) > 1:
        own = "a box finds only lesions of its own class, and is a false positive on those of others"
        together = "sensitivity and false positives are of all classes together, AP is the mean over classes"
        notes.append(f"{classes} classes: {own}; {together}")
    absent = [name for name, alone in statistic.by_class.items() if not alone.counts.total_lesions]
    if absent and statistic.froc.counts.total_lesions:
        notes.append(f"no lesion of {', '.join(absent)}: AP is the mean over the other classes")
    if statistic.froc.counts.total_lesions == 0:
        notes.append("no lesions to find: sensitivity, AUFROC and AP are undefined")
    if not any(len(result.scores) for result in results):
        notes.append("no predictions at or above the score floor")
    if not any(result.is_lesion_free for result in results):
        notes.append("no lesion-free images: false positives on lesion-free images are undefined")
    notes += bootstrap.doubts(resamples, len(statistic.patients), main)
    missing = [f"{r:g}" for r, t in zip(RATES, statistic.thresholds, strict=True) if t is None]
    if missing and statistic.froc.counts.total_lesions:
        notes.append(f"no threshold at {', '.join(missing)} false positives per image: no lesion is found at that rate")
    return notes


def _same_images(first: Sequence[ImageResult], second: Sequence[ImageResult]) -> None:
    def truth(run: Sequence[ImageResult]) -> dict[str, tuple[str, list, list, list]]:
        return {
            r.image_id: (r.patient_id, r.gt_boxes.tolist(), r.gt_labels.tolist(), r.gt_ignore.tolist()) for r in run
        }

    a, b = truth(first), truth(second)
    differing = sorted(i for i in a.keys() | b.keys() if a.get(i) != b.get(i))
    if differing:
        raise UserError(
            f"the two runs differ in {len(differing)} images or the lesions in them, for example {differing[0]!r}",
            todo="compare runs that were evaluated on the same data and split",
        )
