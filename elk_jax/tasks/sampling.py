"""Shared parts of the diffusion tasks: a network in pixel space, its noise, sampling from seeds, a reproducible
loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import cv2
import jax
import numpy as np
from jax.sharding import Mesh

from elk_jax.diffusion.samplers import SamplerConfig, plan
from elk_jax.diffusion.schedule import Schedule, make_schedule
from elk_jax.diffusion.unet import UNetConfig
from elk_jax.errors import UserError
from elk_jax.fields import SIDE, check
from elk_jax.spread import spread
from elk_jax.training import mesh as meshes
from elk_jax.training import prediction
from elk_jax.training.model import Model, Params, Predictor

VALIDATION_DRAWS = 4
"""Number of noises and time steps at which the loss of every validation example is measured."""


@dataclass(frozen=True)
class PixelNetwork:
    """A U-Net on patches of pixels. size: side of the picture. patch: pixels of one place of the U-Net,
    in each direction. The others are fields of `UNetConfig`."""

    size: Annotated[int, SIDE] = 64
    patch: Annotated[int, SIDE] = 4
    down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D")
    block_out_channels: tuple[int, ...] = (64, 128)
    layers_per_block: int = 1
    attention_head_dim: int | tuple[int, ...] = 4
    norm_num_groups: int = 16

    def unet(self, inputs: int, others: int = 0, text: int | None = None, **changes: Any) -> UNetConfig:
        """The network that takes `inputs` patches and `others` further channels, and returns one patch.

        text: channels of a text; None for a network without text.
        """
        own = {field.name: getattr(self, field.name) for field in fields(PixelNetwork)}
        size, patch = own.pop("size"), own.pop("patch")
        return UNetConfig(
            sample_size=size // patch,
            in_channels=inputs * patch**2 + others,
            out_channels=patch**2,
            cross_attention_dim=text,
            **own,
            **changes,
        )


@dataclass(frozen=True)
class NoiseSettings:
    """A noise schedule (`diffusion.schedule.make_schedule`). A model loaded with init_from keeps its own."""

    name: str = "cosine"
    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: str = "x0"
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        check(self)
        self.schedule()

    def schedule(self) -> Schedule:
        return make_schedule(**vars(self))


def settings_of(noise: Schedule) -> NoiseSettings:
    """The settings that make the same schedule again."""
    return NoiseSettings(**{field.name: getattr(noise, field.name) for field in fields(NoiseSettings)})


def check_drawing(noise: Schedule, sampler: SamplerConfig, guidance: float) -> None:
    """Raise UserError if sampling is impossible: more steps than the schedule has, or a negative guidance."""
    try:
        plan(noise, sampler)
    except UserError as error:
        raise error.within("sampler") from error
    if not 0 <= guidance < math.inf:
        raise UserError(f"guidance is {guidance}", where="guidance", todo="give 0 or more; 1 for none")


Sampler = Callable[[Params, Mapping[str, np.ndarray]], np.ndarray]


def seeds(seed: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """[B, 2] uint32: the seeds of the pictures `indices` [B], each its own."""
    return np.stack([np.full(len(indices), seed), np.asarray(indices)], axis=1).astype(np.uint32)


def keys_of(seeds: jax.Array) -> jax.Array:
    """Random keys [B] of `seeds` [B, 2]."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed[0]), seed[1]))(seeds)


def compile_sampler(model: Predictor, mesh: Mesh) -> Sampler:
    """(params, host batch) -> pictures [B, S, S, 1] drawn by `model.predict`, on the host.

    The batch holds the inputs of `model.predict`: `seed` [B, 2] uint32 (each picture depends on its own seed only), and
    usually more, such as `image` [B, S, S, 1]. B may be any number.
    """
    predict, constants = prediction.on_mesh(model, mesh), meshes.place_constants(model.constants, mesh)

    def sample(params: Params, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        found, _ = predict(params, constants, meshes.spread_batch(batch, mesh))
        return np.asarray(jax.device_get(found["image"]))[: len(batch["seed"])]

    return sample


def fixed_loss(
    model: Model, batches: Sequence[Mapping[str, Any]], mesh: Mesh
) -> Callable[[Params, int], dict[str, float]]:
    """The loss of a diffusion model on these batches, always at the same noises and time steps."""
    map_images, constants = meshes.shard_map_images(mesh), meshes.place_constants(model.constants, mesh)
    loss = lambda params, constants, batch, rng: model.loss(params, constants, batch, rng, map_images)[0]
    measure = jax.jit(meshes.traced_on(mesh, loss), out_shardings=meshes.replicated(mesh))

    def evaluate(params: Params, step: int) -> dict[str, float]:
        losses, counts = [], []
        for number, batch in enumerate(batches):
            placed = meshes.spread_batch(batch, mesh)
            for draw in range(VALIDATION_DRAWS):
                rng = jax.random.fold_in(jax.random.key(draw), number)
                losses.append(measure(params, constants, placed, rng))
                counts.append(float(batch["valid"].sum()))
        return {"loss": float(np.average(np.asarray(jax.device_get(losses)), weights=counts))}

    return evaluate


def grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of pictures [B, S, S, 1] in [0, 1], one above the other, as one picture [H, W, 3] uint8."""
    lines = [np.concatenate(list(row[..., 0]), axis=1) for row in rows]
    grey = (np.clip(np.concatenate(lines, axis=0), 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def saved_grids(folder: Path, name: str, count: int) -> list[tuple[int, np.ndarray]]:
    """(step, grid [H, W] uint8) of `folder`/pictures/NAME-STEP.png: the first, the last, and evenly spaced ones between
    them. Damaged files are skipped.
    """
    step = lambda path: int(path.stem.rpartition("-")[2])
    paths = sorted((folder / "pictures").glob(f"{name}-*.png"), key=step)
    chosen = [paths[i] for i in spread(len(paths), count)]
    read = [(step(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)) for path in chosen]
    return [(step, picture) for step, picture in read if picture is not None]
