"""The recipe of a generator at the size of each variant. Defaults are in elk_jax/tasks/generation/recipe.py."""

from __future__ import annotations

from typing import Any

from configs.variants import merge, settings
from elk_jax.gan.objectives import NonSaturating
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks.generation.recipe import GenerationRecipe

EPSILON, DELTA = 10.0, 1e-4
PUBLISHED_EPSILON = 100.0


def gan(size: str) -> dict[str, Any]:
    """The recipe of a generator and its discriminator."""
    changes = {"quick": quick(), "tiny": tiny(), "small": small(), "paper": published()}
    return merge(settings(GenerationRecipe()), changes[size])


def tiny() -> dict[str, Any]:
    """For tests."""
    return {
        "model": {"size": 16, "noise": 8, "embedding": 4, "generator_width": 4, "discriminator_width": 4},
        "images": {"batch_size": 8, "transpose": 0.5},
        "steps": 6,
        "ema_decay": 0.5,
        "validation_images": 8,
        "log_every": 2,
        "checkpoint_every": 3,
        "eval_every": 3,
    }


def quick() -> dict[str, Any]:
    """Patches of 32 px: 2,000 steps, each measured at 0.15 s of processor time (generation.md)."""
    return {
        **for_few_patches(32),
        "steps": 2000,
        "ema_decay": 0.995,
        "checkpoint_every": 500,
        "eval_every": 500,
    }


def small() -> dict[str, Any]:
    """For hundreds of real patches: 64 px, half of the published width. No training has succeeded yet
    (generation.md)."""
    return {
        **for_few_patches(64),
        "steps": 20000,
        "checkpoint_every": 1000,
        "eval_every": 1000,
    }


def for_few_patches(side: int) -> dict[str, Any]:
    """Half of the published width, without a checkerboard; patches are augmented, as the discriminator would soon
    memorise all of them."""
    return {
        "model": {"size": side, "generator_width": 32, "discriminator_width": 32, "upsampling": "resize"},
        "images": {"batch_size": 32, "transpose": 0.5},
        "augmentation": {"brightness": 0.1, "contrast": 0.2, "shift": 0.125, "cutout": 0.0},
        "ratio": 1,
        "schedule": {"base": 2e-4},
        "discriminator_schedule": {"base": 2e-4},
    }


def published() -> dict[str, Any]:
    """Osuala et al. 2024, up to epoch 1750 on 1,104 patches, whose weights are published.

    8 patches for each of the two updates of the discriminator per update of the generator. Differences: patches are
    scaled to the generator's range, the kept weights are averaged, and rotations of patches are drawn for each epoch,
    not once.
    """
    return {
        "images": {"batch_size": 16, "threads": 8},
        "steps": 120_750,
        "log_every": 100,
        "checkpoint_every": 2000,
        "eval_every": 4000,
    }


def protected(size: str, objective: str) -> dict[str, Any]:
    """Changes if the discriminator is trained privately. objective: the name of the recipe's objective.

    paper: as in the configuration released by Osuala et al. 2024, except that patients are protected, not images: 3,000
    epochs of 1,104 patches, plain targets, which only the published objective has.
    """
    privacy = Privacy(epsilon=PUBLISHED_EPSILON if size == "paper" else EPSILON, delta=DELTA)
    changes: dict[str, Any] = {"privacy": settings(privacy)}
    if size == "paper":
        changes["steps"] = 207_000
    if size == "paper" and objective == NonSaturating.name:
        changes["objective"] = settings(NonSaturating(real=(1.0, 1.0)))
    return changes
