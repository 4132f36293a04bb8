"""A student learns from a frozen teacher, which the loss reads and nothing else keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.training.checkpoint import load_state
from elk_jax.training.model import Model
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.schedules import Constant
from elk_jax.training.writer import read_metrics
from tests.training import toy

TEACHER, STEPS = 20_011, 30
"""Hidden units of the teacher: no array of the student has its sizes, and it takes a megabyte."""


def network(rng, hidden):
    a, b = jax.random.split(rng)
    return {
        "first": jax.random.normal(a, (toy.FEATURES, hidden)) / np.sqrt(toy.FEATURES),
        "second": jax.random.normal(b, (hidden, 1)) / np.sqrt(hidden),
    }


def answer(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]


def student(teacher_seed: int = 0) -> Model:
    def loss(params, constants, batch, rng, map_images):
        wanted = answer(constants["teacher"], batch["x"])
        return jnp.mean((answer(params["student"], batch["x"]) - wanted) ** 2), {"target": jnp.mean(wanted)}

    return Model(
        init=lambda rng: {"student": network(rng, 16)},
        loss=loss,
        predict=lambda params, constants, batch, map_images: {"y": answer(params["student"], batch["x"])},
        per_example=True,
        constants={"teacher": network(jax.random.key(teacher_seed), TEACHER)},
    )


def run(workdir, model, **changes):
    adam = OptimizerConfig(name="adamw", weight_decay=0.0)
    slow = {"steps": STEPS, "accumulate": 2, "optimizer": adam, "schedule": Constant(base=0.02), "ema_decay": 0.9}
    return toy.train(workdir, model, log_every=1, **slow | changes)


def losses(workdir):
    return [line["train/loss"] for line in read_metrics(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("trained"), student()
    return folder, model, run(folder, model)


def test_no_checkpoint_holds_the_teacher(trained):
    folder, model, result = trained
    files = [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    names = b"".join(path.read_bytes() for path in files if path.name == "_METADATA")
    assert b"student" in names and b"teacher" not in names
    teacher = sum(leaf.nbytes for leaf in jax.tree.leaves(model.constants))
    assert sum(path.stat().st_size for path in files) < 0.25 * teacher  # random numbers, so not to be compressed
    state = load_state(folder / "checkpoints", result.best_step)
    assert state.params.keys() == state.ema_params.keys() == {"student"}


def test_the_result_holds_no_teacher(trained):
    _, model, result = trained
    sizes = {leaf.size for leaf in jax.tree.leaves(model.constants)}
    flat, _ = jax.tree_util.tree_flatten_with_path(result)
    found = {jax.tree_util.keystr(path): np.size(leaf) for path, leaf in flat}
    assert any("ema_params['student']" in name for name in found)
    assert not any("teacher" in name for name in found) and not sizes & set(found.values())


def test_the_teacher_is_learned_from_and_stays_as_it_is(trained, tmp_path):
    folder, model, _ = trained
    assert losses(folder)[-1] < 0.5 * losses(folder)[0]
    run(tmp_path, student(teacher_seed=1))
    assert losses(tmp_path) != losses(folder)
    # the update, which takes the buffers of its state, does not take those of the teacher
    jax.tree.map(np.testing.assert_array_equal, model.constants, student().constants)


def test_a_training_with_a_teacher_is_resumed_to_the_bit(trained, tmp_path):
    folder, model, result = trained
    with pytest.raises(toy.Crash):
        run(tmp_path, model, batches=toy.Batches(before=toy.crash_at(18)))
    again = run(tmp_path, model)
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)
    assert losses(tmp_path) == losses(folder)
