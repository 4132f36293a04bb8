"""The recipes of the unified regime at the size of each variant: for the detectors of one image, for the one that
learns from the other image, and for those that fuse both; with the settings of detection where they agree."""

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
    """An EfficientDet that learns the maps of the detector of the partners, and not detection."""
    resembling: dict[str, Any] = {"mode": "mse", "detection_weight": 0.0, "best_metric": SIMILARITY}
    recipe = merge(settings(DistillationRecipe(**resembling)), single(size, extras))
    return merge(halved(recipe), resembling)


def fused(size: str, extras: frozenset[str] = frozenset(), **model: Any) -> dict[str, Any]:
    """Two trained trunks, which are frozen, and the layers after them. model: settings of `FusedConfig`."""
    recipe = of_two_trunks(size, extras, **model)
    # It starts as a trained detector, which the learning rate for random weights would destroy.
    merge(recipe, {"schedule": {"base": recipe["schedule"]["base"] / 6}})
    if "tuned" in extras:  # the trunks are trained too, slowly
        return merge(recipe, {"optimizer": {"frozen": (), "multipliers": ((TRUNKS, 0.1),)}})
    if "drop_path" in recipe["model"]["backbone"]:  # the layers after the trunks see their maps as in testing
        merge(recipe, {"model": {"backbone": {"drop_path": 0.0}}})
    return merge(halved(recipe), {"optimizer": {"frozen": (TRUNKS,), "multipliers": ()}})


def dropout(size: str, extras: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Two trunks that are trained at once, on pairs, half of which lack the partner (modality dropout)."""
    recipe = of_two_trunks(size, extras, second="partner", drop=0.5)
    return merge(recipe, {"optimizer": {"frozen": (), "multipliers": ()}})


def of_two_trunks(size: str, extras: frozenset[str], **model: Any) -> dict[str, Any]:
    recipe = single(size, extras)
    recipe["model"] = {**settings(FusedConfig(**model)), **recipe["model"], "name": "fused", **model}
    return recipe


def halved(recipe: dict[str, Any]) -> dict[str, Any]:
    """Half the steps, as training only a part of trained networks needs fewer."""
    intervals = {name: recipe[name] // 2 for name in ("steps", "checkpoint_every", "eval_every")}
    return merge(recipe, intervals)
