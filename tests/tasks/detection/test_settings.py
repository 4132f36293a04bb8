"""From configuration to plain values: the numbers of a model, anchor sizes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs import base
from elk_jax.data.augment import Augmentation, Resize
from elk_jax.data.batches.detection import NO_AUGMENTATION, LoaderConfig
from elk_jax.detection.faster_rcnn import FasterRCNNConfig
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.detection import settings as detection
from elk_jax.training.optimizer import OptimizerConfig


@pytest.mark.parametrize(
    "field, value",
    [
        ("depth", 77),
        ("norm", "batch"),
        ("box_norm", "batch"),
        ("dtype", "float16"),
        ("stride_in_1x1", 1),
        ("num_classes", 0),
        ("width", -8),
        ("detections", 2.5),
        ("roi_samples", True),
        ("box_convs", -1),
        ("rpn_conv_depth", "one"),
        ("rpn_positive_fraction", 1.5),
        ("roi_iou", -0.1),
        ("score_floor", float("nan")),
        ("rpn_low", 0.8),
        ("norm_eps", -1e-5),
        ("pixel_scale", 0.0),
        ("pixel_mean", ()),
        ("pixel_std", (1.0,)),
        ("pixel_std", (1.0, 1.0, 0.0)),
        ("anchor_sizes", ((32.0,), (64.0,), (128.0,), (256.0,))),
        ("anchor_sizes", ((32.0,), (64.0,), (128.0,), (256.0,), (400.0, 512.0))),
        ("anchor_sizes", ((0.0,), (64.0,), (128.0,), (256.0,), (512.0,))),
        ("anchor_sizes", (32.0, 64.0, 128.0, 256.0, 512.0)),
        ("anchor_ratios", (0.5, -1.0)),
        ("box_weights", (10.0, 10.0, 5.0)),
        ("remat", (1, 2)),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_field(field, value):
    with pytest.raises(UserError, match=rf"^{field} is .*\(model\.{field}\)\. .+"):
        detection.model_config({field: value})


def test_groups_divide_every_width_that_is_normalised_by_groups():
    for settings, width in [
        ({"norm": "gn", "width": 20}, "width = 20"),
        ({"fpn_norm": "gn", "fpn_channels": 100}, "fpn_channels = 100"),
        ({"box_norm": "gn", "box_convs": 1, "box_conv_channels": 48}, "box_conv_channels = 48"),
    ]:
        with pytest.raises(UserError, match=rf"norm_groups is 32 .*divisor of model\.{width}"):
            detection.model_config(settings)
    detection.model_config({"norm": "none", "width": 20, "box_norm": "gn", "box_conv_channels": 48})


def test_model_settings_arrive():
    config = detection.model_config({"anchor_sizes": [[8], [16], [32], [64], [128]], "depth": 18}, num_classes=3)
    assert config == FasterRCNNConfig(anchor_sizes=((8,), (16,), (32,), (64,), (128,)), depth=18, num_classes=3)
    with pytest.raises(UserError, match=r"no setting 'dept'.*depth"):
        detection.model_config({"dept": 18})


# ---- Every field can be set on the command line --------------------------------------------------------------------


@pytest.mark.parametrize("size", ["quick", "tiny", "small", "paper"])
def test_the_recipe_names_every_field(size):
    recipe = base.detector(size)
    names = lambda kind: {field.name for field in dataclasses.fields(kind)}
    assert set(recipe["model"]) == names(FasterRCNNConfig)
    assert set(recipe["optimizer"]) == names(OptimizerConfig)
    assert set(recipe["loader"]) == names(LoaderConfig) - {"weights"}  # a setting of the stage
    assert set(recipe["loader"]["augmentation"]) == names(Augmentation)
    assert set(recipe["loader"]["resize"]) == names(Resize) == set(recipe["test_resize"])


def test_what_the_recipe_does_not_change_is_the_default():
    recipe, defaults = base.detector("quick"), OptimizerConfig()
    for name in ("momentum", "nesterov", "b1", "b2", "eps", "no_decay"):
        assert recipe["optimizer"][name] == getattr(defaults, name), name
    for name in ("crop_sides", "min_visible"):
        assert recipe["loader"]["augmentation"][name] == getattr(Augmentation(), name), name


# ---- Anchors from lesions ------------------------------------------------------------------------------------------


def _info(number: int, height: int, width: int, boxes: list, ignore: list | None = None) -> ImageInfo:
    return ImageInfo(
        image_id=str(number),
        patient_id=str(number),
        width=width,
        height=height,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.zeros(len(boxes), np.int32),
        ignore=np.array(ignore or [False] * len(boxes), bool),
    )


def test_anchor_sizes_follow_the_lesions_as_the_network_sees_them():
    """Two images of which one is halved to fit its canvas: lesions of 10 and 40 px, in network pixels."""
    infos = [
        _info(0, 200, 100, [[0, 0, 20, 20]]),  # halved: 10 px
        _info(1, 100, 50, [[5, 5, 45, 45], [0, 0, 2, 2]], ignore=[False, True]),  # 40 px; the other is no lesion
    ]
    fit = Resize(short_sides=(), jitter=(1.0, 1.0))
    config = LoaderConfig(resize=fit, augmentation=NO_AUGMENTATION, buckets=((100, 50),))
    sizes = detection.planned_anchor_sizes(infos, config, levels=2)
    # the central 95 % of log 10 .. log 40 leave out 2.5 % at both ends; two parts of equal ratio, the middle of each
    low, high = 10 * 4**0.025, 10 * 4**0.975
    ratio = high / low
    assert sizes == ((pytest.approx(low * ratio**0.25, abs=0.01),), (pytest.approx(low * ratio**0.75, abs=0.01),))


def test_anchor_sizes_of_a_fixed_short_side():
    """Short side 100 px, long side at most 150: scales 100 / 50, and 150 / 100 instead of 100 / 60."""
    infos = [_info(0, 50, 60, [[0, 0, 10, 10]]), _info(1, 100, 60, [[0, 0, 10, 10]])]
    config = LoaderConfig(resize=Resize(short_sides=(50, 100), max_long_side=150), augmentation=NO_AUGMENTATION)
    ((size,),) = detection.planned_anchor_sizes(infos, config, levels=1)
    assert size == pytest.approx((20 * 15) ** 0.5, abs=0.01)  # the geometric middle of 20 and 15 px
