"""DeLong's variance against its definition, and how wide the intervals are that follow from it."""

import numpy as np
import pytest

from elk_jax.evaluation.delong import compare_delong, delong, midranks
from tests.refusals import refused


def definition(scores, truth, units):
    """AUROCs [C] of scores [C, N] and their covariance, from every pair (DeLong 1988, Obuchowski 1997)."""
    positives, negatives = np.flatnonzero(truth), np.flatnonzero(~truth)
    m, n = len(positives), len(negatives)
    kernel = np.array([[[(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for j in negatives] for i in positives] for s in scores])
    area = kernel.mean((1, 2))
    above, below = kernel.mean(2) - area[:, None], kernel.mean(1) - area[:, None]
    names = sorted(set(units))
    x = np.array([above[:, [units[i] == name for i in positives]].sum(1) for name in names]).T
    y = np.array([below[:, [units[j] == name for j in negatives]].sum(1) for name in names]).T
    with_x, with_y = len({units[i] for i in positives}), len({units[j] for j in negatives})
    cross = len(names) / (len(names) - 1) * (x @ y.T) / (m * n)
    own = with_x / (with_x - 1) * (x @ x.T) / m**2 + with_y / (with_y - 1) * (y @ y.T) / n**2
    return area, own + cross + cross.T


def test_midranks():
    assert midranks(np.array([0.3, 0.1, 0.3, 0.9, 0.3])).tolist() == [3, 1, 3, 5, 3]


def test_by_hand(classified):
    # Positive .9 .4, negative .4 .1: components 1, 0.75 and 0.75, 1: twice the variance 1/32, over 2 images.
    found = delong(classified([0.9, 0.4, 0.4, 0.1], [1, 1, 0, 0]), "malignant")
    assert found["value"] == 0.875
    assert found["error"] == pytest.approx(np.sqrt(1 / 32 / 2 + 1 / 32 / 2))
    assert found["low"] == pytest.approx(0.875 - 1.959964 * found["error"]) and found["high"] == 1


@pytest.mark.parametrize("decimals", [6, 1])
@pytest.mark.parametrize("over", ["patients", "images"])
def test_equals_the_definition(over, decimals, random_classified):
    first, second = (random_classified(1, signal=signal, decimals=decimals) for signal in (0.5, 1.0))
    scores = np.stack([p.scores("malignant") for p in (first, second)])
    units = first.patient_ids if over == "patients" else first.image_ids
    area, covariance = definition(scores, first.truth("malignant"), units)
    for place, predictions in enumerate((first, second)):
        found = delong(predictions, "malignant", over=over)
        assert found["value"] == pytest.approx(area[place], rel=1e-12)
        assert found["error"] == pytest.approx(np.sqrt(covariance[place, place]), rel=1e-10)
    compared = compare_delong(first, second, "malignant", over=over)
    error = np.sqrt(np.array([1, -1]) @ covariance @ np.array([1, -1]))
    assert compared["difference"] == pytest.approx(area[1] - area[0], rel=1e-12)
    assert (compared["high"] - compared["low"]) / 2 / 1.959963984540054 == pytest.approx(error, rel=1e-10)
    back = compare_delong(second, first, "malignant", over=over)
    assert back["p_value"] == pytest.approx(compared["p_value"]) and back["low"] == pytest.approx(-compared["high"])


def test_equal_rankings_do_not_differ(classified, random_classified):
    first = random_classified(2)
    bent = classified(first.scores("malignant") ** 3, first.labels, first.patient_ids)
    for second in (first, bent):
        compared = compare_delong(first, second, "malignant")
        assert (compared["difference"], compared["p_value"]) == (0, 1)
    exchanged = delong(first, "benign")
    assert exchanged == pytest.approx(delong(first, "malignant"))


def test_few_patients_have_no_interval(classified):
    found = delong(classified([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0], ["a", "a", "b", "c"]), "malignant")
    assert found == {"value": 1.0, "low": None, "high": None, "error": None}
    perfect = delong(classified([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0]), "malignant")
    assert perfect == {"value": 1.0, "low": 1.0, "high": 1.0, "error": 0.0}
    right, wrong = (classified(scores, [1, 1, 0, 0]) for scores in ([0.9, 0.8, 0.3, 0.1], [0.1, 0.2, 0.8, 0.9]))
    assert compare_delong(right, wrong, "malignant")["p_value"] is None  # no variance, yet different


def test_covers_the_truth_where_images_of_a_patient_are_alike(random_classified):
    # The area of unit normals 1 apart is Phi(1 / sqrt 2) = 0.760. 95 % intervals over 60 patients hold it as often as
    # DeLong's over 60 single images (92.5 % of 400); those over 240 images, four of a patient alike, far less (66.5 %).
    held = {"patients": 0, "images": 0}
    for seed in range(100):
        predictions = random_classified(seed, images_of_a_patient=4, signal=1.0, patients=60, shared=0.9)
        for over in held:
            found = delong(predictions, "malignant", over=over)
            held[over] += found["low"] <= 0.7602 <= found["high"]
    assert 0.84 <= held["patients"] / 100 <= 0.99
    assert held["images"] / 100 < 0.76


def test_refusals(classified, random_classified):
    one, other = random_classified(3), random_classified(4, patients=20)
    with refused("views", where="over"):
        delong(one, "malignant", over="views")
    with refused("missing", where="predictions 2"):
        compare_delong(one, other, "malignant")
    with refused("malignant"):
        delong(classified([0.1, 0.2], [0, 0]), "malignant")
