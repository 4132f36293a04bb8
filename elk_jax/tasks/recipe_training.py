"""The training that a recipe describes: its keys as the loop's arguments, the same for every task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from elk_jax.data.stream import Stream
from elk_jax.tasks.run import Run
from elk_jax.training.loop import TrainResult
from elk_jax.training.loop import train as train_loop
from elk_jax.training.task import Params, Task


def train(
    run: Run,
    name: str,
    task: Task,
    batches: Stream,
    *,
    initial: Params | None,
    evaluate: Callable[[Params, int], dict[str, float]],
    best_metric: str,
    best_mode: str = "max",
    draw: Callable[[Params, int], dict[str, np.ndarray]] | None = None,
    identity: Mapping[str, Any],
    buckets: int = 1,
) -> TrainResult:
    """Train stage `name` by its recipe; reading ahead stops with it, however it ends. See `training.loop.train`.

    identity: plain values that a checkpoint must agree in to be gone on from, by what to call them.
    """
    recipe = run.config[run.config.stages[name].recipe]
    try:
        return train_loop(
            task,
            workdir=run.folder / name,
            data_iterator=batches,
            total_steps=recipe.steps,
            optimizer=recipe.optimizer.to_dict(),
            schedule=recipe.schedule.to_dict(),
            mesh=run.mesh,
            seed=run.config.seed,
            ema_decay=recipe.ema_decay or None,
            accumulate=recipe.accumulate,
            initial_params=initial,
            log_every=recipe.log_every,
            checkpoint_every=recipe.checkpoint_every,
            eval_every=recipe.eval_every,
            evaluate=evaluate,
            draw=draw,
            best_metric=best_metric,
            best_mode=best_mode,
            identity={key: _hash(value) for key, value in identity.items()},
            buckets=buckets,
            title=name,
        )
    finally:
        batches.close()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
