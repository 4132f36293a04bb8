"""Second stage: sampling, losses and detections against plain NumPy; both conventions of the background class."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.detection.roi_heads import (
    BoxHead,
    BoxOutputs,
    RoISamples,
    box_loss_sums,
    canonical_outputs,
    sample_rois,
    select_detections,
)
from elk_jax.detection.rpn import Proposals

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def test_both_conventions_give_the_same_outputs():
    """Two classes and background; in torchvision's order background comes first and has deltas of its own."""
    background, first, second = 0.1, 0.2, 0.3
    boxes = np.arange(8.0, dtype=np.float32)
    last = canonical_outputs(jnp.array([first, second, background]), jnp.array(boxes), "last")
    with_background = jnp.concatenate([jnp.full(4, -1.0), boxes])
    start = canonical_outputs(jnp.array([background, first, second]), with_background, "first")
    for found in (last, start):
        np.testing.assert_array_equal(found[0], np.array([first, second, background], np.float32))
        np.testing.assert_array_equal(found[1], boxes.reshape(2, 4))


@pytest.mark.parametrize(("background", "box_outputs"), [("last", 12), ("first", 16)])
def test_head_reads_regions_row_by_row(background, box_outputs):
    head = BoxHead(num_classes=3, background=background, fcs=1, fc_width=5)
    pooled = np.random.default_rng(0).normal(size=(2, 4, 2, 2, 3)).astype(np.float32)
    params = head.init(jax.random.key(0), pooled)["params"]
    assert {name: leaf["kernel"].shape for name, leaf in params.items()} == {
        "fc1": (12, 5),
        "class_logits": (5, 4),
        "box_deltas": (5, box_outputs),
    }
    found = head.apply({"params": params}, pooled)
    assert found.class_logits.shape == (2, 4, 4)
    assert found.box_deltas.shape == (2, 4, 3, 4)
    hidden = np.maximum(pooled[1, 2].reshape(-1) @ params["fc1"]["kernel"], 0)
    np.testing.assert_allclose(found.embedding[1, 2], hidden, atol=1e-5)
    deltas = hidden @ params["box_deltas"]["kernel"]
    np.testing.assert_allclose(found.box_deltas[1, 2].reshape(-1), deltas[-12:], atol=1e-6)


def test_convolutional_head_and_its_number_formats():
    head = BoxHead(num_classes=1, convs=2, conv_channels=4, fcs=1, fc_width=5, dtype=jnp.bfloat16)
    pooled = jnp.zeros((2, 3, 7, 7, 6), jnp.bfloat16)
    found, variables = jax.eval_shape(lambda key: head.init_with_output(key, pooled), jax.random.key(0))
    assert set(variables["params"]) == {"conv1", "conv2", "fc1", "class_logits", "box_deltas"}
    assert found.class_logits.dtype == found.box_deltas.dtype == jnp.float32
    assert found.embedding.dtype == jnp.bfloat16


# Sampling.

PROPOSALS = Proposals(
    boxes=np.array(
        [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 4], [31, 31, 33, 33], [0, 0, 10, 10]],
        np.float32,
    ),
    logits=np.zeros(6, np.float32),
    valid=np.array([True, True, True, True, True, False]),
)
GT_BOXES = np.array([[0, 0, 10, 10], [30, 30, 40, 40], [70, 70, 80, 80], [9, 9, 9, 9]], np.float32)
GT_LABELS = np.array([1, 0, 2, 7], np.int32)
GT_VALID = np.array([True, True, True, False])
GT_IGNORE = np.array([False, True, False, False])


@functools.cache
def draw(**changes):
    settings = {"num_classes": 3, "iou": 0.5, "samples": 8, "positive_fraction": 1.0, "append_gt": True}
    return jax.jit(functools.partial(sample_rois, **{**settings, **changes}))


def rows(boxes):
    return {tuple(map(float, box)) for box in np.asarray(boxes)}


def test_regions_by_hand():
    """Valid proposals 0, 1 lie on lesion 0; 2 and 3 are background; 4 lies in an ignored lesion; lesions join in."""
    found = draw()(jax.random.key(0), PROPOSALS, GT_BOXES, GT_LABELS, GT_VALID, GT_IGNORE)
    positive = np.asarray(found.is_positive)
    assert found.valid.sum() == 6  # two background, two on lesion 0, lesions 0 and 2 themselves; no slot 7 and 8
    assert rows(found.boxes[positive]) == {(0, 0, 10, 10), (0, 0, 10, 9), (70, 70, 80, 80)}
    assert rows(found.boxes[found.valid & ~positive]) == {(50, 50, 60, 60), (0, 0, 10, 4)}
    for box, label, gt in zip(found.boxes[positive], found.labels[positive], found.gt_boxes[positive]):
        expected = 2 if box[0] == 70 else 0
        assert label == GT_LABELS[expected]
        np.testing.assert_array_equal(gt, GT_BOXES[expected])
    assert np.all(found.labels[~positive] == 3)
    assert np.all(found.boxes[~found.valid] == 0)


