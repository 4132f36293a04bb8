from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.detection import roi_taps, roi_tiles
from elk_jax.detection.roi_align import assign_levels, multilevel_roi_align, roi_align
from tests.refusals import refused

STATIC = (2, 3, 4, 5, 6)
STRIDES = (4, 8, 16, 32)

pool = jax.jit(roi_align, static_argnums=STATIC)


def bilinear(features, y, x):
    """One sample of features[H, W, C]."""
    height, width, channels = features.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = (1 - (x - x0)) * features[y0, x0] + (x - x0) * features[y0, x1]
    bottom = (1 - (x - x0)) * features[y1, x0] + (x - x0) * features[y1, x1]
    return (1 - (y - y0)) * top + (y - y0) * bottom


def oracle(features, boxes, output_size, scale, ratio, aligned, cap=10**6):
    """ROIAlign as nested loops over boxes, bins and samples."""
    bins_y, bins_x = output_size
    pooled = np.zeros((len(boxes), bins_y, bins_x, features.shape[-1]))
    for s, box in enumerate(np.asarray(boxes, np.float64)):
        x1, y1, x2, y2 = box * scale - (0.5 if aligned else 0)
        roi_height, roi_width = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
        bin_height, bin_width = roi_height / bins_y, roi_width / bins_x
        ny = ratio or min(int(np.ceil(bin_height)), cap)
        nx = ratio or min(int(np.ceil(bin_width)), cap)
        for i in range(bins_y):
            for j in range(bins_x):
                for a in range(ny):
                    for b in range(nx):
                        y = y1 + (i + (a + 0.5) / ny) * bin_height
                        x = x1 + (j + (b + 0.5) / nx) * bin_width
                        pooled[s, i, j] += bilinear(features, y, x) / (ny * nx)
    return pooled


def random_features(height, width, channels=2, seed=0):
    return np.random.default_rng(seed).normal(size=(height, width, channels)).astype(np.float32)


def as_on_accelerators(patch):
    """Programs traced from now on take the form of accelerators."""
    for name in ("pool", "levels_gradient", "weights_gradient"):
        patch.setattr(roi_taps, name, getattr(roi_tiles, name))


@pytest.fixture(params=["cpu", "accelerator"])
def form(request, monkeypatch):
    """`roi_align` by pixels and by tiles."""
    if request.param == "accelerator":
        as_on_accelerators(monkeypatch)
    return lambda *arguments: roi_align(*arguments)


def test_ramp_of_5_by_5_by_hand():
    # Value = 5 y + x at pixel (y, x). The box (1, 1)-(3, 3) in 4 x 4 bins of half a pixel, one sample each.
    ramp = jnp.arange(25.0).reshape(5, 5, 1)
    box = jnp.array([[1.0, 1, 3, 3]])
    plain = pool(ramp, box, 4, 1.0, 1, False)[0, :, :, 0]
    at = np.array([1.25, 1.75, 2.25, 2.75])  # bin centres
    np.testing.assert_allclose(plain, 5 * at[:, None] + at[None, :], rtol=1e-6)
    aligned = pool(ramp, box, 4, 1.0, 1, True)[0, :, :, 0]
    np.testing.assert_allclose(aligned, plain - 0.5 * 6, rtol=1e-6)  # half a pixel up and left
    # A linear ramp pooled with any number of samples has the value at the bin's centre.
    for ratio in (2, 0):
        np.testing.assert_allclose(pool(ramp, box, 4, 1.0, ratio, True)[0, :, :, 0], aligned, rtol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 3, 0])
def test_equals_torchvisions(form, golden, aligned, ratio):
    name = f"roi_{'aligned' if aligned else 'plain'}_{ratio}"
    features, boxes = golden["roi_features"], golden["roi_boxes"]
    pooled = jax.jit(form, static_argnums=STATIC[:-1])(features, boxes, (3, 4), 0.25, ratio, aligned)
    np.testing.assert_allclose(pooled, golden[name], atol=1e-5)
    if name + "_grad" in golden:
        # torch laid the weights out as [S, C, h, w].
        shape = (len(boxes), features.shape[-1], 3, 4)
        weights = np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape).transpose(0, 2, 3, 1)
        grad = jax.grad(lambda f: (form(f, boxes, (3, 4), 0.25, ratio, aligned) * weights).sum())
        np.testing.assert_allclose(jax.jit(grad)(features), golden[name + "_grad"], atol=2e-4)


