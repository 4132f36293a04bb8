"""Operating points of a detector: the score threshold for a given number of false positives per image on unseen
patients.

The threshold is derived only from false positives, which are many, and not from the scores of found lesions, which are
few: by linear interpolation between the two false positives next to the promised number. For Poisson counts, the k-th
highest score has on average k false positives above it on the same number of new images.
`benchmarks/operating_points.py` measures how thresholds transfer.

Only images with lesions count, as in `froc`.

Shapes: P patients, F false positives in descending order of their scores, R weightings of the patients, T rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from elk_jax.evaluation import bootstrap
from elk_jax.evaluation.bootstrap import LEAST_PATIENTS
from elk_jax.evaluation.detections import ImageResult, above, checked
from elk_jax.evaluation.evaluate import RATES
from elk_jax.evaluation.froc import image_scores, ratio
from elk_jax.evaluation.hits import ELK_RULE, Criterion
from elk_jax.fields import SHARE, AtLeast

PROMISED = (0.25, *RATES)
"""False positives per image of the operating points of a model."""
MAIN = 1.0
"""The rate whose threshold is the default, and by which the sufficiency of the images is judged."""
TOLERATED = 4 / 3
"""Factor by which false positives on other patients may differ from the promised rate, in either direction."""
LEAST_LESIONS = 20
"""With fewer lesions, or fewer than `bootstrap.LEAST_PATIENTS` patients, thresholds are always reported as doubtful."""
NORMAL = 1.96
"""Half the width of a 95 % interval, in standard deviations."""

VALIDATION = "validation"


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, the rate that it promises, and its uncertainty: 95 % intervals over patients.

    threshold: the score that gives the promised rate of false positives on the images on which it was chosen, with the
    interval `low` to `high`; None if there were no predictions. rate_low, rate_high: the false positives per image that
    may actually occur, since the choice depends on the available patients. sensitivity: at the threshold, on those
    images. rate: false positives per image there, fewer than promised if the detector makes no more; None in folders of
    earlier versions.
    """

    false_positives_per_image: Annotated[float, AtLeast(0)]
    threshold: Annotated[float, SHARE] | None
    low: Annotated[float, SHARE] | None = None
    high: Annotated[float, SHARE] | None = None
    rate_low: Annotated[float, AtLeast(0)] | None = None
    rate_high: Annotated[float, AtLeast(0)] | None = None
    sensitivity: Annotated[float, SHARE] | None = None
    sensitivity_low: Annotated[float, SHARE] | None = None
    sensitivity_high: Annotated[float, SHARE] | None = None
    rate: Annotated[float, AtLeast(0)] | None = None


@dataclass(frozen=True)
class ChosenOn:
    """The images with lesions on which thresholds were chosen. data: in words. patients_needed: the number that keeps
    the false positives within a third of the promised rate; 0 if unknown."""

    data: str = ""
    patients: Annotated[int, AtLeast(0)] = 0
    images: Annotated[int, AtLeast(0)] = 0
    lesions: Annotated[int, AtLeast(0)] = 0
    patients_needed: Annotated[int, AtLeast(0)] = 0

    @property
    def counted(self) -> str:
        """The counts in words."""
        return f"{self.data}: {self.lesions} lesions in {self.images} images of {self.patients} patients"


@dataclass(frozen=True)
class Choice:
    """The operating points of a model, and the images on which they were chosen."""

    points: tuple[OperatingPoint, ...] = ()
    on: ChosenOn = ChosenOn()

    @property
    def warning(self) -> str:
        """Reservations about the thresholds, in sentences; "" if there are none."""
        return doubt(self.points, self.on)


def doubt(points: Sequence[OperatingPoint], on: ChosenOn) -> str:
    """As `Choice.warning`. It also says so if the spread over patients is unknown."""
    if not on.data:  # a folder of an earlier version, or one without thresholds
        return "The images on which the thresholds were chosen are unknown." if points else ""
    if not on.images:
        return f"The thresholds were chosen on {on.data}, where no image has a lesion."
    main = next((p for p in points if p.false_positives_per_image == MAIN), None)
    if main is None:
        return ""
    if main.threshold is None:
        return f"No threshold could be chosen: the detector predicted nothing on {on.counted}."
    return " ".join(filter(None, (_falls_short(main, on), _too_few(main, on))))


