import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.errors import UserError
from elk_jax.training import loop
from elk_jax.training.checkpoint import load_params
from elk_jax.training.model import Task
from elk_jax.training.writer import read_metrics
from tests.training import killed, toy

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40


def records(workdir):
    """metrics.jsonl without what the clock decides."""
    lines = read_metrics(Path(workdir) / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, killed.run(folder, STEPS)


def test_a_run_learns_and_leaves_what_it_promises(whole):
    folder, result = whole
    lines = records(folder)
    train_lines = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in train_lines] == [*range(3, STEPS, 3), STEPS]
    assert [line["step"] for line in lines if "eval/score" in line] == [*range(5, STEPS + 1, 5)]
    assert train_lines[-1]["train/loss"] < 0.5 * train_lines[0]["train/loss"]
    names = {"train/fit", "train/size", "train/grad_norm", "train/param_norm", "train/update_norm"}
    assert names <= train_lines[0].keys()
    timed = read_metrics(folder / "metrics.jsonl")[0]
    for name in ("step_seconds", "images_per_second", "data_wait_share", "peak_memory_bytes", "compile_seconds"):
        assert timed[f"time/{name}"] > 0
    assert result.best_step == 20 and result.best_metrics["score"] > -0.5
    assert result.metrics["score"] < -19
    assert int(result.state.step) == STEPS
    assert_same(result.params, result.state.ema_params)
    assert_same(load_params(folder / "checkpoints"), result.best_params)
    assert_same(load_params(folder / "checkpoints", best=False), result.params)


def test_logged_values_are_means_over_the_steps_between(tmp_path):
    for every in (1, 4):
        loop.train(
            toy.task(), workdir=tmp_path / str(every), data_iterator=toy.Batches(), **toy.settings(log_every=every)
        )
    single = [line["train/loss"] for line in records(tmp_path / "1")]
    wanted = [np.mean(single[i : i + 4]) for i in (0, 4, 8)]
    assert [line["train/loss"] for line in records(tmp_path / "4")] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("crash", [3, 9, 24, 40])
def test_a_crashed_run_goes_on_to_the_same_end(whole, tmp_path, crash):
    folder, result = whole
    with pytest.raises(toy.Crash):
        killed.run(tmp_path, STEPS, before=toy.crash_at(crash))
    again = killed.run(tmp_path, STEPS)
    assert_same(again.state, result.state)
    assert_same(again.best_params, result.best_params)
    assert again.best_metrics == result.best_metrics
    assert (again.seconds_before > 0) == (crash > 7), "the first checkpoint is that of step 5 or 7"
    assert records(tmp_path) == records(folder)


def test_kill_9_at_random_moments_changes_nothing(whole, tmp_path):
    folder, result = whole
    command = [sys.executable, "-m", "tests.training.killed", str(tmp_path), str(STEPS), "0.01"]
    metrics = tmp_path / "metrics.jsonl"
    rng = random.Random(time.time_ns())
    killed_at = []
    for share in (0.4, 0.9):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = rng.randint(int(STEPS * share) - 10, int(STEPS * share) - 1)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            lines = read_metrics(metrics)
            if lines and lines[-1]["step"] >= wanted:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
        killed_at.append(read_metrics(metrics)[-1]["step"])
    again = killed.run(tmp_path, STEPS)
    assert all(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir()), "half a checkpoint is left"
    message = f"killed at {killed_at}"
    assert records(tmp_path) == records(folder), message
    assert_same(again.state, result.state)
    assert_same(again.best_params, result.best_params)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_in_a_checkpoint_and_the_run_goes_on_from_there(whole, tmp_path, capsys, number):
    folder, result = whole

    def before(batch):
        if batch == 17:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 17"):
        killed.run(tmp_path, STEPS, before=before)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert (tmp_path / "checkpoints" / "17").is_dir()
    assert "stopped at step 17: checkpoint written to" in capsys.readouterr().err
    again = killed.run(tmp_path, STEPS)
    assert "going on from the checkpoint of step 17" in capsys.readouterr().err
    assert_same(again.state, result.state)
    assert records(tmp_path) == records(folder)


def test_a_finished_run_started_again_does_nothing(whole):
    folder, result = whole
    before = (folder / "metrics.jsonl").read_bytes()

    def no_data(number):
        raise AssertionError("a finished run reads no data")

    again = killed.run(folder, STEPS, before=no_data)
    assert result.seconds_before == 0 and again.seconds_before > 0
    assert_same(again._replace(seconds_before=0.0), result)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_nan_stops_the_run_and_spares_the_last_checkpoint(tmp_path):
    task = toy.task(nan_at=9)
    with pytest.raises(UserError, match=r"step 9: fit is nan") as error:
        loop.train(task, workdir=tmp_path, data_iterator=toy.Batches(), **toy.settings(checkpoint_every=4, log_every=5))
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "8"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_params(tmp_path / "checkpoints")))


@pytest.mark.parametrize("due", ["checkpoint_every", "eval_every"])
def test_a_nan_at_the_very_step_of_a_checkpoint_is_not_saved(tmp_path, due):
    evaluated = []

    def evaluate(params, step):
        evaluated.append(step)
        return {"score": 1.0}

    settings = toy.settings(checkpoint_every=100, log_every=100, evaluate=evaluate, best_metric="score")
    with pytest.raises(UserError, match="step 6: fit is nan"):
        loop.train(toy.task(nan_at=6), workdir=tmp_path, data_iterator=toy.Batches(), **settings | {due: 6})
    assert list((tmp_path / "checkpoints").iterdir()) == [] and evaluated == []


