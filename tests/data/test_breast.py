"""The window around the breast."""

from dataclasses import replace

import numpy as np

from elk_jax.data.breast import breast_window, crop_to_breast


def test_window_is_that_of_the_largest_bright_part_with_a_margin():
    image = np.zeros((100, 200, 1), np.float32)
    image[20:80, 0:50] = 0.5
    image[5:9, 180:190] = 1.0  # a label
    image[50, 120] = 1.0  # a speck, which the median removes
    assert breast_window(image, margin=0.0) == (0, 20, 50, 80)
    assert breast_window(image, margin=0.02) == (0, 16, 54, 84)
    assert breast_window(image * 0) is None


def test_crop_moves_the_boxes_and_loses_none(make_source, make_info):
    # 48 x 64 px: the first breast is the left third, its second lesion lies outside; the second image is all air
    infos = [make_info(0, [[4, 6, 12, 20], [30, 2, 40, 10]]), make_info(1, [])]
    pixels = np.zeros((48, 64, 1), np.float32)
    pixels[4:40, :20] = 0.6
    source = replace(make_source(infos), read=lambda position: pixels * (1 - position))
    cut, windows = crop_to_breast(source)
    assert windows == ((0, 2, 40, 41), (0, 0, 64, 48))
    assert [(info.width, info.height) for info in cut.infos] == [(40, 39), (64, 48)]
    np.testing.assert_array_equal(cut.infos[0].boxes, [[4, 4, 12, 18], [30, 0, 40, 8]])
    np.testing.assert_array_equal(cut[0].image, pixels[2:41, :40])


def test_the_slices_of_a_volume_are_cut_by_one_window(make_source, make_info):
    """It holds the breast of each slice, and is that of no other volume, nor of an image without one."""
    infos = [replace(make_info(number, []), volume="ab"[number // 2] if number < 4 else "") for number in range(5)]
    infos = [replace(info, slice=number % 2) if info.volume else info for number, info in enumerate(infos)]
    pixels = np.zeros((5, 48, 64, 1), np.float32)
    for number, (top, bottom, right) in enumerate([(4, 30, 20), (10, 40, 10), (8, 20, 30), (8, 20, 32), (4, 40, 16)]):
        pixels[number, top:bottom, :right] = 0.6
    source = replace(make_source(infos), read=lambda position: pixels[position])
    cut, windows = crop_to_breast(source)
    margin = 1  # 2 % of 64 px
    volume_a, volume_b = (0, 4 - margin, 20 + margin, 40 + margin), (0, 8 - margin, 32 + margin, 20 + margin)
    alone = (0, 4 - margin, 16 + margin, 40 + margin)
    assert windows == (volume_a, volume_a, volume_b, volume_b, alone)
    assert {(info.width, info.height) for info in cut.infos[:2]} == {(21, 38)}
    np.testing.assert_array_equal(cut[1].image, pixels[1, 3:41, :21])


def test_slices_of_air_do_not_widen_the_window_of_their_volume(make_source, make_info):
    """Their boxes do; a volume of air alone stays whole."""
    boxes = {1: [[30, 2, 40, 10]]}
    infos = [
        replace(make_info(number, boxes.get(number, [])), volume="aabbcc"[number], slice=number % 2)
        for number in range(6)
    ]
    pixels = np.zeros((6, 48, 64, 1), np.float32)
    pixels[[0, 2], 4:40, :20] = 0.6
    cut, windows = crop_to_breast(replace(make_source(infos), read=lambda position: pixels[position]))
    assert windows == ((0, 2, 40, 41),) * 2 + ((0, 3, 21, 41),) * 2 + ((0, 0, 64, 48),) * 2
    np.testing.assert_array_equal(cut.infos[1].boxes, [[30, 0, 40, 8]])


def test_slices_of_a_volume_of_other_sizes_are_cut_apart(make_source, make_info):
    infos = [replace(make_info(number, []), volume="a", slice=number) for number in range(2)]
    infos[1] = replace(infos[1], width=32)
    pixels = [np.zeros((48, 64, 1), np.float32), np.zeros((48, 32, 1), np.float32)]
    pixels[0][4:40, :20], pixels[1][4:40, :30] = 0.6, 0.6
    source = replace(make_source(infos), read=lambda position: pixels[position])
    assert crop_to_breast(source)[1] == ((0, 3, 21, 41), (0, 3, 31, 41))
