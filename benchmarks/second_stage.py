"""Whether a second stage helps a detector: boxes are merged, suppressed, or rescored by their surroundings.

    python benchmarks/second_stage.py --evaluation=RUN/evaluate --model=real

The predictions come from an evaluation stage, on images that the detector was not trained on. A second stage is trained
and tuned only on the other folds of patients; differences are paired over patients. The last line of the output is one
JSON object.

Shapes: K boxes of an image, F features.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import measure  # noqa: E402
from elk_jax.errors import run_main  # noqa: E402
from elk_jax.evaluation import evaluate, froc, fusion  # noqa: E402
from elk_jax.evaluation.calibration import logits  # noqa: E402
from elk_jax.evaluation.detections import ImageResult  # noqa: E402
from elk_jax.evaluation.hits import ELK_RULE  # noqa: E402
from elk_jax.evaluation.real_or_synthetic import assign_folds, logistic_regression  # noqa: E402
from elk_jax.evaluation.truth import read_measured  # noqa: E402
from elk_jax.images.boxes import area, intersection, iou  # noqa: E402
from elk_jax.tasks.detection.evaluate import TRUTH  # noqa: E402

MOST, FLOOR = 40, 0.01
"""Number of boxes of an image that are considered, and their lowest score."""
OVERLAPS = (0.5, 0.4, 0.3, 0.2)
"""IoUs from which boxes are merged, or suppressed; the detectors' own suppression uses 0.5."""
PENALTY = 3.0
SHOWN = ("mean_sensitivity", "sensitivity_at_1", "ap30", "ap50")

