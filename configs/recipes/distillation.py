"""The recipe of a teacher and its student at the size of each variant, with settings of detection where they agree."""

from __future__ import annotations

from typing import Any

from configs.recipes.detector import detector, quick_model
from configs.variants import merge, settings
from elk_jax.backbones.pixels import IMAGENET_MEAN, IMAGENET_STD
from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.backbones.swin import MonaiSwinConfig
from elk_jax.detection.retinanet_config import plain
from elk_jax.tasks.distillation.recipe import DistillationRecipe
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.schedules import WarmupMultistep

EPOCH = 450
"""Steps of an epoch of the teacher, assuming 3,600 images in batches of 8; the number of images is not published."""
STUDENT_EPOCH = 3
"""Steps of an epoch of the student: 275 volumes of BCS-DBT's training and validation splits have boxes, in as many
slices or a few more; a tenth of 70 % of these are about 20 images."""


TWICE = {
    "stretch": (2048, 1024),
    "short_sides": (800,),
    "max_long_side": 1333,
    "jitter": (),
    "rounding": "down",
    "pixels": "linear",
    "boxes": "ellipses",
}
"""MONAI's resize of images and of boxes as masks, then that of torchvision's detectors."""


def distillation(size: str, extras: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The recipe of teacher and student. published: as in CoMoTo's code."""
    if size == "published":
        white = 65535 if "deep" in extras else 255
        model = published_swin(white) if "swin" in extras else published_model(white)
        return merge(settings(DistillationRecipe(model=model)), published(white))
    recipe = settings(DistillationRecipe())
    if "faster_rcnn" not in extras:
        return merge(recipe, detector(size, extras | (extras & {"efficientdet"} or {"retinanet"})))
    if size != "quick":
        return merge(recipe, detector(size, extras))
    # With the input and the steps of the other detectors: slices of 256 px have lesions that are too small at 128.
    merge(recipe, detector(size, extras | {"retinanet"}))
    model = settings(quick_model()) | {"backbone": recipe["model"]["backbone"]}
    return merge(recipe, {"model": model, "plan_anchors": True})


def published_model(white: int):
    """torchvision's RetinaNet on the last map of a ResNet-50, 303.7 million parameters in its heads.

    As published, batch norms use the statistics of the batch, and the mean and standard deviation of ImageNet for [0,
    1] are applied to the values of the files, from 0 to `white`: for 255 the input reaches (255 - 0.406) / 0.225, about
    1130.
    """
    backbone = ResNetConfig(norm="batch_bn", num_classes=0, pixel_scale=float(white))
    return plain(backbone=backbone, background="first")


def published_swin(white: int):
    """The same on the last map of a Swin transformer with random weights: 32 px per cell, 576 channels, 24.4 million
    parameters in its heads. Grey values are as in `published_model`."""
    mean, std = (tuple(one / white for one in ends) for ends in (IMAGENET_MEAN, IMAGENET_STD))
    backbone = MonaiSwinConfig(
        embed=36,
        depths=(2, 2, 2, 2),
        heads=(6, 12, 24, 48),
        drop_path=0.0,
        num_classes=0,
        pixel_mean=mean,
        pixel_std=std,
    )
    return plain(backbone=backbone, background="first")


def published(white: int) -> dict[str, Any]:
    """The published configuration: 1024 x 2048 px whatever the aspect, then torchvision's resize to 666 x 1333, on a
    canvas of 672 x 1344; anchors in px of that canvas. Boxes are rasterised as ellipses in whole px and recovered from
    those at 1024 x 2048. One map with 32 px per cell; points in the frame of 1024 x 2048. Slices of whole volumes have
    8 bits from their own darkest to their own brightest pixel. Only images with lesions are used for training. white:
    the largest value in the files, which are read as float16.

    Remaining differences from the publication:

    - All lesions of an image are in one record, so that none is background. Images without a lesion, or for which every
      box was lost, are left out of the points, where they gave NaN. A box that MONAI refuses is cropped.
    - Metrics use the annotated boxes; as published, those of the validation images were ellipses too, and lost ones
      counted as nothing. Mammograms are evaluated by all their lesions instead of only the matched detections, and a
      volume counts once instead of once per box.
    - The slices of a volume are read under its window before each gets its own range; theirs were stored values. At
      most 300 findings of a volume are kept.
    - All files share one white. As published, files of 8 and of 16 bits together would each have their own. Whole
      volumes do: their slices have 8 bits and are nearly black to a detector for 16 bits.
    - Batches are complete, where the last of an epoch was smaller. The share of images is rounded, not truncated.
      Lengths of epochs are estimates (EPOCH, STUDENT_EPOCH). Splits and draws come from another random generator.
    - The stages scratch and joint are not published; they have as many steps as the teacher.
    """
    resize = {**TWICE, "float16_white": white}
    return {
        "plan_anchors": False,
        "crop_to_breast": False,
        "sampling": "cell",
        "stride": 32,
        "negatives": "anywhere",
        "loader": {
            "batch_size": 8,
            "buckets": ((1344, 672),),
            "resize": resize,
            "augmentation": {"horizontal_flip": 0.5, "vertical_flip": 0.0, "gain": 0.0, "gamma": 0.0},
            "lesion_share": 1.0,
            "threads": 8,
        },
        "test_resize": resize,
        "slice_greys": "own",
        "score_floor": 0.05,
        "choose_score_floor": 0.05,
        "normalised": False,
        "steps": 50 * EPOCH,
        "student_length": STUDENT_EPOCH / EPOCH,
        "optimizer": settings(OptimizerConfig(name="sgd", weight_decay=0.0)),
        "schedule": settings(WarmupMultistep(base=5e-5, warmup_steps=0, milestones=(30 / 50,))),
        "log_every": 50,
        "checkpoint_every": 2 * EPOCH,
        "eval_every": EPOCH,
        "best_metric": "ap10_50",
    }
