"""Inpainting of grey images: a U-Net paints a lesion under a mask, in pixel space or in latent space.

Shapes: B batch, S side of the picture, p side of a patch, h = S / p (pixels) or S / factor (latents), T tokens.

Both spaces share one interface:
- latents of an autoencoder, as in Stable Diffusion: the U-Net sees 4 noisy latents, 1 mask and 4 latents of the masked
  image; a text describes what to paint;
- pixels, for small models trained from scratch: a patch of p x p pixels becomes one position with p^2 channels (its
  normalised pixels), so that attention and convolutions run on h x h positions. Grey values are relative to the level
  of the tissue around the mask, so that a model need not learn the brightness of a breast. The U-Net sees patches of
  the noisy image, the mask, the distance from the centre of the mask and the masked image, and one channel for what to
  paint: 1 for a lesion, 0 for healthy tissue.

Parameters: a dict with `unet`, and in latents `vae` and `text_encoder`.
Source: Rombach et al. 2022, arXiv 2112.10752; Montoya-del-Angel et al. 2024 (ELK).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elk_jax.diffusion import autoencoder, losses, schedule, text_encoder, unet
from elk_jax.diffusion.autoencoder import AutoencoderConfig, AutoencoderKL
from elk_jax.diffusion.samplers import SamplerConfig, classifier_free, sample
from elk_jax.diffusion.schedule import Schedule
from elk_jax.diffusion.text_encoder import CLIPTextEncoder, TextConfig
from elk_jax.diffusion.unet import UNet2DCondition, UNetConfig
from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, SIDE, AtLeast, Checked, check
from elk_jax.images.grey import AIR
from elk_jax.precision import at_least_float32

Params = Any

INSIDE = 0.5
"""Mask value from which a pixel is painted."""


@dataclass(frozen=True)
class InpainterConfig:
    """The parts of a model. autoencoder, text: both in latent space, None in pixel space.

    size: S. patch, std: of pixel space; grey values in [0, 1] are normalised to (grey - level) / std, where level is
    the mean of the visible tissue (`tissue_level`).
    """

    unet: UNetConfig
    size: Annotated[int, SIDE] = 512
    autoencoder: AutoencoderConfig | None = None
    text: TextConfig | None = None
    patch: Annotated[int, SIDE] = 4
    std: Annotated[float, ABOVE_ZERO] = 0.2

    def __post_init__(self) -> None:
        check(self)
        if (self.autoencoder is None) != (self.text is None):
            raise UserError(
                "an inpainter needs both an autoencoder and a text encoder, or neither",
                where="text" if self.text is None else "autoencoder",
                todo="give both",
            )
        step = self.factor * self.unet.factor
        if self.size % step:
            raise UserError(f"size is {self.size}", where="size", todo=f"use a multiple of {step}")
        if self.unet.in_channels != self.channels:
            hint = "import a text-to-image model with --inpainting, which adds the input channels"
            raise UserError(
                f"the U-Net has {self.unet.in_channels} input channels, an inpainter needs {self.channels}",
                where="unet.in_channels",
                todo=hint if self.autoencoder else f"use {self.channels}",
            )

    @property
    def factor(self) -> int:
        """Pixels per position of the U-Net, in each direction."""
        return self.autoencoder.factor if self.autoencoder else self.patch

    @property
    def depth(self) -> int:
        """Channels of the denoised latents or patches."""
        return self.autoencoder.latent_channels if self.autoencoder else self.patch**2

    @property
    def channels(self) -> int:
        """Input channels of the U-Net."""
        return 2 * self.depth + 1 if self.autoencoder else 4 * self.patch**2 + 1


@dataclass(frozen=True)
class LossConfig(Checked):
    """Weights of the training loss.

    mask_outside: weight of the pixels outside the mask (1: all pixels have equal weight, as published; 0: only the mask
    counts). min_snr_gamma, noise_offset: 0 for none. prior_weight: weight of the healthy (prior) examples.
    """

    mask_outside: Annotated[float, AtLeast(0)] = 1.0
    min_snr_gamma: Annotated[float, AtLeast(0)] = 0.0
    noise_offset: Annotated[float, AtLeast(0)] = 0.0
    prior_weight: Annotated[float, AtLeast(0)] = 1.0


@dataclass(frozen=True)
class Words:
    """The texts as token ids, each of the same length T. Empty in pixel space."""

    lesion: tuple[int, ...] = ()
    tissue: tuple[int, ...] = ()
    negative: tuple[int, ...] = ()


def init(config: InpainterConfig, rng: jax.Array) -> Params:
    """Initial parameters; only their shapes under jax.eval_shape."""
    keys = jax.random.split(rng, 3)
    params = {"unet": unet.init(config.unet, keys[0])}
    if config.autoencoder and config.text:
        params["vae"] = autoencoder.init(config.autoencoder, keys[1])
        params["text_encoder"] = text_encoder.init(config.text, keys[2])
    return params


# ---- The two spaces -------------------------------------------------------------------------------------------------


def encode(
    config: InpainterConfig, params: Params, image: jax.Array, mask: jax.Array, rng: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(latents or patches of the image, those of the masked image), [B, h, h, depth], from image, mask [B, S, S, 1].

    Grey values and mask are 0 to 1. rng: draws the latents from the autoencoder's distribution; None: takes its mean.
    """
    if config.autoencoder is None:
        seen = small_mask(config, mask)
        clean = to_patches((image - tissue_level(image, mask)) / config.std, config.patch)
        return clean, clean * (1 - seen)
    pictures = 2 * image - 1
    clean = _latents(config, params, pictures, rng)
    return clean, _latents(config, params, pictures * (1 - mask.astype(pictures.dtype)))  # middle grey under the mask


