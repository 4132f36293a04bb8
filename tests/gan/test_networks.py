"""Both networks: the published numbers of parameters, equality with torch, and what conditions and settings do."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.gan import networks
from elk_jax.gan.networks import GanConfig
from tests.refusals import refused

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import seeded  # noqa: E402

generate = jax.jit(networks.generate, static_argnums=0)
discriminate = jax.jit(networks.discriminate, static_argnums=0)
STRIDE, WIDTH, NOISE, EMBEDDING = 5, 4, 10, 6  # of make_gan.py


def count(init, config):
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda rng: init(config, rng), jax.random.key(0))))


@pytest.mark.parametrize(
    "config, generator, discriminator",
    [
        (GanConfig(), 14_424_144, 25_944_676),
        # 64 px: a doubling and a halving less, and a class as an image of a quarter of the pixels
        (GanConfig(size=64), 5_200 + 16 * (200 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64),
         100 + 51 * 4096 + 36 * (2 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)),
        # the published LSGAN, whose batch norms have 2 x 960 parameters in either network
        (GanConfig(size=64, classes=1, discriminator_kernel=4), 3_574_656 - 1920, 2_763_648 - 1920),
    ],
)  # fmt: skip
def test_the_published_numbers_of_parameters(config, generator, discriminator):
    assert count(networks.init_generator, config) == generator
    assert count(networks.init_discriminator, config) == discriminator


def flat(size, kernel):
    return GanConfig(size=size, noise=NOISE, embedding=EMBEDDING, generator_width=WIDTH, discriminator_width=WIDTH,
                     discriminator_kernel=kernel)  # fmt: skip


def given(name, key, shape):
    """The torch tensor called `key`, of this shape."""
    bound = 1 / np.sqrt(max(int(np.prod(shape[1:])), 1)) if len(shape) > 1 else 0.1
    return seeded.uniform(f"{name} {key}", shape, -bound, bound)


def filled(shapes, name, order):
    """Parameters of these shapes from the seeded tensors of torch. order: axes of our kernels as torch has them."""
    condition = shapes["condition"]
    classes, embedding = condition["embedding"].shape
    features = condition["bias"].shape[0]
    params = {
        "condition": {
            "embedding": given(name, "condition.0.weight", (classes, embedding)),
            "kernel": given(name, "condition.1.weight", (features, embedding)).T,
            "bias": given(name, "condition.1.bias", (features,)),
        }
    }
    # the layers of torch's Sequential: kernels stand at 0, 3, 6, ..., without a norm behind the first one at 0, 2, 5
    places = [0, *((2 if order == (2, 3, 1, 0) else 3) + 3 * i for i in range(len(shapes) - 2))]
    for number, place in enumerate(places, start=1):
        shape = shapes[f"conv_{number}"]["kernel"].shape
        theirs = tuple(shape[order.index(axis)] for axis in range(4))
        kernel = given(name, f"layers.{place}.weight", theirs)
        params[f"conv_{number}"] = {"kernel": kernel.transpose(order)}
    return params


@pytest.mark.parametrize("name, size, kernel", [("128_6", 128, 6), ("64_6", 64, 6), ("64_4", 64, 4)])
def test_both_networks_are_those_of_torch(name, size, kernel):
    stored, config = np.load(GOLDEN / "gan.npz"), flat(size, kernel)
    shapes = [jax.eval_shape(lambda rng, init=init: init(config, rng), jax.random.key(0))
              for init in (networks.init_generator, networks.init_discriminator)]  # fmt: skip
    generator = filled(shapes[0], f"g{name}", (2, 3, 0, 1))
    discriminator = filled(shapes[1], f"d{name}", (2, 3, 1, 0))
    label, noise = jnp.array([0, 1, 1]), seeded.uniform("gan noise", (3, NOISE), -2, 2)
    image = seeded.uniform(f"gan images {size}", (3, 1, size, size), -1, 1).transpose(0, 2, 3, 1)
    made = generate(config, generator, noise, label)[:, ::STRIDE, ::STRIDE, 0]
    np.testing.assert_allclose(made, stored[f"{name}/image"], atol=1e-5)
    score = discriminate(config, discriminator, image, label)
    np.testing.assert_allclose(score, stored[f"{name}/score"], atol=1e-5)


SMALL = {"size": 16, "noise": 6, "embedding": 3, "generator_width": 4, "discriminator_width": 4}


@pytest.fixture(scope="module", params=["transposed", "resize"])
def made(request):
    """(config, params, patches of both classes from the same noise)"""
    config = GanConfig(**SMALL, upsampling=request.param)
    params = networks.init_generator(config, jax.random.key(0))
    noise = jnp.tile(networks.noise_of(config, jax.random.key(1), 4), (2, 1))
    return config, params, generate(config, params, noise, jnp.repeat(jnp.arange(2), 4))


def test_patches_are_in_the_range_and_follow_noise_and_class(made):
    _, _, patches = made
    assert patches.shape == (8, 16, 16, 1) and patches.dtype == jnp.float32
    assert float(jnp.abs(patches).max()) <= 1 and float(patches.std()) > 0
    assert float(jnp.abs(patches[:4] - patches[4:]).max()) > 1e-4, "the class makes no difference"
    assert float(jnp.abs(patches[0] - patches[1]).max()) > 1e-4, "the noise makes no difference"


def test_examples_do_not_meet(made):
    config, params, patches = made
    noise = networks.noise_of(config, jax.random.key(1), 4)
    alone = generate(config, params, noise[2:3], jnp.zeros(1, jnp.int32))
    np.testing.assert_allclose(alone[0], patches[2], atol=1e-5)
    judge = networks.init_discriminator(config, jax.random.key(2))
    label = jnp.repeat(jnp.arange(2), 4)
    scores = discriminate(config, judge, patches, label)
    assert scores.shape == (8,) and scores.dtype == jnp.float32
    np.testing.assert_allclose(discriminate(config, judge, patches[5:6], label[5:6])[0], scores[5], atol=1e-5)
    other = discriminate(config, judge, patches, 1 - label)
    assert float(jnp.abs(other - scores).min()) > 0, "the class makes no difference"


def test_kernels_start_small_and_the_class_layer_as_a_dense_layer_of_torch():
    params = networks.init_discriminator(GanConfig(size=32, discriminator_width=16), jax.random.key(0))
    assert float(params["conv_3"]["kernel"].std()) == pytest.approx(0.02, rel=0.02)
    bound = 1 / np.sqrt(50)
    for name in ("kernel", "bias"):
        assert 0.95 * bound < float(jnp.abs(params["condition"][name]).max()) <= bound


def test_grey_values_and_the_range_of_the_generator():
    np.testing.assert_allclose(networks.to_range(jnp.array([0.0, 0.5, 1.0])), [-1, 0, 1])
    np.testing.assert_allclose(networks.to_grey(jnp.array([-1.2, -1.0, 0.5, 1.2])), [0, 0, 0.75, 1])


@pytest.mark.parametrize("size", [4, 48, 100])
def test_a_side_that_no_doublings_reach_is_refused(size):
    with refused(size, "power of two", where="size"):
        GanConfig(size=size)


def test_in_half_precision_scores_and_patches_are_float32():
    config = GanConfig(**SMALL, dtype="bfloat16")
    shape = jax.eval_shape(
        lambda rng: networks.generate(
            config, networks.init_generator(config, rng), jnp.zeros((2, 6)), jnp.zeros(2, jnp.int32)
        ),
        jax.random.key(0),
    )
    assert shape.dtype == jnp.float32