def test_multilevel_equals_torchvisions(golden):
    pyramid = tuple(golden[f"pyramid_{i}"] for i in range(4))
    boxes = golden["pyramid_boxes"]
    np.testing.assert_array_equal(assign_levels(boxes, 4, 2), golden["pyramid_levels"])
    pooled = multilevel_roi_align(pyramid, boxes, (2, 2), STRIDES, 2, aligned=False)
    np.testing.assert_allclose(pooled, golden["pyramid_pooled"], atol=1e-5)


def test_adaptive_sampling_beyond_the_cap_takes_the_cap():
    features = random_features(24, 20)
    boxes = np.array([[0, 0, 18, 22], [3, 2, 7, 5], [1, 1, 4, 20]], np.float32)
    for cap in (1, 2, 4):
        pooled = pool(features, boxes, (3, 2), 1.0, 0, True, cap)
        np.testing.assert_allclose(pooled, oracle(features, boxes, (3, 2), 1.0, 0, True, cap), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2)])
def test_tiny_maps_and_odd_boxes(shape):
    features = random_features(*shape)
    boxes = [[0, 0, 1, 1], [-3, -3, 9, 9], [0, 0, 0, 0], [0.5, 0.2, 6.8, 0.9], [5, 5, 2, 2], [-50, 0, -40, 5]]
    boxes = np.array(boxes, np.float32)
    for ratio, aligned in ((2, True), (2, False), (0, True)):
        expected = oracle(features, boxes, (2, 3), 1.0, ratio, aligned, 3)
        pooled = pool(features, boxes, (2, 3), 1.0, ratio, aligned, 3)
        np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_gradients_equal_finite_differences():
    # 45 boxes: more than one chunk of the backward pass, and a last one that is not full.
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        features = jnp.asarray(random.normal(size=(9, 8, 2)))
        low = random.uniform(0.3, 4, (45, 2))
        boxes = jnp.asarray(np.concatenate([low, low + random.uniform(1.3, 3.3, (45, 2))], axis=1))
        pooled = jax.jit(lambda f, b: jnp.sin(roi_align(f, b, 2, 1.0, 2, True)).sum())
        grads = jax.jit(jax.grad(pooled, (0, 1)))(features, boxes)
        for i, x in enumerate((features, boxes)):
            direction = jnp.asarray(random.normal(size=x.shape))
            step = 1e-6 * direction
            args = [[features, boxes], [features, boxes]]
            args[0][i], args[1][i] = x - step, x + step
            numeric = (pooled(*args[1]) - pooled(*args[0])) / 2e-6
            np.testing.assert_allclose((grads[i] * direction).sum(), numeric, rtol=1e-5)


def test_levels_at_their_borders():
    sides = np.array([1e-3, 111.9, 112, 223.9, 224, 447.9, 448, 896, 1e6, 0], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    assert assign_levels(boxes, 4, 2).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3, 0]
    # The area counts, not the shape; other canonical values shift the borders.
    assert assign_levels(jnp.array([[0.0, 0, 448, 112], [0, 0, 448, 111]]), 4, 2).tolist() == [2, 1]
    assert assign_levels(boxes[4:5], 4, 2, canonical_size=112).tolist() == [3]
    assert assign_levels(boxes[4:5], 3, 3).tolist() == [1]


