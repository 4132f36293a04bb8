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

from elk_jax.training import loop
from elk_jax.training.checkpoint import load_state
from elk_jax.training.loop import RECOMPILED, Evaluation
from elk_jax.training.model import Model
from elk_jax.training.schedules import Constant
from elk_jax.training.state import evaluation_params
from elk_jax.training.writer import read_metrics
from tests.refusals import refused
from tests.training import killed, toy

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40


def records(workdir):
    """metrics.jsonl without what the clock decides."""
    lines = read_metrics(Path(workdir) / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def loaded(workdir, step):
    """What is evaluated of a checkpoint."""
    return evaluation_params(load_state(workdir / "checkpoints", step))


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
    assert_same(loaded(folder, result.best_step), result.best_params)
    assert_same(loaded(folder, STEPS), result.params)


def test_logged_values_are_means_over_the_steps_between(tmp_path):
    for every in (1, 4):
        toy.train(tmp_path / str(every), log_every=every)
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
    assert "resuming from the checkpoint of step 17" in capsys.readouterr().err
    assert_same(again.state, result.state)
    assert records(tmp_path) == records(folder)


@pytest.mark.parametrize("place", ["data", "evaluation"])
def test_a_signal_in_the_last_step_is_not_lost(whole, tmp_path, place):
    folder, result = whole

    def stop_at(step):
        if step == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)

    def measure(params, step):
        stop_at(step)
        return killed.measure(params, step)

    changes = {"before": stop_at} if place == "data" else {"evaluation": Evaluation(measure, "score")}
    with pytest.raises(KeyboardInterrupt, match=f"stopped at step {STEPS}"):
        killed.run(tmp_path, STEPS, **changes)
    again = killed.run(tmp_path, STEPS)
    assert_same(again.state, result.state)
    assert records(tmp_path) == records(folder)


def test_a_finished_run_started_again_does_nothing(whole):
    folder, result = whole
    before = (folder / "metrics.jsonl").read_bytes()

    def no_data(number):
        raise AssertionError("a finished run reads no data")

    again = killed.run(folder, STEPS, before=no_data)
    assert (result.seconds_before, result.compilations) == (0, 1)
    assert again.seconds_before > 0 and again.compilations == 0
    assert_same(again._replace(seconds_before=0.0, compilations=1), result)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_nan_stops_the_run_and_spares_the_last_checkpoint(tmp_path):
    with refused(9, "fit", "nan", where="training"):
        toy.train(tmp_path, toy.model(nan_at=9), checkpoint_every=4, log_every=5)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "8"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded(tmp_path, 8)))


@pytest.mark.parametrize("due", ["checkpoint_every", "eval_every"])
def test_a_nan_at_the_very_step_of_a_checkpoint_is_not_saved(tmp_path, due):
    evaluated = []

    def measure(params, step):
        evaluated.append(step)
        return {"score": 1.0}

    rare = {"checkpoint_every": 100, "log_every": 100, "evaluation": Evaluation(measure, "score")}
    with refused(6, "fit", "nan", where="training"):
        toy.train(tmp_path, toy.model(nan_at=6), **rare | {due: 6})
    assert list((tmp_path / "checkpoints").iterdir()) == [] and evaluated == []


def test_an_update_that_overflows_leaves_no_checkpoint_and_no_result(tmp_path):
    too_fast = {"schedule": Constant(base=1e38), "steps": 1, "checkpoint_every": 1}
    with refused(1, "norm is inf", where="training"):
        toy.train(tmp_path, **too_fast)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_initial_weights_are_used_and_checked(tmp_path):
    params = toy.model().init(jax.random.key(99))
    still = {"steps": 1, "schedule": Constant(base=0.0), "ema_decay": 0.0, "initial_params": params}
    result = toy.train(tmp_path / "a", **still)
    assert_same(result.params, params)
    params["head"]["kernel"] = params["head"]["kernel"][:5]
    with refused("head/kernel", "float32[5, 1]", "float32[32, 1]", where="initial_params"):
        toy.train(tmp_path / "b", **still)


