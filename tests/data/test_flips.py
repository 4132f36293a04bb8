from typing import get_args

import numpy as np
import pytest

from elk_jax.data.flips import Flip, flip_boxes, flipped
from elk_jax.data.sources.source import ImageSource
from elk_jax.images.schema import ImageInfo


@pytest.mark.parametrize("flip", get_args(Flip))
def test_boxes_follow_the_pixels(flip):
    image = np.zeros((20, 30, 1), np.float32)
    image[4:9, 21:27] = 1
    box = np.array([[21, 4, 27, 9]], np.float32)
    info = ImageInfo("a", "p", 30, 20, box, np.zeros(1, int), np.zeros(1, bool))
    view = flipped(ImageSource("one", ("mass",), (info,), lambda position: image), flip)
    record = view[0]
    rows, columns = np.nonzero(record.image[..., 0])
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_array_equal(record.info.boxes, [seen])
    back = flip_boxes(record.info.boxes, 30, 20, flip)
    np.testing.assert_array_equal(back, info.boxes)
