"""The private step of two players: by hand, what a unit can change, what it tells, and through the real loop."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax.data.batches import poisson
from elk_jax.data.batches.stream import Reading
from elk_jax.privacy import secret as secrets
from elk_jax.privacy.mechanism import Mechanism
from elk_jax.privacy.settings import Adaptive, Flat, Privacy
from elk_jax.tasks.training import step_of
from elk_jax.training import mesh as meshes
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import AdversarialRecipe
from elk_jax.training.schedules import Constant
from elk_jax.training.state import update_ema
from elk_jax.training.step.private_adversarial import judge, private_adversarial
from elk_jax.training.step.separable import check_examples
from elk_jax.training.step.step import Protection, on_mesh
from elk_jax.training.writer import read_metrics
from tests.refusals import refused
from tests.training import toy

RATIO, ROWS, EXAMPLES, EXPECTED, CLIP = 2, 4, 2, 3, 0.5
SECRET = secrets.known(5)
PLAIN = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0)
RECIPE = AdversarialRecipe(
    steps=10,
    ratio=RATIO,
    optimizer=PLAIN,
    schedule=Constant(base=0.5),
    discriminator_optimizer=PLAIN,
    discriminator_schedule=Constant(base=1.0),
    ema_decay=0.9,
    privacy=Privacy(noise_multiplier=1.0, clipping=Flat(clip_norm=CLIP)),
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make(recipe=RECIPE, noise=0.0):
    """(the first state, (state, batch) -> (state, metrics)), in float64."""
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    protection = Protection(Mechanism(recipe.privacy, 100, EXPECTED, noise, 10, recipe.releases), SECRET)
    step = private_adversarial(toy.game(jnp.float64), recipe, protection, mesh, seed=3)
    program = on_mesh(step, mesh)
    start = program.init(step.fresh(jax.random.key(0)))
    return start, lambda state, batch: program.update(state, step.constants, meshes.put_batch(batch, mesh))


@pytest.fixture(scope="module")
def silent():
    """The program without noise."""
    with jax.enable_x64(True):
        return make()


def sample(units, seed=0):
    """A Poisson sample of these units: rows of examples, NaN in padding and where a unit lacks one."""
    x, valid = np.full((ROWS, EXAMPLES, toy.FEATURES), np.nan), np.zeros((ROWS, EXAMPLES), bool)
    for row, unit in enumerate(units):
        own = np.random.default_rng([seed, unit]).normal(size=(EXAMPLES, toy.FEATURES))
        valid[row] = [True, unit % 2 == 0]  # of odd units there is one example
        x[row, valid[row]] = own[valid[row]]
    return {"examples": {"x": x, "valid": valid}, "unit": np.array([*units, *[-1] * (ROWS - len(units))], np.int32)}


def batch_of(*samples):
    return poisson.in_turn(samples)


def run(made, batch):
    """(parameters before, state after, metrics); the program's own first state is left alone."""
    start, step = made
    before = jax.tree.map(np.asarray, start.params)
    return before, *step(jax.tree.map(jnp.copy, start), batch)


def clipped_sum(params, generator, units, number):
    """By hand: of each unit the mean over its pairs of a real and a made example, clipped."""
    players, total = toy.game(jnp.float64), jax.tree.map(jnp.zeros_like, params)
    loss_key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(SECRET.keys()[1]), number))[0]
    norms = []
    for row, unit in enumerate(units["unit"]):
        if unit < 0:
            continue
        draw_key, _ = jax.random.split(jax.random.fold_in(loss_key, unit))
        drawn = jax.random.normal(draw_key, (EXAMPLES, 4))
        pairs = []
        for place in np.flatnonzero(units["examples"]["valid"][row]):
            real, noise = units["examples"]["x"][row, place][None], drawn[place][None]
            made = players.generate(generator, {}, noise)
            loss = lambda p, real=real, made=made: players.discriminator_loss(p, {}, {"x": real}, None, made, None)[0]
            pairs.append(jax.grad(loss)(params))
        grads = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *pairs)
        norms.append(float(optax.tree.norm(grads)))
        total = jax.tree.map(lambda t, g, n=norms[-1]: t + min(1, CLIP / n) * g, total, grads)
    return total, norms


