import numpy as np
import pytest

from elk_jax.synthesis.closeups import box_patch, fitting_lesions, lesion_closeup, tissue_closeup, window_around
from elk_jax.synthesis.placement import AreaRule
from tests.refusals import refused


def numbered(height: int, width: int) -> np.ndarray:
    return (np.arange(height * width, dtype=np.uint16) + 1).reshape(height, width)


def test_lesions_below_the_window_on_both_sides(make_info):
    infos = [
        make_info(0, [[0, 0, 31, 10], [0, 0, 32, 10], [0, 0, 10, 32], [5, 5, 9, 9]], ignore=[False] * 3 + [True]),
        make_info(1),
        make_info(2, [[1.5, 1, 4, 4]]),
    ]
    assert fitting_lesions(infos, 32) == [(0, 0), (2, 0)]
    with refused(4, 2, "larger close-up", where="3 images"):
        fitting_lesions(infos, 2)
    with refused(0, 32, "split", where="1 images"):
        fitting_lesions(infos[1:2], 32)


def test_all_places_of_the_lesion_in_the_window_occur():
    rng = np.random.default_rng(0)
    windows = [window_around(np.array([20.5, 20, 24, 25.5]), 60, 60, 10, rng) for _ in range(2000)]
    assert {w[0] for w in windows} == set(range(14, 21)) and {w[1] for w in windows} == set(range(16, 21))
    assert all(w[2] - w[0] == w[3] - w[1] == 10 for w in windows)


@pytest.mark.parametrize("box", [[0, 0, 5, 5], [55, 35, 60, 40], [0, 36, 4, 40]])
def test_windows_at_the_border_are_shifted_in(box):
    rng = np.random.default_rng(0)
    for _ in range(50):
        x0, y0, x1, y1 = window_around(np.array(box), 40, 60, 16, rng)
        assert 0 <= x0 <= box[0] and box[2] <= x1 <= 60 and 0 <= y0 <= box[1] and box[3] <= y1 <= 40


def test_an_image_smaller_than_the_window_is_padded():
    rng = np.random.default_rng(0)
    pixels = numbered(10, 40)
    seen = set()
    for _ in range(60):
        closeup = lesion_closeup(pixels, np.array([[3, 2, 8, 9]]), 0, 16, rng)
        assert (closeup.image > 0).sum() == 160 and closeup.image.dtype == np.uint16
        assert sorted(closeup.image[closeup.mask]) == sorted(pixels[2:9, 3:8].ravel())
        seen.add(closeup.window[1])
    assert seen == set(range(-6, 1))


def test_mask_boxes_and_pixels_agree():
    rng = np.random.default_rng(0)
    pixels = numbered(50, 60)
    boxes = np.array([[20, 20, 28, 26], [30, 22, 50, 44], [0, 0, 4, 4]], np.float32)
    for _ in range(40):
        closeup = lesion_closeup(pixels, boxes, 0, 20, rng)
        x0, y0, x1, y1 = closeup.window
        np.testing.assert_array_equal(closeup.image, pixels[y0:y1, x0:x1])
        np.testing.assert_array_equal(np.sort(closeup.image[closeup.mask]), pixels[20:26, 20:28].ravel())
        assert closeup.lesions[0] == 0 and 2 not in closeup.lesions
        np.testing.assert_array_equal(closeup.boxes[0], boxes[0] - [x0, y0, x0, y0])
        assert (1 in closeup.lesions) == (x1 > 30 and y1 > 22)
        assert closeup.boxes.min() >= 0 and closeup.boxes.max() <= 20


def test_the_mask_has_the_lesions_margin():
    pixels, boxes = numbered(50, 60), np.array([[20, 20, 30, 26]])
    closeup = lesion_closeup(pixels, boxes, 0, 32, np.random.default_rng(0), margin=0.5)
    rows, columns = np.flatnonzero(closeup.mask.any(1)), np.flatnonzero(closeup.mask.any(0))
    x, y = closeup.window[:2]
    across = min(20 - x, max(15 - x, 4)), max(30 - x, min(35 - x, 28))
    down = min(20 - y, max(17 - y, 4)), max(26 - y, min(29 - y, 28))
    assert (columns[0], columns[-1] + 1, rows[0], rows[-1] + 1) == across + down
    np.testing.assert_array_equal(closeup.boxes[0], boxes[0] - [x, y, x, y])  # the lesion's box is as it was


def test_lesions_that_do_not_fit():
    rng = np.random.default_rng(0)
    with refused("30 x 4 px", 30, where="box"):
        lesion_closeup(numbered(50, 60), np.array([[5, 5, 35, 9]]), 0, 30, rng)
    with refused("5 x 4 px", 30, where="box"):
        lesion_closeup(numbered(50, 60), np.array([[70, 5, 75, 9]]), 0, 30, rng)  # beyond the image


def test_tissue_has_masks_and_no_lesion():
    rng = np.random.default_rng(0)
    pixels, breast = numbered(48, 64), np.ones((48, 64), bool)
    breast[:, 50:] = False
    boxes = np.array([[10, 10, 20, 20]])
    rule = AreaRule((20, 80), (0.5, 2))
    for _ in range(30):
        closeup = tissue_closeup(pixels, breast, boxes, 24, rule, rng)
        x0, y0, x1, y1 = closeup.window
        assert closeup.boxes.shape == (0, 4) and 15 <= closeup.mask.sum() <= 100
        assert breast[y0:y1, x0:x1][closeup.mask].all()
        np.testing.assert_array_equal(closeup.image, pixels[y0:y1, x0:x1])
    assert tissue_closeup(pixels, breast & False, boxes, 24, rule, rng) is None
    assert tissue_closeup(pixels, breast, boxes, 24, AreaRule((900, 900), (1, 1)), rng) is None
    with refused("64 x 48 px", 49):
        tissue_closeup(pixels, breast, boxes, 49, rule, rng)


def test_box_patch():
    pixels = np.zeros((40, 40), np.uint8)
    pixels[10:20, 20:40] = 200
    assert (box_patch(pixels, np.array([20, 10, 40, 20]), 8) == 200).all()
    assert box_patch(pixels, np.array([20, 10, 40, 20]), 64).shape == (64, 64)
    wide = box_patch(pixels, np.array([16, 6, 40, 24]), 16)
    assert wide[0, 0] == 0 and wide[8, 8] == pytest.approx(200)
    with refused("image", where="box"):
        box_patch(pixels, np.array([50, 10, 60, 20]), 8)
