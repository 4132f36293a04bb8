"""The variants of configs/mcgan.py: the published settings, and words that exclude each other."""

from __future__ import annotations

import pytest

from configs import mcgan
from elk_jax.experiments.parse import parse
from elk_jax.gan.networks import GanConfig
from elk_jax.gan.objectives import LeastSquares, NonSaturating, Wasserstein
from tests.refusals import refused


def recipe(variant):
    return parse(mcgan.get_config(variant)).recipes["gan"]


def test_the_paper_variant_is_the_published_recipe():
    """Epoch 1750 of 1,104 patches in batches of 8, two updates of the discriminator for one of the generator."""
    found = recipe("paper")
    assert found.steps * found.ratio == 1750 * 1104 // 8 and found.images.batch_size // found.ratio == 8
    assert found.model == GanConfig(size=128, noise=100, embedding=50, generator_width=64, discriminator_width=64)
    assert (found.model.generator_norm, found.model.discriminator_kernel) == ("instance", 6)
    assert found.objective == NonSaturating(real=(0.7, 1.2)) and found.augmentation.is_off
    for optimizer, schedule in (
        (found.optimizer, found.schedule),
        (found.discriminator_optimizer, found.discriminator_schedule),
    ):
        assert (optimizer.name, optimizer.b1, optimizer.b2, optimizer.weight_decay) == ("adamw", 0.5, 0.999, 0)
        assert schedule.name == "constant" and schedule.base == 1e-4 and not optimizer.clip_norm
    images = found.images
    assert (images.horizontal_flip, images.vertical_flip, images.transpose) == (0.5, 0.5, 0)


def test_the_other_objectives_are_the_published_ones():
    wgan = recipe("paper,wgan")
    assert wgan.objective == Wasserstein(penalty=10.0) and wgan.ratio == 5 and wgan.images.batch_size == 5 * 16
    assert wgan.optimizer.b2 == wgan.discriminator_optimizer.b2 == 0.9 and wgan.model.discriminator_norm == "none"
    assert recipe("paper,lsgan").objective == LeastSquares()


def test_one_validation_image_is_refused():
    config = mcgan.get_config("tiny")
    config.gan.validation_images = 1
    with refused(1, 2, where="validation_images"):
        parse(config)


@pytest.mark.parametrize("variant", ["wgan,lsgan", "tiny,resize,transposed"])
def test_a_variant_has_one_objective_and_one_way_to_enlarge(variant):
    with pytest.raises(ValueError, match="exclude each other"):
        mcgan.get_config(variant)