def test_initial_weights_are_used_and_checked(tmp_path):
    params = toy.task().init(jax.random.key(99))
    still = toy.settings(total_steps=1, schedule={"name": "constant", "base": 0.0}, ema_decay=None)
    result = loop.train(toy.task(), workdir=tmp_path / "a", data_iterator=toy.Batches(), initial_params=params, **still)
    assert_same(result.params, params)
    params["head"]["kernel"] = params["head"]["kernel"][:5]
    with pytest.raises(UserError, match=r"head/kernel is float32\[5, 1\] .* float32\[32, 1\]"):
        loop.train(toy.task(), workdir=tmp_path / "b", data_iterator=toy.Batches(), initial_params=params, **still)


def test_evaluation_sees_the_smoothed_weights(tmp_path):
    seen = []

    def evaluate(params, step):
        seen.append(jax.tree.map(np.asarray, params))
        return {"score": np.float32(0.0)}

    settings = toy.settings(total_steps=4, evaluate=evaluate, best_metric="score")
    result = loop.train(toy.task(), workdir=tmp_path, data_iterator=toy.Batches(), **settings)
    assert_same(seen[-1], result.state.ema_params)
    assert not np.array_equal(seen[-1]["head"]["kernel"], result.state.params["head"]["kernel"])


def test_less_may_be_better_and_nan_never_is(tmp_path):
    values = {2: 3.0, 4: float("nan"), 6: 1.0, 8: 2.0, 10: float("nan")}
    settings = toy.settings(
        total_steps=10, eval_every=2, evaluate=lambda p, s: {"error": values[s]}, best_metric="error", best_mode="min"
    )
    result = loop.train(toy.task(), workdir=tmp_path, data_iterator=toy.Batches(), **settings)
    assert (result.best_step, result.best_metrics) == (6, {"error": 1.0})
    assert (tmp_path / "checkpoints" / "6").is_dir()
    assert_same(load_params(tmp_path / "checkpoints"), result.best_params)


@pytest.mark.parametrize("mode, sign", [("max", 1), ("min", -1)])
def test_of_equal_evaluations_the_last_is_the_best_and_is_kept(tmp_path, mode, sign):
    values = {2: 0.5 * sign, 4: 0.5 * sign, 6: 0.4 * sign, 8: 0.5 * sign, 10: 0.3 * sign}
    settings = toy.settings(
        total_steps=10, eval_every=2, evaluate=lambda p, s: {"score": values[s]}, best_metric="score", best_mode=mode
    )
    settings["checkpoint_every"] = 2
    result = loop.train(toy.task(), workdir=tmp_path, data_iterator=toy.Batches(), **settings)
    assert (result.best_step, result.best_metrics) == (8, {"score": 0.5 * sign})
    assert_same(load_params(tmp_path / "checkpoints"), result.best_params)


def test_more_batch_shapes_than_announced_are_reported(tmp_path, capsys):
    class Growing(toy.Batches):
        def __next__(self):
            self.size = 16 + 4 * (self.number % 2)
            return super().__next__()

    settings = toy.settings(total_steps=4)
    loop.train(toy.task(), workdir=tmp_path / "a", data_iterator=Growing(), **settings)
    assert "warning: 2 compilations of the step for 1 batch shape(s)" in capsys.readouterr().err
    loop.train(toy.task(), workdir=tmp_path / "b", data_iterator=Growing(), buckets=2, **settings)
    assert "warning" not in capsys.readouterr().err


def test_wrong_use_is_named(whole, tmp_path):
    folder, _ = whole
    with pytest.raises(UserError, match="another config"):
        killed.run(folder, STEPS, identity={"config": "abc"})
    with pytest.raises(UserError, match="best_metric"):
        killed.run(tmp_path / "a", 2, best_metric="")
    with pytest.raises(UserError, match=r"no 'auc'.*score, size"):
        killed.run(tmp_path / "b", 2, best_metric="auc")
    with pytest.raises(UserError, match=r"ema_params.*missing|missing.*ema_params"):
        killed.run(tmp_path / "c", 2, ema_decay=None)
        killed.run(tmp_path / "c", 4)


def test_a_batch_that_does_not_divide_is_named_before_anything_is_compiled(tmp_path):
    settings = toy.settings(accumulate=3)
    with pytest.raises(UserError, match=r"a batch of 16 in 3 micro-batches does not divide .*accumulate"):
        loop.train(toy.task(), workdir=tmp_path, data_iterator=toy.Batches(), **settings)


def test_data_that_ends_is_named(tmp_path):
    def before(number):
        if number == 3:
            raise StopIteration

    with pytest.raises(UserError, match="data ended before step 3"):
        loop.train(toy.task(), workdir=tmp_path, data_iterator=toy.Batches(before=before), **toy.settings())


def test_a_loss_without_terms_and_one_step(tmp_path):
    def loss(params, batch, rng):
        return jnp.sum(params["w"] ** 2) * jnp.mean(batch["x"] ** 2), {}

    task = Task(init=lambda rng: {"w": jnp.ones(3)}, loss=loss, predict=lambda params, batch: {})
    result = loop.train(task, workdir=tmp_path, data_iterator=toy.Batches(), **toy.settings(total_steps=1))
    assert int(result.state.step) == 1 and result.best_step == 1 and result.best_metrics == {}
