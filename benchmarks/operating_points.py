"""How thresholds transfer: the false positives per image that a threshold promises, and those on new patients.

    python benchmarks/operating_points.py --patients 11 30 60

Patients are simulated: like real ones they differ in the number of false positives and in their scores.
The rule of `elk_jax/evaluation/operating.py` is compared with the previous one, the lowest score of a found lesion that
keeps the rate. Then: how often the 95 % intervals of the model folder contain the later false positives per image and
sensitivity, and how optimistic the sensitivity is on the patients for whom the threshold was chosen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import measure  # noqa: E402
from elk_jax.evaluation import froc, operating  # noqa: E402
from elk_jax.evaluation.detections import ImageResult  # noqa: E402
from elk_jax.evaluation.hits import ELK_RULE  # noqa: E402

RATES = (0.5, 1.0, 2.0)
FRESH = 4000
"""Number of patients on whom a threshold is tried."""
LESION, ELSEWHERE = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def simulated(patients: int, rng: np.random.Generator) -> list[ImageResult]:
    """Images with one lesion each, 2 to 6 per patient, with the predictions of a detector."""
    results = []
    for patient in range(patients):
        often, high = rng.gamma(1.5, 1 / 1.5), rng.normal(0, 0.5)
        for image in range(rng.integers(2, 7)):
            wrong = _logistic(rng.normal(-3.2 + high, 1.5, rng.poisson(12 * often)))
            scores = np.concatenate([_logistic(rng.normal(1 + high, 2.0, 1)), wrong])
            results.append(
                ImageResult(
                    image_id=f"{patient}/{image}",
                    patient_id=str(patient),
                    width=100,
                    height=100,
                    gt_boxes=np.array([LESION]),
                    gt_labels=np.zeros(1, int),
                    gt_ignore=np.zeros(1, bool),
                    boxes=np.array([LESION, *[ELSEWHERE] * len(wrong)]),
                    scores=scores,
                    labels=np.zeros(len(scores), int),
                )
            )
    return results


def false_positives(results: list[ImageResult]) -> tuple[np.ndarray, int]:
    """(the scores of all false positives of `simulated` images, ascending; the number of images)."""
    return np.sort(np.concatenate([result.scores[1:] for result in results])), len(results)


def actual(fresh: tuple[np.ndarray, int], threshold: float | None) -> float:
    """False positives per image at a threshold; NaN without a threshold."""
    scores, images = fresh
    return np.nan if threshold is None else (len(scores) - np.searchsorted(scores, threshold)) / images


def sensitivity(results: list[ImageResult], threshold: float | None) -> float:
    """The share of the lesions of `simulated` images with a score of at least a threshold; NaN without a threshold."""
    return np.nan if threshold is None else float(np.mean([result.scores[0] >= threshold for result in results]))


def held(point: operating.OperatingPoint, rate: float, found: float) -> tuple[float, float, float]:
    """(1 if the interval of the rate contains the later value, the same for the sensitivity, the optimism of the
    sensitivity); rate, found: the later values."""
    inside = lambda low, value, high: np.nan if low is None else float(low <= value <= high)
    return (
        inside(point.rate_low, rate, point.rate_high),
        inside(point.sensitivity_low, found, point.sensitivity_high),
        np.nan if point.sensitivity is None else point.sensitivity - found,
    )


def described(found: np.ndarray) -> str:
    """found: the later values, as shares of the promised ones."""
    found = found[np.isfinite(found)]
    within = np.mean((found >= 1 / operating.TOLERATED) & (found <= operating.TOLERATED))
    spread = np.std(np.log(np.maximum(found, 1e-3)))
    return f"mean {found.mean():.2f}, standard deviation of the logarithm {spread:.2f}, within a third {within:.0%}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=measure.count, nargs="+", default=[11, 30, 60])
    parser.add_argument("--trials", type=measure.count, default=400)
    flags = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    others = simulated(FRESH, rng)
    fresh = false_positives(others)
    for patients in flags.patients:
        by_rule: dict[str, list[list[float]]] = {"of lesions": [], "of false positives": []}
        needed, intervals = [], []
        for _ in range(flags.trials):
            results = simulated(patients, rng)
            counts = froc.count(results, ELK_RULE)
            thresholds = [froc.threshold_at(counts, rate) for rate in RATES]
            choice = operating.choose(results, rates=RATES, resamples=200)
            needed.append(choice.on.patients_needed)
            intervals.append(
                [held(p, actual(fresh, p.threshold), sensitivity(others, p.threshold)) for p in choice.points]
            )
            chosen = {"of lesions": thresholds, "of false positives": [point.threshold for point in choice.points]}
            for rule, own in chosen.items():
                by_rule[rule].append([actual(fresh, t) / rate for t, rate in zip(own, RATES)])
        for rule, found in by_rule.items():
            for column, rate in enumerate(RATES):
                print(
                    f"{patients} patients, {rate:g} per image, scores {rule}: {described(np.array(found)[:, column])}"
                )
        for rate, (of_rate, of_sensitivity, too_good) in zip(RATES, np.nanmean(intervals, axis=0)):
            print(
                f"{patients} patients, {rate:g} per image: intervals contain the rate in {of_rate:.0%} of trials "
                f"and the sensitivity in {of_sensitivity:.0%}; the sensitivity is optimistic by {too_good:+.3f}"
            )
        print(f"{patients} patients: {np.median(needed):.0f} needed in the median trial")


if __name__ == "__main__":
    main()
