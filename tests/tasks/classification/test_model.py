"""A classifier's folder: frozen networks are in it, and what does not fit is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from elk_jax.backbones import efficientnet
from elk_jax.backbones.efficientnet import EfficientNetConfig
from elk_jax.features.whitening import Whitening
from elk_jax.heads import linear
from elk_jax.heads.linear import Linear
from elk_jax.tasks import frozen
from elk_jax.tasks.classification import model
from elk_jax.tasks.classification.recipe import HeadRecipe, Search
from elk_jax.tasks.frozen import NetworkFeatures, ScatteringFeatures
from elk_jax.weights import classifiers, model_folder
from elk_jax.weights.classifiers import Origin
from tests.refusals import refused

CONFIG = EfficientNetConfig(width=0.2, depth=0.1, num_classes=0, head=False)
SIZE = 16


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The folder of an imported network."""
    folder = tmp_path_factory.mktemp("weights")
    rng, shapes = np.random.default_rng(0), model_folder.shapes_of(partial(efficientnet.init, CONFIG))
    params = model_folder.nest({name: np.abs(rng.normal(0, 0.3, shape)) for name, shape in shapes.items()})
    origin = Origin("efficientnet_pytorch", "a.pth", "0" * 64)
    model_folder.save_params(folder, params, classifiers.ImportedClassifier("efficientnet", CONFIG, origin))
    return folder


@pytest.fixture
def trained(weights) -> model.FittedHead:
    features = {"net": NetworkFeatures(weights=str(weights), size=32, stages=(2, 7))}
    parts = model.read_frozen(HeadRecipe(size=SIZE, features=features, search=Search(features=("net",))))
    count = 4 * (8 + 64)  # four statistics of every channel of the stages 2 and 7
    by = {"net": Whitening(np.zeros(count, np.float32), np.eye(count, 3, dtype=np.float32))}
    head = Linear(by, np.zeros(3, np.float32), np.ones(3, np.float32), 0.5)
    description = model.Description(
        "linear_head", ("a", "b"), "b", SIZE, (0.5, 0.5), {"net": NetworkFeatures(size=32, stages=(2, 7))},
        {"net": CONFIG}, (), model_folder.Training(),
    )  # fmt: skip
    return model.FittedHead(parts, head, description)


def test_a_folder_needs_no_other_weights(trained, tmp_path):
    model.save(tmp_path, trained)
    again = model.load(tmp_path)
    assert again.description == trained.description
    assert again.parts.networks["net"].hash == trained.parts.networks["net"].hash  # so that kept features are found
    images = np.random.default_rng(0).random((3, SIZE, SIZE, 1), np.float32)
    features = [linear.whitened(frozen.features_of(one.parts, images), one.head.whitening) for one in (trained, again)]
    assert features[0].shape == (3, 3) and len(np.unique(features[0], axis=0)) == 3
    np.testing.assert_array_equal(*features)


def test_a_stage_that_a_network_has_not_is_refused(weights):
    features = {"net": NetworkFeatures(weights=str(weights), size=32, stages=(8,))}
    with refused(7, 8, where=weights):
        model.read_frozen(HeadRecipe(features=features, search=Search(features=("net",))))


def test_parameters_that_do_not_fit_are_refused(trained, tmp_path):
    model.save(tmp_path, trained._replace(head=trained.head._replace(weights=np.ones(4))))
    with refused("head/weights", where=tmp_path):
        model.load(tmp_path)
    model_folder.save_params(tmp_path, {"a": np.zeros(1)}, {"architecture": "translator"})
    with refused("translator", where=tmp_path):
        model.load(tmp_path)


def test_scattering_is_the_same_for_turned_patches_and_sees_the_lesion_where_it_is():
    settings = ScatteringFeatures(scales=2, orientations=4, windows=3, spacing=4.0)
    image = np.random.default_rng(0).random((1, 32, 32, 1), np.float32)
    views = np.concatenate([image, image[:, ::-1], image.swapaxes(1, 2)])
    found = frozen.scattering_features(settings, views, (0.5, 0.5))
    assert found.shape == (3, whole := found.shape[1]) and whole > 50 and np.isfinite(found).all()
    np.testing.assert_allclose(found[1:], np.broadcast_to(found[0], found[1:].shape), atol=2e-3)
    moved = frozen.scattering_features(settings, views[:1], (0.7, 0.4))
    assert (moved[0] != found[0]).any()
    black = frozen.scattering_features(settings, np.zeros((1, 32, 32, 1), np.float32), (0.5, 0.5))
    assert np.isfinite(black).all()
