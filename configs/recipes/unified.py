"""The recipes of the unified regime at the size of each variant: of the detectors of one image, of the one that learns
what the other image shows, and of those that fuse both. Of detection where they agree."""

from __future__ import annotations

from typing import Any

from configs.recipes.detector import detector
from configs.variants import merge, settings
from elk_jax.detection.fused_config import FusedConfig
from elk_jax.tasks.distillation.recipe import SIMILARITY, DistillationRecipe

TRUNKS = "^(own|other)/"


def single(size: str, extras: frozenset[str] = frozenset()) -> dict[str, Any]:
    """An EfficientDet of one image."""
    recipe = detector(size, extras | {"efficientdet"})
    return merge(recipe, lighter()) if size == "quick" else recipe


def lighter() -> dict[str, Any]:
    """A narrower pyramid and fewer steps: an experiment of this regime trains eight networks in minutes."""
    return {
        "model": {"channels": 64, "cells": 2, "head_convs": 2},
        "steps": 200,
        "checkpoint_every": 100,
        "eval_every": 100,
    }


def borrowing(size: str, extras: frozenset[str] = frozenset()) -> dict[str, Any]:
    """An EfficientDet that learns to see what the detector of the partners sees: its maps, and not detection."""
    resembling: dict[str, Any] = {"mode": "mse", "detection_weight": 0.0, "best_metric": SIMILARITY}
    recipe = merge(settings(DistillationRecipe(**resembling)), single(size, extras))
    return merge(halved(recipe), resembling)


def fused(size: str, extras: frozenset[str] = frozenset(), **model: Any) -> dict[str, Any]:
    """Two trained trunks that stay as they are, and what follows them. model: settings of `FusedConfig`."""
    recipe = of_two_trunks(size, extras, **model)
    # It starts as a trained detector, which the rate of a training from scratch would undo.
    merge(recipe, {"schedule": {"base": recipe["schedule"]["base"] / 6}})
    if "tuned" in extras:  # the trunks follow, slowly
        return merge(recipe, {"optimizer": {"frozen": (), "multipliers": ((TRUNKS, 0.1),)}})
    if "drop_path" in recipe["model"]["backbone"]:  # what follows the trunks sees their maps as in testing
        merge(recipe, {"model": {"backbone": {"drop_path": 0.0}}})
    return merge(halved(recipe), {"optimizer": {"frozen": (TRUNKS,), "multipliers": ()}})


def dropout(size: str, extras: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Two trunks that are trained at once, on pairs of which half lack the partner (modality dropout)."""
    recipe = of_two_trunks(size, extras, second="partner", drop=0.5)
    return merge(recipe, {"optimizer": {"frozen": (), "multipliers": ()}})


def of_two_trunks(size: str, extras: frozenset[str], **model: Any) -> dict[str, Any]:
    recipe = single(size, extras)
    recipe["model"] = {**settings(FusedConfig(**model)), **recipe["model"], "name": "fused", **model}
    return recipe


def halved(recipe: dict[str, Any]) -> dict[str, Any]:
    """Half the steps: what starts from trained networks, and trains a part, is done sooner."""
    intervals = {name: recipe[name] // 2 for name in ("steps", "checkpoint_every", "eval_every")}
    return merge(recipe, intervals)