def test_without_appending_only_proposals_are_drawn():
    found = draw(append_gt=False)(jax.random.key(0), PROPOSALS, GT_BOXES, GT_LABELS, GT_VALID, GT_IGNORE)
    assert (70, 70, 80, 80) not in rows(found.boxes)
    assert (found.is_positive.sum(), found.valid.sum()) == (2, 4)


def test_an_image_without_lesions_gives_background_only():
    found = draw()(jax.random.key(0), PROPOSALS, GT_BOXES, GT_LABELS, np.zeros(4, bool), np.zeros(4, bool))
    assert (found.is_positive.sum(), found.valid.sum()) == (0, 5)
    assert np.all(found.labels == 3)


def test_no_proposals_and_no_lesions_give_nothing():
    empty = PROPOSALS._replace(valid=np.zeros(6, bool))
    found = draw()(jax.random.key(0), empty, GT_BOXES, GT_LABELS, np.zeros(4, bool), np.zeros(4, bool))
    assert not found.valid.any()


def test_more_padding_and_another_order_of_lesions_draw_the_same():
    order = np.array([3, 2, 0, 1, 3, 3])
    few = draw()(jax.random.key(0), PROPOSALS, GT_BOXES, GT_LABELS, GT_VALID, GT_IGNORE)
    many = draw()(jax.random.key(0), PROPOSALS, GT_BOXES[order], GT_LABELS[order], GT_VALID[order], GT_IGNORE[order])

    def table(found):
        columns = [found.boxes, found.labels[:, None], found.gt_boxes, found.is_positive[:, None]]
        return sorted(map(tuple, np.concatenate(columns, axis=1)[np.asarray(found.valid)].tolist()))

    assert table(few) == table(many)


def test_copies_of_an_image_get_different_samples():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (64, 2))
    boxes = np.concatenate([corner, corner + 8], axis=1).astype(np.float32)
    proposals = Proposals(boxes, np.zeros(64, np.float32), np.ones(64, bool))
    found = jax.vmap(draw(samples=12), in_axes=(0, *[None] * 5))(
        jax.random.split(jax.random.key(0), 2),
        proposals,
        GT_BOXES,
        GT_LABELS,
        np.zeros(4, bool),
        np.zeros(4, bool),
    )
    assert found.valid.all()
    assert rows(found.boxes[0]) != rows(found.boxes[1])


# Losses.


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(0)
    outputs = BoxOutputs(
        class_logits=rng.normal(size=(1, 4, 4)).astype(np.float32),
        box_deltas=rng.normal(size=(1, 4, 3, 4)).astype(np.float32),
        embedding=np.zeros((1, 4, 2), np.float32),
    )
    samples = RoISamples(
        boxes=np.array([[[0, 0, 10, 10], [20, 20, 40, 30], [5, 5, 9, 9], [0, 0, 0, 0]]], np.float32),
        labels=np.array([[2, 0, 3, 3]], np.int32),
        gt_boxes=np.array([[[0, 0, 10, 12], [22, 20, 42, 30], [5, 5, 9, 9], [0, 0, 0, 0]]], np.float32),
        is_positive=np.array([[True, True, False, False]]),
        valid=np.array([[True, True, True, False]]),
    )
    return outputs, samples


def total(outputs, samples):
    sums = box_loss_sums(outputs, samples, weights=WEIGHTS, beta=1.0)
    return sums.classes + sums.box, sums


def test_losses_by_hand(scored):
    outputs, samples = scored
    _, sums = total(outputs, samples)
    logits = outputs.class_logits[0, :3].astype(np.float64)
    expected = (np.log(np.exp(logits).sum(-1)) - logits[np.arange(3), [2, 0, 3]]).sum()
    np.testing.assert_allclose(sums.classes, expected, rtol=1e-5)
    targets = np.array([[0, 10 * 0.1, 0, 5 * np.log(1.2)], [10 * 0.1, 0, 0, 0]])
    distance = np.abs(outputs.box_deltas[0, [0, 1], [2, 0]] - targets)
    np.testing.assert_allclose(sums.box, np.where(distance < 1, distance**2 / 2, distance - 0.5).sum(), rtol=1e-5)
    assert (sums.samples, sums.positives) == (3, 2)


