"""Boxes stay on their pixels: a bright shape is drawn, transformed, and its box recovered from the pixels."""

import numpy as np
import pytest

from elk_jax.data import transforms as t

flip_horizontal = lambda example: t.flip(example, "horizontal")
flip_vertical = lambda example: t.flip(example, "vertical")


def seen_box(image, level=0.55):
    """Box of the pixels above `level`, xyxy with the far corner exclusive."""
    rows, columns = np.nonzero(image[..., 0] > level)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def ellipse(width, height, box):
    """A white ellipse inscribed in `box`, painted with 8 x 8 samples per pixel."""
    x1, y1, x2, y2 = box
    y, x = (np.arange(8 * side) / 8 + 1 / 16 for side in (height, width))
    inside = ((x[None] - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + (
        (y[:, None] - (y1 + y2) / 2) / ((y2 - y1) / 2)
    ) ** 2 < 1
    return inside.reshape(height, 8, width, 8).mean((1, 3), dtype=np.float32)[..., None]


@pytest.fixture
def example(make_record):
    return t.example_of(make_record([[10, 5, 31, 17]]))


@pytest.mark.parametrize(
    "change",
    [
        flip_horizontal,
        flip_vertical,
        *[lambda e, n=n: t.rotate_quarter(e, n) for n in range(5)],
        lambda e: t.crop(e, (3, 2, 50, 40)),
        lambda e: flip_horizontal(t.rotate_quarter(t.crop(e, (9, 4, 33, 18)), 3)),
    ],
)
def test_exact_transforms(example, change):
    changed = change(example)
    assert np.array_equal(changed.boxes[0], seen_box(changed.image))
    assert changed.boxes.dtype == np.float32 and changed.image.ndim == 3
    assert not changed.ignore.any()


def test_twice_is_nothing(example):
    for flip in (flip_horizontal, flip_vertical, lambda e: t.rotate_quarter(e, 2)):
        twice = flip(flip(example))
        assert np.array_equal(twice.image, example.image) and np.array_equal(twice.boxes, example.boxes)


@pytest.mark.parametrize("size", [(96, 128), (77, 100), (24, 32), (31, 45), (96, 40), (48, 64)])
def test_resize(example, size):
    changed = t.resize_to(example, size)
    assert changed.image.shape == (*size, 1)
    np.testing.assert_allclose(changed.boxes[0], seen_box(changed.image), atol=1.0)
    np.testing.assert_allclose(changed.boxes / np.tile(changed.scale, 2), example.boxes, rtol=1e-5)
    assert abs(changed.image.mean() - example.image.mean()) < 0.01  # nothing is shifted out


def test_resize_keeps_corners_aligned(make_record):
    """Halving averages 2 x 2 blocks; a half-pixel shift would not."""
    record = make_record([[10, 4, 30, 16]])
    half = t.resize_to(t.example_of(record), (24, 32))
    blocks = record.image.reshape(24, 2, 32, 2, 1).mean((1, 3))
    np.testing.assert_allclose(half.image, blocks, atol=1e-6)
    assert half.boxes.tolist() == [[5, 2, 15, 8]]


@pytest.mark.parametrize("degrees", [-20, -5, 0, 7, 15])
def test_rotation(degrees):
    box = [40.0, 30.0, 70.0, 45.0]
    example = t.Example(ellipse(120, 90, box), np.array([box], np.float32), np.zeros(1, np.int32), np.zeros(1, bool))
    turned = t.rotate(example, degrees)
    assert turned.image.shape == example.image.shape
    np.testing.assert_allclose(turned.boxes[0], seen_box(turned.image, 0.5), atol=1.0)


def test_rotation_turns_counter_clockwise():
    box = [80.0, 40.0, 90.0, 50.0]  # right of the centre, so it moves up
    example = t.Example(ellipse(120, 90, box), np.array([box], np.float32), np.zeros(1, np.int32), np.zeros(1, bool))
    assert t.rotate(example, 20).boxes[0, 1] < 35


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        (
            (480, 640),
            800,
            1333,
            (800, 1067),
        ),  # detectron2's ResizeShortestEdge, by hand: 640 * 800/480 = 1066.67
        ((640, 480), 800, 1333, (1067, 800)),
        ((300, 900), 800, 1333, (444, 1333)),  # 800 would make 2400: the long side decides
        ((512, 512), 640, 1333, (640, 640)),
        ((2457, 1890), 800, 1333, (1040, 800)),
        ((100, 333), 30, 0, (30, 100)),
        ((1000, 3), 1, 10, (10, 1)),  # never below one pixel
    ],
)
def test_short_side_rule(size, short, longest, expected):
    assert t.scaled_size(size, t.short_side_scale(size, short, longest)) == expected


