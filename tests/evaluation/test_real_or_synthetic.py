import numpy as np
import pytest
from scipy.optimize import minimize

from elk_jax.evaluation.real_or_synthetic import assign_folds, logistic_regression, real_or_synthetic
from tests.refusals import refused


def patients(number: int, each: int = 2, name: str = "P") -> list[str]:
    return [f"{name}{n // each}" for n in range(number)]


def judge(real, synthetic, **options):
    return real_or_synthetic(
        real, synthetic, patients(len(real)), patients(len(synthetic), name="C"), resamples=200, **options
    )


@pytest.mark.parametrize("shape", [(40, 3), (12, 30)])  # with more and with fewer images than features
def test_logistic_regression_is_the_minimum(shape):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=shape), rng.random(shape[0]) < 0.4

    def loss(w):
        logits = x @ w[:-1] + w[-1]
        return (np.logaddexp(0, logits) - y * logits).sum() + 0.5 * 2.0 * (w[:-1] ** 2).sum()

    weights, intercept = logistic_regression(x, y, penalty=2.0)
    found = np.append(weights, intercept)
    best = minimize(loss, np.zeros(shape[1] + 1), method="BFGS", options={"gtol": 1e-8})
    assert loss(found) <= best.fun + 1e-7
    np.testing.assert_allclose(found, best.x, atol=1e-4)


def test_separable_or_one_sided_classes_have_an_answer():
    x = np.array([[-1.0], [1.0]])
    weights, intercept = logistic_regression(x, np.array([False, True]), penalty=1e-3)
    assert weights[0] > 1 and intercept == pytest.approx(0, abs=1e-6)
    weights, intercept = logistic_regression(x * 1e3, np.array([True, True]))
    assert np.isfinite(weights).all() and np.isfinite(intercept)


def test_same_distribution_is_near_a_half_and_different_ones_near_one():
    rng = np.random.default_rng(0)
    same = judge(rng.normal(size=(120, 8)), rng.normal(size=(100, 8)))
    assert 0.35 < same["auc"] < 0.65 and same["low"] < 0.5 < same["high"]
    far = judge(rng.normal(size=(60, 8)), rng.normal(size=(50, 8)) + 2)
    assert far["auc"] > 0.98 and far["low"] > 0.9
    assert (far["real"], far["synthetic"], far["patients"], far["folds"]) == (60, 50, 55, 5)


def test_known_separation():
    """One feature, shifted by one standard deviation: AUC = Phi(1 / sqrt 2) = 0.76."""
    draws = np.random.default_rng(1).normal(size=(2, 20, 150, 1))
    found = [judge(real, synthetic + 1) for real, synthetic in zip(*draws)]
    assert np.mean([one["auc"] for one in found]) == pytest.approx(0.760, abs=0.015)
    assert sum(one["low"] < 0.76 < one["high"] for one in found) >= 16


def test_patients_do_not_leak():
    """Features that tell patients but not real from synthetic: a split by image would see them again."""
    rng = np.random.default_rng(0)
    of_patient = rng.normal(size=(40, 30))
    real = of_patient[:20].repeat(6, 0) + rng.normal(0, 0.01, (120, 30))
    synthetic = of_patient[20:].repeat(6, 0) + rng.normal(0, 0.01, (120, 30))
    names = [f"P{n // 6}" for n in range(240)]
    grouped = real_or_synthetic(real, synthetic, names[:120], names[120:], resamples=100)
    leaked = real_or_synthetic(real, synthetic, patients(120, 1), patients(120, 1, "C"), resamples=100)
    assert leaked["auc"] > 0.99 and grouped["auc"] < 0.8


def test_real_images_of_one_patient_teach_nothing():
    """They are all in one fold, whose classifier has seen synthetic ones alone: that is no AUC of a half."""
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(12, 3)), rng.normal(size=(12, 3)) + 9
    for names in ((["P"] * 12, patients(12, name="C")), (patients(12), ["C"] * 12)):
        found = real_or_synthetic(real, synthetic, *names, resamples=50)
        assert found["auc"] is found["low"] is found["high"] is None
    two = real_or_synthetic(real, synthetic, patients(12, 6), patients(12, name="C"), resamples=50)
    assert two["auc"] == 1


def test_folds_keep_patients_together_and_both_classes_apart_evenly():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, 200)
    groups[:30] = np.arange(30)
    labels = rng.random(200) < 0.3
    fold = assign_folds(labels, groups, 5, seed=0)
    assert all(len(set(fold[groups == group])) == 1 for group in range(30))
    for kind in (False, True):
        share = np.bincount(fold[labels == kind], minlength=5) / (labels == kind).sum()
        assert share.min() > 0.1 and share.max() < 0.32
    real_only = assign_folds(np.repeat([False, True], 50), np.arange(100), 5, seed=0)
    assert np.bincount(real_only[:50]).tolist() == np.bincount(real_only[50:]).tolist() == [10] * 5


def test_canvas_patients_join_the_real_ones():
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    found = real_or_synthetic(real, synthetic, patients(20), patients(20), resamples=50)
    assert found["patients"] == 10
    again = real_or_synthetic(real, synthetic, patients(20), patients(20), resamples=50)
    assert found == again


def test_constant_and_few():
    even = judge(np.ones((6, 2)), np.ones((6, 2)))
    assert even["auc"] == 0.5
    tiny = real_or_synthetic(np.zeros((1, 2)), np.ones((1, 2)), ["A"], ["B"], resamples=10)
    assert tiny["auc"] is None and tiny["low"] is None and tiny["folds"] == 2


def test_refusals():
    ok = np.zeros((4, 2))
    with refused(4, 0, where="images"):
        judge(ok, ok[:0])
    with refused("NaN", where="features"):
        judge(ok, ok * np.nan)
    with refused(1, 2, where="patients"):
        real_or_synthetic(ok, ok, ["P"] * 4, ["P"] * 4)
    with pytest.raises(ValueError, match="5 patients"):
        real_or_synthetic(ok, ok, ["P"] * 4, ["P"])
