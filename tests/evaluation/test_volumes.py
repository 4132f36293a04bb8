"""The DBTex metric against hand-computed values, and the challenge's CSV file."""

from __future__ import annotations

import numpy as np
import pytest

from elk_jax.evaluation import submission, volume_results
from elk_jax.evaluation.volumes import (
    VolumeDetections,
    VolumeResult,
    VolumeTruth,
    evaluate_volumes,
    hits,
    no_detections,
)
from tests.refusals import refused

MEAN = "mean_sensitivity_positive"


def truth(*lesions, slices=40, patient="P1", study="S1", view="lcc"):
    """Lesions as (x, y, width, height, slice)."""
    rows = np.array(lesions, float).reshape(-1, 5)
    boxes = np.column_stack([rows[:, :2], rows[:, :2] + rows[:, 2:4]])
    return VolumeTruth(patient, study, view, slices, boxes, rows[:, 4].astype(int))


def found(*rows):
    """Detections as (x, y, width, height, z, depth, score)."""
    if not rows:
        return no_detections()
    r = np.array(rows, float)
    best = np.rint(r[:, 4] + r[:, 5] / 2).astype(int)
    boxes = np.column_stack([r[:, :2], r[:, :2] + r[:, 2:4]])
    return VolumeDetections(boxes, r[:, 4], r[:, 5], best, r[:, 6], np.zeros(len(r), int))


def values(*results):
    metrics = evaluate_volumes(results, resamples=0)["metrics"]
    return {name.replace("sensitivity_at_", ""): entry["value"] for name, entry in metrics.items()}


LESION = (500, 500, 20, 20, 20)  # its centre is 510, 510; half of its diagonal is below 100 px


@pytest.mark.parametrize(
    "lesions, slices, detection, wanted",
    [
        ([LESION], 40, (600, 500, 20, 20, 20, 0), 0),  # exactly 100 px
        ([LESION], 40, (600.5, 500, 20, 20, 20, 0), -1),
        ([(500, 500, 300, 400, 20)], 40, (800, 900, 0, 0, 20, 0), 0),  # half of a diagonal of 500 px
        ([(500, 500, 300, 400, 20)], 40, (801, 900, 0, 0, 20, 0), -1),
        ([LESION], 40, (0, 0, 1020, 1020, 20, 0), 0),  # the size of the detection does not matter
        ([LESION], 40, (500, 500, 20, 20, 30, 0), 0),  # a quarter of 40 slices
        ([LESION], 40, (500, 500, 20, 20, 31, 0), -1),
        ([LESION], 40, (500, 500, 20, 20, 29, 4), -1),  # its centre is 31
        ([LESION], 40, (500, 500, 20, 20, 26, 8), 0),  # 30
        ([LESION], 40, (500, 500, 20, 20, 10, 0), 0),
        ([LESION], 40, (500, 500, 20, 20, 30, -1), 0),  # no depth: its centre is 29.5
        ([LESION], 40, (500, 500, 20, 20, 31, -1), -1),  # 30.5
        ([LESION], 41, (500, 500, 20, 20, 30, 0.5), 0),  # 10.25 of an odd number of slices
        ([LESION], 41, (500, 500, 20, 20, 30, 0.6), -1),
        ([LESION, (560, 500, 20, 20, 20)], 40, (535, 500, 20, 20, 20, 0), 1),  # between two: the nearer
        ([LESION, (560, 500, 20, 20, 20)], 40, (530, 500, 20, 20, 20, 0), 0),  # equally near: the first
        ([(500, 500, 20, 20, 12), (510, 500, 20, 20, 20)], 40, (502, 500, 20, 20, 20, 0), 1),  # along z too
        ([], 40, (500, 500, 20, 20, 20, 0), -1),
    ],
)
def test_what_a_detection_hits(lesions, slices, detection, wanted):
    assert hits(truth(*lesions, slices=slices), found((*detection, 0.5))).tolist() == [wanted]


HIT, MISS = (500, 500, 20, 20, 20, 0), (1500, 1500, 20, 20, 20, 0)
NORMAL = truth(study="S0", patient="P0")


