import base64
import re

import cv2
import numpy as np
import pytest

from elk_jax.reporting.pictures import (
    LONG_SIDE,
    Closeup,
    Picture,
    Strip,
    data_uri,
    enlarged,
    figure,
    gallery,
    strips,
)

GREY = np.linspace(0, 1, 24 * 24, dtype=np.float32).reshape(24, 24)
BOX = np.array([4.0, 6, 14, 18])


def decoded(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/jpeg;base64,")
    data = np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)


def test_images_come_back():
    ramp = np.tile(np.linspace(0, 1, 60, dtype=np.float32), (40, 1))
    for image in (ramp, ramp[..., None], (ramp * 255).astype(np.uint8)):
        found = decoded(data_uri(image))
        assert found.shape == (40, 60)
        assert np.abs(found / 255 - ramp).max() < 0.03


def test_colours_keep_their_order():
    red = np.zeros((16, 16, 3), np.float32)
    red[..., 0] = 1
    blue, green, found = decoded(data_uri(red))[8, 8]  # OpenCV reads BGR
    assert found > 240 and max(blue, green) < 15


@pytest.mark.parametrize("height, width", [(2000, 800), (800, 2000), (LONG_SIDE, 10), (5000, 2)])
def test_large_images_shrink_and_keep_their_shape(height, width):
    found = decoded(data_uri(np.zeros((height, width), np.float32)))
    assert max(found.shape) == min(LONG_SIDE, max(height, width))
    assert found.shape[0] / found.shape[1] == pytest.approx(height / width, rel=0.01) or min(found.shape) == 1


def test_values_outside_the_range_are_clipped():
    found = decoded(data_uri(np.array([[-1.0, 2.0, np.nan, 0.0]] * 4, np.float32).repeat(8, axis=1)))
    assert found[0, 4] < 20 and found[0, 12] > 235


def test_boxes_and_scores_in_image_pixels():
    picture = Picture(
        np.zeros((50, 100), np.float32),
        title="<P1>",
        caption="2 & 1",
        gt_boxes=np.array([[1.0, 2, 11, 22], [5, 5, 6, 6]]),
        gt_ignore=np.array([False, True]),
        boxes=np.array([[3.0, 30, 13, 40]]),
        scores=np.array([0.876]),
    )
    markup = figure(picture)
    assert 'viewBox="0 0 100 50"' in markup
    assert '<rect class="gt" x="1.0" y="2.0" width="10.0" height="20.0"/>' in markup
    assert markup.count('class="ignored"') == 1
    assert '<rect class="pred" x="3.0" y="30.0" width="10.0" height="10.0"/>' in markup
    assert ">0.88</text>" in markup
    assert "&lt;P1&gt;" in markup and "2 &amp; 1" in markup and "<P1>" not in markup


def test_scores_stay_inside_the_image():
    corner = Picture(np.zeros((100, 100)), "t", boxes=np.array([[99.0, 0, 100, 5]]), scores=np.array([0.5]))
    x, y = map(float, re.search(r'<text x="([\d.]+)" y="([\d.]+)"', figure(corner)).groups())
    assert x < 95 and y > 2


def test_classes_are_named():
    boxes, names = np.array([[3.0, 30, 13, 40]]), {"gt_names": ["a < b"], "names": ["cyst"]}
    markup = figure(Picture(np.zeros((50, 100)), "t", gt_boxes=boxes, boxes=boxes, scores=np.array([0.5]), **names))
    assert ">a &lt; b</text>" in markup and ">cyst 0.50</text>" in markup


def test_gallery_without_boxes():
    plain = Picture(np.zeros((10, 10)), "t")
    assert gallery([plain, plain]).count("<figure>") == 2
    assert "<rect" not in gallery([plain])


def test_only_the_corners_of_a_box_are_drawn():
    drawn = strips([Strip([Closeup(GREY, BOX), Closeup(GREY)], "t")])
    (path,) = re.findall(r'class="corner" d="(.*?)"', drawn)
    assert path == "M4.0 8.4V6.0H6.0M14.0 8.4V6.0H12.0M14.0 15.6V18.0H12.0M4.0 15.6V18.0H6.0"
    assert drawn.count("<img") == 2 and 'class="strips wide2"' in drawn


def test_small_close_ups_are_enlarged_and_large_ones_unchanged():
    assert enlarged(GREY, 100).shape == (100, 100)
    assert enlarged(np.zeros((10, 40), np.uint8), 80).shape == (20, 80)
    assert enlarged(GREY, 24) is GREY
