"""What a train stage starts from."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from elk_jax.errors import UserError
from elk_jax.tasks import detection_stages
from elk_jax.tasks.run import Run
from elk_jax.training.mesh import make_mesh
from elk_jax.weights import store


def params(classes: int, value: float) -> dict:
    """The skeleton of a detector, every leaf filled with `value`."""
    full = lambda *shape: jnp.full(shape, value, jnp.float32)
    return {
        "backbone": {"stem": {"kernel": full(3, 2)}},
        "box_head": {
            "fc1": {"kernel": full(4, 3)},
            "class_logits": {"kernel": full(3, classes + 1), "bias": full(classes + 1)},
            "box_deltas": {"kernel": full(3, 4 * classes)},
        },
    }


@pytest.fixture
def run(tmp_path) -> Run:
    config = base.experiment("e", stages={"first": base.train_detector("real"), "second": base.train_detector("real")})
    return Run(config, tmp_path, make_mesh())


def started(run: Run, init_from: str, classes: int) -> dict:
    """Names and values (each leaf is constant) of what a model of so many classes starts from; a fresh one is 0."""
    task = SimpleNamespace(init=lambda rng: params(classes, 0.0))
    initial = detection_stages._initial_params(run, init_from, task, seed=0)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), initial, params(classes, 0.0))
    return {name: np.unique(leaf).item() for name, leaf in store.flatten(initial).items()}


def test_nothing_given_starts_fresh(run):
    assert detection_stages._initial_params(run, "", SimpleNamespace(), seed=0) is None


def test_another_number_of_classes_starts_the_class_layers_alone_anew(run):
    store.save_params(run.folder / "first" / "model", params(classes=1, value=7.0), {"architecture": "faster_rcnn"})
    assert set(started(run, "first", classes=1).values()) == {7.0}
    assert started(run, "first", classes=3) == {
        "backbone/stem/kernel": 7.0,
        "box_head/fc1/kernel": 7.0,
        "box_head/class_logits/kernel": 0.0,
        "box_head/class_logits/bias": 0.0,
        "box_head/box_deltas/kernel": 0.0,
    }


def test_a_folder_may_lack_what_it_says_is_absent(run, tmp_path):
    """As an imported backbone does."""
    backbone = {"backbone": params(classes=1, value=7.0)["backbone"]}
    store.save_params(tmp_path / "imported", backbone, {"absent": ["^box_head/"]})
    found = started(run, str(tmp_path / "imported"), classes=1)
    assert found.pop("backbone/stem/kernel") == 7.0 and set(found.values()) == {0.0}
    store.save_params(tmp_path / "half", backbone, {})
    with pytest.raises(UserError, match=r"lack box_head/fc1/kernel"):
        started(run, str(tmp_path / "half"), classes=1)


def test_other_layers_must_fit(run, tmp_path):
    other = params(classes=1, value=7.0)
    other["backbone"]["stem"]["kernel"] = np.zeros((5, 2), np.float32)
    store.save_params(tmp_path / "other", other, {})
    words = r"backbone/stem/kernel is \(5, 2\) in the weights and \(3, 2\) .*/other\).*--config\.RECIPE\.model\.KEY"
    with pytest.raises(UserError, match=words) as error:
        started(run, str(tmp_path / "other"), classes=1)
    assert "`drop`" not in str(error.value)
    with pytest.raises(UserError, match="no model here"):
        started(run, str(tmp_path / "nowhere"), classes=1)