def test_a_step_is_clipped_updates_by_hand_and_one_of_the_generator(silent):
    samples = [sample([3, 8, 70]), sample([8, 12, 5, 90], seed=1)]
    before, after, metrics = run(silent, batch_of(*samples))
    generator, judged, all_norms = before["generator"], before["discriminator"], []
    for number, one in enumerate(samples):
        total, norms = clipped_sum(judged, generator, one, number)
        all_norms += norms
        judged = jax.tree.map(lambda p, t: p - t / EXPECTED, judged, total)
    assert len(all_norms) == 7 and max(all_norms) > CLIP
    players = toy.game(jnp.float64)
    draw_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(3), 0))
    drawn = jax.random.normal(draw_key, (EXPECTED, 4))
    loss = lambda p: players.generator_loss(judged, {}, drawn, players.generate(p, {}, drawn), None)[0]
    value, grads = jax.value_and_grad(loss)(generator)
    moved = jax.tree.map(lambda p, g: p - 0.5 * g, generator, grads)
    chex.assert_trees_all_close(after.params, {"generator": moved, "discriminator": judged}, rtol=1e-6, atol=1e-9)
    chex.assert_trees_all_close(after.ema_params, update_ema(generator, moved, jnp.array(0), 0.9), rtol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(value))
    assert int(metrics["finite"]) == 1 and int(after.step) == 1


def test_nothing_of_real_examples_is_published(silent):
    _, _, metrics = run(silent, batch_of(sample([3, 8]), sample([1])))
    norms = {"grad_norm", "param_norm", "update_norm", "learning_rate"}
    assert metrics.keys() == {"loss", "finite"} | norms | {f"discriminator_{name}" for name in norms}


@pytest.mark.parametrize("other", [[3, 8], [3, 8, 50]])
def test_one_unit_changes_the_sum_by_at_most_the_clip_norm(silent, other):
    """The pair of its real and its made examples, however far the other players are apart."""
    nobody = sample([])
    before, one, _ = run(silent, batch_of(nobody, sample([3, 8, 70])))
    _, two, _ = run(silent, batch_of(nobody, sample(other)))
    moved = [jax.tree.map(lambda b, a: EXPECTED * (b - np.asarray(a)), before["discriminator"],
                          state.params["discriminator"]) for state in (one, two)]  # fmt: skip
    change = float(optax.tree.norm(jax.tree.map(np.subtract, *moved)))
    assert 0.1 < change <= CLIP * (len(other) - 1) + 1e-9  # to replace one is to remove one and to add one


def test_an_empty_sample_is_pure_noise_and_each_update_draws_its_own():
    recipe = dataclasses.replace(RECIPE, ratio=1)
    start, step = make(recipe, noise=3.0)
    state, drawn = jax.tree.map(jnp.copy, start), []
    for _ in range(300):
        before = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params["discriminator"])])
        state, _ = step(state, sample([]))
        after = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params["discriminator"])])
        drawn.append(EXPECTED * (before - after))
    drawn = np.array(drawn)
    assert drawn.std() == pytest.approx(3.0 * CLIP, rel=4 / np.sqrt(2 * drawn.size))
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 4 / np.sqrt(drawn.size)
    two = run(make(noise=3.0), batch_of(sample([]), sample([])))
    moved = [np.ravel(b - np.asarray(a)) for b, a in zip(jax.tree.leaves(two[0]["discriminator"]),
                                                         jax.tree.leaves(two[1].params["discriminator"]))]  # fmt: skip
    # two updates of one step are two releases, the first of which is that of a step with one
    np.testing.assert_allclose(EXPECTED * np.concatenate(moved), drawn[0] + drawn[1], rtol=1e-6)


def test_the_generator_sees_the_data_through_the_discriminator_alone():
    """With one that does not learn, its update is the same whatever the data are."""
    made = make(dataclasses.replace(RECIPE, discriminator_schedule=Constant(base=1e-300)))
    _, one, first = run(made, batch_of(sample([3, 8, 70]), sample([1])))
    _, two, second = run(made, batch_of(sample([]), sample([5, 6, 7, 8], seed=2)))
    chex.assert_trees_all_equal(one.params["generator"], two.params["generator"])
    assert first["loss"] == second["loss"] and first["discriminator_grad_norm"] != second["discriminator_grad_norm"]


def test_public_examples_are_judged_without_clipping_and_noise(silent):
    privacy = dataclasses.replace(RECIPE.privacy, public_weight=0.5)
    made = make(dataclasses.replace(RECIPE, ratio=1, privacy=privacy))
    public = {"x": np.random.default_rng(0).normal(size=(4, toy.FEATURES)), "valid": np.ones(4, bool)}
    before, after, metrics = run(made, sample([3, 8]) | {"public": public})
    total, _ = clipped_sum(before["discriminator"], before["generator"], sample([3, 8]), 0)
    key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(SECRET.keys()[1]), 0))[1]
    model = judge(toy.game(jnp.float64), before["generator"])
    loss = lambda params: model.loss(params, model.constants, public, key, jax.vmap)[0]
    value, grads = jax.value_and_grad(loss)(before["discriminator"])
    wanted = jax.tree.map(lambda p, t, g: p - t / EXPECTED - 0.5 * g, before["discriminator"], total, grads)
    chex.assert_trees_all_close(after.params["discriminator"], wanted, rtol=1e-6, atol=1e-9)
    assert float(metrics["discriminator_public_loss"]) == pytest.approx(float(value))


