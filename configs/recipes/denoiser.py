"""The recipe of a denoiser of patches at the size of each variant. Defaults: elk_jax/tasks/denoising/recipe.py."""

from __future__ import annotations

from typing import Any

from configs.recipes.gan import DELTA, EPSILON
from configs.variants import merge, settings
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks.denoising.recipe import DenoisingRecipe


def denoiser(size: str) -> dict[str, Any]:
    """The recipe of a denoiser."""
    changes = {"quick": quick(), "tiny": tiny(), "small": small(), "paper": large()}
    return merge(settings(DenoisingRecipe()), changes[size])


def tiny() -> dict[str, Any]:
    """For tests: attention only in the middle, which halves the time of compilation."""
    return {
        "model": {
            **blocks(16, 8),
            "down_block_types": ("DownBlock2D",),
            "embedding": 8,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        },
        "sampler": {"steps": 3},
        "images": {"batch_size": 8, "transpose": 0.5},
        "steps": 6,
        "schedule": {"warmup_steps": 1},
        "ema_decay": 0.5,
        "validation_images": 8,
        "log_every": 2,
        "checkpoint_every": 3,
        "eval_every": 3,
    }


def quick() -> dict[str, Any]:
    """Patches of 32 px, in minutes on two cores."""
    return {
        "model": {**blocks(32, 32, 64), "norm_num_groups": 8},
        "images": {"batch_size": 32, "transpose": 0.5},
        "schedule": {"base": 1e-3},
        "steps": 2000,
        "ema_decay": 0.995,
    }


def blocks(side: int, *channels: int) -> dict[str, Any]:
    """Blocks of 2 px, so that a position sees the grain; attention on the coarsest level."""
    plain = ("DownBlock2D",) * (len(channels) - 1)
    return {
        "size": side,
        "patch": 2,
        "block_out_channels": channels,
        "down_block_types": (*plain, "CrossAttnDownBlock2D"),
    }


def small() -> dict[str, Any]:
    """For hundreds of real patches of 128 px: more than an hour on two cores."""
    return {
        "model": {"block_out_channels": (40, 80, 120), "norm_num_groups": 8},
        "schedule": {"base": 1e-3},
        "steps": 4000,
        "ema_decay": 0.998,
        "eval_every": 1000,
    }


def large() -> dict[str, Any]:
    """For a GPU; not tried yet. Nothing comparable is published for these patches."""
    return {
        "model": {
            "block_out_channels": (128, 256, 384),
            "layers_per_block": 2,
            "dtype": "bfloat16",
            "norm_num_groups": 32,
        },
        "images": {"batch_size": 64, "threads": 8},
        "steps": 60_000,
        "ema_decay": 0.9999,
        "log_every": 100,
        "checkpoint_every": 2000,
        "eval_every": 4000,
    }


def protected() -> dict[str, Any]:
    """Changes if the patients of the patches are protected."""
    return {"privacy": settings(Privacy(epsilon=EPSILON, delta=DELTA))}