Results = list[ImageResult]
Stage = Callable[[Results], Callable[[ImageResult], ImageResult]]
"""Training images -> the function applied to an image."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", required=True, help="folder of an evaluation stage")
    parser.add_argument("--model", default="real", help="one of its models")
    parser.add_argument("--folds", type=measure.count, default=5)
    parser.add_argument(
        "--divisions", type=int, default=5, help="divisions into folds; the first one has the intervals"
    )
    parser.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args(arguments)
    folder = Path(options.evaluation)
    results = read_measured(folder / TRUTH, folder / options.model / "predictions.json")
    print(json.dumps(benchmark(results, options.folds, options.divisions, options.resamples), allow_nan=False))


def benchmark(results: Results, folds: int, divisions: int, resamples: int) -> dict[str, Any]:
    """For every second stage: mean sensitivity in each division, and paired differences of SHOWN in the first one."""
    before = [_best(result) for result in results if result.has_lesions]
    found: dict[str, Any] = {"images": len(before), "as_they_are": sensitivity(before), "stages": {}}
    for name, stage in STAGES.items():
        divided = [_out_of_fold(before, stage, folds, seed) for seed in range(divisions)]
        how: dict[str, Any] = {"score_floor": 0.0, "resamples": resamples}
        compared = evaluate.compare_detections(before, divided[0], **how)
        found["stages"][name] = {
            "by_division": [sensitivity(one) for one in divided],
            "differences": {key: compared[key] for key in SHOWN},
        }
    return found


def sensitivity(results: Results) -> float:
    found = evaluate.evaluate_detections(results, score_floor=0.0, resamples=0)["mean_sensitivity"]["value"]
    return 0.0 if found is None else found


def _best(result: ImageResult) -> ImageResult:
    order = np.argsort(-result.scores, kind="stable")
    return _only(result, order[result.scores[order] >= FLOOR][:MOST])


def _only(result: ImageResult, chosen: Sequence[int] | np.ndarray) -> ImageResult:
    chosen = np.asarray(chosen, int)
    boxes, scores, labels = (part[chosen] for part in (result.boxes, result.scores, result.labels))
    return replace(result, boxes=boxes, scores=scores, labels=labels)


def _out_of_fold(results: Results, stage: Stage, folds: int, seed: int) -> Results:
    """Every image after a second stage trained on other patients; each patient is in one fold."""
    names = {patient: number for number, patient in enumerate(sorted({r.patient_id for r in results}))}
    patients = np.array([names[result.patient_id] for result in results])
    fold = assign_folds(np.ones(len(results), bool), patients, folds, seed)
    learned = [stage([r for r, own in zip(results, fold) if own != number]) for number in range(folds)]
    return [learned[own](result) for result, own in zip(results, fold)]


# ---- Second stages ---------------------------------------------------------------------------------------------------


def merged(result: ImageResult, same: float) -> ImageResult:
    """Overlapping boxes replaced by their mean weighted by score, with the best score."""
    return fusion.fuse([[result]], same)[0]


def suppressed(result: ImageResult, most: float) -> ImageResult:
    """The boxes without those that overlap a better one by at least `most`, whatever their class."""
    kept: list[int] = []
    for number in np.argsort(-result.scores, kind="stable"):
        if not (iou(result.boxes[[number]], result.boxes[kept]) >= most).any():
            kept.append(int(number))
    return _only(result, kept)


def chosen(change: Callable[[ImageResult, float], ImageResult]) -> Stage:
    """A change of boxes with the overlap that is best on the training images."""

    def stage(results: Results) -> Callable[[ImageResult], ImageResult]:
        best = max(OVERLAPS, key=lambda overlap: sensitivity([change(result, overlap) for result in results]))
        return lambda result: change(result, best)

    return stage


def rescored(target: Callable[[ImageResult], np.ndarray]) -> Stage:
    """New scores by a logistic regression on `features`."""

    def stage(results: Results) -> Callable[[ImageResult], ImageResult]:
        inputs = np.concatenate([features(result) for result in results])
        mean, spread = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
        truth = np.concatenate([target(result) for result in results])
        weights, intercept = logistic_regression((inputs - mean) / spread, truth, PENALTY)

        def score(result: ImageResult) -> ImageResult:
            odds = (features(result) - mean) / spread @ weights + intercept
            return replace(result, scores=1 / (1 + np.exp(-odds)))

        return score

    return stage


def hits(result: ImageResult) -> np.ndarray:
    """Which boxes [K] hit a lesion, for detectors of one class."""
    if not len(result.scores):
        return np.zeros(0, bool)
    (one,) = froc.match(result, ELK_RULE)
    return np.asarray(one.hits.any(axis=1))


def first_hits(result: ImageResult) -> np.ndarray:
    """Which boxes [K] find a lesion: they hit it, and no better one does (Hosang et al. 2017, learned suppression)."""
    if not len(result.scores):
        return np.zeros(0, bool)
    (one,) = froc.match(result, ELK_RULE)
    return np.asarray((one.hits & (one.scores[:, None] >= one.found[None])).any(axis=1))


def features(result: ImageResult) -> np.ndarray:
    """Features of every box [K, F]: score, size and shape, and how it overlaps, contains and is contained in better and
    worse boxes, with their scores and numbers."""
    boxes, scores, count = result.boxes, result.scores, len(result.scores)
    if not count:
        return np.zeros((0, 20))
    overlap, sizes = iou(boxes, boxes), np.maximum(area(boxes), 1e-9)
    within = intersection(boxes, boxes) / sizes[:, None]  # share of the first inside the second
    np.fill_diagonal(overlap, 0)
    np.fill_diagonal(within, 0)
    better = scores[None] > scores[:, None]
    odds, size = logits(scores), np.log(sizes / (result.width * result.height))
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    columns = [odds, size, size**2, odds * size, np.abs(np.log(sides[:, 0] / sides[:, 1]))]
    for others in (better, ~better):
        columns += [(table * others).max(axis=1) for table in (overlap, within, within.T)]
    columns += [(overlap * better * scores[None]).max(axis=1), ((overlap > 0.3) * scores[None]).sum(axis=1)]
    columns += [((overlap > 0.1) & (overlap < 0.3)).sum(axis=1), (overlap > 0.3).sum(axis=1)]
    columns += [(within > 0.8).sum(axis=1), (within.T > 0.8).sum(axis=1)]
    columns += [np.arange(count), odds - odds.max(), np.full(count, odds.max())]
    return np.stack(columns, axis=1).astype(float)


STAGES: dict[str, Stage] = {
    "merged": chosen(merged),
    "suppressed": chosen(suppressed),
    "rescored, hits": rescored(hits),
    "rescored, first hits": rescored(first_hits),
}


if __name__ == "__main__":
    run_main(main)