@pytest.mark.parametrize(
    "results, wanted",
    [
        # two boxes on one lesion: the second is neither found nor false; the other lesion is missed
        (
            [(truth(LESION, (1000, 1000, 9, 9, 20)), found((*HIT, 0.9), (*HIT, 0.8)))],
            {"1_fps_positive": 0.5, "4_fps_positive": 0.5, "2_fps_all": 0.5, MEAN: 0.5},
        ),
        # a volume that is missing from the detections counts with its lesion and as a volume
        (
            [(truth(LESION), found((*HIT, 0.9), (*MISS, 0.95))), (truth(LESION, study="S2"), found())],
            {"1_fps_positive": 0.5, MEAN: 0.5, "2_fps_all": 0.5},
        ),
        # all missed, and no detection at all
        ([(truth(LESION), found((*MISS, 0.9), (*MISS, 0.8)))], {MEAN: 0.0, "2_fps_all": 0.0}),
        ([(truth(LESION), found())], {MEAN: 0.0, "2_fps_all": 0.0}),
        # points (0, 0), (1, 1/2), (3, 1), then flat: linear between the thresholds of hits
        (
            [
                (
                    truth(LESION, (1000, 1000, 9, 9, 20)),
                    found(
                        (*MISS, 0.9),
                        (*HIT, 0.8),
                        (*MISS, 0.7),
                        (*MISS, 0.6),
                        (1000, 1000, 9, 9, 20, 0, 0.5),
                        (*MISS, 0.4),
                    ),
                )
            ],
            {"1_fps_positive": 0.5, "2_fps_positive": 0.75, "3_fps_positive": 1.0, "4_fps_positive": 1.0, MEAN: 0.8125},
        ),
        # false positives of a volume without lesions count for all volumes alone: 4 / 2 at the hit
        (
            [(truth(LESION), found((*HIT, 0.5))), (NORMAL, found(*[(*MISS, 0.9)] * 8))],
            {"1_fps_positive": 1.0, MEAN: 1.0, "2_fps_all": 0.5},
        ),
        # a detection with the score of a hit counts at its threshold
        ([(truth(LESION), found((*HIT, 0.5), (*MISS, 0.5), (*MISS, 0.5)))], {"1_fps_positive": 0.5, MEAN: 0.875}),
        # no volume with lesions: not defined
        ([(NORMAL, found((*MISS, 0.5)))], {MEAN: None, "2_fps_all": None}),
    ],
)
def test_sensitivities_are_those_computed_by_hand(results, wanted):
    got = values(*(VolumeResult(*one) for one in results))
    assert {name: got[name] for name in wanted} == pytest.approx(wanted)


def published(results, rates):
    """The sensitivities by the published loop over thresholds, of one sample."""
    scored = [
        (score, key, lesion)
        for key, one in enumerate(results)
        for score, lesion in zip(one.found.scores, hits(one.truth, one.found))
    ]
    lesions, points = sum(len(one.truth.boxes) for one in results), []
    top, bottom = max(score for score, *_ in scored) + 1, min(score for score, *_ in scored) - 1
    for limit in sorted({top, bottom, *(score for score, _, lesion in scored if lesion >= 0)}, reverse=True):
        kept = [entry for entry in scored if entry[0] >= limit]
        distinct = {(key, lesion) for _, key, lesion in kept if lesion >= 0}
        points.append((sum(lesion < 0 for *_, lesion in kept) / len(results), len(distinct) / lesions))
        if points[-1][0] > max(rates):
            break
    return np.interp(rates, *zip(*points))


def test_random_volumes_agree_with_the_published_loop_and_have_intervals():
    rng = np.random.default_rng(0)
    results = []
    for number in range(30):
        lesions = [(*rng.integers(0, 800, 2), 40, 40, rng.integers(40)) for _ in range(rng.integers(0, 3))]
        rows = [(*rng.integers(0, 800, 2), 40, 40, rng.integers(40), 0, rng.integers(9) / 9) for _ in range(12)]
        results.append(VolumeResult(truth(*lesions, patient=f"P{number // 2}", study=f"S{number}"), found(*rows)))
    metrics = evaluate_volumes(results, resamples=200)["metrics"]
    positive = published([one for one in results if len(one.truth.boxes)], (1, 2, 3, 4))
    assert metrics[MEAN]["value"] == pytest.approx(positive.mean())
    assert metrics["sensitivity_at_2_fps_all"]["value"] == pytest.approx(published(results, (2,))[0])
    assert metrics[MEAN]["low"] < metrics[MEAN]["value"] < metrics[MEAN]["high"]


def test_volumes_that_cannot_be_evaluated_are_refused():
    with refused("no volume", where="volumes"):
        evaluate_volumes([])
    with refused("twice", "S1", where="volumes"):
        evaluate_volumes([VolumeResult(truth(LESION), found())] * 2)


