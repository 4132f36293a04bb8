"""The benchmark of second stages, on boxes drawn at random and by hand."""

from __future__ import annotations

import json

import numpy as np

from benchmarks import second_stage
from tests.evaluation.conftest import make_result, random_results

LESION, TWICE, PART = [0, 0, 100, 100], [0, 0, 100, 90], [0, 0, 100, 45]


def test_what_a_second_stage_learns_comes_from_other_patients():
    seen = []

    def stage(results):
        known = {result.patient_id for result in results}

        def change(result):
            assert result.patient_id not in known
            seen.append(result.image_id)
            return result

        return change

    results = [result for result in random_results(3) if result.has_lesions]
    assert second_stage._out_of_fold(results, stage, 3, 0) == results
    assert seen == [result.image_id for result in results]


def test_boxes_are_merged_suppressed_and_told_apart():
    result = make_result("1", [LESION], [PART, LESION, TWICE, [300, 300, 350, 350]], [0.3, 0.8, 0.9, 0.5])
    assert second_stage.hits(result).tolist() == [True, True, True, False]
    assert second_stage.first_hits(result).tolist() == [False, False, True, False]
    kept = second_stage.suppressed(result, 0.5)
    assert kept.scores.tolist() == [0.9, 0.5] and kept.boxes[0].tolist() == TWICE
    assert second_stage.suppressed(result, 0.501).scores.tolist() == [0.9, 0.5, 0.3]
    assert second_stage.merged(result, 0.4).scores.tolist() == [0.9, 0.5]


def test_features_are_finite_numbers_of_the_box_and_those_around_it():
    result = make_result("1", [LESION], [LESION, PART, [300, 300, 350, 350]], [0.9, 0.3, 0.5])
    found = second_stage.features(result)
    assert found.shape == (3, 20) and np.isfinite(found).all()
    assert found[:, 5].tolist() == [0, 0.45, 0], "IoU with a better box"
    assert found[:, 6].tolist() == [0, 1, 0], "share that lies in a better box"
    assert second_stage.features(make_result("2")).shape == (0, 20)


def test_duplicates_of_every_lesion_are_merged_away_and_scored_down():
    """Each patient has a lesion, a better duplicate that misses it by IoU, and a hit: first hits can be told apart."""
    shifted = [60, 0, 160, 100]  # IoU 0.25 with the lesion, 0.29 with the hit
    results = [
        make_result(str(i), [LESION], [TWICE, shifted, [300, 300, 340 + i, 350]], [0.9, 0.8, 0.3]) for i in range(12)
    ]
    found = second_stage.benchmark(results, folds=3, divisions=2, resamples=20)
    json.dumps(found, allow_nan=False)
    assert found["as_they_are"] == 1.0 and found["images"] == 12
    assert set(found["stages"]) == set(second_stage.STAGES)
    for stage in found["stages"].values():
        assert stage["by_division"] == [1.0, 1.0] and stage["differences"]["mean_sensitivity"]["difference"] == 0
