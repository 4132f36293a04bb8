"""The recipe of a teacher and its student at the size of each variant; of detection where the two agree."""

from __future__ import annotations

from typing import Any

from configs.recipes.detector import detector
from configs.variants import merge, settings
from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.detection.retinanet_config import plain
from elk_jax.tasks.distillation.recipe import DistillationRecipe
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.schedules import WarmupMultistep

EPOCH = 450
"""Steps of an epoch of the teacher, if its data have 3,600 images in batches of 8; their number is not published. The
student, whose data are fewer, gets as many steps here."""


TWICE = {
    "stretch": (2048, 1024),
    "short_sides": (800,),
    "max_long_side": 1333,
    "jitter": (),
    "rounding": "down",
    "pixels": "linear",
}
"""MONAI's resize, then that of torchvision's detectors."""


def distillation(size: str, extras: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The recipe of teacher and student. published: that of CoMoTo's code."""
    if size == "published":
        return merge(settings(DistillationRecipe(model=published_model())), published())
    recipe = settings(DistillationRecipe())
    merge(recipe, detector(size, extras | {"retinanet"}))
    return recipe


def published_model():
    """torchvision's RetinaNet on the last map of a ResNet-50, 303.7 million parameters in its heads.

    As published, batch norms read the batch, and the mean and spread of ImageNet, which are of [0, 1], are applied to
    grey values of 0 to 255, so that the input reaches (255 - 0.406) / 0.225, about 1130.
    """
    return plain(backbone=ResNetConfig(norm="batch_bn", num_classes=0, pixel_scale=255.0), background="first")


def published() -> dict[str, Any]:
    """The published configuration: 1024 x 2048 px whatever the aspect, then torchvision's resize to 666 x 1333, on a
    canvas of 672 x 1344; anchors in px of that. One map, of 32 px a cell; points in the frame of 1024 x 2048.

    Still other than published: boxes are scaled as they are, where the original draws each as an ellipse in whole px,
    resizes that and takes its bounds; images are float32, not float16, and 16-bit files count from 0 to 255 too; all
    lesions of an image are in one record, so that none is background; images without a lesion are left out of the
    points, where they gave NaN; the slices of a test volume share one window, where each had its own.
    """
    return {
        "plan_anchors": False,
        "crop_to_breast": False,
        "sampling": "cell",
        "stride": 32,
        "negatives": "anywhere",
        "loader": {
            "batch_size": 8,
            "buckets": ((1344, 672),),
            "resize": TWICE,
            "augmentation": {"horizontal_flip": 0.5, "vertical_flip": 0.0, "gain": 0.0, "gamma": 0.0},
            "lesion_share": None,
            "threads": 8,
        },
        "test_resize": TWICE,
        "score_floor": 0.05,
        "choose_score_floor": 0.05,
        "normalised": False,
        "steps": 50 * EPOCH,
        "optimizer": settings(OptimizerConfig(name="sgd", weight_decay=0.0)),
        "schedule": settings(WarmupMultistep(base=5e-5, warmup_steps=0, milestones=(30 * EPOCH,))),
        "log_every": 50,
        "checkpoint_every": 2 * EPOCH,
        "eval_every": EPOCH,
        "best_metric": "ap10_50",
    }
