import json

import numpy as np
import pytest

from elk_jax.synthesis import placement
from elk_jax.synthesis.placement import AreaRule, area_rule, find_box, plan_placement
from tests.refusals import refused

NONE = np.zeros((0, 4))


def boxes_of(sizes) -> np.ndarray:
    """(height, width) -> boxes at the origin."""
    return np.array([[0, 0, width, height] for height, width in sizes], np.float32)


def test_rules_by_hand():
    boxes = boxes_of([(10, 10), (20, 10), (10, 20), (30, 30), (40, 40)])  # areas 100 200 200 900 1600
    ratios = np.array([1, 2, 0.5, 1, 1])
    low, high = ratios.mean() - ratios.std(), ratios.mean() + ratios.std()
    free, medium = area_rule(boxes, "free"), area_rule(boxes, "medium")
    assert free.area == (100, 1600) and medium.area == (200, 900)
    assert free.ratio == medium.ratio == pytest.approx((low, high))
    assert area_rule(boxes, "free", size=40).area == (100, 900)  # a box must be below the window
    one = area_rule(boxes[:1], "medium")
    assert one.area == (100, 100) and one.draw(np.random.default_rng(0)) == (10, 10)


def test_the_ratio_stays_positive():
    rule = area_rule(boxes_of([(10, 100), (11, 100), (12, 100), (100, 10)]))
    assert rule.ratio[0] == pytest.approx(0.1)


def test_bad_rules():
    with refused("'large'", "free", where="area"):
        area_rule(boxes_of([(1, 1)]), "large")
    with refused("lesion", where="0 boxes"):
        area_rule(NONE)
    with refused(64, 80, where="1 boxes"):
        area_rule(boxes_of([(80, 20)]), size=64)
    with refused("area", where="2 boxes"):
        area_rule(boxes_of([(10, 10), (0, 5)]))
    with refused(0, 5, where="area"):
        AreaRule((0, 5), (1, 1))


def test_drawn_sizes_are_uniform_in_area_and_ratio():
    rule, rng = AreaRule((2000, 10000), (0.5, 2.0)), np.random.default_rng(0)
    height, width = np.array([rule.draw(rng) for _ in range(4000)]).T
    area, ratio = height * width, height / width
    assert 1950 < area.min() < 2100 and 9800 < area.max() < 10200
    np.testing.assert_allclose(np.quantile(area, [0.25, 0.5, 0.75]), [4000, 6000, 8000], rtol=0.05)
    np.testing.assert_allclose(np.quantile(ratio, [0.25, 0.5, 0.75]), [0.875, 1.25, 1.625], rtol=0.05)


def test_boxes_lie_in_the_breast_clear_of_lesions_anywhere_they_can():
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:40, :40]
    breast = (x - 5) ** 2 + (y - 20) ** 2 < 30**2
    lesion = np.array([[10.5, 15, 16, 22.5]])
    rule = AreaRule((36, 36), (1, 1))  # 6 x 6 px
    drawn = {find_box(breast, lesion, rule, rng) for _ in range(4000)}
    slow = {
        (i, j, i + 6, j + 6)
        for i in range(35)
        for j in range(35)
        if breast[j : j + 6, i : i + 6].all() and (i + 6 <= 10 or i >= 16 or j + 6 <= 15 or j >= 23)
    }
    assert drawn <= slow and len(drawn) > 0.9 * len(slow)


def test_a_size_that_does_not_fit_is_drawn_again(monkeypatch):
    breast = np.zeros((30, 30), bool)
    breast[10:20, 10:20] = True
    rng = np.random.default_rng(0)
    assert find_box(breast, NONE, AreaRule((200, 900), (1, 1)), rng) is None
    monkeypatch.setattr(placement, "TRIES", 40)
    found = [find_box(breast, NONE, AreaRule((50, 150), (1, 1)), rng) for _ in range(20)]
    assert all(box is not None and box[2] - box[0] <= 10 for box in found)
    assert find_box(breast & False, NONE, AreaRule((1, 1), (1, 1)), rng) is None
    assert find_box(np.ones((8, 8), bool), NONE, AreaRule((64, 64), (1, 1)), rng) == (0, 0, 8, 8)


@pytest.fixture(scope="module")
def plan(make_info):
    """Plans on three canvases: the second is all air, the third has a lesion in the middle."""
    infos = [make_info(0), make_info(1), make_info(2, [[28, 20, 36, 28]])]
    breasts = [np.ones((48, 64), bool), np.zeros((48, 64), bool), np.ones((48, 64), bool)]

    small = AreaRule((16, 100), (0.5, 2))

    def at(index, seed=3, rule=small, size=20, positions=(0, 1, 2)):
        return plan_placement(seed, index, infos, positions, breasts.__getitem__, size, rule)

    return at


def test_plans_depend_on_seed_and_index_alone(plan):
    plans = [plan(index) for index in range(12)]
    assert [plan(index) for index in reversed(range(12))][::-1] == plans
    assert len({(p.position, p.window, p.box) for p in plans}) == 12
    assert all(plan(index, seed=4).window != plans[index].window for index in range(3))


def test_plans_visit_all_canvases_and_are_sound(plan):
    plans = [plan(index) for index in range(30)]
    used = [p.position for p in plans]
    assert used.count(1) == 0 and 10 <= used.count(0) <= 20
    lesion = (28, 20, 36, 28)
    for p in plans:
        x0, y0, x1, y1 = p.window
        assert min(x0, y0) >= 0 and x1 - x0 == y1 - y0 == 20 and x1 <= 64 and y1 <= 48
        assert min(p.box) >= 0 and max(p.box) <= 20
        assert p.provenance["box"] == list(np.add(p.box, (x0, y0, x0, y0)))
        apart = x1 <= lesion[0] or x0 >= lesion[2] or y1 <= lesion[1] or y0 >= lesion[3]
        assert p.position == 0 or apart


def test_provenance_is_plain(plan):
    found = plan(5)
    assert json.loads(json.dumps(found.provenance)) == {
        "canvas": f"image {found.position}",
        "patient_id": f"P{found.position}",
        "window": list(found.window),
        "box": found.provenance["box"],
        "seed": 3,
        "index": 5,
    }


def test_no_place_at_all(plan):
    with refused(20, "healthy", where="1 canvases"):
        plan(0, positions=(1,))
    with refused(20, "smaller lesions", where="3 canvases"):
        plan(0, rule=AreaRule((900, 900), (1, 1)))
    with refused("canvas"):
        plan(0, positions=())
