"""Images with boxes, by hand and at random."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.predictions import Predictions

Make = Callable[..., ImageResult]


def make_result(
    image_id: str,
    gt=(),
    predicted=(),
    scores=(),
    *,
    patient: str = "",
    ignore=None,
    gt_labels=None,
    labels=None,
    size: int = 400,
) -> ImageResult:
    """An ImageResult from lists; patients default to one per image, labels to 0."""
    gt, predicted = np.array(gt, float).reshape(-1, 4), np.array(predicted, float).reshape(-1, 4)
    return ImageResult(
        image_id=image_id,
        patient_id=patient or f"patient {image_id}",
        width=size,
        height=size,
        gt_boxes=gt,
        gt_labels=np.zeros(len(gt), int) if gt_labels is None else np.array(gt_labels, int),
        gt_ignore=np.zeros(len(gt), bool) if ignore is None else np.array(ignore, bool),
        boxes=predicted,
        scores=np.array(scores, float),
        labels=np.zeros(len(predicted), int) if labels is None else np.array(labels, int),
    )


def random_boxes(rng: np.random.Generator, number: int, size: float = 400.0) -> np.ndarray:
    corner = rng.uniform(0, 0.7 * size, (number, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 0.3 * size, (number, 2))], axis=1)


def random_results(
    seed: int,
    images: int = 30,
    *,
    classes: int = 1,
    ignored: float = 0.0,
    ties: bool = False,
    predictions: int = 25,
) -> list[ImageResult]:
    """Images of patients with 1 to 3 images, 0 to 4 lesions, predictions around lesions and anywhere."""
    rng = np.random.default_rng(seed)
    patient_of = np.sort(rng.integers(0, max(1, images // 2), images))
    results = []
    for image in range(images):
        gt = random_boxes(rng, rng.integers(0, 5))
        around = (
            gt[rng.integers(0, len(gt), predictions // 2)] + rng.normal(0, 12, (predictions // 2, 4))
            if len(gt)
            else np.zeros((0, 4))
        )
        around = np.concatenate(
            [np.minimum(around[:, :2], around[:, 2:] - 1), np.maximum(around[:, 2:], around[:, :2] + 1)],
            axis=1,
        )
        boxes = np.concatenate([around, random_boxes(rng, rng.integers(0, predictions))])
        scores = rng.uniform(0.02, 1, len(boxes))
        results.append(
            make_result(
                str(image),
                gt,
                boxes,
                np.round(scores, 1) if ties else scores,
                patient=f"p{patient_of[image]}",
                ignore=rng.uniform(size=len(gt)) < ignored,
                gt_labels=rng.integers(0, classes, len(gt)),
                labels=rng.integers(0, classes, len(boxes)),
            )
        )
    return results


@pytest.fixture(scope="session")
def make() -> Make:
    return make_result


@pytest.fixture(scope="session")
def random() -> Callable[..., list[ImageResult]]:
    return random_results


def make_predictions(scores, labels=None, patients=None, *, classes=("benign", "malignant"), order=None):
    """Predictions from probabilities of the second class, or from rows of them; every image is of its own patient.

    With `order`: the predictions `scores` in another order.
    """
    if order is not None:
        names = [[of[row] for row in order] for of in (scores.image_ids, scores.patient_ids)]
        return Predictions(*names, scores.labels[order], scores.probabilities[order], scores.classes)
    rows = np.asarray(scores, float)
    rows = rows if rows.ndim == 2 else np.stack([1 - rows, rows], 1)
    ids = [str(image) for image in range(len(rows))]
    return Predictions(ids, [""] * len(rows) if patients is None else patients, labels, rows, classes)


def random_predictions(
    seed: int,
    *,
    patients: int = 40,
    images_of_a_patient: int = 2,
    signal: float = 1.0,
    shared: float = 0.5,
    decimals: int = 12,
) -> Predictions:
    """Logits of two classes, `signal` apart in standard deviations, of which a share is the same for a patient."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), images_of_a_patient)
    labels = (rng.uniform(size=patients) < 0.45)[of].astype(int)
    noise = np.sqrt(shared) * rng.normal(size=patients)[of] + np.sqrt(1 - shared) * rng.normal(size=len(of))
    p = np.round(1 / (1 + np.exp(-(signal * (labels - 0.5) + noise))), decimals)
    return make_predictions(p, labels, [f"p{patient}" for patient in of])


@pytest.fixture(scope="session")
def classified() -> Callable[..., Predictions]:
    return make_predictions


@pytest.fixture(scope="session")
def random_classified() -> Callable[..., Predictions]:
    return random_predictions