# ---- Games that are refused ------------------------------------------------------------------------------------------


def coupled():
    """A game whose discriminator sees by how many deviations of the batch examples differ from its mean."""
    plain = toy.game(jnp.float64)

    def discriminator_loss(discriminator, constants, batch, drawn, made, rng):
        x = (batch["x"] - batch["x"].mean(0)) / batch["x"].std(0)
        return plain.discriminator_loss(discriminator, constants, {**batch, "x": x - toy.MEAN}, drawn, made, rng)

    return dataclasses.replace(plain, discriminator_loss=discriminator_loss)


def test_a_discriminator_whose_examples_meet_is_refused():
    examples = sample([3])["examples"]
    check = lambda game: check_examples(
        judge(game, game.init(jax.random.key(0))["generator"]), {name: x[0] for name, x in examples.items()}
    )
    check(toy.game(jnp.float64))
    with refused("batch normalisation", where="privacy"):
        check(coupled())
    says_so = dataclasses.replace(toy.game(), per_example=False)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    for protection in (Protection(Mechanism(RECIPE.privacy, 100, 3, 1.0, 10), SECRET), None):
        with refused("sum over examples", where="privacy"):
            step_of(says_so, RECIPE, mesh, 0, protection)


def test_a_private_recipe_is_not_trained_without_protection():
    with refused("units", where="privacy"):
        step_of(toy.game(), RECIPE, meshes.make_mesh(devices=jax.devices()[:1]), 0)


# ---- Through the loop ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with jax.enable_x64(True):
        return folder, toy.play_privately(folder, dtype=np.float64)


def test_both_play_at_their_ratio_and_the_ledger_counts_releases(whole):
    folder, result = whole
    assert result.params.keys() == {"kernel", "bias"}  # the generator alone is evaluated and returned
    counts = optax.tree.get_all_with_path(result.state.opt_state["discriminator"], "count")
    assert counts and {int(count) for _, count in counts} == {toy.PLAYED.ratio * toy.PLAYED.steps}
    assert toy.ledger(folder, toy.PLAYED.steps)["phases"] == [
        {"sampling_rate": 0.25, "noise_multiplier": 1.0, "steps": toy.PLAYED.ratio * toy.PLAYED.steps}
    ]
    names = {name for line in read_metrics(folder / "metrics.jsonl") for name in line}
    assert "train/loss" in names and not {"train/discriminator_loss", "train/of_real"} & names


@pytest.mark.parametrize("crash", [2, 5])
def test_a_game_that_is_stopped_is_resumed_to_the_bit(whole, tmp_path, crash):
    folder, result = whole
    with pytest.raises(toy.Crash):
        toy.play_privately(tmp_path, crash, dtype=np.float64)
    again = toy.play_privately(tmp_path, dtype=np.float64)
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)
    assert read_metrics(tmp_path / "metrics.jsonl") == read_metrics(folder / "metrics.jsonl")


def test_an_adaptive_clip_norm_is_kept_by_the_discriminator(whole):
    _, result = whole
    assert isinstance(toy.PLAYED.privacy.clipping, Adaptive)
    kept = float(result.state.opt_state["discriminator"]["clip_norm"])
    assert kept > 0 and kept != pytest.approx(toy.PLAYED.privacy.clipping.initial)


def test_batches_of_a_step_take_turns():
    settings = {"rate": 0.3, "reading": Reading(), "images": 2, "lanes": 2}
    members = tuple((2 * unit, 2 * unit + 1) for unit in range(toy.UNITS))
    one, _ = poisson.private_batches(toy.UnitExample(), members, SECRET, **settings)
    two, _ = poisson.private_batches(toy.UnitExample(), members, SECRET, releases=2, **settings)
    for _ in range(2):
        step = next(two)
        for place in range(2):
            alone = next(one)
            np.testing.assert_array_equal(step["unit"][place::2], alone["unit"])
            np.testing.assert_array_equal(step["examples"]["x"][place::2], alone["examples"]["x"])
    with refused("other data"):
        one.set_state(two.get_state())
    one.close(), two.close()