def test_crop_cuts_and_ignores(make_record):
    record = make_record([[10, 10, 20, 20], [0, 0, 8, 8], [30, 30, 40, 40]], ignore=[False, False, True])
    cut = t.crop(t.example_of(record), (14, 0, 60, 40), min_visible=0.7)
    assert cut.boxes.tolist() == [[0, 10, 6, 20], [16, 30, 26, 40]]  # 60 % visible; gone; whole
    assert cut.ignore.tolist() == [True, True]
    assert t.crop(t.example_of(record), (14, 0, 60, 40), min_visible=0.5).ignore.tolist() == [False, True]


def test_crop_to_nothing_keeps_shapes(make_record):
    empty = t.crop(t.example_of(make_record([[0, 0, 5, 5]])), (20, 20, 30, 30))
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,) and empty.ignore.shape == (0,)
    assert flip_horizontal(t.rotate(t.resize_to(empty, (5, 5)), 3)).boxes.shape == (0, 4)


def test_window_keeps_a_lesion_whole(make_record):
    rng = np.random.default_rng(0)
    record = make_record([[1, 2, 9, 12], [40, 30, 63, 47], [20, 20, 22, 22]], ignore=[False, False, True])
    example = t.example_of(record)
    positions = set()
    for _ in range(200):
        left, top, right, bottom = t.lesion_window(example, rng.uniform(0.2, 1, 2), (1e9, 1e9), rng)
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 48
        x1, y1, x2, y2 = record.info.boxes[:2].T
        assert ((x1 >= left) & (y1 >= top) & (x2 <= right) & (y2 <= bottom)).any()
        positions.add((left, top))
    assert len(positions) > 50


def test_window_prefers_a_lesion_that_fits(make_record):
    rng = np.random.default_rng(0)
    example = t.example_of(make_record([[2, 2, 50, 46], [40, 20, 50, 30]]))
    for _ in range(30):
        left, top, right, bottom = t.lesion_window(example, np.ones(2), (24.0, 24.9), rng)
        assert (right - left, bottom - top) == (24, 24)
        assert left <= 40 and top <= 20 and right >= 50 and bottom >= 30


def test_window_within_a_lesion_larger_than_the_canvas(make_record):
    rng = np.random.default_rng(0)
    example = t.example_of(make_record([[2, 3, 60, 46]]))
    for _ in range(30):
        left, top, right, bottom = t.lesion_window(example, np.ones(2), (20.0, 20.0), rng)
        assert (right - left, bottom - top) == (20, 20)
        assert left >= 2 and top >= 3 and right <= 60 and bottom <= 46


def test_window_without_lesion(make_record):
    example = t.example_of(make_record([[0, 0, 5, 5]], ignore=[True]))
    rng = np.random.default_rng(0)
    windows = {t.lesion_window(example, np.array([0.5, 0.5]), (1e9, 1e9), rng) for _ in range(100)}
    assert all(right - left == 32 and bottom - top == 24 for left, top, right, bottom in windows)
    assert len(windows) > 40
    assert t.lesion_window(example, np.ones(2), (1e9, 1e9), rng) == (0, 0, 64, 48)


def test_greys():
    rng = np.random.default_rng(0)
    image = np.linspace(0, 1, 200, dtype=np.float32).reshape(10, 20, 1)
    image[0] = 0
    assert t.change_greys(image, 1.0, 1.0, 0.0, rng) is image
    changed = t.change_greys(image, 2.0, 0.5, 0.0, rng)
    np.testing.assert_allclose(changed, 0.5 * image**2, atol=1e-6)
    noisy = t.change_greys(image, 1.0, 1.0, 0.1, rng)
    assert (noisy[0] == 0).all() and noisy.min() >= 0 and noisy.max() <= 1
    assert 0.05 < np.std((noisy - image)[3:7]) < 0.15
    assert noisy.dtype == changed.dtype == np.float32 and noisy.shape == image.shape


def test_inputs_are_left_alone(make_record):
    record = make_record([[10, 5, 31, 17]])
    before = record.image.copy(), record.info.boxes.copy()
    example = t.example_of(record)
    for change in (
        flip_horizontal,
        lambda e: t.rotate(e, 5),
        lambda e: t.crop(e, (12, 3, 40, 40)),
        lambda e: t.resize_to(e, (30, 30)),
    ):
        change(example)
    assert np.array_equal(record.image, before[0]) and np.array_equal(record.info.boxes, before[1])


def test_an_image_is_scaled_about_its_centre_and_moved():
    image = np.random.default_rng(0).random((9, 7, 1), np.float32)
    assert t.moved(image, 1.0, np.zeros(2)) is image
    down = t.moved(image, 1.0, np.array([2.0, -1.0]))
    np.testing.assert_allclose(down[2:, :-1], image[:-2, 1:], atol=1e-6)
    np.testing.assert_allclose(down[:2, :-1], image[[2, 1], 1:], atol=1e-6)  # mirrored at the border
    larger = t.moved(image, 2.0, np.zeros(2))
    np.testing.assert_allclose(larger[::2, 1::2][:5, :3], image[2:7, 2:5], atol=1e-6)
    np.testing.assert_allclose(t.moved(np.full((6, 6, 1), 0.3, np.float32), 0.7, np.ones(2)), 0.3, atol=1e-6)
