"""The recipe of a network that classifies, at the size of each variant. Defaults are in
elk_jax/tasks/classification/recipe.py."""

from __future__ import annotations

from typing import Any

from configs.variants import merge, settings
from elk_jax.backbones import efficientnet, swin
from elk_jax.tasks.classification.recipe import NetworkRecipe
from elk_jax.training.schedules import Constant

HEAD_ONLY = (r"^(?!hidden/|classifier/)",)
"""Parameters that are frozen if only the class layers are trained."""
HIDDEN = 384
"""Width of the published head of a frozen Swin-T: 768-384-2, 296,066 parameters. The linear one has 1,538."""
FULL = 128
"""Number of patches in a published batch."""


def network(size: str) -> dict[str, Any]:
    """The recipe of a network."""
    if size in ("tiny", "quick"):
        steps = 4 if size == "tiny" else 300
        recipe = NetworkRecipe(model=small_swin(size), size=32 if size == "tiny" else 64, steps=steps)
        return merge(settings(recipe), tiny() if size == "tiny" else {})
    if size == "small":
        recipe = NetworkRecipe(model=efficientnet.named("lite0", num_classes=2), size=192, steps=240)
        return merge(settings(recipe), fine_tuned())
    return merge(settings(NetworkRecipe(model=swin.named("tiny", num_classes=2))), published())


def small_swin(size: str) -> swin.SwinConfig:
    """A network that is trained from scratch in seconds (tiny) or minutes."""
    if size == "tiny":
        shape: dict[str, Any] = {"embed": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2)}
    else:
        shape = {"embed": 32, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8)}
    return swin.SwinConfig(**shape, window=4, drop_path=0.1, num_classes=2, pixel_mean=(0.5,), pixel_std=(0.25,))


def tiny() -> dict[str, Any]:
    """For tests."""
    return {
        "images": {"batch_size": 4},
        "schedule": {"warmup_steps": 1},
        "log_every": 2,
        "checkpoint_every": 2,
        "eval_every": 2,
    }


def fine_tuned() -> dict[str, Any]:
    """An imported EfficientNet on a thousand patches: only the coarse stages are trained, slower than the class layers.

    At a rate of 3e-4 for all layers it forgets its pretraining within 50 steps.
    """
    return {
        "label_smoothing": 0.1,
        "test_symmetries": True,
        "ema_decay": 0.97,
        "model": {"frozen_stages": 4, "drop_path": 0.1},
        "images": {"zoom": 0.1, "shift": 0.05, "gain": 0.1, "gamma": 0.1},
        "schedule": {"base": 1e-3},
        "optimizer": {"multipliers": (("^backbone/", 0.15), ("^head/", 0.3))},
        "eval_every": 120,
    }


def published() -> dict[str, Any]:
    """300 epochs of 1,104 patches at a constant rate."""
    return {
        "label_smoothing": 0.1,
        "images": {"batch_size": FULL, "threads": 8},
        "steps": published_steps(1104),
        "optimizer": {"clip_norm": 0.0, "weight_decay": 1e-8},
        "schedule": settings(Constant(base=1e-5)),
        "checkpoint_every": 100,
        "eval_every": 50,
    }


def published_steps(count: int) -> int:
    """The number of steps for 300 epochs of `count` patches. The last batch of a published epoch has the remaining
    patches; here all batches are full, so the same number of steps sees a few more patches."""
    return 300 * -(-count // FULL)
