"""Input of an inpainting model, and the pixels that it may change.

Shapes: B batch; images [B, H, W, 3] in [-1, 1]; masks [B, H, W, 1], 1 where to paint; latents [B, h, w, 4] with
h = H / factor. The U-Net's input is [noisy latents 4, mask 1, latents of the masked image 4], as in Stable Diffusion's
inpainting models (Rombach et al. 2022, arXiv 2112.10752).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

INPUT_CHANNELS = 9
INSIDE = 0.5
"""Mask values from here on mark a pixel to paint."""


def unet_input(noisy_latents: jax.Array, mask: jax.Array, masked_latents: jax.Array) -> jax.Array:
    """[B, h, w, 4 + 1 + 4] of latents [B, h, w, 4] and a mask of latent size [B, h, w, 1]."""
    if mask.shape[-1] != 1 or mask.shape[:-1] != noisy_latents.shape[:-1]:
        raise ValueError(f"a mask {mask.shape} for latents {noisy_latents.shape}: shrink it with latent_mask")
    return jnp.concatenate([noisy_latents, mask.astype(noisy_latents.dtype), masked_latents], -1)


def latent_mask(mask: jax.Array, factor: int = 8) -> jax.Array:
    """The mask [B, H, W, 1] resized to the latents, [B, H / factor, W / factor, 1], by nearest (top left) pixel.

    A mask that falls between those pixels marks every latent that it touches, so that the smallest lesion is painted.
    """
    height, width = mask.shape[-3:-1]
    if height % factor or width % factor:
        raise ValueError(f"a mask of {height} x {width} pixels is not divisible by {factor}")
    nearest = mask[..., ::factor, ::factor, :]
    cells = mask.reshape(*mask.shape[:-3], height // factor, factor, width // factor, factor, mask.shape[-1])
    touched = cells.max(axis=(-4, -2))
    return jnp.where(nearest.max(axis=(-3, -2, -1), keepdims=True) >= INSIDE, nearest, touched)


def masked_image(image: jax.Array, mask: jax.Array) -> jax.Array:
    """The image with 0 (middle grey) under the mask."""
    return image * (1 - mask.astype(image.dtype))


def keep_known(image: jax.Array, painted: jax.Array, mask: jax.Array) -> jax.Array:
    """`painted` inside the mask, the unchanged pixels of `image` outside; all [B, H, W, ...]."""
    return jnp.where(mask >= INSIDE, painted.astype(image.dtype), image)
