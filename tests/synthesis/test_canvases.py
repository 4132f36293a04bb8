import numpy as np

from elk_jax.synthesis.canvases import canvas_positions, healthy_window
from tests.refusals import refused


def test_only_training_patients_and_large_images(make_info):
    infos = [
        make_info(0),
        make_info(1, [[1, 1, 5, 5]]),
        make_info(2),  # not a training patient
        make_info(3, width=20),
        make_info(4, [[1, 1, 5, 5]], ignore=[True]),
    ]
    patients = {"P0", "P1", "P3", "P4"}
    assert canvas_positions(infos, patients, 32) == (0, 1, 4)
    assert canvas_positions(infos, patients, 32, lesion_free=True) == (0,)
    assert canvas_positions(infos, patients, 48) == (0, 1, 4)  # exactly the height
    with refused(49, "64 x 48 px", where=f"{len(infos)} images"):
        canvas_positions(infos, patients, 49)
    with refused("patient", where=f"{len(infos)} images"):
        canvas_positions(infos, {"P9"}, 8)
    with refused(2, where="lesion_free"):
        canvas_positions(infos, {"P1", "P4"}, 8, lesion_free=True)


def test_every_window_is_healthy_breast_and_all_are_drawn():
    breast = np.zeros((20, 24), bool)
    breast[:, :18] = True
    boxes = np.array([[6.5, 6, 9, 9.5]])
    slow = {
        (x, y)
        for x in range(24 - 8 + 1)
        for y in range(20 - 8 + 1)
        if (x + 8 <= 6 or x >= 9 or y + 8 <= 6 or y >= 10) and breast[y : y + 8, x : x + 8].mean() >= 0.75
    }
    rng = np.random.default_rng(0)
    drawn = [healthy_window(breast, boxes, 8, rng, share=0.75) for _ in range(1000)]
    assert {window[:2] for window in drawn} == slow
    assert all(window[2] - window[0] == window[3] - window[1] == 8 for window in drawn)


def test_no_window():
    rng = np.random.default_rng(0)
    full = np.ones((16, 16), bool)
    assert healthy_window(full, np.zeros((0, 4)), 16, rng) == (0, 0, 16, 16)
    assert healthy_window(full, np.array([[7, 7, 9, 9]]), 8, rng) is None
    assert healthy_window(~full, np.zeros((0, 4)), 8, rng) is None
    with refused("16 x 16 px", 17):
        healthy_window(full, np.zeros((0, 4)), 17, rng)
