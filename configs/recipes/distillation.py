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


def distillation(size: str, extras: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The recipe of teacher and student. published: the numbers of CoMoTo's code."""
    if size == "published":
        return merge(settings(DistillationRecipe(model=published_model())), published())
    recipe = settings(DistillationRecipe())
    merge(recipe, detector(size, extras | {"retinanet"}))
    return recipe


def published_model():
    """torchvision's RetinaNet on the last map of a ResNet-50, 303.7 million parameters in its heads."""
    return plain(backbone=ResNetConfig(norm="affine_bn", num_classes=0, dtype="bfloat16"), background="first")


def published() -> dict[str, Any]:
    """The published numbers. Other than published: images are scaled once, with their sides in proportion, to the size
    that the network saw after two resizes (666 x 1333); grey values are scaled; statistics of batch norms are constant.
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
            "resize": {"short_sides": (), "max_long_side": 0, "jitter": (1.0, 1.0)},
            "augmentation": {"horizontal_flip": 0.5, "vertical_flip": 0.0, "gain": 0.0, "gamma": 0.0},
            "lesion_share": None,
            "threads": 8,
        },
        "steps": 50 * EPOCH,
        "optimizer": settings(OptimizerConfig(name="sgd", weight_decay=0.0)),
        "schedule": settings(WarmupMultistep(base=5e-5, warmup_steps=0, milestones=(30 * EPOCH,))),
        "log_every": 50,
        "checkpoint_every": 2 * EPOCH,
        "eval_every": EPOCH,
        "best_metric": "ap10",
    }
