"""A step of two players through the real loop: a tiny GAN whose discriminator is updated twice per generator update."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax.training.checkpoint import load_state
from elk_jax.training.loop import Evaluation
from elk_jax.training.state import TrainState, update_ema
from elk_jax.training.step.step import Step
from elk_jax.training.writer import read_metrics
from tests.training import toy

STEPS, BEST, RATIO, MEAN = 50, 20, 2, 3.0


def pair(seed: int = 5) -> Step:
    """A linear generator against a linear discriminator; real examples are the toy's inputs around `MEAN`."""
    optimizers = {"generator": optax.adam(0.05, b1=0.5), "discriminator": optax.adamw(0.05, b1=0.5, weight_decay=1.0)}

    def fresh(rng):
        a, b = jax.random.split(rng)
        return {
            "generator": {"kernel": jax.random.normal(a, (4, toy.FEATURES)) / 2, "bias": jnp.zeros(toy.FEATURES)},
            "discriminator": {"kernel": jax.random.normal(b, (toy.FEATURES, 1)) / 10, "bias": jnp.zeros(1)},
        }

    def init(params):
        opt_state = {player: tx.init(params[player]) for player, tx in optimizers.items()}
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, jax.tree.map(jnp.copy, params["generator"]))

    def generate(generator, rng, count):
        return jax.random.normal(rng, (count, 4)) @ generator["kernel"] + generator["bias"]

    def judge(discriminator, x):
        return x @ discriminator["kernel"] + discriminator["bias"]

    def discriminator_loss(discriminator, generator, real, rng):
        generated = generate(generator, rng, len(real))
        real_loss = jax.nn.softplus(-judge(discriminator, real)).mean()
        return real_loss + jax.nn.softplus(judge(discriminator, generated)).mean()

    def generator_loss(generator, discriminator, rng, count):
        return jax.nn.softplus(-judge(discriminator, generate(generator, rng, count))).mean()

    def update(state, constants, batch):
        params, opt_state = dict(state.params), dict(state.opt_state)
        rngs = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), RATIO + 1)

        def descend(player, loss, *arguments):
            value, grads = jax.value_and_grad(loss)(params[player], *arguments)
            updates, opt_state[player] = optimizers[player].update(grads, opt_state[player], params[player])
            params[player] = optax.apply_updates(params[player], updates)
            return value

        for real, rng in zip(jnp.split(batch["x"] + MEAN, RATIO), rngs):
            discriminator = descend("discriminator", discriminator_loss, params["generator"], real, rng)
        generator = descend("generator", generator_loss, params["discriminator"], rngs[-1], len(batch["x"]))
        ema_params = update_ema(state.ema_params, params["generator"], state.step, 0.9)
        finite = (jnp.isfinite(generator) & jnp.isfinite(discriminator)).astype(jnp.int32)
        metrics = {"loss": generator, "discriminator": discriminator, "finite": finite}
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics

    return Step(fresh, init, update, evaluation_params=lambda state: state.ema_params, seed=seed)


def measure(generator, step):
    """Best at step `BEST`; reads the generator, which alone is evaluated."""
    distance = float(np.abs(np.asarray(generator["bias"]) - MEAN).mean())
    return {"score": -abs(step - BEST) + 1e-6 * distance, "distance": distance}


def run(workdir, before=lambda number: None):
    evaluation = Evaluation(measure, "score")
    often = {"steps": STEPS, "log_every": 3, "checkpoint_every": 7, "eval_every": 10, "evaluation": evaluation}
    return toy.train(workdir, pair(), toy.Batches(before=before), **often)


def records(workdir):
    """metrics.jsonl without what the clock decides."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def test_both_play_at_their_ratio_and_the_generator_learns(whole):
    folder, result = whole
    count = {player: int(optax.tree.get(state, "count")) for player, state in result.state.opt_state.items()}
    assert count == {"generator": STEPS, "discriminator": RATIO * STEPS}
    distances = [line["eval/distance"] for line in records(folder) if "eval/distance" in line]
    assert distances[-1] < 0.6 * distances[0]
    assert {"train/loss", "train/discriminator"} < records(folder)[0].keys()


def test_the_generator_alone_is_evaluated_and_returned(whole):
    folder, result = whole
    assert result.best_step == BEST
    assert result.params.keys() == result.best_params.keys() == {"kernel", "bias"}
    jax.tree.map(np.testing.assert_array_equal, result.params, result.state.ema_params)
    best = load_state(folder / "checkpoints")
    jax.tree.map(np.testing.assert_array_equal, result.best_params, best.ema_params)
    assert best.params.keys() == {"generator", "discriminator"}


def crash(number):
    raise toy.Crash


def terminate(number):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("moment, how, stops", [(18, crash, toy.Crash), (33, terminate, KeyboardInterrupt)])
def test_a_game_that_is_stopped_is_resumed_to_the_bit(whole, tmp_path, moment, how, stops):
    folder, result = whole
    with pytest.raises(stops):
        run(tmp_path, before=lambda number: how(number) if number == moment else None)
    again = run(tmp_path)
    assert again.seconds_before > 0, "it started from nothing"
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)
    jax.tree.map(np.testing.assert_array_equal, again.best_params, result.best_params)
    assert records(tmp_path) == records(folder)
