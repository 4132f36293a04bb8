"""Class probabilities: what is refused, files, and sets of the same images."""

import json

import numpy as np
import pytest

from elk_jax.evaluation import ensembles
from elk_jax.evaluation.predictions import Predictions, aligned, read_predictions, write_predictions
from tests.refusals import refused

GOOD = {
    "image_ids": ["a", "b"],
    "patient_ids": ["P1", ""],
    "labels": [0, 1],
    "probabilities": [[0.75, 0.25], [0.5, 0.5]],
    "classes": ("benign", "malignant"),
}


def test_what_it_holds():
    found = Predictions(**{**GOOD, "image_ids": [1.0, "b "], "labels": np.array([False, True])})
    assert found.image_ids == ("1", "b") and found.patient_ids == ("P1", "b")
    assert found.labels.dtype == np.int64 and found.probabilities.dtype == np.float64
    half = np.array([[0.3333, 0.6666], [0.1, 0.9]], np.float16)  # sums are rounded
    np.testing.assert_array_equal(Predictions(**{**GOOD, "probabilities": half}).probabilities, half.astype(float))


@pytest.mark.parametrize(
    "field, value, where, words",
    [
        ("classes", ("benign",), "classes", ["benign"]),
        ("classes", ("benign", "benign"), "classes", ["its own name"]),
        ("image_ids", [], "image_ids", ["no image"]),
        ("image_ids", ["a", "a"], "image a", [2]),
        ("image_ids", [None, None], "image ", [2, "no id"]),
        ("patient_ids", ["P1"], "patient_ids", [1, 2]),
        ("labels", [0, 2], "image b", [2, "benign, malignant"]),
        ("labels", [0, 0.5], "image b", [0.5]),
        ("labels", [0], "labels", ["[1]", "[2]"]),
        ("labels", ["benign", "malignant"], "labels", ["numbers"]),
        ("probabilities", [[0.75, 0.25], [np.nan, 0.5]], "image b", ["finite", "nan"]),
        ("probabilities", [[0.75, 0.25], [1.5, -0.5]], "image b", ["from 0 to 1"]),
        ("probabilities", [[0.75, 0.2], [0.5, 0.5]], "image a", ["sum to 1", 1]),
        ("probabilities", [[0.75, 0.25]], "probabilities", ["[1, 2]", "[2, 2]"]),
        ("probabilities", [[0.75, 0.25], [0.5]], "probabilities", ["numbers"]),
    ],
)
def test_refused(field, value, where, words):
    with refused(*words, where=where):
        Predictions(**{**GOOD, field: value})


def test_files_come_back_to_the_bit(tmp_path, random_classified):
    one = random_classified(0)
    write_predictions(tmp_path / "p.json", one)
    found = read_predictions(tmp_path / "p.json")
    assert (found.image_ids, found.patient_ids, found.classes) == (one.image_ids, one.patient_ids, one.classes)
    np.testing.assert_array_equal(found.labels, one.labels)
    np.testing.assert_array_equal(found.probabilities, one.probabilities)


ENTRY = {"image_id": 1, "patient_id": None, "label": "malignant", "probabilities": [0.5, 0.5]}


@pytest.mark.parametrize("content", [[ENTRY], {"classes": ["benign", "malignant"]}, {"predictions": [ENTRY]}, None])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(content))
    with refused("class probabilities", '{"classes"', where="p.json"):
        read_predictions(tmp_path / "p.json")


@pytest.mark.parametrize(
    "entries, where, words",
    [
        ([{}], "entry 0", ["patient_id, label"]),
        ([3], "entry 0", ["image_id"]),
        ([ENTRY, ENTRY | {"label": "cancer"}], "entry 1", ["cancer", "benign, malignant"]),
        ([ENTRY | {"label": ["malignant"]}], "entry 0", ["malignant"]),
        ([ENTRY | {"probabilities": [1]}], "entry 0", [2]),
        ([ENTRY | {"probabilities": ["1", 0]}], "entry 0", [2]),
        ([ENTRY | {"probabilities": [True, 0]}], "entry 0", [2]),
        ([ENTRY | {"probabilities": [0.5, 0.6]}], "p.json, image 1", ["sum to 1"]),
        ([ENTRY, ENTRY], "p.json, image 1", [2]),
        ([], "p.json, image_ids", ["no image"]),
        ([ENTRY | {"image_id": [1]}], "image_ids", ["[1]"]),
    ],
)
def test_damaged_entries_are_refused(entries, where, words, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"classes": ["benign", "malignant"], "predictions": entries}))
    with refused(*words, where=where):
        read_predictions(tmp_path / "p.json")


def test_sets_are_brought_into_the_order_of_the_first(random_classified, classified):
    one = random_classified(0)
    mixed = classified(one, order=np.random.default_rng(1).permutation(len(one)))
    first, second = aligned([one, mixed])
    np.testing.assert_array_equal(first.probabilities, second.probabilities)


def test_sets_of_other_images_are_refused(classified):
    one = classified([0.1, 0.9], [0, 1], ["P", "Q"])
    others = {
        "1 images": classified([0.1], [0], ["P"]),
        "for example '1'": classified([0.1, 0.9, 0.5], [0, 0, 1], ["P", "Q", "R"]),
        "patient or class": classified([0.1, 0.9], [0, 1], ["P", "S"]),
        "normal": classified([0.1, 0.9], [0, 1], ["P", "Q"], classes=("normal", "malignant")),
    }
    for words, other in others.items():
        for call in (aligned, ensembles.mean_of_probabilities, ensembles.mean_of_logits):
            with refused(words, where="predictions 3"):
                call([one, one, other])
    with refused("at least one", where="predictions"):
        aligned([])


def test_means_by_hand(classified):
    sets = [classified([p, 0.5], [1, 0]) for p in (0.8, 0.5)]
    assert ensembles.mean_of_probabilities(sets).scores("malignant").tolist() == [0.65, 0.5]
    odds = 2.0  # the geometric mean of 4 and 1
    np.testing.assert_allclose(ensembles.mean_of_logits(sets).scores("malignant"), [odds / (1 + odds), 0.5])
    sure = ensembles.mean_of_logits([classified([p, 0.5], [1, 0]) for p in (1.0, 0.0)])
    assert sure.scores("malignant")[0] == pytest.approx(0.5)  # finite: 0 and 1 are moved by rounding