def _latents(config: InpainterConfig, params: Params, pictures: jax.Array, rng: jax.Array | None = None) -> jax.Array:
    """Latents [B, h, h, Z] of grey pictures [B, S, S, 1] in [-1, 1]."""
    assert config.autoencoder is not None
    colour = jnp.repeat(pictures, config.autoencoder.in_channels, axis=-1)
    mean, logvar = _apply(AutoencoderKL(config.autoencoder), params["vae"], colour, method="encode")
    return autoencoder.to_latents(mean, logvar, config.autoencoder, rng)


def decode(config: InpainterConfig, params: Params, latents: jax.Array, image: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, h, h, depth] -> pictures [B, S, S, 1], about 0 to 1. Only the visible part of the image is used."""
    if config.autoencoder is None:
        return from_patches(latents, config.patch) * config.std + tissue_level(image, mask)
    unscaled = autoencoder.from_latents(latents, config.autoencoder)
    colour = _apply(AutoencoderKL(config.autoencoder), params["vae"], unscaled, method="decode")
    return (colour.mean(axis=-1, keepdims=True) + 1) / 2


def tissue_level(image: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, 1, 1, 1]: mean grey value of the visible tissue (not air); 0 if there is none."""
    visible = (1 - mask) * (image > AIR)
    total = visible.sum(axis=(1, 2, 3), keepdims=True)
    return (image * visible).sum(axis=(1, 2, 3), keepdims=True) / jnp.maximum(total, 1)


def small_mask(config: InpainterConfig, mask: jax.Array) -> jax.Array:
    """The mask [B, S, S, 1] at the size of the U-Net: [B, h, h, 1] by nearest pixel in latent space, else patches."""
    if config.autoencoder is None:
        return to_patches(at_least_float32(mask), config.patch)
    return latent_mask(mask, config.factor)


