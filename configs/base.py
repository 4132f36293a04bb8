"""What the detection experiments share. An experiment file overrides only what differs.

Variants (the text after the colon of --config=configs/NAME.py:VARIANT; several are joined by commas):
  quick     default: ResNet-18-FPN of half the width, with GroupNorm, from scratch on the embedded data: minutes on 2
            CPU cores
  tiny      seconds, for tests
  small     ResNet-18-FPN at 384 px for a few hundred real images: about half an hour on 2 CPU cores
  paper     the published recipe: ResNet-101-FPN, frozen batch norm, SGD, 800 x 1333; for a GPU and imported weights
  fewshot   only the lesions of a few training patients (ELK: 26 patients, 104 lesions), drawn by the seed. Data with
            a subset of its own, such as ELK's, which data_prep marks: take paper without fewshot, and
            --config.data.real.train_where=fewshot=true
  half      a ResNet-50 of half the width, to start from weights of such a network (docs/open_nsfw_weights.py):
            faster than a ResNet-18 on a CPU
  medium    painted lesions of the middle half of the real sizes only (ELK's medium area)
  double    two painted lesions for each real one (ELK's 200 %)
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from elk_jax.detection import faster_rcnn_config

FIT = {"short_sides": (), "max_long_side": 0, "jitter": (1.0, 1.0)}
"""Resize: as large as the canvas allows."""

OPTIMIZER = {
    "momentum": 0.9,  # of sgd, like nesterov
    "nesterov": False,
    "b1": 0.9,  # of adamw, like b2 and eps
    "b2": 0.999,
    "eps": 1e-8,
    "no_decay": (r"(^|/)(bias|scale)$", r"(?i)(norm|(^|[/_])(bn|gn|ln))[_\d]*(/|$)"),  # biases and norms
}
"""What elk_jax/training/optimizer.py has by default: here, so that it can be set on the command line."""

SIZES = ("quick", "tiny", "small", "paper")
DETECTOR_EXTRAS = ("fewshot", "half")
PAINTING_EXTRAS = ("fewshot", "medium", "double")


def parse(variant: str | None, extras: tuple[str, ...] = DETECTOR_EXTRAS) -> tuple[str, frozenset[str]]:
    """'paper,fewshot' -> ('paper', {'fewshot'}). extras: those that the experiment knows.

    Raises ValueError for a word that is no variant of it.
    """
    words = [word for word in (variant or "quick").split(",") if word]
    known = (*SIZES, *extras)
    unknown = [word for word in words if word not in known]
    if unknown:
        raise ValueError(f"no variant '{unknown[0]}'; there are {', '.join(known)}")
    sizes = [word for word in words if word in SIZES] or ["quick"]
    if len(sizes) > 1:
        raise ValueError(f"'{sizes[0]}' and '{sizes[1]}' exclude each other")
    return sizes[0], frozenset(words) & frozenset(extras)


def experiment(name: str, **parts) -> ConfigDict:
    """The frame of every experiment; `parts` are its data, recipes and stages, kept in the order given."""
    return _ordered(
        {
            "name": name,
            "seed": 42,
            "mesh": {"data": -1, "fsdp": 1},  # devices along each axis; -1: all that are left
            **parts,
        }
    )


def _ordered(value):
    """Nested dicts as ConfigDicts that keep their order: stages run in it."""
    if not isinstance(value, dict):
        return value
    return ConfigDict({key: _ordered(child) for key, child in value.items()}, sort_keys=False)


def source(spec: str, **overrides) -> dict:
    """One data source; see elk_jax/data/sources/source.py for the specs."""
    return {
        "spec": spec,  # coco:FILE.json, tfds:DIR, phantom:key=value,...
        "where": "",  # keep images whose field has a value: is_mass=true,view=MLO|CC
        "train_where": "",  # the same, beside `where`, for the training split alone
        "clean_boxes": False,  # ELK's cleaning: boxes inside others and doubles
        "ignore_over": 0.0,  # boxes of more than this share of the image are neither lesion nor background; 0: none
        "patients": 0,  # random training patients to keep, 0 for all
        "split_shares": (),  # 0.7,0.15,0.15 deals patients out to train, val, test where images name no split
        "bit_depth": 0,  # 12: of values in 16-bit files that use no more; 0: as the files say
        **overrides,
    }


def phantom(size: str, lesions: str, seed: int, modality: str = "subtracted") -> str:
    """The embedded data set at the size of a variant."""
    pixels, count = {
        "tiny": (128, 24), "quick": (256, 400), "small": (512, 400), "paper": (1024, 800)
    }[size]  # fmt: skip
    return f"phantom:size={pixels},count={count},lesions={lesions},seed={seed},modality={modality}"


def model(**changes) -> dict:
    """All fields of a Faster R-CNN: detectron2's conventions and ELK's values, and `changes`."""
    return dataclasses.asdict(faster_rcnn_config.detectron2(**changes))


def detector(size: str, extras: frozenset[str] = frozenset()) -> dict:
    """The recipe of a detector: model, input, augmentation, optimisation. Everything a train stage reads."""
    recipe = {
        "model": model(  # every field of elk_jax/detection/faster_rcnn_config.py
            depth=18,
            norm="gn",
            norm_groups=16,
            width=32,  # half a ResNet's: as good on the embedded data, in half the time
            stride_in_1x1=False,
            pixel_mean=(60.0,),  # one channel: about the mean and spread of a mammogram on black
            pixel_std=(60.0,),
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
        ),
        "plan_anchors": True,  # one size per level from the lesions of the training split; False: model.anchor_sizes
        "crop_to_breast": True,  # cut the air away first
        "loader": {  # elk_jax/data/batches/detection.py
            "batch_size": 4,  # over all devices and hosts
            "buckets": ((256, 160),),  # (height, width) of the padded batches; one compilation each
            "resize": {"short_sides": (), "max_long_side": 0, "jitter": (0.8, 1.25)},
            "augmentation": {
                "horizontal_flip": 0.5,
                "vertical_flip": 0.5,
                "rotate90": 0.0,
                "rotation": 0.0,
                "crop": 0.0,
                "crop_sides": (0.6, 1.0),
                "min_visible": 0.5,
                "gain": 0.1,
                "gamma": 0.1,
                "noise": 0.0,
                "copy_paste": 0.0,
            },
            "max_boxes": 0,  # 0: as many as the data needs
            "lesion_share": 0.75,  # of images with lesions in an epoch; -1: as they come
            "threads": 2,
            "workers": 0,
            "prefetch": 4,
        },
        "test_resize": dict(FIT),
        "test_flips": (),  # of horizontal, vertical, both: mirrored views to detect in as well, fused
        "steps": 300,
        "accumulate": 1,
        "optimizer": {
            "name": "adamw",
            **OPTIMIZER,
            "weight_decay": 0.05,
            "clip_norm": 1.0,
            "multipliers": (),  # (regular expression, factor on the learning rate)
            "frozen": (),  # regular expressions
        },
        "schedule": {"name": "warmup_cosine", "base": 4e-4, "warmup_steps": 30},
        "ema_decay": 0.0,  # 0: none
        "log_every": 10,
        "checkpoint_every": 100,
        "eval_every": 100,
        "best_metric": "mean_sensitivity",
        "score_floor": 0.01,
        "choose_score_floor": 0.1,  # while choosing checkpoints
        "bootstrap": 2000,
    }
    if size == "tiny":
        merge(recipe, tiny())
    if size == "small":
        merge(recipe, small())
    if size == "paper":
        merge(recipe, published())
    if "half" in extras:
        merge(recipe, half_resnet50())
    return recipe


def tiny() -> dict:
    """What a test changes: 128 px, a few channels, four steps."""
    return {
        "model": {
            "width": 8, "norm_groups": 8, "fpn_channels": 16, "box_fc_width": 32, "roi_samples": 16, "detections": 10,
            "rpn_pre_nms_train": 64, "rpn_pre_nms_test": 64, "rpn_post_nms_train": 32, "rpn_post_nms_test": 32,
            "detection_candidates": 32, "anchor_sizes": ((8.0,), (12.0,), (18.0,), (27.0,), (40.0,)),
        },
        "plan_anchors": False,
        "test_flips": ("horizontal",),
        "loader": {
            "batch_size": 2,
            "max_boxes": 16,
            "buckets": ((128, 96),),
        },
        "steps": 4,
        "schedule": {"base": 1e-3, "warmup_steps": 1},
        "log_every": 2,
        "checkpoint_every": 2,
        "eval_every": 2,
        "choose_score_floor": 0.0,
        "bootstrap": 50,
    }  # fmt: skip


def small() -> dict:
    """For real images in their hundreds, from scratch or from another modality's weights."""
    return {
        "model": {"width": 64, "norm_groups": 32},
        "loader": {
            "batch_size": 2,
            "buckets": ((384, 256),),
            "resize": {"jitter": (0.7, 1.4)},
            "augmentation": {"horizontal_flip": 0.5, "vertical_flip": 0.5, "rotation": 15.0, "gain": 0.2, "gamma": 0.2},
            "lesion_share": -1.0,
        },
        "test_flips": ("horizontal", "vertical", "both"),
        "steps": 2400,
        "schedule": {"base": 3e-4, "warmup_steps": 100},
        "ema_decay": 0.995,
        "log_every": 20,
        "checkpoint_every": 400,
        "eval_every": 400,
    }