@pytest.fixture(scope="module")
def pyramid():
    return tuple(random_features(96 // s + 1, 64 // s, 4, seed=s) for s in STRIDES)


@pytest.fixture(scope="module")
def pyramid_pool():
    pool = functools.partial(
        multilevel_roi_align,
        output_size=(2, 2),
        strides=STRIDES,
        sampling_ratio=2,
        aligned=True,
        canonical_size=40,
    )
    return jax.jit(lambda features, boxes, valid: pool(features, boxes, valid=valid))


def test_multilevel_pools_each_box_from_its_own_level(pyramid, pyramid_pool, random_boxes):
    boxes = random_boxes(30, 0, 2, 90)
    boxes[0] = [3, 4, 10, 11]
    levels = np.asarray(assign_levels(boxes, 4, 2, canonical_size=40))
    assert set(levels) == {0, 1, 2, 3}
    together = pyramid_pool(pyramid, boxes, np.ones(30, bool))
    for level, (features, stride) in enumerate(zip(pyramid, STRIDES)):
        alone = pool(features, boxes, 2, 1 / stride, 2, True)
        np.testing.assert_allclose(together[levels == level], alone[levels == level], atol=1e-6)


def test_invalid_boxes_give_zeros_and_no_gradient_whatever_they_hold(pyramid, pyramid_pool, random_boxes):
    boxes = (
        jnp.asarray(random_boxes(6, 0))
        .at[3:]
        .set(jnp.array([[jnp.nan] * 4, [0, 0, jnp.inf, 5], [1e30, -1e30, 3e30, 2e30]]))
    )
    valid = jnp.array([True, True, False, False, False, False])

    def loss(features, boxes):
        return jnp.sin(1 + pyramid_pool(features, boxes, valid)).sum()

    np.testing.assert_array_equal(pyramid_pool(pyramid, boxes, valid)[2:], 0)
    feature_grads, box_grads = jax.jit(jax.grad(loss, (0, 1)))(pyramid, boxes)
    kept = jax.jit(jax.grad(loss))(pyramid, boxes.at[2:].set(0))
    jax.tree.map(np.testing.assert_array_equal, feature_grads, kept)
    assert np.isfinite(box_grads).all() and not box_grads[2:].any() and box_grads[:2].all()
    # Boxes that are not finite count as invalid by themselves.
    assert jnp.isfinite(pyramid_pool(pyramid, boxes, jnp.ones(6, bool))[:5]).all()


def test_vmap_equals_the_loop_also_backwards(pyramid, pyramid_pool, random_boxes):
    batch = tuple(np.stack([f, f[::-1]]) for f in pyramid)
    boxes = np.stack([random_boxes(6, seed) for seed in (0, 1)])
    valid = np.array([[True] * 6, [True] * 4 + [False] * 2])

    def loss(features, boxes, valid):
        return jnp.sin(pyramid_pool(features, boxes, valid)).sum()

    grads = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(batch, boxes, valid)
    for i in range(2):
        alone = jax.grad(loss, (0, 1))(tuple(f[i] for f in batch), boxes[i], valid[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5), grads, alone)


def test_works_inside_shard_map(pyramid, pyramid_pool, random_boxes):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = tuple(f[None] for f in pyramid)
    boxes, valid = random_boxes(6, 0)[None], np.ones((1, 6), bool)

    def grads(features, boxes, valid):
        loss = lambda f, b, v: jnp.sin(pyramid_pool(f, b, v)).sum()
        return jax.vmap(jax.grad(loss))(features, boxes, valid)

    spec = jax.sharding.PartitionSpec("data")
    sharded = jax.jit(jax.shard_map(grads, mesh=mesh, in_specs=spec, out_specs=spec))(batch, boxes, valid)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), sharded, jax.jit(grads)(batch, boxes, valid))


def test_bfloat16_features_are_weighed_and_summed_in_float32(random_boxes):
    features, boxes = jnp.asarray(random_features(12, 12, 4), jnp.bfloat16), random_boxes(200, 0)
    pooled = pool(features, boxes, 3, 0.1, 2, True)
    wide = pool(features.astype(jnp.float32), boxes, 3, 0.1, 2, True)
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled, wide.astype(jnp.bfloat16))
    # Hundreds of boxes add to one pixel: sums in bfloat16 would be off by percents.
    loss = lambda f: pool(f, boxes, 3, 0.1, 2, True).astype(jnp.float32).sum()
    grad, wide_grad = jax.grad(loss)(features), jax.grad(loss)(features.astype(jnp.float32))
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(grad.astype(jnp.float32), wide_grad, rtol=2**-8)


def test_float64_stays(pyramid, random_boxes):
    with jax.enable_x64(True):
        wide = [jnp.asarray(f, jnp.float64) for f in pyramid]
        boxes = jnp.asarray(random_boxes(3, 0), jnp.float64)
        assert multilevel_roi_align(wide, boxes, (2, 2), STRIDES, 2, True).dtype == jnp.float64
        exact = oracle(np.asarray(wide[0]), boxes, (2, 2), 0.25, 2, True)
        np.testing.assert_allclose(roi_align(wide[0], boxes, 2, 0.25, 2, True), exact, atol=1e-12)


def test_no_boxes():
    assert roi_align(random_features(4, 4), jnp.zeros((0, 4)), (2, 3), 1.0, 2, True).shape == (0, 2, 3, 2)