def test_a_submission_comes_back_as_written(tmp_path):
    volumes = [truth(LESION), truth(study="S2", view="rmlo2")]
    path = tmp_path / "submission.csv"
    written = [
        VolumeResult(volumes[0], found((3, 4, 10, 20, 7, 6, 0.25), (0, 0, 5, 5, 1, 0, 3.5))),
        VolumeResult(volumes[1], found()),
    ]
    path.write_text(submission.text(written))
    assert path.read_text().splitlines()[:2] == [
        "PatientID,StudyUID,View,X,Width,Y,Height,Z,Depth,Score",
        "P1,S1,lcc,3,10,4,20,7,6,0.25",
    ]
    again = submission.read(path, volumes)
    for name in ("boxes", "first", "depth", "best", "scores"):
        np.testing.assert_array_equal(getattr(again[0].found, name), getattr(written[0].found, name))
    assert len(again[1].found.scores) == 0


def test_findings_come_back_from_their_file_to_the_bit(tmp_path):
    written = [
        VolumeResult(truth(LESION), found((3.25, 4, 10, 20, 7, 6, 1 / 3), (0, 0, 5, 5, 1, 0, 3.5))),
        VolumeResult(truth(study="S2", view="rmlo2"), found()),
    ]
    volume_results.write(tmp_path / "volumes.json", written)
    again = volume_results.read(tmp_path / "volumes.json")
    for one, other in zip(written, again, strict=True):
        for part in ("truth", "found"):
            fields = [vars(getattr(result, part)) for result in (one, other)]
            assert fields[0].keys() == fields[1].keys()
            for name, value in fields[0].items():
                np.testing.assert_array_equal(fields[1][name], value)
                assert np.asarray(fields[1][name]).dtype.kind == np.asarray(value).dtype.kind, name
    assert evaluate_volumes(again) == evaluate_volumes(written)
    (tmp_path / "volumes.json").write_text('[{"truth": {"patient": 3}, "found": {}}]')
    with refused("damaged", where=tmp_path / "volumes.json"):
        volume_results.read(tmp_path / "volumes.json")


HEADER = "PatientID,StudyUID,View,X,Width,Y,Height,Z,Depth,Score\n"


@pytest.mark.parametrize(
    "content, words, line",
    [
        (HEADER.replace("Depth,", ""), ["Depth"], ""),
        (HEADER.strip() + ",X\nP1,S1,lcc,1,1,1,1,1,0,0.5,700\n", ["two columns", "X"], ""),
        (HEADER + "P1,S9,lcc,1,1,1,1,1,0,0.5\n", ["S9"], ", line 2"),
        (HEADER + "P1,S1,rcc,1,1,1,1,1,0,0.5\n", ["rcc"], ", line 2"),
        (HEADER + "P7,S1,lcc,1,1,1,1,1,0,0.5\n", ["P1", "P7"], ", line 2"),
        (HEADER + "P1,S1,lcc,1,1,1,1,1,0,nan\n", ["Score"], ", line 2"),
        (HEADER + "P1,S1,lcc,1,-1,1,1,1,0,0.5\n", ["negative"], ", line 2"),
        (HEADER + "P1,S1,lcc,1,1,1,1,1,-2,0.5\n", ["Depth", "negative"], ", line 2"),
        (HEADER + "P1,S1,lcc,1,1,1,1,41,-1,0.5\n", ["slices 41"], ", line 2"),
        (HEADER + "P1,S1,lcc,1,1,1,1,-3,0,0.5\n", ["slices -3"], ", line 2"),
        (HEADER + "P1,S1,lcc,1,1,1,1,1,0,0.5\nP1,S1,lcc,1,1,1,1,20,21,0.5\n", [41, "from 0"], ", line 3"),
        (HEADER + "P1,S1,lcc,1,1,1\n", [6, 10], ", line 2"),
    ],
)
def test_bad_submissions_name_the_line(tmp_path, content, words, line):
    path = tmp_path / "submission.csv"
    path.write_text(content)
    with refused(*words, where=f"{path}{line}"):
        submission.read(path, [truth(LESION)])


def test_volumes_that_a_row_cannot_tell_apart_are_refused(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text(HEADER + "P1,S1,lcc,1,1,1,1,1,0,0.5\n")
    with refused("S1", "lcc", where=path):
        submission.read(path, [truth(LESION), truth()])
    ends = HEADER + "P1,S1,lcc,1,1,1,1,0,39,0.5\nP1,S1,lcc,1,1,1,1,0,40,0.5\nP1,S1,lcc,1,1,1,1,-1,0,0.5\n"
    path.write_text(ends)
    (found,) = submission.read(path, [truth(LESION)])
    assert found.found.depth.tolist() == [39, 40, 0]