def _falls_short(main: OperatingPoint, on: ChosenOn) -> str:
    if main.rate is None or main.rate * TOLERATED >= main.false_positives_per_image:
        return ""
    return (
        f"All predictions together make {main.rate:.2f} false positives per image on {on.data}, fewer than the "
        f"{MAIN:g} promised. The threshold is the lowest score kept, so it does not limit their number on other "
        "patients."
    )


def _too_few(main: OperatingPoint, on: ChosenOn) -> str:
    few = f"The thresholds were chosen on few images ({on.counted})"
    spread = main.rate_low is not None and main.rate_high is not None
    if spread and on.patients_needed > on.patients:
        return (
            f"{few}: the one for {MAIN:g} false positive per image may give {main.rate_low:.2f} to "
            f"{main.rate_high:.2f} on other patients. About {max(on.patients_needed, LEAST_PATIENTS)} patients with "
            f"lesions would keep this within {1 / TOLERATED:.2f} to {TOLERATED:.2f}."
        )
    if on.patients < LEAST_PATIENTS or on.lesions < LEAST_LESIONS:
        return (
            f"{few}: with fewer than {LEAST_PATIENTS} patients or {LEAST_LESIONS} lesions, the number of false "
            "positives on other patients cannot be estimated."
        )
    if not spread:
        unknown = "The number of false positives on other patients is unknown"
        return f"{unknown}: patients were not resampled ({on.counted})."
    return ""


@dataclass(frozen=True)
class _Scores:
    """The scores from which thresholds are derived."""

    wrong: np.ndarray  # [F] scores of false positives, descending
    wrong_of: np.ndarray  # [F] row of their patients
    found: np.ndarray  # [lesions to find] the score at which each is found
    found_of: np.ndarray  # [lesions to find]
    images: np.ndarray  # [P] images with lesions
    patients: int

    @property
    def predictions(self) -> bool:
        return bool(len(self.wrong) or np.isfinite(self.found).any())


def _scores(results: Sequence[ImageResult], criterion: Criterion) -> _Scores:
    chosen = [result for result in results if result.has_lesions]
    patients = sorted({result.patient_id for result in chosen})
    row_of = {patient: row for row, patient in enumerate(patients)}
    rows = np.array([row_of[result.patient_id] for result in chosen], int)
    per_image = [image_scores(result, criterion) for result in chosen]
    none = np.zeros(0)
    wrong = np.concatenate([none, *(one.false_positives for one in per_image)])
    order = np.argsort(-wrong, kind="stable")
    return _Scores(
        wrong=wrong[order],
        wrong_of=np.repeat(rows, [len(one.false_positives) for one in per_image])[order],
        found=np.concatenate([none, *(one.lesions for one in per_image)]),
        found_of=np.repeat(rows, [len(one.lesions) for one in per_image]),
        images=np.bincount(rows, minlength=len(patients)).astype(float),
        patients=len(patients),
    )


def choose(
    results: Sequence[ImageResult],
    *,
    criterion: Criterion = ELK_RULE,
    score_floor: float = 0.01,
    rates: Sequence[float] = PROMISED,
    resamples: int = 2000,
    seed: int = 0,
    data: str = VALIDATION,
) -> Choice:
    """The operating points of a detector, from its predictions for patients on which it was not trained.

    score_floor: predictions that score less are dropped; if all others make fewer false positives than promised, this
    is the threshold. resamples: of patients, for the intervals; 0 for none. data: the images, in words.
    """
    scores = _scores(above(checked(results), score_floor), criterion)
    on = ChosenOn(data=data, patients=scores.patients, images=int(scores.images.sum()), lesions=len(scores.found))
    if not scores.predictions:
        return Choice(tuple(OperatingPoint(false_positives_per_image=rate, threshold=None) for rate in rates), on)
    own = _thresholds(scores, np.ones((1, scores.patients)), rates, score_floor)[0]
    weights = bootstrap.weights_of(scores.patients, resamples, seed)
    drawn = _thresholds(scores, weights, rates, score_floor)
    actual = np.searchsorted(-scores.wrong, -drawn, side="right") / scores.images.sum()
    points = []
    for column, rate in enumerate(rates):
        found = (scores.found >= own[column]).astype(float)
        sensitivity = _shares(scores, found, weights)
        whole = float(found.mean()) if len(found) else None
        points.append(
            OperatingPoint(
                false_positives_per_image=rate,
                threshold=float(own[column]),
                **bootstrap.interval(drawn[:, column], 0.0),
                **_named("rate", bootstrap.interval(actual[:, column], 0.0)),
                sensitivity=whole,
                **_named("sensitivity", bootstrap.interval(sensitivity, whole)),
                rate=float((scores.wrong >= own[column]).sum() / scores.images.sum()),
            )
        )
    main = next((column for column, rate in enumerate(rates) if rate == MAIN), None)
    # thresholds at the floor cannot vary, so they are uninformative about the number of patients needed
    known = main is not None and (points[main].rate or 0) >= MAIN
    needed = _needed(actual[:, main], scores.patients) if known else 0
    return Choice(tuple(points), ChosenOn(**{**vars(on), "patients_needed": needed}))


