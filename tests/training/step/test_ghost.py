"""The sum of clipped gradients by ghost norms: it equals a loop over units, for layers and networks of every kind."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax.backbones import efficientnet, swin
from elk_jax.backbones.conv import convolve
from elk_jax.diffusion import translator
from elk_jax.privacy.settings import Flat, Normalised
from elk_jax.tasks.classification.model import trainable
from elk_jax.tasks.denoising.recipe import DenoisingRecipe, PatchNetwork
from elk_jax.tasks.denoising.train import trainable as denoiser
from elk_jax.tasks.translation.recipe import TranslatorModel
from elk_jax.training.model import Model
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.step import ghost, per_example
from elk_jax.training.step.descent import descent
from elk_jax.training.step.private import merged, only
from elk_jax.training.step.separable import QUICK

UNITS, EXAMPLES, SIDE, CHANNELS = 4, 2, 5, 6


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def curved(x):
    """Not linear, and quick to compile."""
    return x / (1 + x * x)


def by_hand(loss, params, examples, keys, factor=None):
    """(sum over units of factor(norm) * gradient, norms, clip norm), one unit after another. factor: None clips at the
    median of the norms."""
    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)
    units = [gradient(params, jax.tree.map(lambda x, row=row: x[row], examples), keys[row]) for row in range(len(keys))]
    norms = [float(optax.tree.norm(unit)) for unit in units]
    bound = float(np.median(norms))
    factor = factor or (lambda norm: min(1, bound / norm))
    scaled = [jax.tree.map(lambda x, n=n: factor(n) * x, unit) for unit, n in zip(units, norms)]
    return jax.tree.map(lambda *parts: sum(parts), *scaled), norms, bound


def clipped(way, loss, params, examples, keys, clipping, micro_batch=2, padding=None):
    padding = jnp.zeros(len(keys), bool) if padding is None else jnp.asarray(padding)
    options = {**QUICK, "xla_allow_excess_precision": False}  # bfloat16 is rounded, as by accelerators
    program = jax.jit(partial(way, loss, clipping, clipping.bound, micro_batch), compiler_options=options)
    return program(params, examples, keys, padding)


def check(loss, params, examples):
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(examples)[0]))
    wanted, norms, bound = by_hand(loss, params, examples, keys)
    found, found_norms = clipped(ghost.clipped_sum, loss, params, examples, keys, Flat(clip_norm=bound), len(keys))
    np.testing.assert_allclose(found_norms, norms, rtol=1e-8)
    chex.assert_trees_all_close(found, wanted, rtol=1e-6, atol=1e-8 * bound)


# ---- Layers ----------------------------------------------------------------------------------------------------------


def image_convolution(w, x):
    return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def grouped(w, x):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=CHANNELS
    )


LAYERS = {  # what computes with a weight w and maps x [K, SIDE, SIDE, CHANNELS]; the shape of w; is it a layer?
    "wide: norms by two matrices of positions": (lambda w, x: x @ w, (CHANNELS, 400), True),
    "narrow: norms by the product": (lambda w, x: x @ w, (CHANNELS, 3), True),
    "several contracted axes": (lambda w, x: jnp.einsum("khwc,whco->ko", x, w), (SIDE, SIDE, CHANNELS, 7), True),
    "the weight comes first": (lambda w, x: jnp.einsum("oc,khwc->okhw", w, x), (8, CHANNELS), True),
    "a weight for each row of the maps": (lambda w, x: jnp.einsum("khwc,hco->khwo", x, w), (SIDE, CHANNELS, 4), True),
    "transposed": (lambda w, x: x @ w.T, (3, CHANNELS), True),
    "cut to its matrix": (lambda w, x: x @ w[0, 0], (1, 1, CHANNELS, 3), True),
    "within jit": (lambda w, x: jax.jit(lambda w, x: curved(x @ w))(w, x), (CHANNELS, 3), True),
    "recomputed": (lambda w, x: jax.checkpoint(lambda w, x: curved(x @ w))(w, curved(x)), (CHANNELS, 3), True),
    "convolution": (image_convolution, (3, 3, CHANNELS, 4), True),
    "convolution with its own derivative": (lambda w, x: convolve(x, w, 2), (3, 3, CHANNELS, 4), True),
    "depthwise convolution": (grouped, (3, 3, 1, CHANNELS), True),
    "for every image": (jax.vmap(lambda w, x: x @ w, (None, 0)), (CHANNELS, 3), True),
    "scale": (lambda w, x: x * w, (CHANNELS,), False),
    "table": (lambda w, x: curved(x) * w[jnp.array([0, 2, 2, 1, 0, 3])], (4,), False),
    "shared": (lambda w, x: curved(x @ w) @ w, (CHANNELS, CHANNELS), False),
    "its own factor": (lambda w, x: x @ (w @ w), (CHANNELS, CHANNELS), False),
    "half of it": (lambda w, x: x @ w[:, :2], (CHANNELS, 5), False),
    "in a loop": (lambda w, x: jax.lax.scan(lambda x, _: (curved(x @ w), None), x, None, 3)[0],
                  (CHANNELS, CHANNELS), False),
    "chosen": (lambda w, x: jax.lax.cond(x[0, 0, 0, 0] > 0, lambda: x @ w, lambda: 2 * x @ w), (CHANNELS, 3), False),
    "a result itself": (lambda w, x: jax.jit(lambda w, x: (w, x @ w))(w, x)[0] * x.sum(), (CHANNELS, 3), False),
    "unused": (lambda w, x: x, (3,), False),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_which_parameters_are_of_one_layer(name):
    apply, shape, is_layer = LAYERS[name]
    program = jax.make_jaxpr(apply)(noise(*shape), noise(EXAMPLES, SIDE, SIDE, CHANNELS)).jaxpr
    assert ghost.single_layers(program, 1) == [is_layer]


def test_a_product_of_two_parameters_is_no_layer_of_either():
    """As that of two low-rank adapters."""
    program = jax.make_jaxpr(lambda a, b, x: x @ (a @ b))(noise(CHANNELS, 2), noise(2, 3), noise(4, CHANNELS)).jaxpr
    assert ghost.single_layers(program, 2) == [False, False]


def test_layers_of_every_kind_equal_a_loop_over_units():
    """The weight, and a bias, of each between two others."""

    def loss(params, x, key):
        total, shift = 0.0, jax.random.normal(key, ())
        for name, own in params.items():
            y = LAYERS[name][0](own["w"], curved(x @ own["before"] + own["bias"]))
            total += (curved(y + shift) * own["last"]).sum()
        return total

    params = {
        name: {"w": noise(*shape), "before": noise(CHANNELS, CHANNELS), "bias": noise(CHANNELS), "last": noise(1)}
        for name, (_, shape, _) in LAYERS.items()
    }
    check(loss, params, noise(UNITS, EXAMPLES, SIDE, SIDE, CHANNELS, seed=1))


# ---- Networks --------------------------------------------------------------------------------------------------------


def classifier(config):
    images = noise(3, EXAMPLES, 20, 20, 1) / 4 + 0.5
    return trainable(config), {"image": images, "label": np.arange(3 * EXAMPLES).reshape(3, EXAMPLES) % 2}


def swin_network():
    small = {"embed": 8, "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 4), "window": 3, "drop_path": 0.0}
    return classifier(swin.named("tiny", num_classes=2, dtype="float64", **small))


def efficientnet_network():
    small = {"width": 0.25, "depth": 0.1, "drop_path": 0.0, "dropout": 0.0, "frozen_stages": 5}
    return classifier(efficientnet.named("b0", **small, num_classes=2, dtype="float64"))


def translator_network():
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "block_out_channels": (8,)}
    settings = TranslatorModel(size=16, dtype="float64", norm_num_groups=4, attention_head_dim=4, **blocks)
    config = settings.config()
    model = Model(
        init=lambda rng: translator.init(config, rng),
        loss=lambda params, constants, batch, rng, map_images: translator.loss(config, params, batch, rng),
        predict=lambda *_: {},
        per_example=True,
    )
    return model, {name: noise(3, EXAMPLES, 16, 16, 1, seed=i) for i, name in enumerate(("low_energy", "subtracted"))}


def denoiser_network():
    """Classes are a table of which every example takes a row, for some of them that of no class."""
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "block_out_channels": (8,)}
    network = PatchNetwork(
        size=16, patch=2, dtype="float64", norm_num_groups=4, attention_head_dim=4, embedding=4, **blocks
    )
    images = noise(3, EXAMPLES, 16, 16, 1) / 4 + 0.5
    examples = {"image": images, "label": np.arange(3 * EXAMPLES).reshape(3, EXAMPLES) % 2}
    return denoiser(DenoisingRecipe(model=network, hidden=0.5)), examples


@pytest.mark.parametrize("network", [swin_network, efficientnet_network, translator_network, denoiser_network])
def test_networks_equal_a_loop_over_units(network):
    """All parameters are random; those that the network freezes have no gradient. One example of a unit is missing."""
    model, examples = network()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    spread = lambda x: 0.3 if x.ndim < 2 else (x.size / x.shape[-1]) ** -0.5
    params = structure.unflatten(
        [(x.ndim < 2) + spread(x) * np.tanh(noise(*x.shape, seed=i)) for i, x in enumerate(leaves)]
    )
    examples["valid"] = np.arange(3 * EXAMPLES).reshape(3, EXAMPLES) > 0
    mask = descent(model, TrainingRecipe()).trainable
    trained = only(params, mask)

    def loss(trained, examples, key):
        return model.loss(merged(trained, params), model.constants, examples, key, jax.vmap)[0]

    check(loss, trained, examples)


# ---- Batches ---------------------------------------------------------------------------------------------------------


def simple_loss(params, x, key):
    return (curved(x @ params["w"]) * params["scale"]).sum()


SIMPLE = {"w": noise(CHANNELS, 3), "scale": noise(3)}


@pytest.mark.parametrize("clipping", [Flat(clip_norm=0.7), Normalised(stability=0.1), Normalised(stability=1e-6)])
def test_both_ways_are_the_same_sum(clipping):
    """Rows without a unit add nothing, whatever they hold; nor does a unit whose gradient is 0."""
    x, keys = noise(8, EXAMPLES, CHANNELS), jax.random.split(jax.random.key(0), 8)
    padding = np.array([0, 0, 0, 1, 0, 1, 1, 1], bool)
    x[padding], x[4] = np.nan, 0
    given = simple_loss, SIMPLE, x, keys, clipping, 2, padding
    (one, norms), (other, found) = clipped(per_example.clipped_sum, *given), clipped(ghost.clipped_sum, *given)
    chex.assert_trees_all_close(one, other, rtol=1e-9)
    np.testing.assert_allclose(norms[~padding], found[~padding], rtol=1e-6)
    assert np.isfinite(optax.tree.norm(one)) and optax.tree.norm(one) > 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_a_gradient_that_is_not_finite_adds_nothing(bad):
    def loss(params, x, key):
        return ((x @ params["w"]) ** 2 * params["scale"]).sum()

    x, keys = noise(4, EXAMPLES, CHANNELS), jax.random.split(jax.random.key(0), 4)
    x[1, 0, 0] = bad
    found, norms = clipped(ghost.clipped_sum, loss, SIMPLE, x, keys, Flat(), 4)
    without, _ = clipped(ghost.clipped_sum, loss, SIMPLE, x, keys, Flat(), 4, padding=np.arange(4) == 1)
    assert not np.isfinite(norms[1])
    chex.assert_trees_all_equal(found, without)


def test_an_empty_batch_adds_nothing():
    x, keys = np.full((4, EXAMPLES, CHANNELS), np.nan), jax.random.split(jax.random.key(0), 4)
    found, _ = clipped(ghost.clipped_sum, simple_loss, SIMPLE, x, keys, Flat(), 2, padding=np.ones(4, bool))
    chex.assert_trees_all_equal(found, jax.tree.map(np.zeros_like, SIMPLE))


def moved_by_one(loss, params, x, clip_norm, unit):
    """How far one unit moves the sum, all units at once."""
    keys = jax.random.split(jax.random.key(0), len(x))
    sums = [
        clipped(ghost.clipped_sum, loss, params, x, keys, Flat(clip_norm=clip_norm), len(x), padding)[0]
        for padding in (np.zeros(len(x), bool), np.arange(len(x)) == unit)
    ]
    return float(optax.tree.norm(jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), *sums)))


@pytest.mark.parametrize("alike", [True, False])
def test_one_unit_moves_a_sum_in_bfloat16_by_at_most_the_clip_norm(alike):
    """The gradients of many units that agree are summed in float32, with the roundings whose norms were measured."""

    def loss(params, x, key):
        half = lambda value: value.astype("bfloat16")
        return (curved(half(x) @ half(params["w"])) @ half(params["v"])).astype("float32").sum()

    params = jax.tree.map(np.float32, {"w": noise(64, 32), "v": noise(32, 1, seed=1)})
    x = np.float32(np.tile(noise(1, 3, 64), (64, 1, 1)) if alike else noise(64, 3, 64))
    assert 0.4 < moved_by_one(loss, params, x, 0.5, 3) <= 0.5 * (1 + 1e-5)


def test_one_unit_moves_the_sum_of_a_convolution_in_bfloat16_by_at_most_the_clip_norm():
    def loss(params, x, key):
        return curved(
            image_convolution(params["w"].astype("bfloat16"), x[None].astype("bfloat16")).astype("float32")
        ).sum()

    params, x = {"w": np.float32(noise(3, 3, 3, 2))}, np.float32(noise(8, 6, 6, 3, seed=1))
    for unit in range(4):
        assert moved_by_one(loss, params, x, 0.5, unit) == pytest.approx(0.5, rel=1e-5)


def test_parts_of_a_gradient_that_cancel_do_not_hide_its_norm():
    """Of 13 positions, 12 cancel in pairs; norms are those of matrices of positions, in float32."""
    sizes, rng = np.repeat([1.0, 30.0, 100.0, 1e4], 8)[:, None, None] / 20, np.random.default_rng(0)
    x, g, *rest = (rng.normal(size=(len(sizes), count, 400)) for count in (6, 6, 1, 1))
    units = np.float32([np.concatenate(parts, axis=1) for parts in
                        ((sizes * x, sizes * x, rest[0] / 10), (sizes * g, -sizes * g, rest[1] / 10))])  # fmt: skip
    loss = lambda params, own, key: ((own[0] @ params["w"]) * own[1]).sum()
    keys, params = jax.random.split(jax.random.key(0), len(sizes)), {"w": np.zeros((400, 400), np.float32)}
    _, norms = clipped(ghost.clipped_sum, loss, params, units.swapaxes(0, 1), keys, Flat(), len(sizes))
    wanted = np.linalg.norm(np.einsum("unx,unz->uxz", *np.float64(units)), axis=(1, 2))
    assert norms.dtype == np.float32 and (norms >= wanted * (1 - 1e-5)).all()
    np.testing.assert_allclose(norms[:8], wanted[:8], rtol=1e-3)


def test_norms_are_of_float32_where_layers_compute_in_bfloat16():
    def loss(params, x, key):
        y = curved(x.astype("bfloat16") @ params["w"].astype("bfloat16")).astype("float32")
        return (y * params["scale"]).sum()

    params = jax.tree.map(np.float32, SIMPLE | {"w": noise(CHANNELS, 3)})
    x, keys = np.float32(noise(4, EXAMPLES, CHANNELS)), jax.random.split(jax.random.key(0), 4)
    found, norms = clipped(ghost.clipped_sum, loss, params, x, keys, Flat(clip_norm=0.5), 4)
    wanted, by_loop, _ = by_hand(loss, params, x, keys, lambda norm: min(1, 0.5 / norm))
    assert norms.dtype == found["w"].dtype == np.float32
    np.testing.assert_allclose(norms, by_loop, rtol=0.01)
    chex.assert_trees_all_close(found, wanted, atol=0.02)
