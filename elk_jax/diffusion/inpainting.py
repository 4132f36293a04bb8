"""What an inpainting model sees, and what it may change.

Shapes: B batch; images [B, H, W, 3] in [-1, 1]; masks [B, H, W, 1], 1 where to paint; latents [B, h, w, 4] with
h = H / factor. The U-Net's input is [noisy latents 4, mask 1, latents of the masked image 4], as in Stable Diffusion's
inpainting models (Rombach et al. 2022, arXiv 2112.10752).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.errors import UserError

INPUT_CHANNELS = 9
INSIDE = 0.5
"""A pixel of the mask from here on is painted."""


def unet_input(noisy_latents: jax.Array, mask: jax.Array, masked_latents: jax.Array) -> jax.Array:
    """[B, h, w, 4 + 1 + 4] of latents [B, h, w, 4] and a mask of latent size [B, h, w, 1]."""
    if mask.shape[-1] != 1 or mask.shape[:-1] != noisy_latents.shape[:-1]:
        raise ValueError(f"a mask {mask.shape} for latents {noisy_latents.shape}: shrink it with latent_mask")
    return jnp.concatenate([noisy_latents, mask.astype(noisy_latents.dtype), masked_latents], -1)


def latent_mask(mask: jax.Array, factor: int = 8) -> jax.Array:
    """The mask [B, H, W, 1] at the latents' size [B, H / factor, W / factor, 1] by nearest (top left) pixel."""
    height, width = mask.shape[-3:-1]
    if height % factor or width % factor:
        raise ValueError(f"a mask of {height} x {width} pixels cannot shrink by {factor}")
    return mask[..., ::factor, ::factor, :]


def masked_image(image: jax.Array, mask: jax.Array) -> jax.Array:
    """The image with 0 (middle grey) where it is to be painted."""
    return image * (1 - mask.astype(image.dtype))


def keep_known(image: jax.Array, painted: jax.Array, mask: jax.Array) -> jax.Array:
    """`painted` inside the mask, the very pixels of `image` outside; all [B, H, W, ...]."""
    return jnp.where(mask >= INSIDE, painted.astype(image.dtype), image)


def check_masks(mask: np.ndarray, image_shape: tuple[int, ...], where: object = "mask", factor: int = 8) -> None:
    """Host arrays. Raises UserError for a mask of another size, without pixels, or one that the latents do not see."""
    mask = np.asarray(mask)
    if mask.shape[:-1] != tuple(image_shape[:-1]) or mask.shape[-1] != 1:
        raise UserError(f"a mask {mask.shape} for an image {tuple(image_shape)}", where=where, todo="give equal sizes")
    for number, one in enumerate(mask.reshape(-1, *mask.shape[-3:])):
        inside = one >= INSIDE
        if not inside.any():
            raise UserError(f"mask {number} has no pixels", where=where, todo="mark what to paint with 1")
        if not np.asarray(latent_mask(inside, factor)).any():
            raise UserError(
                f"mask {number} falls between the latents' pixels",
                where=where,
                todo=f"make it at least {factor} pixels wide and high",
            )
