"""configs/comoto.py:published against the published configuration, as numbers and as what the network sees."""

from __future__ import annotations

import math

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


def test_a_student_has_50_epochs_of_its_own_few_images(experiment, recipe):
    teacher, student = (experiment.stages[name].paced(recipe) for name in ("teacher", "student"))
    assert teacher == recipe and student.loader.batch_size == 8
    epoch = math.ceil(0.1 * 0.7 * 275 / 8)  # 275 volumes of the training and validation splits have boxes
    assert (student.steps, student.eval_every) == (50 * epoch, epoch)
    rate = schedules.build(student.schedule, student.steps)
    assert [float(rate(epoch * one)) for one in (0, 29, 30, 49)] == pytest.approx([5e-5, 5e-5, 5e-6, 5e-6])


def test_images_boxes_and_slices_are_read_as_published(recipe):
    for resize in (recipe.loader.resize, recipe.test_loader().resize):
        assert (resize.stretch, resize.boxes, resize.pixels) == ((2048, 1024), "ellipses", "linear")
        assert resize.float16_white == recipe.model.backbone.pixel_scale == 255
    assert recipe.slice_greys == "own"
    deep = parse(comoto.get_config("published,deep")).recipes["distill"]
    assert deep.loader.resize.float16_white == deep.test_resize.float16_white == 65535
    assert deep.model.backbone.pixel_scale == 65535 and deep.slice_greys == "own"
    with pytest.raises(ValueError, match=r"small.*deep"):
        comoto.get_config("small,deep")


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
    assert recipe.student_rate == 1 and recipe.distill_from == 0 and recipe.ema_decay == 0 and recipe.accumulate == 1
    dbt = experiment.data["dbt"]
    assert (dbt.train_share, dbt.train_share_of, dbt.slices) == (0.1, "images", "central")
    volumes = parse(comoto.get_config("published,volumes")).stages["volumes"]
    assert (volumes.volume_rule, volumes.metric) == ("comoto", "dbtex") and recipe.score_floor == 0.05
