import numpy as np
import pytest

from elk_jax.data.augment import NO_AUGMENTATION, Augmentation, Resize, augment, resize_only
from elk_jax.data.paste import paste_lesions
from elk_jax.data.transforms import example_of
from elk_jax.images.schema import Record
from tests.refusals import refused

EVERYTHING = Augmentation(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotate90=0.5,
    rotation=8.0,
    crop=0.7,
    gain=0.05,
    gamma=0.05,
    noise=0.01,
    copy_paste=0.5,
)


def seen_box(image):
    rows, columns = np.nonzero(image[..., 0] > 0.6)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize(
    ("resize", "canvas"),
    [(Resize((40, 48, 60), 70), (64, 80)), (Resize(jitter=(0.5, 2.0)), (64, 64)), (Resize((30,)), (30, 40))],
)
def test_boxes_stay_on_pixels(make_record, resize, canvas):
    record = make_record([[22, 15, 40, 29]])
    flips = Augmentation(horizontal_flip=0.5, vertical_flip=0.5, crop=0.7, crop_sides=(0.3, 1.0))
    rng = np.random.default_rng(0)
    shapes = set()
    for _ in range(60):
        example = augment(record, flips, resize, canvas, rng)
        assert example.image.shape[0] <= canvas[0] and example.image.shape[1] <= canvas[1]
        assert len(example.boxes) == 1 and not example.ignore.any()  # the only lesion stays whole
        np.testing.assert_allclose(example.boxes[0], seen_box(example.image), atol=1.01)
        shapes.add(example.image.shape)
    assert len(shapes) > 10


def test_everything_keeps_the_contract(make_record):
    record = make_record([[5, 5, 20, 20], [30, 20, 60, 46]], ignore=[False, True])
    donor = make_record([[8, 8, 16, 20]])
    rng = np.random.default_rng(0)
    for resize in (Resize((48, 60), 80), Resize(jitter=(0.3, 3.0))):
        for _ in range(60):
            example = augment(record, EVERYTHING, resize, (80, 80), rng, donor)
            height, width = example.image.shape[:2]
            assert height <= 80 and width <= 80 and example.image.dtype == np.float32
            assert np.isfinite(example.image).all() and 0 <= example.image.min() <= example.image.max() <= 1
            assert len(example.boxes) == len(example.labels) == len(example.ignore)
            assert (example.boxes[:, 2:] > example.boxes[:, :2]).all() and (example.boxes >= 0).all()
            assert (example.boxes <= [width, height, width, height]).all()


def test_same_generator_same_example(make_record):
    record, donor = make_record([[5, 5, 20, 20]]), make_record([[8, 8, 16, 20]])
    first, again, other = (
        augment(record, EVERYTHING, Resize((48, 60), 80), (80, 80), np.random.default_rng(seed), donor)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first.image, again.image) and np.array_equal(first.boxes, again.boxes)
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


def test_nothing_changes_nothing(make_record):
    record = make_record([[5, 5, 20, 20]])
    example = augment(record, NO_AUGMENTATION, Resize((48,)), (64, 64), np.random.default_rng(0))
    assert np.array_equal(example.image, record.image) and np.array_equal(example.boxes, record.info.boxes)
    assert example.scale == (1.0, 1.0)


def test_resize_only(make_record):
    record = make_record([[6, 4, 20, 16]])
    example = resize_only(record, Resize((10, 24), 0), (40, 40))
    assert example.image.shape == (24, 32, 1) and example.boxes.tolist() == [[3, 2, 10, 8]]
    assert resize_only(record, Resize(jitter=(0.1, 5)), (96, 200)).image.shape == (96, 128, 1)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Resize(), "short_sides"),
        (lambda: Resize((48,), 0, (1.0, 1.0)), "short_sides"),
        (lambda: Resize((0,)), "short_sides"),
        (lambda: Resize((64,), -1), "max_long_side"),
        (lambda: Resize(jitter=(0.0, 1.0)), "jitter"),
        (lambda: Resize(jitter=(2.0, 1.0)), "jitter"),
        (lambda: Augmentation(horizontal_flip=1.5), "horizontal_flip"),
        (lambda: Augmentation(noise=-0.1), "noise"),
        (lambda: Augmentation(gain=float("nan")), "gain"),
        (lambda: Augmentation(crop_sides=(0.5, 1.2)), "crop_sides"),
        (lambda: Augmentation(crop_sides=(0.9, 0.5)), "crop_sides"),
    ],
)
def test_bad_settings(make, field):
    with refused(where=field):
        make()


def test_sizes_are_drawn_from_the_list(make_record):
    rng = np.random.default_rng(0)
    record = make_record([])
    heights = {augment(record, NO_AUGMENTATION, Resize((24, 36, 48)), (64, 64), rng).image.shape[0] for _ in range(40)}
    assert heights == {24, 36, 48}


def test_paste(make_record):
    """A bright lesion appears with its box, clear of the others, and nothing outside changes."""
    target = make_record([[2, 2, 20, 20]], width=100, height=80)
    donor = make_record([[30, 30, 40, 42]], width=100, height=80)
    donor = Record(donor.info, np.where(donor.image > 0.9, 0.6, donor.image).astype(np.float32))
    pasted = 0
    for seed in range(20):
        example = paste_lesions(example_of(target), donor, np.random.default_rng(seed))
        pasted += len(example.boxes) - 1
        if len(example.boxes) == 1:
            assert np.array_equal(example.image, target.image)
            continue
        x1, y1, x2, y2 = example.boxes[1].astype(int)
        assert (x2 - x1, y2 - y1) == (10, 12)
        assert x1 >= 20 or y1 >= 20
        assert example.image[(y1 + y2) // 2, (x1 + x2) // 2, 0] == pytest.approx(0.6, abs=0.02)
        changed = np.abs(example.image - target.image)[..., 0] > 1e-6
        rows, columns = np.nonzero(changed)
        assert rows.min() >= y1 - 4 and rows.max() < y2 + 4 and columns.min() >= x1 - 4 and columns.max() < x2 + 4
        assert not example.ignore.any() and example.labels.tolist() == [0, 0]
    assert pasted >= 15


def test_paste_scales_with_the_image(make_record):
    target, donor = make_record([], 50, 40), make_record([[30, 30, 50, 54]], 100, 80)
    boxes = [paste_lesions(example_of(target), donor, np.random.default_rng(s)).boxes for s in range(10)]
    sizes = np.concatenate([box[:, 2:] - box[:, :2] for box in boxes])
    assert len(sizes) and np.abs(sizes - [10, 12]).max() < 1


def test_paste_finds_no_place(make_record):
    full, donor = make_record([[0, 0, 64, 48]]), make_record([[10, 10, 20, 20]])
    assert len(paste_lesions(example_of(full), donor, np.random.default_rng(0)).boxes) == 1
    air = make_record([])
    air = Record(air.info, np.zeros_like(air.image))
    assert len(paste_lesions(example_of(air), donor, np.random.default_rng(0)).boxes) == 0
