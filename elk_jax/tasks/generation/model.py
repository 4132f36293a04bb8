"""Generators: one trained against a discriminator, as a game; one trained to denoise, as a model; and weighted patches.

Shapes: B batch, S side of a patch, Q classes, M patches of a pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.diffusion import patches
from elk_jax.diffusion.patches import DenoiserConfig
from elk_jax.errors import UserError
from elk_jax.fields import SHARE, SIDE
from elk_jax.gan import networks, objectives
from elk_jax.gan.augment import Augmentation, augmented
from elk_jax.gan.networks import GanConfig
from elk_jax.gan.objectives import NonSaturating, Objective, Wasserstein
from elk_jax.tasks import sampling
from elk_jax.tasks.generation.recipe import Drawing
from elk_jax.training.model import DISCRIMINATOR, GENERATOR, Constants, Game, Metrics, Model, Params
from elk_jax.weights import model_folder

ARCHITECTURE, DENOISER, POOL = "gan", "patch_denoiser", "weighted_patches"
MIDDLE = 0.5
HIDDEN = 0.1
"""For denoisers whose folders lack the field: the default of the recipe when they were written."""
PUBLISHED, UNCHANGED = NonSaturating(), Augmentation()


class Drawn(NamedTuple):
    """The inputs of a generator. noise: [B, Z]. label: [B] int32."""

    noise: jax.Array
    label: jax.Array


def trainable(
    config: GanConfig,
    objective: Objective = PUBLISHED,
    augmentation: Augmentation = UNCHANGED,
) -> Game:
    """The two players; generated patches have random classes. A batch has `image` [B, S, S, 1] in [0, 1], `label` [B]
    and `valid` [B].

    `predict` takes `seed` [B, 2] and `label` [B], and returns `image` [B, S, S, 1] in [0, 1].
    """

    def init(rng: jax.Array) -> Params:
        first, second = jax.random.split(rng)
        return {
            GENERATOR: networks.init_generator(config, first),
            DISCRIMINATOR: networks.init_discriminator(config, second),
        }

    def draw(rng: jax.Array, batch: Mapping[str, jax.Array]) -> Drawn:
        noise, label = jax.random.split(rng)
        count = len(batch["label"])
        chosen = jax.random.randint(label, (count,), 0, config.classes)
        return Drawn(networks.noise_of(config, noise, count), chosen)

    def generate(generator: Params, constants: Constants, drawn: Drawn) -> jax.Array:
        return networks.generate(config, generator, *drawn)

    def discriminator_loss(
        discriminator: Params, constants: Constants, batch: Mapping[str, jax.Array], drawn: Drawn, made: Any, rng: Any
    ) -> tuple[jax.Array, Metrics]:
        target, change, between = jax.random.split(rng, 3)
        real = networks.to_range(batch["image"])
        # the patches of a device stay on it: real and generated ones alternate
        both = augmented(augmentation, _in_turns(real, made), change)
        labels = _in_turns(batch["label"], drawn.label)
        score = networks.discriminate(config, discriminator, both, labels)
        of_real, of_made = score[::2], score[1::2]
        valid = batch["valid"]
        loss = objectives.discriminator_loss(objective, of_real, of_made, target, valid)
        terms = {"real_score": of_real.mean(), "made_score": of_made.mean()}
        if isinstance(objective, Wasserstein) and objective.penalty:
            judge = lambda x: networks.discriminate(config, discriminator, x, batch["label"])
            terms["slope"] = objectives.slope_penalty(judge, both[::2], both[1::2], between, valid)
            loss += objective.penalty * terms["slope"]
        return loss, terms

    def generator_loss(
        discriminator: Params, constants: Constants, drawn: Drawn, made: Any, rng: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        score = networks.discriminate(config, discriminator, augmented(augmentation, made, rng), drawn.label)
        return objectives.generator_loss(objective, score), {}

    def predict(params: Params, constants: Constants, batch: Mapping[str, jax.Array], map_images: Any) -> dict:
        noise = jax.vmap(lambda key: jax.random.normal(key, (config.noise,)))(sampling.keys_of(batch["seed"]))
        return {"image": networks.to_grey(networks.generate(config, params, noise, batch["label"]))}

    return Game(init, draw, generate, discriminator_loss, generator_loss, predict, per_example=True)


def _in_turns(first: jax.Array, second: jax.Array) -> jax.Array:
    """[2B, ...] from two [B, ...], alternating: the first of one, the first of the other, and so on."""
    return jnp.stack([first, second], axis=1).reshape(2 * len(first), *first.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Denoiser(Drawing):
    """Everything needed for sampling by denoising besides the parameters."""

    model: DenoiserConfig


def denoising(parts: Denoiser, gamma: float = 0.0) -> Model:
    """A denoiser for the training loop, with the same batches and `predict` as `trainable`.

    gamma: as in `diffusion.patches.loss`.
    """

    noise = parts.noise.schedule()

    def predict(params: Params, constants: Constants, batch: Mapping[str, jax.Array], map_images: Any) -> dict:
        keys = sampling.keys_of(batch["seed"])
        settings = noise, parts.sampler, parts.guidance
        return {"image": patches.generate(parts.model, params, batch["label"], keys, *settings)}

    def loss(params: Params, constants: Constants, batch: Mapping[str, jax.Array], rng: Any, map_images: Any) -> Any:
        return patches.loss(parts.model, params, batch, rng, noise, gamma, parts.hidden), {}

    return Model(init=partial(patches.init, parts.model), loss=loss, predict=predict, per_example=True)


@dataclass(frozen=True)
class Description:
    """The content of `model.json`. classes: by name, in the order of the generator's labels."""

    architecture: str
    model: GanConfig
    classes: tuple[str, ...]
    trained: model_folder.Training | None = None

    @property
    def size(self) -> int:
        """S of its patches."""
        return self.model.size

    def predict(self, params: Params, constants: Constants, batch: Mapping[str, jax.Array], map_images: Any) -> dict:
        """See `trainable`."""
        return trainable(self.model).predict(params, constants, batch, map_images)


