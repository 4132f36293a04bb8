"""From the grey values of images to the input of a network.

Shapes: B batch, H W image size, C input channels of the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from elk_jax.errors import UserError
from elk_jax.precision import at_least_float32

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue in ImageNet's photographs, in [0, 1]."""


@jax.named_scope("normalise")
def normalise(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], image_size: jax.Array | None = None
) -> jax.Array:
    """Images [B, H, W, C or 1] -> network input [B, H, W, C]. Grey images are repeated over the channels.

    mean, std: one number per channel, on the scale of the images. image_size [B, 2]: height and width of each image
    within its canvas; outside it, the input is 0. None: the image fills the canvas. UserError for another number of
    channels.
    """
    channels = len(mean)
    if images.shape[-1] not in (1, channels):
        raise UserError(f"images with {images.shape[-1]} channels", todo=f"give 1 or {channels} channels")
    images = at_least_float32(images)
    normalised = (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)
    if image_size is None:
        return normalised
    rows = jnp.arange(images.shape[1])[None, :] < image_size[:, :1]
    columns = jnp.arange(images.shape[2])[None, :] < image_size[:, 1:]
    return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], normalised, 0)