def latent_mask(mask: jax.Array, factor: int) -> jax.Array:
    """The mask [B, H, W, 1] resized to the latents, [B, H / factor, W / factor, 1], by nearest (top left) pixel.

    A mask that falls between those pixels marks every latent that it touches, so that the smallest lesion is painted.
    """
    height, width = mask.shape[-3:-1]
    nearest = mask[..., ::factor, ::factor, :]
    cells = mask.reshape(*mask.shape[:-3], height // factor, factor, width // factor, factor, mask.shape[-1])
    touched = cells.max(axis=(-4, -2))
    return jnp.where(nearest.max(axis=(-3, -2, -1), keepdims=True) >= INSIDE, nearest, touched)


def seen_of_mask(config: InpainterConfig, mask: jax.Array) -> jax.Array:
    """The mask channels of the U-Net's input: `small_mask`, and in pixel space also `centredness`."""
    if config.autoencoder is None:
        return to_patches(jnp.concatenate([at_least_float32(mask), centredness(mask)], axis=-1), config.patch)
    return small_mask(config, mask)


def centredness(mask: jax.Array) -> jax.Array:
    """[B, S, S, 1]: in the mask 1 at the centre, 0 on the ellipse inscribed in a box, -1 in the corners of the box.

    A lesion roughly fills that ellipse; this channel spares a small model from learning it.
    """
    mask = at_least_float32(mask)
    total = jnp.maximum(mask.sum(axis=(1, 2, 3), keepdims=True), 1)
    far = jnp.zeros_like(mask)
    for axis in (1, 2):
        shape = [1, 1, 1, 1]
        shape[axis] = mask.shape[axis]
        positions = jnp.arange(mask.shape[axis], dtype=mask.dtype).reshape(shape)
        middle = (mask * positions).sum(axis=(1, 2, 3), keepdims=True) / total
        variance = (mask * (positions - middle) ** 2).sum(axis=(1, 2, 3), keepdims=True) / total
        # n positions in a row have variance (n^2 - 1) / 12; three times that plus 1/4 is (n / 2)^2
        far += (positions - middle) ** 2 / (3 * variance + 0.25)
    return mask * (1 - far)


def to_patches(x: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, H / p, W / p, p p C]: the pixels of a patch become channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // patch, width // patch, patch * patch * channels)


def from_patches(x: jax.Array, patch: int) -> jax.Array:
    """Inverse of `to_patches`."""
    batch, height, width, depth = x.shape
    channels = depth // patch**2
    x = x.reshape(batch, height, width, patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * patch, width * patch, channels)


# ---- Training -------------------------------------------------------------------------------------------------------


def loss(
    config: InpainterConfig,
    params: Params,
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
    noise: Schedule,
    weights: LossConfig,
    words: Words,
    tissue_share: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics) of a batch of close-ups: `image`, `mask` [B, S, S, 1], `lesion`, `valid` [B].

    tissue_share: expected share of healthy tissue. With it, the loss is a mean over independent examples; without it,
    the means over the lesions and over the tissue of the batch are added.
    If the batch has `latents` and `masked_latents` [B, h, h, depth], they are used and the image is not encoded.
    """
    rngs = jax.random.split(rng, 3)
    mask, lesion = batch["mask"], batch["lesion"]
    if "latents" in batch:
        clean, masked = batch["latents"], batch["masked_latents"]
    else:
        clean, masked = jax.lax.stop_gradient(encode(config, params, batch["image"], mask, rngs[0]))
    t = jax.random.randint(rngs[1], lesion.shape, 0, noise.steps)
    epsilon = losses.draw_noise(rngs[2], clean.shape, weights.noise_offset, clean.dtype.type)
    noisy, target = schedule.add_noise(noise, clean, epsilon, t), schedule.target(noise, clean, epsilon, t)
    seen = small_mask(config, mask)
    guide = seen_of_mask(config, mask)
    prediction = _denoise(config, params, noisy, t, guide, masked, _condition(config, params, lesion, words))

    valid = batch.get("valid", jnp.ones(lesion.shape, bool))
    is_prior, is_lesion = (lesion < 0.5) & valid, (lesion >= 0.5) & valid
    # both weight the two means; the division makes their sum a mean again
    if tissue_share is None:
        weight = losses.prior_weight(lesion < 0.5, weights.prior_weight, valid)
        weight = weight / (1 + weights.prior_weight * jnp.any(is_prior))
    else:
        weight = losses.expected_prior_weight(lesion < 0.5, weights.prior_weight, tissue_share)
        weight = weight / (1 + weights.prior_weight * (tissue_share > 0))
    if weights.min_snr_gamma:
        weight = weight * losses.min_snr_weight(noise, t, weights.min_snr_gamma)
    pixels = None if weights.mask_outside == 1 else losses.mask_weight(seen, weights.mask_outside)
    total, each = losses.denoising_loss(prediction, target, weight=weight, pixel_weight=pixels, valid=valid)
    return total, {"error_lesion": _mean(each, is_lesion), "error_tissue": _mean(each, is_prior)}


def _mean(values: jax.Array, chosen: jax.Array) -> jax.Array:
    return jnp.where(chosen, values, 0).sum() / jnp.maximum(chosen.sum(), 1)


def _condition(config: InpainterConfig, params: Params, lesion: jax.Array, words: Words) -> jax.Array:
    """What to paint in each example: the hidden states of the text [B, T, D], or `lesion` itself [B]."""
    if config.text is None:
        return lesion
    both = _states(config, params, words.lesion, words.tissue)
    return jnp.where(lesion[:, None, None] >= 0.5, both[0], both[1])


def _states(config: InpainterConfig, params: Params, *texts: tuple[int, ...]) -> jax.Array:
    assert config.text is not None
    tokens = jnp.asarray(texts, jnp.int32)
    return _apply(CLIPTextEncoder(config.text), params["text_encoder"], tokens)


def _denoise(config: InpainterConfig, params: Params, noisy, t, mask, masked, condition) -> jax.Array:
    """The U-Net's output [B, h, h, depth]."""
    model, seen = UNet2DCondition(config.unet), [noisy, mask.astype(noisy.dtype), masked.astype(noisy.dtype)]
    if config.text is not None:
        return _apply(model, params["unet"], jnp.concatenate(seen, -1), t, condition)
    flag = jnp.broadcast_to(condition[:, None, None, None], (*noisy.shape[:-1], 1))
    return _apply(model, params["unet"], jnp.concatenate([*seen, flag.astype(noisy.dtype)], -1), t)


def _apply(model: nn.Module, params: Params, *inputs: jax.Array, method: str = "__call__") -> Any:
    return model.apply({"params": params}, *inputs, method=method)


# ---- Painting -------------------------------------------------------------------------------------------------------


def paint(
    config: InpainterConfig,
    params: Params,
    image: jax.Array,
    mask: jax.Array,
    keys: jax.Array,
    noise: Schedule,
    sampler: SamplerConfig,
    guidance: float,
    words: Words,
) -> jax.Array:
    """Pictures [B, S, S, 1] in [0, 1] with a lesion under the mask and the unchanged pixels of `image` outside it.

    image [B, S, S, 1] in [0, 1]; mask [B, S, S, 1]. keys [B]: each picture depends only on its own key. guidance:
    strength of the guidance from healthy tissue (or the negative text) towards a lesion; 1 for none.
    """
    visible = image * (1 - mask)  # the pixels under the mask are not used
    seen, (_, masked) = seen_of_mask(config, mask), encode(config, params, visible, mask)
    count = len(image)
    if config.text is None:
        wanted, unwanted = jnp.ones(count, masked.dtype), jnp.zeros(count, masked.dtype)
    else:
        both = _states(config, params, words.lesion, words.negative)
        wanted, unwanted = (jnp.broadcast_to(one, (count, *one.shape)) for one in both)

    def denoise(x, t, condition):
        return _denoise(config, params, x, t, condition["mask"], condition["masked"], condition["what"])

    known = {"mask": seen, "masked": masked}
    guided = classifier_free(denoise, known | {"what": wanted}, known | {"what": unwanted}, guidance)
    latents = sample(guided, noise, sampler, (count, *masked.shape[1:3], config.depth), keys)
    painted = jnp.clip(decode(config, params, latents, visible, mask), 0, 1)
    return jnp.where(mask >= INSIDE, painted.astype(image.dtype), image)