def _named(prefix: str, bounds: Mapping[str, float | None]) -> dict[str, Any]:
    return {f"{prefix}_{end}": value for end, value in bounds.items()}


def _thresholds(scores: _Scores, weights: np.ndarray, rates: Sequence[float], score_floor: float) -> np.ndarray:
    """The thresholds [R, T] of rates for integer weights [R, P] of the patients."""
    wanted = (weights @ scores.images)[:, None] * np.asarray(rates)
    found = np.empty((len(weights), len(rates)))
    for row, own in enumerate(weights):
        levels = np.concatenate([[1.0], np.repeat(scores.wrong, own[scores.wrong_of].astype(int))])
        found[row] = np.interp(wanted[row], np.arange(len(levels)), levels, right=score_floor)
    return np.clip(found, min(score_floor, 1.0), 1.0)


def _shares(scores: _Scores, found: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share [R] of lesions found, for weightings [R, P]. found: 1 or 0 for each lesion."""
    per_patient = np.bincount(scores.found_of, found, scores.patients)
    lesions = np.bincount(scores.found_of, minlength=scores.patients)
    return ratio(weights @ per_patient, weights @ lesions)


def _needed(actual: np.ndarray, patients: int) -> int:
    """Patients needed to keep the false positives at a threshold within TOLERATED of the promise, 19 times out of 20.

    actual: rates at thresholds [R] chosen on resamples. The logarithm of the error falls with the root of the number of
    patients.
    """
    logarithms = np.log(actual[actual > 0])
    if len(logarithms) < 2:
        return 0
    return math.ceil(patients * (NORMAL * float(logarithms.std()) / math.log(TOLERATED)) ** 2)


def kept(
    results: Sequence[ImageResult],
    points: Sequence[OperatingPoint],
    *,
    criterion: Criterion = ELK_RULE,
    score_floor: float = 0.01,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Results on these images of thresholds chosen on other images: whether the promise is kept.

    A list of {promised, threshold, false_positives_per_image, sensitivity} for points with a threshold; the last two
    are {"value", "low", "high"}, with thresholds fixed and patients resampled.
    """
    scores = _scores(above(checked(results), score_floor), criterion)
    whole = np.ones((1, max(1, scores.patients)))
    weights = bootstrap.weights_of(scores.patients, resamples, seed)
    found = []
    for point in points:
        if point.threshold is None:
            continue
        entry: dict[str, Any] = {"promised": point.false_positives_per_image, "threshold": point.threshold}
        hits, wrong = (scores.found >= point.threshold).astype(float), scores.wrong >= point.threshold
        per_patient = np.bincount(scores.wrong_of, wrong.astype(float), scores.patients)
        rate = lambda w, counts=per_patient: ratio(w @ counts, w @ scores.images)
        for name, of in (
            ("false_positives_per_image", rate),
            ("sensitivity", lambda w, hits=hits: _shares(scores, hits, w)),
        ):
            value = float(of(whole)[0]) if scores.patients else math.nan
            known = value if math.isfinite(value) else None
            entry[name] = {"value": known, **bootstrap.interval(of(weights), known)}
        found.append(entry)
    return found
