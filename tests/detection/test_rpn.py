"""Region proposals against plain NumPy, losses by hand, and what padding and broken numbers must not do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.detection import boxes as box_ops
from elk_jax.detection.anchors import pyramid_anchors
from elk_jax.detection.rpn import RPNHead, rpn_loss_sums, select_proposals

SIZE = (40.0, 56.0)
LIMITS = {"pre_nms": 30, "post_nms": 25, "nms_iou": 0.6, "min_size": 2.0}


@pytest.fixture(scope="module")
def levels():
    """Random logits and deltas of a three-level pyramid, and its anchors."""
    rng = np.random.default_rng(0)
    anchors = pyramid_anchors((40, 56), (8, 16, 32), ((12,), (24,), (48,)), (0.5, 1, 2))
    logits = tuple(rng.normal(size=len(a)).astype(np.float32) for a in anchors)
    deltas = tuple((rng.normal(size=a.shape) * 0.5).astype(np.float32) for a in anchors)
    return logits, deltas, anchors


@pytest.fixture(scope="module")
def select(levels):
    return jax.jit(functools.partial(select_proposals, anchors=levels[2], image_size=jnp.array(SIZE), **LIMITS))


def iou(a, b):
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return sides.prod() / (areas - sides.prod())


def plain_proposals(logits, deltas, anchors, pre_nms, post_nms, nms_iou, min_size):
    """The published algorithm with loops: [(score, box)], best first."""
    kept_of_all = []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors):
        boxes = np.asarray(box_ops.clip(box_ops.decode(level_deltas, level_anchors), *SIZE))
        kept = []
        for i in np.argsort(-level_logits, kind="stable")[:pre_nms]:
            large = (boxes[i, 2:] - boxes[i, :2] > min_size).all()
            if large and all(iou(boxes[i], box) <= nms_iou for _, box in kept):
                kept.append((level_logits[i], boxes[i]))
        kept_of_all += kept
    return sorted(kept_of_all, key=lambda item: -item[0])[:post_nms]


def test_proposals_are_those_of_the_plain_algorithm(levels, select):
    expected = plain_proposals(*levels, **LIMITS)
    found = select(levels[0], levels[1])
    assert found.boxes.shape == (25, 4)
    assert found.valid.sum() == len(expected) == 25
    np.testing.assert_allclose(found.logits, [score for score, _ in expected], rtol=1e-6)
    np.testing.assert_allclose(found.boxes, [box for _, box in expected], atol=1e-4)


def test_broken_anchors_are_no_proposals_and_disturb_no_others(levels, select):
    """NaN and infinite logits, and deltas that decode to NaN, as if those anchors had scored worst of all."""
    logits, deltas = [level.copy() for level in levels[0]], [level.copy() for level in levels[1]]
    silent = [level.copy() for level in levels[0]]
    for index, value in ((3, np.nan), (7, np.inf), (11, -np.inf)):
        logits[0][index], silent[0][index] = value, -1e9
    best = int(np.argmax(logits[2]))
    deltas[2][best, 1], silent[2][best] = np.nan, -1e9
    found, expected = select(tuple(logits), tuple(deltas)), select(tuple(silent), levels[1])
    good = np.asarray(expected.logits > -1e8) & np.asarray(expected.valid)
    assert np.isfinite(found.boxes).all()
    np.testing.assert_array_equal(found.valid, good)
    np.testing.assert_array_equal(np.asarray(found.boxes)[good], np.asarray(expected.boxes)[good])


def test_nothing_finite_gives_no_proposals(levels, select):
    found = select(jax.tree.map(lambda x: x * np.nan, levels[0]), levels[1])
    assert not found.valid.any()
    assert np.all(found.boxes == 0)
    assert np.all(found.logits == 0)


def test_slots_without_anchors_stay_empty():
    anchors = pyramid_anchors((40, 56), (32,), ((20,),), (1,))
    assert len(anchors[0]) == 4
    found = select_proposals(
        (jnp.arange(4.0),),
        (jnp.zeros((4, 4)),),
        anchors,
        jnp.array(SIZE),
        pre_nms=9,
        post_nms=9,
        nms_iou=0.7,
        min_size=0,
    )
    # Corners of the cells at 0 and 32 pixels; all four overlap the image.
    np.testing.assert_array_equal(found.valid, [True] * 4)
    np.testing.assert_allclose(found.boxes[0], [22, 22, 42, 40])


def test_no_gradient_flows_through_the_choice(levels):
    def total(logits, deltas):
        found = select_proposals(logits, deltas, levels[2], jnp.array(SIZE), **LIMITS)
        return found.boxes.sum() + found.logits.sum()

    gradients = jax.jit(jax.grad(total, (0, 1)))(levels[0], levels[1])
    assert all(np.all(g == 0) for g in jax.tree.leaves(gradients))


# Losses. With room for every anchor nothing is left to chance.

ANCHORS = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 30], [2, 2, 12, 12], [100, 100, 110, 110]], np.float32)
GT = np.array([[0, 0, 10, 10], [20, 20, 30, 32], [0, 0, 0, 0]], np.float32)
LOSS = {"low": 0.3, "high": 0.7, "samples": 16, "positive_fraction": 1.0, "beta": 0.0}


@pytest.fixture(scope="module")
def outputs():
    rng = np.random.default_rng(1)
    return rng.normal(size=5).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)


@functools.cache
def loss_sums(**changes):
    return jax.jit(functools.partial(rpn_loss_sums, **{**LOSS, **changes}))


def softplus(x):
    return np.log1p(np.exp(x))


def test_losses_by_hand(outputs):
    """Anchors 0, 1, 2 are positive, 4 negative, 3 (IoU 0.47) neither."""
    logits, deltas = outputs
    none = np.zeros(3, bool)
    sums = loss_sums()(jax.random.key(0), logits, deltas, ANCHORS, GT, np.array([True, True, False]), none)
    targets = np.array([[0, 0, 0, 0], [0, 0.125, 0, np.log(10 / 8)], [0, 0.1, 0, np.log(1.2)]])
    np.testing.assert_allclose(sums.box, np.abs(deltas[:3] - targets).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.objectness, softplus(-logits[:3]).sum() + softplus(logits[4]), rtol=1e-5)
    assert (sums.samples, sums.positives) == (4, 3)


def test_an_image_without_lesions_teaches_background(outputs):
    logits, deltas = outputs
    none = np.zeros(3, bool)
    sums = loss_sums()(jax.random.key(0), logits, deltas, ANCHORS, GT, none, none)
    np.testing.assert_allclose(sums.objectness, softplus(logits).sum(), rtol=1e-5)
    assert (sums.box, sums.samples, sums.positives) == (0, 5, 0)


def test_an_ignored_lesion_is_neither(outputs):
    logits, deltas = outputs
    valid, ignore = np.array([True, True, False]), np.array([False, True, False])
    sums = loss_sums()(jax.random.key(0), logits, deltas, ANCHORS, GT, valid, ignore)
    assert (sums.samples, sums.positives) == (3, 2)  # anchors 0, 1 and 4


def test_padding_that_holds_garbage_gives_finite_gradients(outputs):
    gt = np.concatenate([GT[:2], np.array([[np.nan] * 4, [5, 5, 1, 1], [np.inf, 0, 0, 0]], np.float32)])
    valid, none = np.array([True, True, False, False, False]), np.zeros(5, bool)

    def total(outputs, gt, valid, none):
        sums = loss_sums()(jax.random.key(0), *outputs, ANCHORS, gt, valid, none)
        return sums.objectness + sums.box

    found, gradients = jax.value_and_grad(total)(outputs, gt, valid, none)
    expected = total(outputs, GT, np.array([True, True, False]), none[:3])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert np.all(gradients[1][3:] == 0)  # no lesion there: their deltas learn nothing


def test_samples_are_limited_and_differ_with_the_key():
    rng = np.random.default_rng(2)
    logits, deltas = rng.normal(size=200).astype(np.float32), np.zeros((200, 4), np.float32)
    corners = rng.uniform(0, 500, (200, 2))
    anchors = np.concatenate([corners, corners + 5], axis=1).astype(np.float32)
    gt, valid, none = np.zeros((1, 4), np.float32), np.zeros(1, bool), np.zeros(1, bool)
    sums = jax.vmap(loss_sums(samples=20, positive_fraction=0.5), in_axes=(0, *[None] * 6))(
        jax.random.split(jax.random.key(0), 3), logits, deltas, anchors, gt, valid, none
    )
    np.testing.assert_array_equal(sums.samples, 20)
    assert len(np.unique(np.asarray(sums.objectness))) == 3


# The head.


def test_outputs_are_ordered_as_the_anchors():
    """Row by row, column by column, then cell anchors: the convolution's output at (y, x) of cell anchor a."""
    rng = np.random.default_rng(3)
    features = [rng.uniform(0, 1, (2, *size, 4)).astype(np.float32) for size in ((5, 3), (3, 2))]
    head = RPNHead(cell_anchors=3)
    params = head.init(jax.random.key(0), features)["params"]
    assert set(params) == {"conv1", "objectness", "deltas"}
    params["conv1"]["kernel"] = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4))
    found = head.apply({"params": params}, features)
    score, move = (np.asarray(params[name]["kernel"])[0, 0] for name in ("objectness", "deltas"))
    for level, (x, logits, deltas) in enumerate(zip(features, found.objectness_logits, found.deltas)):
        grid = (pyramid_anchors((5, 3), (1, 2), ((1,), (1,)), (0.5, 1, 2)))[level]
        assert logits.shape == (2, len(grid))
        centres = ((grid[:, :2] + grid[:, 2:]) / 2 / 2**level).round().astype(int)
        for i in range(len(grid)):
            pixel, anchor = x[1, centres[i, 1], centres[i, 0]], i % 3
            np.testing.assert_allclose(logits[1, i], pixel @ score[:, anchor], atol=1e-6)
            np.testing.assert_allclose(deltas[1, i], pixel @ move[:, 4 * anchor : 4 * anchor + 4], atol=1e-6)


def test_bfloat16_outputs_are_promoted():
    features = [jnp.ones((1, 2, 2, 4), jnp.bfloat16)]
    head = RPNHead(cell_anchors=1, conv_depth=2, dtype=jnp.bfloat16)
    found, variables = jax.eval_shape(lambda key: head.init_with_output(key, features), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves((found, variables))} == {jnp.dtype(jnp.float32)}
    assert set(variables["params"]) == {"conv1", "conv2", "objectness", "deltas"}
