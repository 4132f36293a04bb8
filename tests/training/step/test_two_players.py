"""The step of two players: its arithmetic by hand, and through the real loop, with two updates of the discriminator."""

import os
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax.training import mesh as meshes
from elk_jax.training.checkpoint import load_state
from elk_jax.training.loop import Evaluation
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import AdversarialRecipe
from elk_jax.training.schedules import Constant, WarmupCosine
from elk_jax.training.state import update_ema
from elk_jax.training.step.adversarial import adversarial
from elk_jax.training.step.step import Step
from elk_jax.training.writer import read_metrics
from tests.refusals import refused
from tests.training import toy

STEPS, BEST, RATIO = 50, 20, 2
RECIPE = AdversarialRecipe(
    steps=STEPS,
    ratio=RATIO,
    optimizer=OptimizerConfig(name="adamw", b1=0.5, weight_decay=0.0),
    schedule=Constant(base=0.05),
    discriminator_optimizer=OptimizerConfig(name="adamw", b1=0.5, weight_decay=1.0),
    discriminator_schedule=Constant(base=0.05),
    ema_decay=0.9,
)


def pair(recipe: AdversarialRecipe = RECIPE, seed: int = 5) -> Step:
    return adversarial(toy.game(), recipe, meshes.make_mesh(), seed)


# ---- One step --------------------------------------------------------------------------------------------------------


PLAIN = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0)


def test_a_step_is_updates_in_turn():
    """The parts of a batch are used one after another, the generator's examples are scored behind the last update."""
    recipe = replace(RECIPE, optimizer=PLAIN, discriminator_optimizer=PLAIN, ratio=3, schedule=Constant(base=0.02))
    step, players = pair(recipe), toy.game()
    state = step.init(step.fresh(jax.random.key(0)))
    batch = {"x": jax.random.normal(jax.random.key(1), (12, toy.FEATURES))}
    found, metrics = jax.jit(step.update)(state, {}, batch)

    generator, judge = state.params["generator"], state.params["discriminator"]
    losses = []
    for number, key in enumerate(jax.random.split(jax.random.fold_in(jax.random.key(5), 0), 3)):
        part = {"x": batch["x"][number::3]}
        drawn = players.draw(jax.random.split(key, 3)[0], part)
        made = players.generate(generator, {}, drawn)
        (value, _), grads = jax.value_and_grad(players.discriminator_loss, has_aux=True)(
            judge, {}, part, drawn, made, key
        )
        losses.append(value)
        judge = jax.tree.map(lambda p, g: p - 0.05 * g, judge, grads)
    loss = lambda params: players.generator_loss(judge, {}, drawn, players.generate(params, {}, drawn), None)[0]
    value, grads = jax.value_and_grad(loss)(generator)
    generator = jax.tree.map(lambda p, g: p - 0.02 * g, generator, grads)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found.params, {"generator": generator, "discriminator": judge})
    jax.tree.map(close, found.ema_params, update_ema(state.params["generator"], generator, jnp.array(0), 0.9))
    close(metrics["loss"], value)
    close(metrics["discriminator_loss"], np.mean(losses))
    close(metrics["grad_norm"], optax.tree.norm(grads))
    assert metrics["finite"] == 1 and found.step == 1


def test_without_an_average_the_generator_itself_is_evaluated():
    step = pair(replace(RECIPE, ema_decay=0.0))
    state = step.init(step.fresh(jax.random.key(0)))
    assert state.ema_params is None and step.evaluation_params(state) is state.params["generator"]


def test_each_player_follows_its_own_schedule():
    """The discriminator's runs over all its updates."""
    rate = WarmupCosine(base=1.0)
    step = pair(replace(RECIPE, steps=4, schedule=rate, discriminator_schedule=rate))
    state = step.init(step.fresh(jax.random.key(0)))
    batch = {"x": jnp.ones((4, toy.FEATURES))}
    rates, update = [], jax.jit(step.update)
    for _ in range(2):
        state, metrics = update(state, {}, batch)
        rates.append((float(metrics["learning_rate"]), float(metrics["discriminator_learning_rate"])))
    cosine = lambda share: (1 + np.cos(np.pi * share)) / 2
    for number, (own, other) in enumerate(rates):
        assert own == pytest.approx(cosine(number / 4), abs=0.1)
        assert other == pytest.approx((cosine(2 * number / 8) + cosine((2 * number + 1) / 8)) / 2, abs=0.1)
    assert rates[1] < rates[0]


@pytest.mark.parametrize("player", ["real", "made"])
def test_a_loss_that_is_not_finite_is_reported(player):
    step = pair()
    params = step.fresh(jax.random.key(0))
    x = jnp.ones((4, toy.FEATURES))
    if player == "made":
        params["generator"]["bias"] = params["generator"]["bias"].at[0].set(jnp.nan)
    else:
        x = x.at[3, 0].set(jnp.inf)
    assert step.update(step.init(params), {}, {"x": x})[1]["finite"] == 0


def test_an_update_that_overflows_is_reported():
    step = pair(replace(RECIPE, optimizer=PLAIN, schedule=Constant(base=3e38)))
    batch = {"x": jnp.ones((4, toy.FEATURES))}
    metrics = step.update(step.init(step.fresh(jax.random.key(0))), {}, batch)[1]
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]) and metrics["finite"] == 0


def test_a_batch_that_does_not_divide_is_refused():
    step = pair()
    with refused(5, 2):
        jax.eval_shape(step.update, step.init(step.fresh(jax.random.key(0))), {}, {"x": jnp.ones((5, toy.FEATURES))})


def test_micro_batches_are_refused():
    with refused(2, where="accumulate"):
        replace(RECIPE, accumulate=2)


# ---- Through the loop ------------------------------------------------------------------------------------------------


def measure(generator, step):
    """Best at step `BEST`; reads the generator, which alone is evaluated."""
    distance = float(np.abs(np.asarray(generator["bias"]) - toy.MEAN).mean())
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
    for player, updates in {"generator": STEPS, "discriminator": RATIO * STEPS}.items():
        counts = optax.tree.get_all_with_path(result.state.opt_state[player], "count")
        assert counts and {int(count) for _, count in counts} == {updates}
    distances = [line["eval/distance"] for line in records(folder) if "eval/distance" in line]
    assert distances[-1] < 0.6 * distances[0]
    assert {"train/loss", "train/discriminator_loss", "train/of_real"} < records(folder)[0].keys()


def test_the_generator_alone_is_evaluated_and_returned(whole):
    folder, result = whole
    assert result.best_step == BEST
    assert result.params.keys() == result.best_params.keys() == {"kernel", "bias"}
    jax.tree.map(np.testing.assert_array_equal, result.params, result.state.ema_params)
    best = load_state(folder / "checkpoints", BEST)
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
