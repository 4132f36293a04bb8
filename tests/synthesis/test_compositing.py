import numpy as np
import pytest

from elk_jax.images.windows import box_mask
from elk_jax.synthesis import compositing
from elk_jax.synthesis.grain import fine_part
from tests.refusals import refused


def noise(dtype, height: int = 60, width: int = 70, seed: int = 0) -> np.ndarray:
    """Grey noise around a third of white, in 16 bits with values that 8 bits cannot hold."""
    grey = np.random.default_rng(seed).uniform(0.2, 0.5, (height, width))
    return (grey * compositing.white_of(np.zeros(0, dtype))).astype(dtype)


def test_grey_values_are_shares_of_white():
    assert compositing.to_grey(np.array([0, 51, 255], np.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert compositing.to_grey(np.array([0, 13107, 65535], np.uint16)).tolist() == pytest.approx([0, 0.2, 1])
    assert compositing.to_grey(np.array([0.25], np.float32)).tolist() == [0.25]


def test_to_the_model_and_back():
    image = np.tile(np.linspace(0.2, 0.8, 64, dtype=np.float32), (64, 1))
    mask = box_mask(np.array([9, 16, 31, 40]), 64, 64)
    small, small_mask = compositing.to_model(image, mask, 16)
    assert small.shape == (16, 16) and small_mask.dtype == bool
    rows, columns = np.flatnonzero(small_mask.any(1)), np.flatnonzero(small_mask.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (4, 9, 2, 7)  # every touched pixel
    back = compositing.from_model(small, 64)
    np.testing.assert_allclose(back[:, 6:-6], image[:, 6:-6], atol=5e-3)
    same, same_mask = compositing.to_model(image, mask, 64)
    assert (same == image).all() and (same_mask == mask).all() and (compositing.from_model(image, 64) == image).all()
    large, large_mask = compositing.to_model(image, mask, 128)
    assert large.shape == (128, 128) and large_mask[32:80, 18:62].all()
    with refused(where="mask"):
        compositing.to_model(image, mask & False, 16)


def test_grey_shift_is_a_median_over_the_region():
    known, painted = np.full((4, 4), 0.5), np.full((4, 4), 0.3)
    region = np.ones((4, 4), bool)
    known[0, 0], region[0, 1], known[0, 1] = 9.0, False, -9.0  # an outlier, and one that does not count
    assert compositing.grey_shift(known, painted, region) == pytest.approx(0.2)
    assert compositing.grey_shift(known, painted, region & False) == 0.0


def test_feather_by_hand():
    mask = box_mask(np.array([4, 0, 14, 9]), 9, 18)
    row = compositing.feather_weights(mask, inside=4)[4]
    t = np.array([0.5, 1.5, 2.5, 3.5]) / 4
    ramp = t * t * (3 - 2 * t)
    np.testing.assert_allclose(row, [0] * 4 + [*ramp, 1, 1, *ramp[::-1]] + [0] * 4, atol=1e-6)


def test_the_weight_falls_towards_the_edge_of_the_window():
    full = np.ones((20, 20), bool)
    weights = compositing.feather_weights(full, 5)
    assert weights[10, 10] == 1 and weights[0].max() < 0.1 and weights[:, -1].max() < 0.1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_only_the_region_changes(dtype):
    canvas = noise(dtype)
    before = canvas.copy()
    window, box = (10, 12, 42, 44), (6, 8, 20, 22)
    painted = np.random.default_rng(1).uniform(0, 1, (32, 32)).astype(np.float32)
    result, notes = compositing.paste_lesion(canvas, painted, window, box, np.ones(canvas.shape, bool))
    assert (canvas == before).all() and result.dtype == dtype and result.shape == canvas.shape
    changed = np.argwhere(result != canvas)
    assert changed.min(0).tolist() >= [20, 16] and changed.max(0).tolist() <= [33, 29]
    assert len(changed) > 150
    core = result[24:30, 20:26] / compositing.white_of(canvas)
    expected = np.clip(painted[12:18, 10:16] + notes["grey_shift"], 0, 1)
    np.testing.assert_allclose(core, expected, atol=0.6 / min(compositing.white_of(canvas), 65535) + 1e-6)


def test_sixteen_bits_keep_their_depth():
    canvas = noise(np.uint16)
    painted = np.linspace(0.3, 0.31, 32 * 32, dtype=np.float32).reshape(32, 32)
    result, _ = compositing.paste_lesion(canvas, painted, (0, 0, 32, 32), (4, 4, 28, 28), np.ones(canvas.shape, bool))
    assert len(np.unique(result[10:22, 10:22])) > 50  # 8 bits would leave 3


def test_painting_what_is_there_changes_nothing():
    for dtype in (np.uint8, np.uint16, np.float32):
        canvas = noise(dtype)
        painted = compositing.to_grey(canvas[5:37, 5:37])
        for whole in (False, True):
            result, notes = compositing.paste_lesion(
                canvas, painted, (5, 5, 37, 37), (3, 3, 20, 20), np.ones(canvas.shape, bool), whole_window=whole
            )
            np.testing.assert_allclose(result, canvas, atol=1e-7)
            assert notes["grey_shift"] == pytest.approx(0, abs=1e-7)


def test_the_level_is_taken_from_breast_outside_the_box():
    canvas = np.full((40, 40), 100, np.uint8)
    canvas[:, 30:] = 0  # air
    painted = np.full((40, 40), 60 / 255, np.float32)
    painted[:, 30:] = 1.0
    painted[10:20, 10:20] = 90 / 255  # the lesion: 30 brighter than its surroundings
    breast = canvas > 0
    result, notes = compositing.paste_lesion(canvas, painted, (0, 0, 40, 40), (10, 10, 20, 20), breast)
    assert notes["grey_shift"] * 255 == pytest.approx(40, abs=1e-4)
    assert result[15, 15] == 130 and (result[:, 30:] == 0).all()
    result, notes = compositing.paste_lesion(canvas, painted, (0, 0, 40, 40), (10, 10, 20, 20), breast & False)
    assert notes["grey_shift"] == 0.0 and result[15, 15] == 90


def test_whole_window():
    canvas = noise(np.uint16)
    painted = np.full((16, 16), 0.9, np.float32)
    result, notes = compositing.paste_lesion(
        canvas, painted, (8, 8, 40, 40), (4, 4, 12, 12), np.ones(canvas.shape, bool), whole_window=True
    )
    assert (result[8:40, 8:40] == round((0.9 + notes["grey_shift"]) * 65535)).all()
    outside = np.ones(canvas.shape, bool)
    outside[8:40, 8:40] = False
    assert (result == canvas)[outside].all()


def test_white_and_black_are_kept():
    canvas = np.full((20, 20), 250, np.uint8)
    bright = compositing.paste(canvas, np.ones((10, 10), np.float32), (5, 5, 15, 15), np.ones((10, 10)), shift=0.5)
    dark = compositing.paste(canvas, np.zeros((10, 10), np.float32), (5, 5, 15, 15), np.ones((10, 10)), shift=-0.5)
    assert bright[8, 8] == 255 and dark[8, 8] == 0


def test_refusals():
    canvas, breast = noise(np.uint8), np.ones((60, 70), bool)
    painted = np.zeros((32, 32), np.float32)
    with refused("70 x 60 px", 50, 82, where="window"):
        compositing.paste_lesion(canvas, painted, (50, 0, 82, 32), (1, 1, 5, 5), breast)
    with refused("5, 5, 5, 9", where="box"):
        compositing.paste_lesion(canvas, painted, (0, 0, 32, 32), (5, 5, 5, 9), breast)
    with pytest.raises(ValueError, match="not square"):
        compositing.paste_lesion(canvas, painted, (0, 0, 32, 30), (1, 1, 5, 5), breast)


def test_no_seam_in_a_smooth_picture():
    """A lesion that fades to the canvas's level at its border leaves no step anywhere."""
    canvas = np.full((64, 64), 20000, np.uint16)
    y, x = np.mgrid[:48, :48] - 23.5
    painted = (20000 / 65535 + 0.05 + 0.3 * np.exp(-(x**2 + y**2) / 40)).astype(np.float32)  # level off by 0.05
    result, _ = compositing.paste_lesion(canvas, painted, (8, 8, 56, 56), (8, 8, 40, 40), np.ones(canvas.shape, bool))
    steps = np.abs(np.diff(result.astype(float), axis=1))
    border = steps[:, [15, 47]]
    assert border.max() < 0.02 * steps.max()


def test_grain_comes_from_beyond_a_window_that_a_lesion_fills():
    rng = np.random.default_rng(0)
    canvas = (0.4 + 0.03 * rng.standard_normal((96, 96))).astype(np.float32)
    painted, breast = np.full((32, 32), 0.6, np.float32), np.ones(canvas.shape, bool)
    window, box = (32, 32, 64, 64), (2, 2, 30, 30)
    smooth, _ = compositing.paste_lesion(canvas, painted, window, box, breast)
    grainy, _ = compositing.paste_lesion(canvas, painted, window, box, breast, grain=np.random.default_rng(1))
    inner = (slice(40, 56), slice(40, 56))
    assert smooth[inner].std() < 1e-6
    assert fine_part(grainy)[inner].std() == pytest.approx(fine_part(canvas).std(), rel=0.3)
