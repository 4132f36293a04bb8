"""EfficientNets of three libraries, imported, have their features and logits (tests/golden/make_efficientnet.py)."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from elk_jax.backbones import efficientnet, resnet
from elk_jax.detection.faster_rcnn_config import detectron2
from elk_jax.output import Console
from elk_jax.weights import classifiers, model_folder
from elk_jax.weights import resnet as resnets
from tests.refusals import refused

GOLDEN = Path(__file__).parents[1] / "golden"
FACTS = json.loads((GOLDEN / "efficientnet.json").read_text())
NAMES = {
    "torchvision": "efficientnet_b0",
    "timm": "tf_efficientnet_b0.ns_jft_in1k",
    "efficientnet_pytorch": "efficientnet-lite0",
}


@pytest.fixture(scope="module")
def files(seeded):
    return {library: seeded.state_dict(FACTS["shapes"][library], [], {}) for library in NAMES}


@pytest.mark.parametrize("library", NAMES)
def test_same_as_the_reference(library, files, seeded):
    imported = classifiers.convert_tensors(files[library], library, NAMES[library])
    assert imported.model.num_classes == 7
    assert all(name.endswith("num_batches_tracked") for name in imported.name_map.ignored)

    @jax.jit
    def run(params, images):
        return (
            efficientnet.features(imported.model, params, images),
            efficientnet.logits(imported.model, params, images),
        )

    stages, logits = run(imported.params, seeded.efficientnet_images())
    with np.load(GOLDEN / "efficientnet.npz") as expected:
        for number, stage in enumerate(stages, start=1):
            np.testing.assert_allclose(seeded.project(np.asarray(stage)), expected[f"{library}/{number}"], atol=1e-4)
        np.testing.assert_allclose(logits, expected[f"{library}/logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("library", "name", "expected"),
    [
        ("torchvision", "efficientnet_b0", {"padding": "symmetric", "norm_eps": 1e-5}),
        ("torchvision", "efficientnet_b5", {"padding": "symmetric", "norm_eps": 1e-3}),
        ("timm", "efficientnet_b0.ra_in1k", {"padding": "symmetric", "norm_eps": 1e-5}),
        ("timm", "efficientnet_b0.ra4_e3600_r224_in1k", {"pixel_mean": (0.5,) * 3, "pixel_std": (0.5,) * 3}),
        ("timm", "tf_efficientnet_b3.ap_in1k", {"padding": "same", "norm_eps": 1e-3, "pixel_mean": (0.5,) * 3}),
        ("timm", "tf_efficientnet_lite4.in1k", {"padding": "same", "pixel_mean": (0.5,) * 3, "activation": "relu6"}),
        ("timm", "efficientnet_lite0.ra_in1k", {"padding": "symmetric", "pixel_mean": (0.485, 0.456, 0.406)}),
        ("efficientnet_pytorch", "efficientnet-lite2", {"padding": "same", "norm_eps": 1e-3, "image_size": 260}),
        ("efficientnet_pytorch", "efficientnet-b1", {"padding": "same", "pixel_mean": (0.485, 0.456, 0.406)}),
    ],
)
def test_conventions_follow_from_the_name(library, name, expected):
    config = classifiers.efficientnet.configure({}, library, name, {})
    assert {key: getattr(config, key) for key in expected} == expected
    assert (config.head, config.num_classes) == (False, 0)  # of a file without them


@pytest.mark.parametrize(
    ("library", "name", "word"),
    [
        ("timm", "efficientnet_b0", "tag"),
        ("timm", "tf_efficientnet_b0.mine", "mine"),
        ("timm", "efficientnet_b9.in1k", "b9"),
        ("torchvision", "tf_efficientnet_b0", "efficientnet_b0"),
    ],
)
def test_names_that_do_not_tell_the_model(library, name, word):
    with refused(word, where="--model"):
        classifiers.efficientnet.configure({}, library, name, {})


def test_every_tensor_loads_or_is_named(files):
    tensors = files["efficientnet_pytorch"]
    run = lambda tensors, **options: classifiers.convert_tensors(
        tensors, "efficientnet_pytorch", "efficientnet-lite0", **options
    )
    with refused("backbone/stem/norm/scale"):
        run({name: tensor for name, tensor in tensors.items() if name != "_bn0.weight"})
    with refused("extra"):
        run(tensors | {"extra": np.zeros(3, "f4")})
    assert "extra" in run(tensors | {"extra": np.zeros(3, "f4")}, ignore=["extra"]).name_map.ignored
    with refused("_fc.bias"):
        run({name: tensor for name, tensor in tensors.items() if name != "_fc.weight"})
    with refused("shapes differ"):
        classifiers.convert_tensors(tensors, "efficientnet_pytorch", "efficientnet-lite2")
    with refused(where="--format"):
        classifiers.convert_tensors(tensors, "detectron2", "efficientnet_b0")


def test_a_model_folder(files, tmp_path):
    tensors = {name: tensor for name, tensor in files["timm"].items() if not name.startswith("classifier")}
    safetensors.numpy.save_file(tensors, tmp_path / "b0.safetensors")
    imported = classifiers.import_file(
        tmp_path / "b0.safetensors", "timm", NAMES["timm"], tmp_path / "b0", console=Console(quiet=True)
    )
    config, params = classifiers.load(tmp_path / "b0")
    assert config == imported.model and config.num_classes == 0 and config.head
    assert jax.tree.all(jax.tree.map(np.array_equal, params, imported.params))
    model_folder.save_params(tmp_path / "other", params, {"architecture": "inpainter"})
    with refused("inpainter", where="other"):
        classifiers.load(tmp_path / "other")


# ---- ResNets ---------------------------------------------------------------------------------------------------------


def test_a_resnet_that_an_earlier_version_imported_is_read(tmp_path):
    """It was described as a Faster R-CNN without its heads, with the settings of its backbone beside the others."""
    config = resnet.detectron2(depth=18, width=4, stem_width=8)
    params = {"backbone": resnet.init(config, jax.random.key(0))["backbone"]}
    settings = dataclasses.asdict(detectron2(backbone=config))
    moved = settings.pop("backbone")
    ours = ("name", "num_classes", "image_size", "norm_groups", "norm_eps")
    settings |= {name: value for name, value in moved.items() if name not in ours}
    source = {"format": "torchvision", "file": "half.safetensors", "sha256": ""}
    rest = {"classes": (), "absent": ("^(?!backbone/)",), "source": source}
    model_folder.save_params(tmp_path / "half", params, {"architecture": "resnet", "model": settings, **rest})
    found, loaded = classifiers.load(tmp_path / "half")
    assert found == config and jax.tree.all(jax.tree.map(np.array_equal, loaded, params))


RESNET18 = {f"layer{stage}.{block}.conv1.weight": np.zeros((4, 4, 3, 3)) for stage in (1, 2, 3, 4) for block in (0, 1)}
RESNET18["conv1.weight"] = np.zeros((4, 3, 7, 7))
"""As much of one as tells that it is one."""


@pytest.mark.parametrize(
    ("library", "name", "word"),
    [
        ("torchvision", "resnet18.a1_in1k", "resnet50"),  # timm's
        ("timm", "resnet50d.ra2_in1k", "resnet50"),
        ("timm", "resnet77.a1_in1k", 77),
        ("timm", "resnet18", "no tag"),
        ("timm", "resnet18.mine", "mine"),
    ],
)
def test_resnets_of_other_kinds_are_refused(library, name, word):
    with refused(word):
        classifiers.convert_tensors(RESNET18, library, name)


@pytest.mark.parametrize(
    ("library", "name", "mean"),
    [
        ("torchvision", "resnet18", 0.485),
        ("timm", "resnet18.a1_in1k", 0.485),
        ("timm", "resnet18.fb_swsl_ig1b_ft_in1k", 0.485),
        ("timm", "resnet18.ra4_e3600_r224_in1k", 0.5),
    ],
)
def test_how_a_resnets_images_are_normalised_is_in_its_name(library, name, mean):
    assert resnets.understand(RESNET18, library, name, {}).model.pixel_mean[0] == mean
