"""EfficientNets: published sizes, stochastic depth, frozen parts, grey images."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones import depthwise, efficientnet
from elk_jax.backbones.efficientnet import EfficientNetConfig, named
from elk_jax.weights import model_folder
from tests.refusals import refused

PUBLISHED = {
    **{"b0": 5_288_548, "b1": 7_794_184, "b2": 9_109_994, "b3": 12_233_232, "b4": 19_341_616},
    **{"b5": 30_389_784, "b6": 43_040_704, "b7": 66_347_960},
    **{"lite0": 4_652_008, "lite1": 5_416_680, "lite2": 6_092_072, "lite4": 13_006_568},
}
"""Trained parameters in torchvision (B0-B7), in the published files (Lite 0-2) and in timm (Lite 4)."""

SMALL = named("lite0", width=0.25, depth=0.3, num_classes=2)


@pytest.fixture(scope="module")
def small():
    return efficientnet.init(SMALL, jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(2, 33, 40, 1)).astype("f4")


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameter_counts_are_published(variant, monkeypatch):
    monkeypatch.setattr(depthwise, "shifted", depthwise.grouped)  # the same maps, of fewer operations to trace
    shapes = model_folder.shapes_of(partial(efficientnet.init, named(variant)))
    trained = (shape for path, shape in shapes.items() if not path.endswith(("/mean", "/var")))
    assert sum(map(math.prod, trained)) == PUBLISHED[variant]


@pytest.mark.parametrize(
    ("variant", "taps", "repeats"),
    [
        ("b0", (24, 40, 112, 320), (1, 2, 2, 3, 3, 4, 1)),
        ("b3", (32, 48, 136, 384), (2, 3, 3, 5, 5, 6, 2)),
        ("b7", (48, 80, 224, 640), (4, 7, 7, 10, 10, 13, 4)),
        ("lite4", (32, 56, 160, 448), (1, 4, 4, 6, 6, 8, 1)),
    ],
)
def test_channels_and_blocks_are_published(variant, taps, repeats):
    widths = {block.stage: block.features for block in efficientnet.blocks(named(variant))}
    assert tuple(tuple(widths.values())[place] for place in (1, 2, 4, 6)) == taps
    stages = [block.stage for block in efficientnet.blocks(named(variant))]
    assert tuple(stages.count(stage) for stage in range(1, 8)) == repeats


def test_stages_have_their_strides_rounded_up_and_logits_are_of_the_classes(small, images):
    stages = jax.eval_shape(partial(efficientnet.features, SMALL), small, images)
    assert [stage.shape[1:3] for stage in stages] == [
        (-(-33 // stride), -(-40 // stride)) for stride in (2, 4, 8, 16, 16, 32, 32)
    ]
    assert jax.eval_shape(partial(efficientnet.logits, SMALL), small, images).shape == (2, 2)


def test_grey_images_are_three_equal_channels(small, images):
    run = jax.jit(efficientnet.features, static_argnums=0)
    grey, colour = run(SMALL, small, images), run(SMALL, small, np.repeat(images, 3, axis=-1))
    for one, other in zip(grey, colour, strict=True):
        np.testing.assert_array_equal(one, other)
    with refused(2, 3):
        efficientnet.features(SMALL, small, np.zeros((1, 8, 8, 2), "f4"))


def test_stochastic_depth_is_of_trained_stages_and_keeps_the_mean():
    rng = jax.random.key(0)
    config = EfficientNetConfig(frozen_stages=3, drop_path=0.5)
    stages = np.array([block.stage for block in efficientnet.blocks(config)])
    shares = np.asarray(efficientnet._shares(config, rng, 4000))
    assert (shares[stages <= 3] == 1).all()
    assert ((shares[stages > 3] == 0).any(1)).all()
    np.testing.assert_allclose(shares.mean(1), 1, atol=0.06)
    skipped = (shares == 0).mean(1)
    np.testing.assert_allclose(skipped[stages > 3], 0.5 * np.arange(16)[stages > 3] / 16, atol=0.03)


def test_randomness_needs_a_key(small, images):
    run = jax.jit(efficientnet.logits, static_argnums=0)
    config = named("lite0", width=0.25, depth=0.3, num_classes=2, drop_path=0.9)
    plain = run(config, small, images)
    np.testing.assert_array_equal(plain, run(config, small, images))
    one, same, other = (run(config, small, images, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert not np.allclose(one, plain)


def test_what_is_frozen(small):
    config = named("lite0", width=0.25, depth=0.3, num_classes=2, frozen_stages=2)
    paths = model_folder.flatten(small)
    for settings, kernels in ((config, {"stem", "stage1_0", "stage2_0"}), (SMALL, set())):
        matched = {path for path in paths if any(re.search(p, path) for p in efficientnet.frozen(settings))}
        assert {path.split("/")[1] for path in matched if path.endswith("/kernel")} == kernels
        assert {path for path in paths if "/norm/" in path} <= matched


def test_group_norms_fit_every_width_and_gradients_are_finite(images):
    config = EfficientNetConfig(width=0.25, depth=0.3, num_classes=2, norm="gn")
    params = efficientnet.init(config, jax.random.key(0))
    gradients = jax.jit(jax.grad(lambda p: (efficientnet.logits(config, p, images) ** 2).sum()))(params)
    leaves = jax.tree.leaves(gradients)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradients["backbone"]["stem"]))


def test_bfloat16_computes_in_it_and_keeps_float32_parameters(images):
    config = EfficientNetConfig(width=0.25, depth=0.3, num_classes=2, dtype="bfloat16")
    shapes = jax.eval_shape(partial(efficientnet.init, config), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    stages = jax.eval_shape(partial(efficientnet.features, config), shapes, images)
    assert {stage.dtype for stage in stages} == {jnp.dtype("bfloat16")}
    assert jax.eval_shape(partial(efficientnet.logits, config), shapes, images).dtype == jnp.float32


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"pixel_std": (1.0,)}, "pixel_std"),
        ({"head": False}, "head"),
        ({"norm": "gn", "norm_groups": 7}, "norm_groups"),
        ({"width": 0.0}, "width"),
        ({"activation": "relu"}, "activation"),
    ],
)
def test_impossible_settings(settings, where):
    with refused(where=where):
        EfficientNetConfig(**settings)


def test_an_unknown_variant():
    with refused("b9", "lite4"):
        named("b9")