def half_resnet50() -> dict:
    """The ResNet-50 of half the width that docs/open_nsfw_weights.py prepares, and what spares its weights."""
    return {
        "model": {
            "depth": 50,
            "width": 32,
            "stem_width": 64,
            "norm": "frozen_bn",
            "stride_in_1x1": True,
            "pixel_mean": (104.0, 117.0, 123.0),
            "pixel_std": (1.0, 1.0, 1.0),
        },
        "optimizer": {
            "frozen": (r"backbone/stem", r"backbone/res2"),
            "multipliers": ((r"^backbone/", 0.3),),
        },
    }


def merge(recipe: dict, changes: dict) -> None:
    """Change a nested dict in place; a section that names another kind (`name`) replaces the old one."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(recipe.get(key), dict) and "name" not in value:
            merge(recipe[key], value)
        else:
            recipe[key] = value


def published() -> dict:
    """ELK's detector as published: detectron2's R-101-FPN, SGD, 800 x 1333. A GPU with 16 GB or more.

    It is fine-tuned, never trained from scratch: give --config.stages.STAGE.init_from=DIR, which
    launch/import_weights.py makes.
    """
    return {
        "model": model(dtype="bfloat16"),
        "plan_anchors": False,
        "crop_to_breast": False,
        "loader": {
            "batch_size": 2,
            "buckets": ((800, 800), (1344, 800), (800, 1344)),  # square, upright, lying
            "resize": {"short_sides": (640, 672, 704, 736, 768, 800), "max_long_side": 1333, "jitter": ()},
            "augmentation": {"horizontal_flip": 0.5, "vertical_flip": 0.0, "gain": 0.0, "gamma": 0.0},
            "lesion_share": -1.0,
            "threads": 8,
        },
        "test_resize": {"short_sides": (800,), "max_long_side": 1333, "jitter": ()},
        "steps": 3000,
        "optimizer": {
            "name": "sgd",
            **OPTIMIZER,
            "weight_decay": 1e-4,
            "no_decay": (r"/norm/",),  # biases decay like all other weights
            "clip_norm": 0.0,
            "multipliers": (),
            "frozen": (r"backbone/stem", r"backbone/res2"),
        },
        "schedule": {
            "name": "warmup_multistep",
            "base": 2.5e-4,
            "warmup_steps": 1000,
            "warmup_factor": 1e-3,
            "milestones": (),  # steps at which the rate is multiplied by gamma
            "gamma": 0.1,
        },
        "log_every": 20,
        "checkpoint_every": 250,
        "eval_every": 250,
    }


def few(size: str, extras: frozenset[str]) -> int:
    """Training patients of the few-shot variant: ELK's 26, fewer where the embedded data is small."""
    return (2 if size == "tiny" else 26 if size == "paper" else 8) if "fewshot" in extras else 0


def train_detector(
    *train_on: str, validate_on: str = "", init_from: str = "", weights: tuple[float, ...] = ()
) -> dict:
    """Stage: train the recipe `detector` on the training split of some data sources.

    The best checkpoint on the validation split of `validate_on` (default: the first of `train_on`) becomes
    WORKDIR/STAGE/model. init_from: an earlier stage's name, or a folder with a model (another run's STAGE/model, or
    what launch/import_weights.py wrote); its weights are taken where name and shape agree. weights: what share of the
    draws each of `train_on` has, on any scale; () for shares by size.
    """
    return {
        "kind": "train",
        "task": "detection",
        "recipe": "detector",
        "train_on": train_on,
        "validate_on": validate_on or train_on[0],
        "init_from": init_from,
        "weights": weights,
    }


def evaluate_detectors(*models: str, on: str = "real", split: str = "test") -> dict:
    """Stage: evaluate trained stages on one split; with several, compare the first with each other one (paired)."""
    return {
        "kind": "evaluate",
        "task": "detection",
        "recipe": "detector",
        "models": models,
        "on": on,
        "split": split,
        "criterion": "iou:0.3",  # what counts as found, for FROC; or centre_in_box, centre_distance:100:0.5
    }
