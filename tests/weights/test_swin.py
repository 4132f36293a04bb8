"""Swin classifiers of three libraries, imported, have their logits (tests/golden/make_swin.py)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from elk_jax.backbones import swin
from elk_jax.backbones.swin import SwinConfig
from elk_jax.output import Console
from elk_jax.weights import classifiers
from tests.refusals import refused

GOLDEN = Path(__file__).parents[1] / "golden"
FACTS = json.loads((GOLDEN / "swin.json").read_text())


NAMES = {"torchvision": "swin_t", "timm": "swin_tiny_patch4_window7_224.ms_in1k", "transformers": "swin-tiny"}


def imported(tensors, library):
    return classifiers.convert_tensors(tensors, library, NAMES[library])


@pytest.mark.parametrize("library", NAMES)
def test_same_as_the_reference(library, seeded):
    found = imported(seeded.swin_tensors(FACTS["shapes"][library]), library)
    wanted = SwinConfig(embed=16, depths=(2,) * 4, heads=(1, 2, 4, 8), window=4, image_size=128, num_classes=5)
    assert found.model == wanted and not found.name_map.ignored
    images = seeded.uniform("swin images", (2, *FACTS["sizes"][library], 3), -1, 1)
    logits = jax.jit(swin.Classifier(found.model).apply)({"params": found.params}, images)
    np.testing.assert_allclose(logits, np.load(GOLDEN / "swin.npz")[library], atol=1e-4)


OLDER = {
    "q_proj": "self.query", "k_proj": "self.key", "v_proj": "self.value", "attention.o_proj": "attention.output.dense",
    "attention.relative_position_bias": "attention.self", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip


def written_otherwise(tensors, library):
    """The same weights as earlier versions of the libraries write them."""
    if library == "timm":
        up = {"head.fc": "head"} | {f"layers.{i}.downsample": f"layers.{i - 1}.downsample" for i in (1, 2, 3)}
    else:
        up = OLDER
    return {next((k.replace(a, b) for a, b in up.items() if a in k), k): v for k, v in tensors.items()}


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_names_of_earlier_versions(library, seeded):
    tensors = seeded.swin_tensors(FACTS["shapes"][library])
    other = imported(written_otherwise(tensors, library), library)
    assert jax.tree.all(jax.tree.map(np.array_equal, other.params, imported(tensors, library).params))


def test_a_file_that_lacks_a_tensor_or_has_one_more(seeded):
    tensors = seeded.swin_tensors(FACTS["shapes"]["timm"])
    with refused("norm/scale"):
        imported({name: value for name, value in tensors.items() if name != "norm.weight"}, "timm")
    with refused("extra"):
        imported(tensors | {"extra": np.zeros(3, np.float32)}, "timm")
    with refused("blocks"):
        imported({name: value for name, value in tensors.items() if "layers.2." not in name}, "timm")
    headless = imported({name: value for name, value in tensors.items() if not name.startswith("head.")}, "timm")
    assert headless.model.num_classes == 0 and "classifier" not in headless.params


def test_a_model_folder(seeded, tmp_path):
    tensors = seeded.swin_tensors(FACTS["shapes"]["timm"])
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    console = Console(quiet=True)
    kept = classifiers.import_file(
        tmp_path / "model.safetensors", "timm", NAMES["timm"], tmp_path / "swin", console=console
    )
    config, params = classifiers.load(tmp_path / "swin")
    assert config.image_size == config.patch * config.window * 8
    assert config == kept.model and jax.tree.all(jax.tree.map(np.array_equal, params, kept.params))


@pytest.mark.parametrize(
    "library, name, where",
    [("timm", "swinv2_tiny", "--model"), ("torchvision", "swin_v2_t", "--model"), ("timm", "vit_base", "--model"),
     ("detectron2", "swin_t", "--format")],
)  # fmt: skip
def test_other_networks_and_formats(library, name, where):
    with refused(where=where):
        classifiers.convert_tensors({}, library, name)