def test_evaluation_sees_the_smoothed_weights(tmp_path):
    seen = []

    def measure(params, step):
        seen.append(jax.tree.map(np.asarray, params))
        return {"score": np.float32(0.0)}

    result = toy.train(tmp_path, steps=4, evaluation=Evaluation(measure, "score"))
    assert_same(seen[-1], result.state.ema_params)
    assert not np.array_equal(seen[-1]["head"]["kernel"], result.state.params["head"]["kernel"])


def test_pictures_are_drawn_with_every_evaluation(tmp_path):
    draw = lambda params, step: {"grid": np.full((2, 2, 3), step, np.uint8)}
    toy.train(tmp_path, steps=4, eval_every=2, evaluation=Evaluation(lambda p, s: {"score": 0.0}, "score", draw=draw))
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["grid-000002.png", "grid-000004.png"]


def test_less_may_be_better_and_nan_never_is(tmp_path):
    values = {2: 3.0, 4: float("nan"), 6: 1.0, 8: 2.0, 10: float("nan")}
    result = toy.train(tmp_path, steps=10, eval_every=2, evaluation=toy.scores(values, best_mode="min"))
    assert (result.best_step, result.best_metrics) == (6, {"score": 1.0})
    assert (tmp_path / "checkpoints" / "6").is_dir()
    assert_same(loaded(tmp_path, result.best_step), result.best_params)


@pytest.mark.parametrize("mode, sign", [("max", 1), ("min", -1)])
def test_of_equal_evaluations_the_last_is_the_best_and_is_kept(tmp_path, mode, sign):
    values = {2: 0.5 * sign, 4: 0.5 * sign, 6: 0.4 * sign, 8: 0.5 * sign, 10: 0.3 * sign}
    evaluation = toy.scores(values, best_mode=mode)
    result = toy.train(tmp_path, steps=10, eval_every=2, checkpoint_every=2, evaluation=evaluation)
    assert (result.best_step, result.best_metrics) == (8, {"score": 0.5 * sign})
    assert_same(loaded(tmp_path, result.best_step), result.best_params)


def test_more_batch_shapes_than_announced_are_reported(tmp_path, capsys):
    class Growing(toy.Batches):
        def __next__(self):
            self.size = 16 + 4 * (self.number % 2)
            return super().__next__()

    assert toy.train(tmp_path / "a", batches=Growing(), steps=4).compilations == 2
    assert f"warning: 2 {RECOMPILED} 1 batch shape(s)" in capsys.readouterr().err
    assert toy.train(tmp_path / "b", batches=Growing(), steps=4, buckets=2).compilations == 2
    assert "warning" not in capsys.readouterr().err


def test_another_identity_is_refused(whole):
    folder, _ = whole
    with refused("config", where=folder / "checkpoints"):
        killed.run(folder, STEPS, identity={"config": "abc"})


@pytest.mark.parametrize("differing", ["config", "number"])
def test_processes_that_read_different_data_end_before_anything_is_written(tmp_path, monkeypatch, differing):
    of_the_other = lambda text: [text, text.replace(f'"{differing}"', '"other"')]
    monkeypatch.setattr(loop.meshes, "gathered", of_the_other)
    with refused("different", where="data"):
        killed.run(tmp_path, 2, identity={"config": "abc"})
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_the_evaluation_does_not_give_is_named(tmp_path):
    with refused("'auc'", "score, size", where="best_metric"):
        killed.run(tmp_path, 2, evaluation=Evaluation(killed.measure, "auc"))


def test_a_checkpoint_without_averages_is_not_resumed_with_them(tmp_path):
    killed.run(tmp_path, 2, ema_decay=0.0)
    with refused("ema_params", where=tmp_path / "checkpoints" / "2"):
        killed.run(tmp_path, 4)


def test_a_batch_that_does_not_divide_is_named_before_anything_is_compiled(tmp_path):
    with refused(16, 3, where="accumulate"):
        toy.train(tmp_path, accumulate=3)


def test_a_loss_without_terms_and_one_step(tmp_path):
    def loss(params, constants, batch, rng, map_images):
        return jnp.sum(params["w"] ** 2) * jnp.mean(batch["x"] ** 2), {}

    model = Model(init=lambda rng: {"w": jnp.ones(3)}, loss=loss, predict=lambda *_: {}, per_example=False)
    result = toy.train(tmp_path, model, steps=1)
    assert int(result.state.step) == 1 and result.best_step == 1 and result.best_metrics == {}