def test_only_the_true_class_of_positives_learns_a_box(scored):
    gradients, _ = jax.jit(jax.grad(total, has_aux=True))(*scored)
    learns = np.any(np.asarray(gradients.box_deltas[0]) != 0, axis=-1)
    expected = np.zeros((4, 3), bool)
    expected[0, 2] = expected[1, 0] = True
    np.testing.assert_array_equal(learns, expected)
    assert np.all(gradients.class_logits[0, 3] == 0)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_no_sample_at_all_is_zero_with_finite_gradients(scored):
    outputs, samples = scored
    nothing = samples._replace(is_positive=samples.is_positive & False, valid=samples.valid & False)
    (value, _), gradients = jax.value_and_grad(total, has_aux=True)(outputs, nothing)
    assert value == 0
    assert all(np.all(g == 0) for g in jax.tree.leaves(gradients))


# Detections.

IMAGE_SIZE = np.array([80.0, 100.0], np.float32)
DETECT = {
    "weights": WEIGHTS,
    "score_floor": 0.2,
    "nms_iou": 0.4,
    "detections": 12,
    "min_size": 1.0,
    "candidates": 60,
}


@pytest.fixture(scope="module")
def detect():
    return jax.jit(functools.partial(select_detections, **DETECT))


@pytest.fixture(scope="module")
def regions():
    """Twenty crowded regions, two classes, one region not valid."""
    rng = np.random.default_rng(4)
    corner, side = rng.uniform(0, 60, (20, 2)), rng.uniform(10, 50, (20, 2))
    valid = np.arange(20) != 5
    proposals = Proposals(
        np.concatenate([corner, corner + side], axis=1).astype(np.float32), np.zeros(20, np.float32), valid
    )
    return (
        rng.normal(size=(20, 3)).astype(np.float32),
        rng.normal(size=(20, 2, 4)).astype(np.float32),
        proposals,
    )


def plain_detections(class_logits, box_deltas, proposals):
    """Loops: [(score, class, box)], best first."""
    probabilities = np.exp(class_logits) / np.exp(class_logits).sum(-1, keepdims=True)
    found = []
    for i, (x1, y1, x2, y2) in enumerate(proposals.boxes):
        for q in range(2):
            dx, dy, dw, dh = box_deltas[i, q] / np.array(WEIGHTS)
            cx, cy = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            w, h = (x2 - x1) * np.exp(dw), (y2 - y1) * np.exp(dh)
            box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
            box = np.clip(box, 0, np.tile(IMAGE_SIZE[::-1], 2))
            if proposals.valid[i] and probabilities[i, q] > 0.2 and (box[2:] - box[:2] > 1).all():
                found.append((probabilities[i, q], q, box))
    kept = []
    for score, q, box in sorted(found, key=lambda item: -item[0]):
        rivals = [other for _, other_q, other in kept if other_q == q]
        areas = [np.prod(np.maximum(np.minimum(box[2:], b[2:]) - np.maximum(box[:2], b[:2]), 0)) for b in rivals]
        unions = [np.prod(box[2:] - box[:2]) + np.prod(b[2:] - b[:2]) - a for a, b in zip(areas, rivals)]
        if all(a / u <= 0.4 for a, u in zip(areas, unions)):
            kept.append((score, q, box))
    return kept


def test_detections_are_those_of_the_plain_algorithm(regions, detect):
    expected = plain_detections(*regions)
    found = detect(*regions, IMAGE_SIZE)
    number = min(len(expected), 12)
    assert 5 < number < len(regions[0]) * 2
    assert found.valid.sum() == number
    np.testing.assert_allclose(found.scores[:number], [score for score, _, _ in expected[:12]], rtol=1e-5)
    np.testing.assert_array_equal(found.labels[:number], [q for _, q, _ in expected[:12]])
    np.testing.assert_allclose(found.boxes[:number], [box for _, _, box in expected[:12]], atol=1e-3)
    assert np.all(found.boxes[number:] == 0)


def test_broken_regions_are_dropped_and_disturb_no_others(regions, detect):
    class_logits, box_deltas, proposals = regions
    broken_logits, broken_deltas = class_logits.copy(), box_deltas.copy()
    broken_logits[2, 1] = np.nan
    broken_deltas[8] = np.nan
    without = proposals._replace(valid=proposals.valid & ~np.isin(np.arange(20), [2, 8]))
    found = detect(broken_logits, broken_deltas, proposals, IMAGE_SIZE)
    expected = detect(class_logits, box_deltas, without, IMAGE_SIZE)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_no_valid_region_no_detection(regions, detect):
    class_logits, box_deltas, proposals = regions
    found = detect(class_logits, box_deltas, proposals._replace(valid=np.zeros(20, bool)), IMAGE_SIZE)
    assert not found.valid.any()
    assert all(np.all(array == 0) for array in found)
