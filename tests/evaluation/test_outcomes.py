"""Single images: what was found in them, and which of them are shown."""

from elk_jax.evaluation.outcomes import best_and_worst, describe_outcome, image_outcomes

A, B, ELSEWHERE = [0, 0, 10, 10], [50, 50, 70, 70], [80, 10, 90, 20]


def test_image_outcomes(make):
    results = [make("1", [A, B], [A, ELSEWHERE, B], [0.9, 0.8, 0.2]), make("2", [], [A], [0.1])]
    assert image_outcomes(results, threshold=0.5) == [
        {"image_id": "1", "lesions": 2, "found": 1, "missed": 1, "false_positives": 1},
        {"image_id": "2", "lesions": 0, "found": 0, "missed": 0, "false_positives": 0},
    ]


def outcome(image_id, found, missed, wrong):
    return {
        "image_id": image_id,
        "lesions": found + missed,
        "found": found,
        "missed": missed,
        "false_positives": wrong,
    }


def test_best_and_worst():
    outcomes = [
        outcome("clean", 2, 0, 0),
        outcome("healthy", 0, 0, 0),
        outcome("noisy", 1, 0, 9),
        outcome("blind", 0, 3, 0),
        outcome("half", 1, 1, 0),
        outcome("rich", 5, 0, 0),
    ]
    best, worst = best_and_worst(outcomes, 2)
    assert [o["image_id"] for o in worst] == ["blind", "half"], "a missed lesion weighs more than any false positives"
    assert [o["image_id"] for o in best] == ["rich", "clean"]
    best, worst = best_and_worst(outcomes, 10)
    assert [o["image_id"] for o in worst] == ["blind", "half", "noisy"]
    assert [o["image_id"] for o in best] == ["rich", "clean"]
    assert [o["image_id"] for o in best_and_worst(outcomes, 1)[0]] == ["rich"]
    assert best_and_worst([], 3) == ([], [])


def test_equal_images_are_ordered_by_their_name():
    outcomes = [outcome(name, 1, 0, 0) for name in "cab"]
    assert [o["image_id"] for o in best_and_worst(outcomes, 2)[0]] == ["a", "b"]


def test_describe_outcome():
    assert describe_outcome(outcome("a", 2, 1, 1)) == "2 of 3 lesions found, 1 false positive"
    assert describe_outcome(outcome("a", 0, 1, 0)) == "0 of 1 lesion found, no false positives"
    assert describe_outcome(outcome("a", 0, 0, 2)) == "lesion-free, 2 false positives"
    set_aside = outcome("a", 0, 0, 2) | {"gt_ignore": [True]}
    assert describe_outcome(set_aside) == "no lesion to find, 2 false positives"
