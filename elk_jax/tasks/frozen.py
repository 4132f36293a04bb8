"""Features of patches that are not trained: scattering, and the maps of frozen networks; and their settings.

Shapes: N images, S side of a patch, F features, B batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.backbones.networks import NETWORKS
from elk_jax.data import patches
from elk_jax.data.sources.duplicates import pixel_hash
from elk_jax.data.sources.source import ImageSource
from elk_jax.errors import UserError
from elk_jax.features import network, scattering, store
from elk_jax.fields import ABOVE_ZERO, SIDE, AtLeast, ByName, Checked, Range
from elk_jax.progress import LONG, Progress, progress_bar
from elk_jax.training.model import Params
from elk_jax.weights import model_folder

BATCH = 16
"""Number of patches whose features, or probabilities, are computed at once."""
WHOLE_WINDOWS = 8
"""Windows along a side; the scattering coefficients of a whole patch are the mean over them."""
LAST = 3
"""Number of last stages of a network whose maps are used if none are named."""
DEVIATION = Range(0, 1, above=True)


# ---- Settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScatteringFeatures(Checked):
    """Logarithms of scattering coefficients, equal for mirrored and turned patches: over the whole patch, and in a
    square grid of windows around its centre.

    scales, orientations: of the wavelets. windows: along a side of the grid. spacing: pixels between them. floor: added
    to coefficients before the logarithm.
    """

    name: Literal["scattering"] = "scattering"
    scales: Annotated[int, AtLeast(2)] = 5
    orientations: Annotated[int, AtLeast(2)] = 8
    windows: Annotated[int, AtLeast(1)] = 5
    spacing: Annotated[float, ABOVE_ZERO] = 16.0
    floor: Annotated[float, ABOVE_ZERO] = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orientations % 2:
            what = f"turned patches fall between {self.orientations} orientations"
            raise UserError(what, where="orientations", todo="give an even number")


@dataclass(frozen=True)
class NetworkFeatures(Checked):
    """Means and standard deviations of a frozen network's maps, over the whole patch and under a Gaussian at its
    centre.

    weights: the model folder of a network (`launch/import_weights.py`); "": these features are not used. size: pixels
    of a patch in the network. stages: whose maps are used; () for the last three. deviation: of the Gaussian, as a
    share of the patch.
    """

    name: Literal["network"] = "network"
    weights: str = ""
    size: Annotated[int, SIDE] = 224
    stages: tuple[Annotated[int, AtLeast(1)], ...] = ()
    deviation: Annotated[float, DEVIATION] = 0.15


def feature_kinds() -> Mapping[str, type]:
    """The kinds of frozen features, by name."""
    return {"scattering": ScatteringFeatures, "network": NetworkFeatures}


Features = Annotated[Any, ByName(feature_kinds)]


# ---- Computation -----------------------------------------------------------------------------------------------------


class FrozenNetwork(NamedTuple):
    """A frozen network: its configuration, its parameters, and a hash of these."""

    config: Any
    params: Params
    hash: str


class Frozen(NamedTuple):
    """Everything that features of patches depend on. centre: of the lesion; features, networks: by user-defined
    names."""

    size: int
    centre: tuple[float, float]
    features: Mapping[str, Any]
    networks: Mapping[str, FrozenNetwork]

    def only(self, names: Sequence[str]) -> Frozen:
        """A subset of the features."""
        some = {name: self.features[name] for name in names}
        return self._replace(features=some, networks={n: self.networks[n] for n in names if n in self.networks})


def hash_of_params(params: Params) -> str:
    """A hash of parameters in float32 under their names."""
    digest = hashlib.sha256()
    for name, leaf in sorted(model_folder.flatten(params).items()):
        digest.update(f"{name} {np.shape(leaf)} ".encode() + np.ascontiguousarray(leaf, np.float32).tobytes())
    return digest.hexdigest()


def hashes_of(images: np.ndarray) -> list[str]:
    """The hash of every patch of [N, S, S, 1]."""
    return [pixel_hash(image) for image in images]


def features_of(parts: Frozen, images: np.ndarray, folder: Path | None = None) -> dict[str, np.ndarray]:
    """Every kind of features [N, F] float32 of patches [N, S, S, 1] in [0, 1]; stored in `folder`, if given."""
    if folder is None:
        return {name: _compute(parts, name, images) for name in parts.features}
    hashes, found = hashes_of(images), {}
    for name in parts.features:
        trained = parts.networks.get(name)
        settings = asdict(parts.features[name]) | {"weights": "", "size": parts.size, "centre": parts.centre}
        if trained is not None:
            settings |= {"network": asdict(trained.config), "input": parts.features[name].size}
        way = store.way_of(settings, "" if trained is None else trained.hash)
        found[name] = store.kept(folder, way, hashes, partial(_compute_some, parts, name, images))
    return found


def patches_of(source: ImageSource, size: int) -> np.ndarray:
    """Every image of a source, scaled to a patch: [N, S, S, 1]."""
    return patches.whole_images(source, size, progress_bar("  reading"))


def _compute_some(parts: Frozen, name: str, images: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    return _compute(parts, name, images if len(positions) == len(images) else images[list(positions)])


def _compute(parts: Frozen, name: str, images: np.ndarray) -> np.ndarray:
    settings = parts.features[name]
    if isinstance(settings, ScatteringFeatures):
        return scattering_features(settings, images, parts.centre)
    return network_features(settings, parts.networks[name], images, parts.centre)


def scattering_features(settings: ScatteringFeatures, images: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """Invariant log coefficients [N, F] of patches [N, S, S, 1]: of the whole patch, then under windows about `centre`.

    Source: Bruna and Mallat 2013; the averages over the symmetries of the square are free (`scattering.invariants`).
    """
    size = images.shape[1]
    bank = scattering.filters(size, size, settings.scales, settings.orientations)
    found = []
    with Progress("  scattering", len(images), unit="image", patience=LONG) as bar:
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH, ..., 0]
            padded = np.pad(batch, [(0, BATCH - len(batch)), (0, 0), (0, 0)])
            found.append(np.asarray(_scattered(settings, centre, padded, bank))[: len(batch)])
            bar.update(start + len(batch))
    return np.concatenate(found)


@partial(jax.jit, static_argnums=(0, 1))
def _scattered(
    settings: ScatteringFeatures, centre: tuple[float, float], batch: jax.Array, bank: scattering.Filters
) -> jax.Array:
    """As `scattering_features`, for a batch [B, S, S]; one program for all sets of patches of a size."""
    size = batch.shape[1]
    whole = (np.arange(WHOLE_WINDOWS) + 0.5) * size / WHOLE_WINDOWS - 0.5
    grid = settings.spacing * (np.arange(settings.windows) - (settings.windows - 1) / 2)
    rows, columns = (np.concatenate([whole, share * size - 0.5 + grid]) for share in centre)
    found = scattering.coefficients(batch, bank, rows, columns, settings.scales)
    everywhere = [part[..., :WHOLE_WINDOWS, :WHOLE_WINDOWS].mean((-2, -1), keepdims=True) for part in found]
    about = [part[..., WHOLE_WINDOWS:, WHOLE_WINDOWS:] for part in found]
    logs = (
        scattering.Coefficients(*(jnp.log(jnp.maximum(part, 0) + settings.floor) for part in parts))
        for parts in (everywhere, about)
    )
    return jnp.concatenate([scattering.invariants(one) for one in logs], axis=-1)


def network_features(
    settings: NetworkFeatures, trained: FrozenNetwork, images: np.ndarray, centre: tuple[float, float]
) -> np.ndarray:
    """Statistics [N, F] of a network's maps of patches [N, S, S, 1]; see `features.network`."""
    taps, window = Maps(trained.config, settings.size, settings.stages), network.Window(*centre, settings.deviation)
    return np.concatenate(network.features(taps, trained.params, images, window, batch_size=BATCH), axis=-1)


@dataclass(frozen=True)
class Maps:
    """The maps of a network at some stages, by default the last ones: `features.network.Taps`.

    config: of the network. size: in pixels, to which images are scaled.
    """

    config: Any
    size: int
    stages: tuple[int, ...]

    def __call__(self, params: Params, batch: jax.Array) -> Sequence[jax.Array]:
        shape = (len(batch), self.size, self.size, batch.shape[-1])
        images = jax.image.resize(batch, shape, "bilinear")
        maps = NETWORKS[self.config.name].features(self.config, params, images)
        return [maps[stage - 1] for stage in self.stages] if self.stages else maps[-LAST:]
