from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.detection import nms as nms_module
from elk_jax.detection.nms import batched_nms, nms, soft_nms
from tests.refusals import refused

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def greedy(boxes, scores, threshold, groups=None) -> list[int]:
    """The textbook loop, in the boxes' own float type."""
    groups = np.zeros(len(boxes), int) if groups is None else groups
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        for j in kept:
            width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
            height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
            common = max(width, boxes.dtype.type(0)) * max(height, boxes.dtype.type(0))
            overlap = common / (areas[i] + areas[j] - common)
            if groups[i] == groups[j] and overlap > boxes.dtype.type(threshold):
                break
        else:
            kept.append(int(i))
    return kept


def chosen(result) -> list[int]:
    indices, valid = np.asarray(result[0]), np.asarray(result[1])
    assert (indices[~valid] == 0).all() and valid[: valid.sum()].all()
    return indices[valid].tolist()


def compiled():
    """`batched_nms` as its own compiled function: (boxes, scores, groups, threshold, max_outputs, valid)."""
    return jax.jit(
        lambda boxes, scores, groups, threshold, num, valid=None: batched_nms(
            boxes, scores, groups, threshold, num, valid
        ),
        static_argnums=4,
    )


run = compiled()


@pytest.fixture(scope="module", params=["dense", "tiled"])
def algorithm(request):
    """Both algorithms on the same few boxes."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tiled":
            patch.setattr(nms_module, "DENSE_LIMIT", 0)
            patch.setattr(nms_module, "TILE", 32)
        yield compiled()


def test_equals_greedy_at_every_threshold(algorithm, random_boxes):
    together = jax.jit(jax.vmap(lambda b, s, threshold: algorithm(b, s, None, threshold, 100), (0, 0, None)))
    boxes = np.stack([random_boxes(100, seed) for seed in range(6)])
    scores = np.random.default_rng(9).uniform(size=(6, 100)).astype(np.float32)
    for threshold in THRESHOLDS:
        indices, valid = together(boxes, scores, threshold)
        for trial in range(6):
            expected = greedy(boxes[trial], scores[trial], threshold)
            assert chosen((indices[trial], valid[trial])) == expected, (threshold, trial)


def test_long_chains_of_suppression(algorithm):
    # Each box overlaps its neighbours only: every second one stays, however long the chain; and it crosses
    # tiles.
    starts = np.arange(100, dtype=np.float32) * 4
    boxes = np.stack([starts, 0 * starts, starts + 10, 0 * starts + 10], axis=1)
    scores = np.linspace(1, 0, 100, dtype=np.float32)
    assert chosen(algorithm(boxes, scores, None, 0.4, 100)) == list(range(0, 100, 2))


def test_fewer_outputs_are_the_first_of_all(algorithm, random_boxes):
    boxes, scores = random_boxes(100, 0), np.random.default_rng(1).uniform(size=100).astype(np.float32)
    expected = greedy(boxes, scores, 0.3)
    assert len(expected) > 15
    for num in (1, 15):
        assert chosen(algorithm(boxes, scores, None, 0.3, num)) == expected[:num]
    indices, valid = algorithm(boxes, scores, None, 0.3, 120)
    assert indices.shape == (120,) and chosen((indices, valid)) == expected


def test_groups_do_not_see_each_other(algorithm, random_boxes):
    boxes, scores = random_boxes(100, 0), np.random.default_rng(1).uniform(size=100).astype(np.float32)
    groups = np.random.default_rng(2).integers(0, 3, 100)
    assert chosen(algorithm(boxes, scores, groups, 0.2, 100)) == greedy(boxes, scores, 0.2, groups)


def test_invalid_nan_and_infinite_boxes_neither_survive_nor_suppress(algorithm, random_boxes):
    boxes, scores = random_boxes(100, 0), np.random.default_rng(1).uniform(size=100).astype(np.float32)
    spoiled_boxes, spoiled_scores = boxes.copy(), scores.copy()
    valid = np.ones(100, bool)
    valid[:20] = False
    scores[:20], boxes[:5] = 5, np.nan
    spoiled_boxes[:20] = boxes[:20]
    spoiled_scores[:20] = 5  # would suppress, were they valid
    spoiled_scores[20:30], spoiled_boxes[30:40, 1], spoiled_scores[30:40] = np.nan, np.inf, 7
    left = np.arange(40, 100)
    expected = left[greedy(boxes[left], scores[left], 0.3)].tolist()
    assert chosen(algorithm(spoiled_boxes, spoiled_scores, None, 0.3, 100, valid)) == expected
    assert chosen(algorithm(boxes, scores, None, 0.3, 100, np.zeros(100, bool))) == []


def test_large_input_takes_the_tiled_path(random_boxes):
    boxes = random_boxes(nms_module.DENSE_LIMIT + 200, 0, 2, 8)
    scores = np.random.default_rng(1).permutation(len(boxes)).astype(np.float32)
    for threshold in (0.05, 0.3):
        assert chosen(run(boxes, scores, None, threshold, 400)) == greedy(boxes, scores, threshold)[:400]


def test_equals_torchvisions(golden):
    boxes, scores = golden["nms_boxes"], golden["nms_scores"]
    for threshold in (0.05, 0.1, 0.3, 0.5, 0.7):
        assert chosen(run(boxes, scores, None, threshold, 300)) == golden[f"nms_{threshold}"].tolist()
        grouped = run(boxes, scores, golden["nms_groups"], threshold, 300)
        assert chosen(grouped) == golden[f"batched_nms_{threshold}"].tolist()


def test_ties_go_to_the_lower_index_and_equality_is_kept():
    box = [0.0, 0, 10, 10]

    def of_three(boxes, scores, threshold):
        return chosen(run(jnp.array(boxes, jnp.float32), jnp.array(scores), None, threshold, 3))

    assert of_three([box] * 3, [0.5, 0.5, 0.5], 0.5) == [0]
    # IoU 0.5 exactly: not greater than 0.5.
    pair = [box, [0, 0, 10, 5], [90, 0, 91, 1]]
    assert of_three(pair, [0.5, 0.5, 0.1], 0.5) == [0, 1, 2]
    assert of_three(pair, [0.5, 0.6, 0.1], 0.49) == [1, 2]
    # -0.0 and 0.0 tie too, and minus infinity is a score like any other.
    apart = [box, [20, 0, 30, 10], [40, 0, 50, 10]]
    assert of_three(apart, [-jnp.inf, -0.0, 0.0], 0.5) == [1, 2, 0]
    # Boxes without area overlap nothing.
    assert of_three([[5, 5, 5, 5], [5, 5, 5, 5], box], [3.0, 2, 1], 0.1) == [0, 1, 2]


APART = [[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]]


@pytest.mark.parametrize(
    "scores, order",
    [
        (np.array([0, 200, 5], np.uint8), [1, 2]),
        (np.array([-(2**31), 2**31 - 1, 0], np.int32), [1, 2]),
        (np.array([3 * 10**9, 5, 1]), [0, 2]),
        (np.array([2**24, 2**24 + 1, 0], np.int32), [1, 2]),
        (np.array([1.0, 1 + 1e-12, np.nan]), [1]),
        (np.array([False, True, False]), [1, 2]),
        ([0.1, 0.2, 0.3], [2, 1]),
    ],
)
def test_scores_of_any_type_are_compared_exactly(scores, order):
    assert chosen(nms(APART, scores, 0.5, 3)) == order


def test_scores_of_whole_numbers_under_jit():
    assert chosen(run(jnp.array(APART), jnp.array([0, 200, 5], jnp.uint8), None, 0.5, 3)) == [1, 2]


def test_the_threshold_is_compared_in_float64():
    """As `inter / union > threshold` of torchvision: float32 against double. 0.1 in float32 is above 0.1, 0.7 below."""
    tall = lambda share: jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 10 * share]], jnp.float32)
    for share in (0.1, 0.7):
        overlap = np.float32(10 * np.float32(10 * share)) / np.float32(100)
        for threshold in (share, np.float32(share)):
            kept = [0] if float(overlap) > float(threshold) else [0, 1]
            assert chosen(nms(tall(share), jnp.array([1.0, 0.5]), threshold, 2)) == kept, (share, threshold)


def test_arguments_that_do_not_fit_are_refused():
    boxes, scores = jnp.array(APART), jnp.ones(3)
    for where, arguments in {
        "boxes": (boxes[:, :3], scores, 0.5, 3),
        "scores": (boxes, np.array(["a", "b", "c"]), 0.5, 3),
        "iou_threshold": (boxes, scores, 50, 3),
        "max_outputs": (boxes, scores, 0.5, -1),
        "valid": (boxes, scores, 0.5, 3, jnp.ones(2, bool)),
    }.items():
        with refused(where=where):
            nms(*arguments)
    for threshold in (float("nan"), None, "0.5", True):
        with refused(where="iou_threshold"):
            nms(boxes, scores, threshold, 3)
    with refused(where="scores"):
        nms(boxes, scores[:2], 0.5, 3)
    with refused(where="groups"):
        batched_nms(boxes, scores, jnp.ones(4), 0.5, 3)


def test_no_boxes():
    indices, valid = nms(jnp.zeros((0, 4)), jnp.zeros(0), 0.5, 3)
    assert indices.tolist() == [0, 0, 0] and not valid.any()


def test_coordinates_may_all_be_negative(random_boxes):
    boxes, scores = random_boxes(100, 0) - 1000, np.random.default_rng(1).uniform(size=100).astype(np.float32)
    assert chosen(run(boxes, scores, None, 0.3, 100)) == greedy(boxes, scores, 0.3)


def test_no_gradient_and_float64(random_boxes):
    boxes, scores = jnp.asarray(random_boxes(20, 0)), jnp.linspace(0, 1, 20)

    def loss(boxes, scores):
        indices, valid = nms(boxes, scores, 0.3, 5)
        return jnp.where(valid, scores[indices], 0).sum()

    grads = jax.jit(jax.grad(loss, (0, 1)))(boxes, scores)
    np.testing.assert_array_equal(grads[0], 0)
    assert set(np.unique(grads[1])) == {0.0, 1.0}
    with jax.enable_x64(True):
        wide = jax.ShapeDtypeStruct((20, 4), jnp.float64), jax.ShapeDtypeStruct((20,), jnp.float64)
        assert jax.eval_shape(lambda b, s: nms(b, s, 0.3, 5), *wide)[0].dtype == jnp.int32


def test_soft_nms_is_the_textbook_loop():
    """Bodla et al. 2017 with the Gaussian: within classes, without boxes that do not take part."""
    rng = np.random.default_rng(3)
    count, kept, sigma = 40, 30, 0.5
    corner = rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 20, (count, 2))], 1).astype(np.float32)
    scores, groups = rng.uniform(0.01, 1, count).astype(np.float32), rng.integers(0, 2, count)
    valid = rng.random(count) < 0.8
    boxes[3, 2], scores[5], valid[[3, 5]] = np.nan, np.nan, True
    index, found = jax.device_get(soft_nms(boxes, scores, groups, sigma, kept, valid))
    left = {i: float(scores[i]) for i in range(count) if valid[i] and i not in (3, 5)}
    taken = []
    while left and len(taken) < kept:
        best = max(left, key=left.__getitem__)
        taken.append((best, left.pop(best)))
        for i in left:
            if groups[i] == groups[best]:
                left[i] *= np.exp(-(_iou(boxes[best], boxes[i]) ** 2) / sigma)
    np.testing.assert_array_equal(index[: len(taken)], [i for i, _ in taken])
    np.testing.assert_allclose(found[: len(taken)], [score for _, score in taken], rtol=1e-5)
    assert np.all(found[len(taken) :] == -np.inf) and np.all(index[len(taken) :] == 0)


def _iou(a, b):
    width, height = (min(a[2 + k], b[2 + k]) - max(a[k], b[k]) for k in (0, 1))
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)
