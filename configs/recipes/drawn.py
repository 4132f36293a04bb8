"""The training data of every generator of patches by class, and the later stages: patches are drawn and evaluated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from configs import private_head
from configs.private_head import PHANTOMS
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.classification.recipe import EvaluateClassifiersStage, FitHeadStage, HeadRecipe, KernelSearch
from elk_jax.tasks.frozen import ScatteringFeatures
from elk_jax.tasks.generation.recipe import EvaluateSamplesStage, SampleStage
from elk_jax.tasks.lesion_quality.recipe import LesionQualityStage

PER_CLASS = {"tiny": 6, "quick": 100, "small": 500, "paper": 1500}
"""Variant -> drawn patches per class."""


def patches_and_samples(size: str) -> dict[str, Any]:
    """The data: real patches, and those drawn by the stage `samples`."""
    pixels, count = PHANTOMS[size]
    return {
        "on_error": "stop",
        "patches": SourceSpec(f"phantom_patches:size={pixels},count={count},healthy_fraction=0.1,seed=5"),
        "samples": SourceSpec("stage:samples"),
    }


def drawn_and_judged(generator: str, size: str, private: bool) -> dict[str, Any]:
    """The stages after that of a generator. private: drawn patches are compared with the validation split."""
    beside = "val" if private else "train"
    resamples = 200 if size == "tiny" else 2000
    return {
        "samples": SampleStage(model=generator, per_class=PER_CLASS[size]),
        "looks": EvaluateSamplesStage(on="patches", split=beside, synthetic="samples"),
        "quality": LesionQualityStage(
            on="patches", split=beside, synthetic="samples", synthetic_split="", repeated=not private
        ),
        "classifier": FitHeadStage(train_on=("patches",), validate_on="patches"),
        "fidelity": EvaluateClassifiersStage(models=("classifier",), on="samples", split="", bootstrap=resamples),
        "held_out": EvaluateClassifiersStage(models=("classifier",), on="patches", bootstrap=resamples),
    }


def head(size: str) -> HeadRecipe:
    """The recipe of the classifier: a kernel head on scattering coefficients, which treats both classes alike."""
    base = private_head.head(size)
    scattering = {name: one for name, one in base.features.items() if isinstance(one, ScatteringFeatures)}
    return replace(base, features=scattering, search=KernelSearch())
