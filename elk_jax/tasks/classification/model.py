"""Classifiers as folders: a head on frozen features (`heads.heads`), a network, or the mean of several of them.

All predict the probability of the positive class for the images of a source (`Trained`).

Shapes: N images, S side of a patch, F features, K heads; for a network B batch, Q classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.backbones.networks import CLASS_LAYERS, NETWORKS, kinds
from elk_jax.data.batches import labelled
from elk_jax.data.batches.labelled import Labelled, LabelledConfig
from elk_jax.data.sources.source import ImageSource
from elk_jax.errors import UserError
from elk_jax.evaluation import calibration, roc
from elk_jax.evaluation.predictions import Predictions
from elk_jax.evaluation.thresholds import HALF, OperatingPoint
from elk_jax.fields import NOT_EMPTY, SHARE, SIDE, ByName, OneOf
from elk_jax.heads.heads import HEADS, Head, probability
from elk_jax.progress import LONG, Progress
from elk_jax.tasks.classification.recipe import FrozenRecipe, Mean
from elk_jax.tasks.frozen import (
    BATCH,
    Features,
    Frozen,
    FrozenNetwork,
    NetworkFeatures,
    features_of,
    hash_of_params,
    patches_of,
)
from elk_jax.training.model import Model, Params
from elk_jax.weights import classifiers, model_folder

NETWORK, MEAN = classifiers.TRAINED, "mean_of_classifiers"
ARCHITECTURES = (*HEADS, NETWORK, MEAN)
"""Architectures: a network, the mean of several classifiers, and all kinds of heads."""
POINT: Mapping[str, Any] = {"low": None, "high": None, "intervals": {}, "on": None}
"""Fields that the operating points of any model folder may lack."""


# ---- Folder of a head ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """The content of `model.json`. features: without the paths of their weights, which are in the folder.

    networks: the configurations of the frozen networks, by the name of their features. contains: the parts of the
    training images that the parameters contain, in words; "" for none.
    """

    architecture: Annotated[str, OneOf(tuple(HEADS))]
    classes: tuple[str, str]
    positive: str
    size: Annotated[int, SIDE]
    centre: tuple[Annotated[float, SHARE], Annotated[float, SHARE]]
    features: Mapping[str, Features]
    networks: Mapping[str, Annotated[Any, ByName(kinds)]]
    operating_points: tuple[OperatingPoint, ...]
    trained: model_folder.Training | None = None
    contains: str = ""

    def __post_init__(self) -> None:
        check_positive(self.positive, self.classes)


class FittedHead(NamedTuple):
    """The content of the model folder of a head.

    draws: heads for all draws of the noise, the first of which is `head`; () if not available.
    """

    parts: Frozen
    head: Head
    description: Description
    draws: tuple[Head, ...] = ()

    def probabilities(self, source: ImageSource, shelf: Path | None = None) -> np.ndarray:
        """Probabilities of the positive class [1 + draws, N], the first row from the model. shelf: folder of frozen
        features."""
        images = patches_of(source, self.description.size)
        features = features_of(self.parts, images, shelf)
        return np.stack([probability(head.log_odds(features)) for head in (self.head, *self.draws)])


def read_frozen(recipe: FrozenRecipe) -> Frozen:
    """The features that a recipe uses, with the weights of their networks. UserError for a folder without one."""
    used = recipe.used()
    networks = {name: _network(one) for name, one in used.items() if isinstance(one, NetworkFeatures)}
    return Frozen(recipe.size, recipe.centre, used, networks)


def _network(settings: NetworkFeatures) -> FrozenNetwork:
    folder = Path(settings.weights)
    if model_folder.architecture_of(folder) == NETWORK:  # trained here
        trained = load(folder)
        assert isinstance(trained, TrainedNetwork)
        config, params = trained.description.model, trained.params
    else:
        config, params = classifiers.load(folder)
    count = _map_count(config, settings.size)
    if max(settings.stages, default=1) > count:
        what = f"the network has no stage {max(settings.stages)}, only {count} stages"
        raise UserError(what, where=settings.weights, todo=f"give stages from 1 to {count}")
    return FrozenNetwork(config, params, hash_of_params(params))


@lru_cache(maxsize=32)
def _map_count(config: Any, size: int) -> int:
    """The number of maps of a network for images of this side."""
    network, image = NETWORKS[config.name], jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    params = jax.eval_shape(partial(network.init, config), jax.random.key(0))
    return len(jax.eval_shape(partial(network.features, config), params, image))


def save(folder: Path, trained: FittedHead) -> None:
    """Write the model folder of a head."""
    networks = {name: one.params for name, one in trained.parts.networks.items()}
    params = trained.head.params() | ({"networks": networks} if networks else {})
    model_folder.save_params(folder, params, trained.description, private=bool(trained.description.contains))


def _load_head(params: Params, content: model_folder.Content, folder: Path) -> FittedHead:
    description = content.build(Description)
    _check_fits(params, description, folder)
    own = {name: params["networks"][name] for name in description.networks}
    networks = {name: FrozenNetwork(description.networks[name], one, hash_of_params(one)) for name, one in own.items()}
    parts = Frozen(description.size, description.centre, description.features, networks)
    return FittedHead(parts, HEADS[description.architecture].of(params, description.features), description)


def _check_fits(params: Params, description: Description, folder: Path) -> None:
    """UserError unless the shapes of the parameters agree with the description and with each other."""
    shapes = HEADS[description.architecture].shapes(model_folder.flatten(params), description.features)
    for name, config in description.networks.items():
        shapes |= {f"networks/{name}/{path}": shape for path, shape in classifiers.shapes(config).items()}
    model_folder.check_fits(params, shapes, folder)


# ---- Network ---------------------------------------------------------------------------------------------------------


def trainable(config: Any, label_smoothing: float = 0.0, symmetries: bool = False) -> Model:
    """A network for the training loop: the loss is the mean over valid examples of the cross entropy.

    Batches are those of `data.batches.labelled`; `predict` returns `probability` [B, Q], with `symmetries` averaged
    over those of the square.
    """
    network = NETWORKS[config.name]

    def loss(params: Params, constants: Params, batch: Mapping[str, jax.Array], rng: jax.Array, map_images: Any):
        logs = jax.nn.log_softmax(network.logits(config, params, batch["image"], rng))
        of_label = jnp.take_along_axis(logs, batch["label"][:, None], axis=1)[:, 0]
        terms = -(1 - label_smoothing) * of_label - label_smoothing * logs.mean(1)
        count = jnp.maximum(batch["valid"].sum(), 1)
        mean = jnp.where(batch["valid"], terms, 0).sum() / count
        right = jnp.where(batch["valid"], logs.argmax(1) == batch["label"], False).sum() / count
        return mean, {"loss": mean, "accuracy": right}

    def predict(params: Params, constants: Params, batch: Mapping[str, jax.Array], map_images: Any):
        of_images = lambda images: jax.nn.softmax(network.logits(config, params, images))
        if not symmetries:
            return {"probability": of_images(batch["image"])}
        return {"probability": jax.lax.map(of_images, symmetric_views(batch["image"])).mean(0)}

    return Model(
        init=partial(network.init, config),
        loss=loss,
        predict=predict,
        per_example=not network.statistics(config),
        frozen=network.frozen(config),
        statistics=network.statistics(config),
    )


def symmetric_views(images: jax.Array) -> jax.Array:
    """The eight views [8, B, S, S, C] of images [B, S, S, C] in the symmetries of the square, the plain one first."""
    turned = [view for one in (images, images.swapaxes(1, 2)) for view in (one, one[:, ::-1])]
    return jnp.stack([view for one in turned for view in (one, one[:, :, ::-1])])


@dataclass(frozen=True)
class NetworkDescription:
    """The content of `model.json` of a network. size: S of its images. test_symmetries: see the recipe."""

    architecture: str
    classes: tuple[str, str]
    positive: str
    size: Annotated[int, SIDE]
    model: Annotated[Any, ByName(kinds)]
    operating_points: tuple[OperatingPoint, ...]
    trained: model_folder.Training | None = None
    test_symmetries: bool = False

    def __post_init__(self) -> None:
        check_positive(self.positive, self.classes)


class TrainedNetwork(NamedTuple):
    """The content of the model folder of a network."""

    params: Params
    description: NetworkDescription

    def probabilities(self, source: ImageSource, shelf: Path | None = None) -> np.ndarray:
        """Probabilities of the positive class [1, N]. `shelf` is not used."""
        description = self.description
        images = Labelled(source, np.zeros(len(source), np.int32), description.size)
        network = trainable(description.model, symmetries=description.test_symmetries)
        predict = jax.jit(lambda params, batch: network.predict(params, {}, batch, jax.vmap))
        found = []
        with Progress("  predicting", len(images), unit="image", patience=LONG) as bar:
            for batch in labelled.eval_batches(images, LabelledConfig(batch_size=BATCH)):
                found.append(np.asarray(predict(self.params, batch)["probability"])[batch["valid"]])
                bar.update(sum(map(len, found)))
        return np.concatenate(found)[None, :, description.classes.index(description.positive)].astype(np.float64)


def _load_network(params: Params, content: model_folder.Content, folder: Path) -> TrainedNetwork:
    description = content.build(NetworkDescription)
    model_folder.check_fits(params, model_folder.shapes_of(trainable(description.model).init), folder)
    return TrainedNetwork(params, description)


def without_class_layers(params: Params) -> Params:
    """The parameters of a network that do not depend on the classes."""
    return {name: part for name, part in params.items() if name not in CLASS_LAYERS}


# ---- Mean ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanDescription:
    """The content of `model.json` of a mean. mean: the averaged quantity. members: their content, without format and
    hash.

    contains: as in `Description`, for any member.
    """

    architecture: str
    classes: tuple[str, str]
    positive: str
    mean: Mean
    members: Annotated[tuple[Mapping[str, Any], ...], NOT_EMPTY]
    operating_points: tuple[OperatingPoint, ...]
    trained: model_folder.Training | None = None
    contains: str = ""

    def __post_init__(self) -> None:
        check_positive(self.positive, self.classes)


class MeanOfClassifiers(NamedTuple):
    """The content of the model folder of a mean."""

    members: tuple[Trained, ...]
    description: MeanDescription

    def probabilities(self, source: ImageSource, shelf: Path | None = None) -> np.ndarray:
        """Probabilities of the positive class [1, N], with equal weights. shelf: folder of frozen features."""
        found = np.stack([member.probabilities(source, shelf)[0] for member in self.members])
        if self.description.mean == "probabilities":
            return found.mean(0, keepdims=True)
        return probability(calibration.logits(found).mean(0, keepdims=True))


def save_mean(folder: Path, params: Sequence[Params], description: MeanDescription) -> None:
    """Write the model folder of a mean, with the parameters of its members."""
    joined = model_folder.join_members(params)
    model_folder.save_params(folder, joined, description, private=bool(description.contains))


def _load_mean(params: Params, content: model_folder.Content, folder: Path) -> MeanOfClassifiers:
    description = content.build(MeanDescription)
    found = model_folder.split_members(params, len(description.members), folder)
    members = [
        of(one, model_folder.Content(content.file, entries, content.hash), folder)
        for one, entries in zip(found, description.members)
    ]
    for member in members:
        check_alike(member.description, description, folder)
    return MeanOfClassifiers(tuple(members), description)


def check_classes(description: Any, source: ImageSource) -> None:
    """UserError unless the images have the classes of the model."""
    if tuple(source.classes) != description.classes:
        what = f"the model has the classes {', '.join(description.classes)}, the data have {', '.join(source.classes)}"
        raise UserError(what, where=source.name, todo="rename the classes of the data")


def check_alike(one: Any, other: Any, where: object) -> None:
    """UserError unless two descriptions have the same classes, and the same positive one."""
    for name in ("classes", "positive"):
        if getattr(one, name) != getattr(other, name):
            what = f"classifiers of different {name}: {getattr(one, name)} and {getattr(other, name)}"
            raise UserError(what, where=where, todo="combine classifiers of the same classes")


# ---- All -------------------------------------------------------------------------------------------------------------

Trained = FittedHead | TrainedNetwork | MeanOfClassifiers
"""A classifier: `description` and `probabilities`."""


def load(folder: Path) -> Trained:
    """Read a classifier's model folder. UserError for a folder of another kind, and for parameters that do not fit."""
    return of(*model_folder.load_params(folder), folder)


