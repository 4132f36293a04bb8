"""Swin classifiers of three libraries, imported, have their logits (tests/golden/make_swin.py)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones.swin import Classifier, SwinConfig
from elk_jax.weights import convert, model_folder, swin
from tests.refusals import refused

GOLDEN = Path(__file__).parents[1] / "golden"
FACTS = json.loads((GOLDEN / "swin.json").read_text())


def imported(tensors):
    """(model, params, file)"""
    file = swin.interpret(tensors)
    model = Classifier(SwinConfig(**file.settings), file.classes)
    shapes = model_folder.shapes_of(lambda rng: model.init(rng, jnp.zeros((1, 32, 32, 3)))["params"])
    return model, convert.convert(file.tensors, file.format, shapes)[0], file


@pytest.mark.parametrize("library", FACTS["sizes"])
def test_same_as_the_reference(library, seeded):
    model, params, file = imported(seeded.swin_tensors(FACTS["shapes"][library]))
    assert (file.library, file.classes) == (library, 5)
    assert file.settings == {
        "embed": 16, "patch": 4, "depths": (2,) * 4, "heads": (1, 2, 4, 8), "window": 4, "mlp_ratio": 4,
    }  # fmt: skip
    images = seeded.uniform("swin images", (2, *FACTS["sizes"][library], 3), -1, 1)
    found = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(found, np.load(GOLDEN / "swin.npz")[library], atol=1e-4)


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
    other = imported(written_otherwise(tensors, library))
    assert jax.tree.all(jax.tree.map(np.array_equal, other[1], imported(tensors)[1]))


def test_a_file_that_lacks_a_tensor_or_has_one_more(seeded):
    tensors = seeded.swin_tensors(FACTS["shapes"]["timm"])
    with refused("", "norm/scale"):
        imported({name: value for name, value in tensors.items() if name != "norm.weight"})
    with refused("", "extra"):
        imported(tensors | {"extra": np.zeros(3, np.float32)})
    with refused("", "blocks"):
        imported({name: value for name, value in tensors.items() if "layers.2." not in name})
