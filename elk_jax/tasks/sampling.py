"""Pictures that diffusion models draw, each from a seed of its own, and grids of them as a training leaves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import jax
import numpy as np
from jax.sharding import Mesh

from elk_jax.data.batches.shuffle import filled_rows
from elk_jax.spread import spread
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Params, Task

Painter = Callable[[Params, Mapping[str, np.ndarray]], np.ndarray]


def seeds(seed: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """[B, 2] uint32: the seeds of the pictures `indices` [B], each its own."""
    return np.stack([np.full(len(indices), seed), np.asarray(indices)], axis=1).astype(np.uint32)


def keys_of(seeds: jax.Array) -> jax.Array:
    """Random keys [B] of `seeds` [B, 2]."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed[0]), seed[1]))(seeds)


def compile_painter(task: Task, mesh: Mesh) -> Painter:
    """(params, host batch) -> the pictures [B, S, S, 1] that `task.predict` draws, on the host.

    The batch holds what `task.predict` takes: `image` [B, S, S, 1], `seed` [B, 2] uint32 (a picture follows from its
    own), perhaps more. B may be any number; it is filled up to a multiple of the devices.
    """
    predict = jax.jit(task.predict, out_shardings=meshes.replicated(mesh))

    def paint(params: Params, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        count = len(batch["image"])
        missing = -count % mesh.size
        filled = {key: value[filled_rows(count, count + missing)] for key, value in batch.items()}
        # every process holds the whole batch, and lays it out over all devices
        placed = {key: jax.device_put(value, meshes.batch_sharding(mesh)) for key, value in filled.items()}
        return np.asarray(jax.device_get(predict(params, placed)["image"]))[:count]

    return paint


def grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of pictures [B, S, S, 1] in [0, 1], one above the other, as one picture [H, W, 3] uint8."""
    lines = [np.concatenate(list(row[..., 0]), axis=1) for row in rows]
    grey = (np.clip(np.concatenate(lines, axis=0), 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def saved_grids(folder: Path, name: str, count: int) -> list[tuple[int, np.ndarray]]:
    """(step, grid [H, W] uint8) of `folder`/pictures/NAME-STEP.png: the first, the last, and what lies evenly between.

    Damaged ones are left out.
    """
    paths = sorted((folder / "pictures").glob(f"{name}-*.png"))
    chosen = spread(len(paths), count)
    read = [(int(paths[i].stem.rpartition("-")[2]), cv2.imread(str(paths[i]), cv2.IMREAD_GRAYSCALE)) for i in chosen]
    return [(step, picture) for step, picture in read if picture is not None]
