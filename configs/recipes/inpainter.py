"""The recipe of an inpainter at the size of each variant, and the stages that lead to painted lesions.

All defaults are in elk_jax/tasks/inpainting/recipe.py.
"""

from __future__ import annotations

from typing import Any

from configs.variants import merge, settings
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks.inpainting.recipe import InpaintingRecipe, PaintStage, TrainInpainterStage
from elk_jax.tasks.lesion_quality.recipe import LesionQualityStage
from elk_jax.training.schedules import Constant


def inpainter(size: str, private: bool = False, scarce: bool = False) -> dict[str, Any]:
    """The recipe of a lesion inpainter. scarce: for few lesions, which need fewer steps.

    A small model in pixel space, trained from scratch; `paper`: Stable Diffusion 1.5 inpainting, loaded with init_from
    (launch/import_weights.py --format=diffusers) and fine-tuned as published.
    """
    changes = {"quick": {}, "tiny": tiny(), "small": small(), "paper": published()}
    recipe = merge(settings(InpaintingRecipe()), changes[size])
    if scarce:
        merge(recipe, {"steps": 800, "eval_every": 400, "checkpoint_every": 400})
    return recipe | {"privacy": settings(Privacy(epsilon=8.0))} if private else recipe


def tiny() -> dict[str, Any]:
    """For tests: attention only in the middle, as in the denoiser."""
    return {
        "model": {
            "size": 32, "down_block_types": ("DownBlock2D",), "block_out_channels": (8,), "norm_num_groups": 4,
            "attention_head_dim": 2,
        },
        "sampler": {"steps": 2},
        "closeups": {"window": 48, "batch_size": 4},
        "steps": 4,
        "schedule": {"warmup_steps": 1},
        "validation_closeups": 4,
        "log_every": 2,
        "checkpoint_every": 2,
        "eval_every": 2,
    }  # fmt: skip


def small() -> dict[str, Any]:
    """For hundreds of real images."""
    return {"closeups": {"window": 96}, "sampler": {"steps": 30}, "steps": 2500}


def published() -> dict[str, Any]:
    """ELK's fine-tuning of Stable Diffusion 1.5 inpainting. A GPU with 40 GB (bfloat16, remat)."""
    return {
        "model": None,  # loaded with init_from
        "networks": {"dtype": "bfloat16", "remat": True, "attention": "auto"},
        "guidance": 2.0,
        "sampler": {"steps": 50, "lambda_min": None},
        "closeups": {
            "window": 512, "margin": 0.0, "batch_size": 8, "tissue_share": 0.0, "vertical_flip": 0.0,
            "horizontal_flip": 0.0, "gain": 0.0, "threads": 8,
        },
        "loss": {"mask_outside": 1.0, "min_snr_gamma": 0.0, "prior_weight": 1.0},
        "steps": 2400,
        "schedule": settings(Constant(base=1e-6)),
        "ema_decay": 0.0,
        "eval_every": 200,
        "checkpoint_every": 400,
    }  # fmt: skip


def painting_stages(size: str, extras: frozenset[str], scarce: bool = False) -> dict[str, Any]:
    """Stages that lead from the source `real` to the source `synthetic` ('stage:lesions'): train, paint, compare.

    scarce: paint many times the number of real lesions, into the source `canvases`. `paper` pastes whole windows, as
    published; the others only the lesion, with a soft border and grain. `private` paints into the source `canvases` and
    compares with validation lesions, so no stage shows a protected image.
    """
    private = "private" in extras
    times = 2 if "double" in extras else 1
    return {
        "inpainter": TrainInpainterStage(train_on=("real",), validate_on="real"),
        "lesions": PaintStage(
            model="inpainter",
            canvases="canvases" if private or scarce else "real",
            share_of="canvases" if private else "real",
            share=float(times),
            count=240 * times if scarce else 0,
            area="medium" if "medium" in extras else "free",
            whole_window=size == "paper",
        ),
        "lesion_quality": LesionQualityStage(
            synthetic="synthetic", on="real", split="val" if private else "train", repeated=not private
        ),
    }
