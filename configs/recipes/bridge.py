"""The recipe of a translator at the size of each variant. Defaults are in elk_jax/tasks/translation/recipe.py."""

from __future__ import annotations

from typing import Any

from configs.variants import merge, settings
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks.translation.recipe import TranslationRecipe
from elk_jax.training.schedules import Constant


def bridge(size: str, private: bool = False) -> dict[str, Any]:
    """The recipe of a translator."""
    changes = {"quick": {}, "tiny": tiny(), "small": small(), "paper": published()}
    recipe = merge(settings(TranslationRecipe()), changes[size])
    return recipe | {"privacy": settings(Privacy(epsilon=8.0))} if private else recipe


def tiny() -> dict[str, Any]:
    """For tests."""
    return {
        "model": {
            "size": 32, "down_block_types": ("DownBlock2D",), "block_out_channels": (8,), "norm_num_groups": 4,
            "attention_head_dim": 2,
        },
        "sampler": {"steps": 2},
        "pairs": {"batch_size": 4},
        "steps": 4,
        "schedule": {"warmup_steps": 1},
        "validation_pairs": 6,
        "log_every": 2,
        "checkpoint_every": 2,
        "eval_every": 2,
        "bootstrap": 50,
    }  # fmt: skip


def small() -> dict[str, Any]:
    """For hundreds of real images."""
    return {"steps": 2000, "checkpoint_every": 500, "eval_every": 500, "sampler": {"steps": 50}}


def published() -> dict[str, Any]:
    """The published template for 256 px (LBBDM-f4) at 512: widths, bridge, loss, rate, EMA, 200 steps of sampling.

    Differences: patches of 4 px replace its VQGAN, which has the same reduction and was trained on photographs; the
    U-Net of Stable Diffusion downsamples with strided convolutions and adds the time, where the published one
    downsamples in residual blocks and uses the time as scale and shift; a constant rate, where the published one falls
    on a plateau; bfloat16. The published attention is at factors 8 to 32, which three blocks do not reach, so it is
    only in the middle, as here.
    """
    return {
        "model": {
            "size": 512,
            "answer": "difference",
            "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D"),
            "block_out_channels": (128, 512, 1024),
            "layers_per_block": 2,
            "attention_head_dim": 16,  # heads of 64 channels
            "norm_num_groups": 32,
            "dtype": "bfloat16",
            "remat": True,
        },
        "sampler": {"steps": 200},
        "pairs": {"horizontal_flip": 0.0, "vertical_flip": 0.0, "threads": 8},
        "steps": 50000,
        "optimizer": {"clip_norm": 0.0},
        "schedule": settings(Constant(base=1e-4)),
        "ema_decay": 0.995,
        "choose": "best",
        "log_every": 50,
        "checkpoint_every": 1000,
        "eval_every": 2500,
    }
