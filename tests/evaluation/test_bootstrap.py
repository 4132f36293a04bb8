import numpy as np
import pytest

from elk_jax.evaluation import bootstrap


def proportion(successes, trials):
    """Statistic: pooled share of successes over patients that each contribute some trials."""
    successes, trials = np.asarray(successes, float), np.asarray(trials, float)
    return lambda weights: {"share": (weights @ successes) / np.maximum(weights @ trials, 1e-9)}


def test_weights_are_draws_with_replacement():
    weights = bootstrap.draw_weights(7, 5000, seed=3)
    assert weights.shape == (5000, 7)
    assert (weights.sum(axis=1) == 7).all() and (weights >= 0).all() and (weights == np.round(weights)).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.05)
    np.testing.assert_allclose(weights.var(axis=0), 6 / 7, atol=0.06)  # binomial(7, 1/7)


def test_deterministic_by_seed():
    statistic = proportion([1, 0, 1, 1], [1, 1, 2, 1])
    first, again, other = (bootstrap.estimate(statistic, 4, resamples=99, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first["share"]["value"] == other["share"]["value"] == 3 / 5
    assert np.any(bootstrap.draw_weights(4, 99, 1) != bootstrap.draw_weights(4, 99, 2))


def test_chunks_do_not_change_the_values(monkeypatch):
    statistic = proportion(np.arange(9), np.full(9, 10))
    whole = bootstrap.estimate(statistic, 9, resamples=100)
    monkeypatch.setattr(bootstrap, "CHUNK", 7)
    assert bootstrap.estimate(statistic, 9, resamples=100) == whole


def test_interval_covers_a_binomial_share():
    # 95 % intervals of 300 simulated samples: between 90 and 98.5 % of them must hold the truth.
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for seed in range(300):
        successes = rng.binomial(3, 0.6, 40)
        found = bootstrap.estimate(proportion(successes, np.full(40, 3)), 40, resamples=300, seed=seed)["share"]
        covered += found["low"] <= 0.6 <= found["high"]
        widths.append(found["high"] - found["low"])
    assert 0.90 <= covered / 300 <= 0.985
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.6 * 0.4 / 120), rel=0.1)


def test_patients_not_images_are_drawn():
    # Ten images that always agree carry the information of one: the interval must not shrink with them.
    one = bootstrap.estimate(proportion([1, 0] * 10, [1] * 20), 20)["share"]
    ten = bootstrap.estimate(proportion([10, 0] * 10, [10] * 20), 20)["share"]
    assert one == ten


@pytest.mark.parametrize("patients, resamples", [(1, 100), (4, 0)])
def test_no_interval(patients, resamples):
    found = bootstrap.estimate(proportion([1] * patients, [2] * patients), patients, resamples=resamples)
    assert found["share"] == {"value": 0.5, "low": None, "high": None}


def test_resamples_where_it_is_not_defined_are_left_out():
    def statistic(weights):
        with np.errstate(invalid="ignore"):
            return {"share": weights[:, 0] / weights[:, 0], "never": np.full(len(weights), np.nan)}

    found = bootstrap.estimate(statistic, 3, resamples=200)
    assert found["share"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["never"] == {"value": None, "low": None, "high": None}


def test_bands_are_the_intervals_of_every_place():
    pair = lambda weights: {"both": np.stack([weights[:, 0], np.full(len(weights), np.nan)], 1)}
    first = bootstrap.estimate(lambda weights: {"both": weights[:, 0]}, 5, resamples=100)["both"]
    (one, never) = bootstrap.bands(pair, 5, resamples=100)["both"]
    assert one == {"low": first["low"], "high": first["high"]}
    assert never == {"low": None, "high": None}
    assert bootstrap.bands(pair, 1, resamples=100) == bootstrap.bands(pair, 5, resamples=0) == {}


def test_what_comes_on_others_by_hand():
    """Angles of 0.25, 0.5 and 0.75 are 30, 45 and 60 degrees: errors of 15 and 0 degrees, and one without a value."""
    there, tried = np.array([0.5, 0.25, np.nan]), np.array([0.25, 0.25, 0.5])
    found = bootstrap.on_others(0.75, there, tried, 3)
    half = 4.302653 * 15 / np.sqrt(2)  # Student's t of two degrees of freedom
    degrees = lambda angle: np.sin(np.radians(np.clip(angle, 0, 90))) ** 2
    assert found == pytest.approx({"value": degrees(52.5), "low": degrees(52.5 - half), "high": 1.0}, abs=1e-6)
    many = bootstrap.on_others(0.75, there, tried, 100_000)
    assert many["low"] == pytest.approx(degrees(52.5 - 1.959988 * 15 / np.sqrt(2)), abs=1e-6)


def test_what_comes_on_others_is_not_known_where_nothing_tells():
    one, two = np.array([0.5, np.nan]), np.array([0.5, 0.25])
    nothing = {"value": None, "low": None, "high": None}
    assert bootstrap.on_others(None, two, two, 9) == bootstrap.on_others(0.5, two, two / 2, 1) == nothing
    assert bootstrap.on_others(0.5, one, two, 9) == bootstrap.on_others(0.5, one[:0], two[:0], 9) == nothing
    assert bootstrap.on_others(1.0, two, two, 9) == {"value": 1.0, "low": None, "high": None}  # no resample errs


def test_equal_runs_have_no_difference():
    statistic = proportion([1, 0, 1, 1], [1, 1, 2, 1])
    assert bootstrap.compare(statistic, statistic, 4)["share"] == {
        "first": 0.6,
        "second": 0.6,
        "difference": 0.0,
        "low": 0.0,
        "high": 0.0,
        "p_value": 1.0,
    }


def test_pairing_sees_a_small_constant_gain():
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 1, 40)
    compared = bootstrap.compare(proportion(base, np.ones(40)), proportion(base + 0.02, np.ones(40)), 40)["share"]
    assert compared["difference"] == pytest.approx(0.02)
    assert compared["low"] == pytest.approx(0.02, abs=1e-6)
    assert compared["p_value"] < 0.01
    back = bootstrap.compare(proportion(base + 0.02, np.ones(40)), proportion(base, np.ones(40)), 40)["share"]
    assert back["difference"] == pytest.approx(-0.02) and back["p_value"] == compared["p_value"]


def test_p_value_is_uniform_enough_under_no_difference():
    rng = np.random.default_rng(1)
    p_values = []
    for seed in range(200):
        a, b = rng.normal(0, 1, (2, 30))
        ones = np.ones(30)
        p_values.append(
            bootstrap.compare(proportion(a, ones), proportion(b, ones), 30, resamples=300, seed=seed)["share"][
                "p_value"
            ]
        )
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.12
    assert 0.4 <= np.mean(p_values) <= 0.6


@pytest.mark.parametrize(
    "resamples, patients, found, word",
    [(0, 9, 0.5, ""), (40, 9, 0.5, ""), (2000, 1, 0.5, "no intervals"), (0, 1, 1, ""), (1, 9, 0.5, "40"),
     (39, 2, 0.5, "40"), (40, 9, 1, "no width"), (40, 9, 0, "no width"), (0, 9, 1, "")],
)  # fmt: skip
def test_intervals_that_say_little_are_noted(resamples, patients, found, word):
    values = np.arange(patients) < found * patients
    main = bootstrap.estimate(proportion(values, np.ones(patients)), patients, resamples=resamples)["share"]
    notes = bootstrap.doubts(resamples, patients, main)
    assert len(notes) == bool(word) and all(word in note for note in notes)