def test_whole_numbers_as_features_are_not_cut():
    features, box = np.arange(16, dtype=np.uint8).reshape(4, 4, 1), np.array([[0.5, 0.5, 3, 2.2]])
    pooled = roi_align(features, box, 1, 1.0, 2, True)
    np.testing.assert_allclose(pooled, roi_align(features.astype(np.float32), box, 1, 1.0, 2, True))
    assert pooled.dtype == jnp.float32 and pooled.item() % 1 != 0


@pytest.mark.parametrize(
    "where, change",
    [
        ("features", {"features": np.zeros((4, 4))}),
        ("boxes", {"boxes": np.zeros((2, 5))}),
        ("output_size", {"output_size": 0}),
        ("spatial_scale", {"spatial_scale": 0.0}),
        ("sampling_ratio", {"sampling_ratio": -1}),
        ("max_adaptive_samples", {"max_adaptive_samples": 0}),
    ],
)
def test_arguments_that_do_not_fit_are_refused(where, change):
    good = {"features": np.zeros((4, 4, 1)), "boxes": np.zeros((2, 4)), "output_size": 2, "spatial_scale": 1.0}
    with refused(where=where):
        roi_align(**{**good, "sampling_ratio": 2, "aligned": True, **change})


def test_strides_are_those_of_the_levels():
    for strides in ((4,), (4, 12)):
        with refused(where="strides"):
            multilevel_roi_align([np.zeros((4, 4, 1))] * 2, np.zeros((1, 4)), (2, 2), strides, 2, True)


def sums_and_gradients(sampling_ratio, aligned):
    """(levels [B, H, W, C] each, boxes [B, S, 4], weights of the sum) -> values, gradients of levels and boxes."""

    def weighted(levels, boxes, weights):
        pooled = jax.vmap(
            lambda levels, boxes: multilevel_roi_align(
                levels, boxes, (7, 7), STRIDES, sampling_ratio, aligned, canonical_size=56, max_adaptive_samples=3
            )
        )(levels, boxes)
        return (pooled.astype(jnp.float32) * weights).sum(), pooled

    return jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))


ODD = [
    [0, 0, 800, 3],  # elongated
    [1, 0, 5, 270],
    [-90, -70, 1000, 500],  # larger than the map
    [-80, -60, -30, -20],  # outside
    [900, 100, 1000, 200],
    [5, 5, 5, 5],  # empty, inverted
    [40, 30, 20, 10],
    [0, 0, 60, 60],  # 15, 16 and 17 cells, from a border of tiles
    [64, 64, 128, 128],
    [0, 0, 68, 68],
    [62, 62, 66, 66],  # 32 cells, and across four tiles
    [0, 0, 128, 128],
    [790, 260, 800, 272],  # the last cells
]


@pytest.mark.parametrize(
    "sampling_ratio, aligned, kind", [(2, False, "float32"), (0, True, "float32"), (0, True, "bfloat16")]
)
def test_the_forms_of_cpus_and_accelerators_agree(monkeypatch, sampling_ratio, aligned, kind):
    random = np.random.default_rng(0)
    shapes = [(2, -(-272 // stride), -(-800 // stride), 3) for stride in STRIDES]
    levels = tuple(jnp.asarray(random.normal(size=shape), kind) for shape in shapes)
    corner, side = random.uniform(0, 500, (25, 2)), random.uniform(4, 120, (25, 2))
    boxes = np.concatenate([ODD, np.concatenate([corner, corner + side], axis=1)]).astype(np.float32)
    boxes = np.stack([boxes, boxes[::-1] + 3])
    weights = random.normal(size=(2, len(boxes[0]), 7, 7, 3)).astype(np.float32)
    (_, pooled), gradients = sums_and_gradients(sampling_ratio, aligned)(levels, boxes, weights)
    as_on_accelerators(monkeypatch)
    (_, by_tiles), of_tiles = sums_and_gradients(sampling_ratio, aligned)(levels, boxes, weights)
    assert by_tiles.dtype == kind
    tolerance = 1e-5 if kind == "float32" else 2**-7  # of a bfloat16 result: 2 of its last places
    for wanted, found in zip(jax.tree.leaves((pooled, gradients)), jax.tree.leaves((by_tiles, of_tiles)), strict=True):
        largest = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(
            found.astype(jnp.float32), wanted.astype(jnp.float32), rtol=tolerance, atol=tolerance * largest
        )
