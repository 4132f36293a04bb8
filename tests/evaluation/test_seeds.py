"""Means over seeds with intervals over patients and seeds: exact cases, and SciPy's bootstrap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from elk_jax.evaluation import seeds
from elk_jax.evaluation.seeds import Measured, Resampling, draw, resampled, summarise


class Mean:
    """The mean of a value per patient, as a statistic of patient weights."""

    def __init__(self, **values: float):
        self.patients = sorted(values)
        self.values = np.array([values[patient] for patient in self.patients])

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore"):
            return {"mean": weights @ self.values / weights.sum(axis=1)}


def every_draw(count: int) -> np.ndarray:
    """The weights of all equally likely draws of `count` things."""
    return np.array([np.bincount(one, minlength=count) for one in itertools.product(range(count), repeat=count)], float)


def test_seeds_alone_by_all_27_draws_of_three():
    values = np.array([0.1, 0.4, 0.7])
    weights = every_draw(3)
    found = summarise(Measured(values), Resampling((), np.ones((27, 0)), weights))
    low, high = np.quantile(weights @ values / 3, [0.025, 0.975])
    assert found["value"] == pytest.approx(0.4) and found["deviation"] == pytest.approx(0.3)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["seeds"] == 3 and found["over"] == "seeds"


def test_seeds_alone_agree_with_scipy():
    values = np.random.default_rng(3).normal(0.7, 0.1, 8)
    found = summarise(Measured(values), draw([], 8, 20_000))
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    interval = theirs.confidence_interval
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=2e-3)


def test_patients_and_seeds_are_drawn_apart_from_each_other():
    """Two patients, two seeds: value of seed s on patient p; all 4 x 4 draws by hand."""
    first, second = Mean(a=0.0, b=1.0), Mean(a=0.2, b=0.4)
    both = list(itertools.product(every_draw(2), every_draw(2)))
    resampling = Resampling(("a", "b"), np.array([p for p, _ in both]), np.array([s for _, s in both]))
    draws = resampled([first, second], resampling)["mean"]
    found = summarise(Measured(np.array([0.5, 0.3]), draws), resampling)
    table = np.array([[0.0, 1.0], [0.2, 0.4]])
    by_hand = [float(s @ (table @ p)) / 4 for p, s in both]
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(by_hand, [0.025, 0.975])))
    assert found["over"] == "patients and seeds"


def test_the_spread_is_that_of_patients_and_of_seeds():
    """Values p + s: the variance of the mean is that over patients plus that over seeds."""
    rng = np.random.default_rng(0)
    patients, effects = rng.normal(size=40), rng.normal(size=6)
    statistics = [Mean(**{f"p{i}": value + effect for i, value in enumerate(patients)}) for effect in effects]
    resampling = draw(statistics[0].patients, 6, 20_000)
    means = seeds._resampled_means(
        Measured(patients.mean() + effects, resampled(statistics, resampling)["mean"]), resampling
    )
    assert means.var() == pytest.approx(patients.var() / 40 + effects.var() / 6, rel=0.05)


def test_differences_are_paired_on_patients_and_seeds():
    rng = np.random.default_rng(1)
    easy, luck = rng.uniform(0, 0.5, 20), rng.normal(0, 0.1, 4)
    of = lambda gain: [Mean(**{f"p{i}": v + one + gain for i, v in enumerate(easy)}) for one in luck]
    resampling = draw(of(0)[0].patients, 4, 500)
    a, b = (Measured(easy.mean() + luck + gain, resampled(of(gain), resampling)["mean"]) for gain in (0.0, 0.05))
    found = summarise(b.minus(a), resampling)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.05, 0.05, 0.05))
    assert found["deviation"] == pytest.approx(0, abs=1e-12) and found["p_value"] == pytest.approx(2 / 501)
    assert summarise(b, resampling)["high"] - summarise(b, resampling)["low"] > 0.05
    assert summarise(a.minus(a), resampling)["p_value"] == 1


def test_a_seed_without_a_value_is_left_out():
    statistics = [Mean(a=0.0, b=1.0), None, Mean(a=0.4, b=0.6)]
    resampling = draw(["a", "b"], 3, 400)
    measured = Measured(np.array([0.5, np.nan, 0.5]), resampled(statistics, resampling)["mean"])
    found = summarise(measured, resampling)
    assert found["seeds"] == 2 and found["value"] == 0.5 and 0 <= found["low"] < 0.5 < found["high"] <= 1
    other = Measured(np.array([np.nan, 0.1, 0.3]))
    pair = summarise(measured.minus(other), resampling)
    assert pair["seeds"] == 1 and pair["value"] == pytest.approx(0.2) and pair["over"] == "" and pair["low"] is None


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_no_value_at_all(values):
    found = summarise(Measured(np.array(values, float)), draw([], max(len(values), 1), 10))
    assert found["value"] is None and found["seeds"] == 0 and found["low"] is None


def test_one_seed_has_an_interval_over_patients_only():
    one = Mean(a=0.0, b=1.0, c=0.5)
    resampling = draw(one.patients, 1, 200)
    with_patients = summarise(Measured(np.array([0.5]), resampled([one], resampling)["mean"]), resampling)
    assert with_patients["over"] == "patients" and with_patients["low"] < 0.5 and with_patients["deviation"] is None
    assert summarise(Measured(np.array([0.5])), resampling)["low"] is None
    assert summarise(Measured(np.array([0.5, 0.6])), draw([], 2, 0))["low"] is None


def test_runs_may_have_other_patients():
    resampling = draw(["b", "c", "a", "b"], 2, 50)
    assert resampling.patients == ("a", "b", "c")
    assert np.array_equal(resampling.of(["c", "a"]), resampling.patient_weights[:, [2, 0]])
