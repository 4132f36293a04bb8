import shutil
from functools import partial

import jax
import numpy as np
import pytest

from elk_jax.backbones import resnet, swin
from elk_jax.distances import network
from elk_jax.weights import classifiers, model_folder
from tests.models import save_imported
from tests.refusals import refused

CONFIG = resnet.detectron2(depth=18, width=8, norm="none", num_classes=0, image_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("network") / "small"
    params = resnet.init(CONFIG, jax.random.key(0))
    origin = classifiers.Origin("timm", "theirs.pth", "0" * 64)
    model_folder.save_params(place, params, classifiers.ImportedClassifier("resnet", CONFIG, origin))
    return place, params


def test_pooled_features_are_the_means_of_the_last_map(folder):
    place, params = folder
    images = [np.random.default_rng(number).random((32, 32), np.float32) for number in range(network.BATCH + 3)]
    found = network.load(place, "small")
    features = found.features(images)
    assert found.name == "resnet of small" and len(features) == len(images)
    last = jax.jit(partial(resnet.features, CONFIG))(params, np.stack(images[-3:])[..., None])[-1]
    np.testing.assert_allclose(features[-3:], last.mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert np.ptp(features, axis=0).max() > 0  # images differ


def test_networks_have_different_names(folder, tmp_path):
    for place in ("a/one/model", "a/two/model", "b/two/model"):
        shutil.copytree(folder[0], tmp_path / place)
    one, two, other = (tmp_path / place for place in ("a/one/model", "a/two/model", "b/two/model"))
    assert [found.name for found in network.load_all([one, two, folder[0]])] == [
        *("resnet of one", "resnet of two", "resnet of small")
    ]
    assert [found.name for found in network.load_all([one, two, other])] == [
        *("resnet of one", f"resnet of {two}", f"resnet of {other}")
    ]
    with refused("twice", where=two):
        network.load_all([two, one, two])


def test_images_of_any_size_are_scaled(folder):
    found = network.load(folder[0], "small")
    image = np.kron(np.arange(16, dtype=np.float32).reshape(4, 4) / 16, np.ones((8, 8), np.float32))
    large = np.kron(image, np.ones((2, 2), np.float32))
    np.testing.assert_allclose(found.features([large, large[:, :32]])[0], found.features([image])[0], atol=1e-5)


def test_another_models_folder_is_refused(tmp_path):
    save_imported(tmp_path / "detector", {"a": np.zeros(3, np.float32)}, absent=[".*"])
    with refused("faster_rcnn", where=tmp_path / "detector"):
        network.load(tmp_path / "detector", "detector")


def test_a_transformer_is_a_network_too(tmp_path):
    config = swin.SwinConfig(embed=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4, num_classes=0, image_size=64)
    origin = classifiers.Origin("timm", "theirs.pth", "0" * 64)
    content = classifiers.ImportedClassifier("swin", config, origin)
    shapes = jax.eval_shape(partial(swin.init, config), jax.random.key(0))
    model_folder.save_params(tmp_path / "swin", jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes), content)
    features = network.load(tmp_path / "swin", "swin").features([np.zeros((20, 30), np.float32)] * 2)
    assert features.shape == (2, 64) and np.isfinite(features).all()
