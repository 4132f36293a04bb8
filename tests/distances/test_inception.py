import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from elk_jax.distances import inception
from tests.golden import seeded, textures
from tests.refusals import refused

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def tensors():
    """The made weights of torchvision's network; those of the FID have other classes alone."""
    made = json.loads((GOLDEN / "inception.json").read_text())
    return seeded.state_dict(made["shapes"], made["gains"], {})


@pytest.mark.parametrize("kind, classes", [("torchvision", 1000), ("fid", 1008)])
def test_the_pooled_features_are_torchs(tensors, kind, classes):
    images = np.stack([textures.image(name, 107, 107) for name in ("smooth", "rough")]).astype(np.float32) / 255
    network = inception.read(tensors | {"fc.bias": np.zeros(classes)}, "")
    last_map = jax.jit(partial(inception.last_map, of_fid=network.of_fid))
    found = last_map(network.kernels, images[..., None]).mean((1, 2))
    with np.load(GOLDEN / "inception.npz") as stored:
        np.testing.assert_allclose(found, stored[kind], rtol=1e-3, atol=1e-5)


def test_other_files_are_refused(tensors, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.numpy.save({"conv.weight": np.zeros(3, np.float32)}))
    with refused("Conv2d_1a_3x3", where=path):
        inception.load(path)
    with refused(where=tmp_path / "missing.pth"):
        inception.load(tmp_path / "missing.pth")
    unfit = tensors | {"Mixed_5b.branch1x1.bn.bias": np.zeros(7)}
    with refused("Mixed_5b.branch1x1", where="here"):
        inception.read(unfit, "here")
