"""configs/comoto.py:published against the published configuration, as numbers and as what the network sees."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from configs import comoto
from elk_jax.data.augment import augment, resize_only
from elk_jax.detection import detectors
from elk_jax.experiments.parse import parse
from elk_jax.images.schema import ImageInfo, Record
from elk_jax.tasks.detection import train as detection
from elk_jax.training import schedules
from elk_jax.weights.model_folder import flatten


@pytest.fixture(scope="module")
def experiment():
    return parse(comoto.get_config("published"))


@pytest.fixture(scope="module")
def recipe(experiment):
    return experiment.recipes["distill"]


def record(height: int, width: int) -> Record:
    boxes = np.array([[10, 20, 30, 60]], np.float32)
    info = ImageInfo("a", "p", height, width, boxes, np.zeros(1, np.int32), np.zeros(1, bool))
    return Record(info, np.full((height, width, 1), 1.0, np.float32))


@pytest.mark.parametrize("size", [(300, 200), (100, 400), (3328, 2560)])
def test_every_image_has_one_size_in_training_and_testing(recipe, size):
    canvas = recipe.loader.buckets[0]
    assert recipe.loader.buckets == ((1344, 672),) == recipe.test_loader().buckets
    training = augment(
        record(*size), recipe.loader.augmentation, recipe.loader.resize, canvas, np.random.default_rng(0)
    )
    testing = resize_only(record(*size), recipe.test_resize, canvas)
    assert training.image.shape == testing.image.shape == (1333, 666, 1)
    assert testing.scale == pytest.approx((666 / size[1], 1333 / size[0]))


def test_the_network_is_that_of_torchvision_with_live_norms_and_no_frozen_layer(recipe):
    one = detectors.build(detection.settings(recipe, 1))
    shapes = flatten(jax.eval_shape(one.init, jax.random.key(0)))
    heads = sum(x.size for name, x in shapes.items() if not name.startswith("backbone/"))
    assert heads == pytest.approx(303.7e6, rel=1e-3) and one.strides == (32,)
    assert one.frozen == () and recipe.optimizer.frozen == () and one.statistics
    network, anchors = one.config.backbone, one.config
    white = (255 - np.array(network.pixel_mean)) / network.pixel_std
    assert network.pixel_scale == 255 and network.dtype == "float32" and 1100 < white.min() < white.max() < 1140
    assert anchors.anchor_sizes == ((32, 64, 128, 256, 512),) and not recipe.plan_anchors
    assert anchors.score_floor == recipe.choose_score_floor == 0.05 and anchors.detections == 300


def test_the_training_is_the_published_one(experiment, recipe):
    rate = schedules.build(recipe.schedule, recipe.steps)
    epoch = recipe.steps // 50
    assert [float(rate(epoch * one)) for one in (0, 29, 30, 49)] == pytest.approx([5e-5, 5e-5, 5e-6, 5e-6])
    optimizer, flips = recipe.optimizer, recipe.loader.augmentation
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay, optimizer.clip_norm) == ("sgd", 0.9, 0, 0)
    assert (flips.horizontal_flip, flips.vertical_flip, flips.gain, flips.gamma) == (0.5, 0, 0, 0)
    assert (recipe.mode, recipe.points, recipe.stride, recipe.sampling) == ("lesion", 9, 32, "cell")
    assert (recipe.normalised, recipe.weight, recipe.temperature) == (False, None, None)  # alpha 2, T 4
    assert (recipe.align_weight, recipe.negatives, recipe.best_metric) == (2, "anywhere", "ap10_50")
    assert recipe.student_rate == 1 and recipe.distill_from == 0
    dbt = experiment.data["dbt"]
    assert (dbt.train_share, dbt.train_share_of, dbt.slices) == (0.1, "images", "central")