def of(params: Params, content: model_folder.Content, folder: Path) -> Trained:
    """A classifier from the content of its folder. UserError as `load`."""
    content = content.filled("operating_points", POINT)
    if content.architecture in HEADS:
        return _load_head(params, content, folder)
    if content.architecture == NETWORK:
        return _load_network(params, content, folder)
    if content.architecture == MEAN:
        return _load_mean(params, content, folder)
    raise model_folder.of_another_kind(content, folder, "a classifier", "a classification stage")


def points_of(trained: Trained) -> tuple[OperatingPoint, ...]:
    """The operating points of a classifier; if none were chosen, as for a member of an ensemble of folds, the more
    probable class."""
    return trained.description.operating_points or (HALF,)


def unchosen(trained: Trained) -> list[str]:
    """A note on a classifier without its own threshold."""
    if trained.description.operating_points:
        return []
    return [f"the model has no threshold, so images are called {trained.description.positive} from {HALF.threshold:g}"]


def predictions(probability: np.ndarray, source: ImageSource, labels: np.ndarray, positive: str) -> Predictions:
    """The predictions from probabilities of the positive class [N], for images of two classes with labels [N]."""
    own = list(source.classes).index(positive)
    columns = np.stack([probability if label == own else 1 - probability for label in range(2)], axis=1)
    ids, patients = (tuple(getattr(info, name) for info in source.infos) for name in ("image_id", "patient_id"))
    return Predictions(ids, patients, labels, columns, tuple(source.classes))


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """AUROC of scores [N]; truth: whether an image is of the positive class [N]."""
    return float(roc.area(roc.corners(roc.rank(scores, truth), np.ones((1, len(truth)))))[0])


def check_positive(positive: str, classes: Sequence[str], where: str = "positive") -> None:
    """UserError for a positive class that the data do not have."""
    if positive not in classes:
        raise UserError(f"no class '{positive}'", where=where, todo=f"choose one of {', '.join(classes)}")
