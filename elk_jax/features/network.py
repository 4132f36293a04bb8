"""Frozen features of a network: statistics of its maps over the whole image and around a lesion.

Shapes: N images, H W their size, h w that of a map, C its channels, F features (4 C of each map).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Taps = Callable[[Any, jax.Array], Sequence[jax.Array]]
"""(parameters, images [B, H, W, 1] in [0, 1]) -> maps [B, h, w, C] of a network, which resizes and normalises images
itself.

It must be hashable: equal ones share a compiled program."""

Mirror = tuple[bool, bool]
"""Whether rows and columns are mirrored."""
MIRRORS: tuple[Mirror, ...] = ((False, False), (False, True), (True, False), (True, True))


class Window(NamedTuple):
    """A Gaussian around a lesion, as shares of the image: row and column of its centre, and its deviation."""

    row: float
    column: float
    deviation: float


def features(
    taps: Taps,
    params: Any,
    images: np.ndarray,
    window: Window,
    mirrors: tuple[Mirror, ...] = MIRRORS,
    batch_size: int = 16,
) -> list[np.ndarray]:
    """For each map of `taps`: [N, 4 C] float32 of images [N, H, W, 1], the means of `statistics` over mirrored views.

    The window stays on the lesion in every view. One compilation for all sets of images of one size; N may be 0.
    """
    params = jax.device_put(params)
    found = []
    for start in range(0, max(len(images), 1), batch_size):
        batch = np.asarray(images[start : start + batch_size], np.float32)
        rows = len(batch)
        padded = np.pad(batch, [(0, batch_size - rows), (0, 0), (0, 0), (0, 0)])
        found.append([np.asarray(part)[:rows] for part in _of_batch(taps, window, mirrors, params, padded)])
    return [np.concatenate(parts) for parts in zip(*found)]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _of_batch(
    taps: Taps, window: Window, mirrors: tuple[Mirror, ...], params: Any, batch: jax.Array
) -> list[jax.Array]:
    views = []
    for mirror in mirrors:
        axes = tuple(axis for axis, mirrored in zip((1, 2), mirror) if mirrored)
        views.append([statistics(jnp.flip(found, axes), window) for found in taps(params, jnp.flip(batch, axes))])
    return [sum(of_views) / len(mirrors) for of_views in zip(*views)]


def statistics(found: jax.Array, window: Window) -> jax.Array:
    """Mean and deviation of every channel over a map [B, h, w, C], then those under the window: [B, 4 C]."""
    h, w = found.shape[1:3]
    rows, columns = (
        np.exp(-0.5 * (((np.arange(size) + 0.5) / size - centre) / window.deviation) ** 2)
        for size, centre in ((h, window.row), (w, window.column))
    )
    parts = []
    for weights in (np.ones((h, w)), np.outer(rows, columns)):
        shares = jnp.asarray(weights / weights.sum(), found.dtype)
        mean = jnp.einsum("bhwc,hw->bc", found, shares)
        squares = jnp.einsum("bhwc,hw->bc", (found - mean[:, None, None]) ** 2, shares)
        parts += [mean, jnp.sqrt(squares)]
    return jnp.concatenate(parts, axis=-1)
