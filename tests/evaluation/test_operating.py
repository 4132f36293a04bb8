"""Thresholds of a detector: by hand, and against patients that the choice has not seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.operating_points import actual, false_positives, simulated
from elk_jax.evaluation import bootstrap, froc, operating
from elk_jax.evaluation.hits import ELK_RULE
from elk_jax.evaluation.operating import ChosenOn, OperatingPoint

HIT, MISS = [0, 0, 10, 10], [50, 50, 60, 60]


def two_images(make):
    """A lesion each, found at 0.8 and not at all; false positives at 0.9, 0.6, 0.4 and 0.2. Three images without."""
    first = make("a", [HIT], [HIT, MISS, MISS], [0.8, 0.9, 0.4], patient="x")
    second = make("b", [HIT], [MISS, MISS], [0.6, 0.2], patient="y")
    return [first, second, *(make(str(i), [], [MISS], [0.99], patient="z") for i in range(3))]


def test_thresholds_by_hand(make):
    """Of two images, one false positive an image is the second score of 0.9, 0.6, 0.4, 0.2; half an image the first;
    0.75 lies half way between; a quarter half way from 1 to the first; more than there are: the floor."""
    found = operating.choose(two_images(make), rates=(0.25, 0.5, 0.75, 1.0, 3.0), resamples=0, score_floor=0.05)
    assert [point.threshold for point in found.points] == pytest.approx([0.95, 0.9, 0.75, 0.6, 0.05])
    assert [point.sensitivity for point in found.points] == [0, 0, 0.5, 0.5, 0.5]
    assert found.on == ChosenOn("validation", patients=2, images=2, lesions=2)
    assert all(point.low is None and point.rate_high is None for point in found.points)


def test_nothing_predicted_has_no_threshold_and_false_positives_alone_have_one(make):
    empty = operating.choose([make("a", [HIT])])
    assert {point.threshold for point in empty.points} == {None} and "No threshold" in empty.warning
    assert operating.choose([make("a", [], [MISS], [0.5])]).warning.endswith("where no image has a lesion.")
    wrong = operating.choose([make("a", [HIT], [MISS, MISS], [0.5, 0.4])], rates=(1.0, 2.0))
    assert [(p.threshold, p.sensitivity) for p in wrong.points] == [(0.5, 0.0), (0.4, 0.0)]


def test_intervals_are_those_of_resampled_patients(random):
    """Each resample as a data set of its own, patients drawn twice under two names."""
    results = random(3, images=24)
    found = operating.choose(results, rates=(1.0, 2.0), resamples=60, seed=5)
    lesions = [result for result in results if result.has_lesions]
    patients = sorted({result.patient_id for result in lesions})
    scores, images = operating._scores(lesions, ELK_RULE).wrong, len(lesions)
    thresholds = []
    for weights in operating.bootstrap.draw_weights(len(patients), 60, 5).astype(int):
        drawn = [
            dataclasses.replace(result, image_id=f"{result.image_id} {copy}", patient_id=f"{patient} {copy}")
            for patient, times in zip(patients, weights)
            for copy in range(times)
            for result in lesions
            if result.patient_id == patient
        ]
        thresholds.append([p.threshold for p in operating.choose(drawn, rates=(1.0, 2.0), resamples=0).points])
    for column, point in enumerate(found.points):
        own = np.array(thresholds)[:, column]
        assert (point.low, point.high) == pytest.approx(tuple(np.quantile(own, (0.025, 0.975))))
        rates = [(scores >= threshold).sum() / images for threshold in own]
        assert (point.rate_low, point.rate_high) == pytest.approx(tuple(np.quantile(rates, (0.025, 0.975))))
        assert point.low <= point.threshold <= point.high


def test_thresholds_keep_their_promise_on_fresh_patients_better_than_those_of_lesions():
    """Simulated patients. The interval of what may come holds what comes."""
    rng = np.random.default_rng(1)
    fresh = false_positives(simulated(700, rng))
    own, before, held = [], [], 0
    for _ in range(40):
        results = simulated(20, rng)
        (point,) = operating.choose(results, rates=(1.0,), resamples=100).points
        own.append(actual(fresh, point.threshold))
        before.append(actual(fresh, froc.threshold_at(froc.count(results, ELK_RULE), 1.0)))
        held += point.rate_low <= own[-1] <= point.rate_high
    error = lambda values: np.abs(np.log(values)).mean()
    assert 0.93 < np.mean(own) < 1.12 and error(own) < error(before)
    assert held >= 0.8 * 40


def test_few_patients_are_warned_of_and_the_same_number_is_said_to_suffice_with_more():
    rng = np.random.default_rng(2)
    few, many = (operating.choose(simulated(patients, rng), resamples=300) for patients in (10, 150))
    assert few.on.patients_needed > 10 and not many.warning and many.on.patients_needed < 150
    assert str(few.on.patients_needed) in few.warning and "10 patients" in few.warning
    assert few.on.patients_needed == pytest.approx(many.on.patients_needed, rel=0.7)


def test_few_patients_are_warned_of_also_where_nothing_spreads(make):
    """Three patients with one false positive between them: the threshold lies at the floor in every resample."""
    results = [
        make(str(i), [HIT], [HIT, MISS][: 1 + (i == 0)], [0.9, 0.5][: 1 + (i == 0)], patient=str(i)) for i in range(3)
    ]
    found = operating.choose(results, resamples=50)
    main = next(point for point in found.points if point.false_positives_per_image == 1)
    assert main.rate == pytest.approx(1 / 3) and found.on.patients_needed == 0
    assert "0.33" in found.warning and "few images" in found.warning and "3 patients" in found.warning


def test_one_patient_and_no_resamples_are_warned_of():
    rng = np.random.default_rng(3)
    assert "1 patients" in operating.choose(simulated(1, rng), resamples=50).warning
    many = simulated(bootstrap.LEAST_PATIENTS, rng)
    assert "few images" in operating.choose(many[: operating.LEAST_LESIONS - 1], resamples=0).warning
    unknown = operating.choose(many, resamples=0).warning
    assert "unknown" in unknown and "resampled" in unknown


def test_thresholds_of_unknown_images_are_named_and_no_thresholds_are_not():
    assert "unknown" in operating.doubt([OperatingPoint(1.0, 0.5)], ChosenOn()) and not operating.doubt((), ChosenOn())


def test_kept_by_hand(make):
    """At 0.5: false positives 0.9 and 0.6 of two images, one of two lesions; images without lesions do not count."""
    (found,) = operating.kept(two_images(make), [OperatingPoint(2.0, None), OperatingPoint(0.5, 0.5)], resamples=200)
    assert (found["promised"], found["threshold"]) == (0.5, 0.5)
    assert found["false_positives_per_image"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["sensitivity"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    (none,) = operating.kept([make("a", [])], [OperatingPoint(1.0, 0.5)])
    assert none["sensitivity"]["value"] is None and none["false_positives_per_image"]["value"] is None