@dataclass(frozen=True, kw_only=True)
class DenoiserDescription(Denoiser):
    """The content of `model.json` of a denoiser. classes: as for the others."""

    architecture: str
    classes: tuple[str, ...]
    trained: model_folder.Training | None = None

    @property
    def size(self) -> int:
        """S of its patches."""
        return self.model.size

    def predict(self, params: Params, constants: Constants, batch: Mapping[str, jax.Array], map_images: Any) -> dict:
        """See `denoising`."""
        return denoising(self).predict(params, constants, batch, map_images)


@dataclass(frozen=True)
class PoolDescription:
    """The content of `model.json` of a pool of weighted patches: `patches` [M, S, S, 1] in [0, 1], `weights` [Q, M].

    classes: by name. size: S. centre: row and column of the lesion, as shares of the patch.
    """

    architecture: str
    classes: tuple[str, ...]
    size: Annotated[int, SIDE]
    centre: tuple[Annotated[float, SHARE], Annotated[float, SHARE]]
    trained: model_folder.Training | None = None

    def predict(self, params: Params, constants: Constants, batch: Mapping[str, jax.Array], map_images: Any) -> dict:
        """`image` [B, S, S, 1] in [0, 1] for `seed` [B, 2] and `label` [B]: patches of the pool, drawn by the weights
        of their class, each in one of the eight views (mirrors and quarter turns) that keep the lesion in place."""
        row, column = self.centre

        def one(key: jax.Array, label: jax.Array) -> jax.Array:
            which, *coins = jax.random.split(key, 4)
            patch = params["patches"][jax.random.categorical(which, jnp.log(params["weights"][label]))]
            down, left, over = map(jax.random.bernoulli, coins)
            patch = jnp.where(down & (row == MIDDLE), jnp.flipud(patch), patch)
            patch = jnp.where(left & (column == MIDDLE), jnp.fliplr(patch), patch)
            return jnp.where(over & (row == column), patch.swapaxes(0, 1), patch)

        return {"image": jax.vmap(one)(sampling.keys_of(batch["seed"]), batch["label"])}


class Trained(NamedTuple):
    """The content of a generator's model folder."""

    params: Params
    description: Description | DenoiserDescription | PoolDescription

    @property
    def constants(self) -> Constants:
        """None for a generator."""
        return {}

    @property
    def predict(self) -> Any:
        """The patches for `seed` [B, 2] and `label` [B]: `image` [B, S, S, 1] in [0, 1]."""
        return self.description.predict


def load(folder: Path) -> Trained:
    """Read a generator's model folder. UserError for a folder of another kind, and parameters that do not fit."""
    params, content = model_folder.load_params(folder)
    if content.architecture == POOL:
        return _load_pool(params, content, folder)
    if content.architecture == ARCHITECTURE:
        description: Description | DenoiserDescription = content.build(Description)
        init: Any = networks.init_generator
    elif content.architecture == DENOISER:
        description, init = content.build(DenoiserDescription, later={"hidden": HIDDEN}), patches.init
    else:
        raise model_folder.of_another_kind(content, folder, "a generator", "a stage that trains a generator")
    check_names(description.classes, folder)
    if len(description.classes) != description.model.classes:
        what = f"{len(description.classes)} names for {description.model.classes} classes"
        raise UserError(what, where=folder, todo="write the folder again")
    model_folder.check_fits(params, model_folder.shapes_of(partial(init, description.model)), folder)
    return Trained(params, description)


def _load_pool(params: Params, content: model_folder.Content, folder: Path) -> Trained:
    description = content.build(PoolDescription)
    check_names(description.classes, folder)
    count = len(params.get("patches", ()))
    side = description.size
    shapes = {"patches": (count, side, side, 1), "weights": (len(description.classes), count)}
    model_folder.check_fits(params, shapes, folder)
    for name, weights in zip(description.classes, params["weights"]):
        if not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
            what = f"the weights of the class {name} are not numbers of at least 0"
            raise UserError(what, where=folder, todo="write the folder again")
    return Trained(params, description)


def check_names(classes: Sequence[str], where: Path | str) -> None:
    """UserError for a class whose name cannot be a folder name, as its patches are stored in a folder of that name."""
    for name in classes:
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            todo = "rename the class, without slashes: its patches are stored in a folder of that name"
            raise UserError(f"a class has the name {name!r}", where=where, todo=todo)
