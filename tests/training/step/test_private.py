"""The private step: it equals a loop over units by hand, and adds the noise that it promises."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax.privacy import secret as secrets
from elk_jax.privacy.mechanism import Mechanism
from elk_jax.privacy.settings import Adaptive, Flat, Normalised, Privacy
from elk_jax.training import mesh as meshes
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Constant
from elk_jax.training.step.private import private, with_noise
from elk_jax.training.step.step import Protection, on_mesh
from tests.refusals import refused
from tests.training import toy

ROWS, EXAMPLES, EXPECTED = 8, 3, 4
SECRET = secrets.known(5)
PLAIN = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0)
CLIP = Flat(clip_norm=0.5)


def make(clipping=CLIP, noise=0.0, model=None, optimizer=PLAIN, ema_decay=0.0, **settings):
    """(the first state, (state, batch) -> (state, metrics)) at a learning rate of 1, in float64."""
    privacy = Privacy(noise_multiplier=1.0, clipping=clipping, **settings)
    mechanism = Mechanism(privacy, 100, EXPECTED, noise, 10)
    recipe = TrainingRecipe(steps=10, optimizer=optimizer, schedule=Constant(base=1.0), ema_decay=ema_decay)
    model, mesh = model or toy.separable(jnp.float64), meshes.make_mesh(devices=jax.devices()[:1])
    step = private(model, recipe, Protection(mechanism, SECRET), mesh)
    program = on_mesh(step, mesh)
    start = program.init(model.init(jax.random.key(0)))
    return start, lambda state, batch: program.update(state, step.constants, meshes.put_batch(batch, mesh))


def batch_of(units, seed=0, missing=()):
    """A batch of these units, whose examples follow from their numbers. missing: (unit, example) pairs that units lack.
    What is missing, and padding, is NaN."""
    examples = {
        "x": np.full((ROWS, EXAMPLES, toy.FEATURES), np.nan),
        "y": np.full((ROWS, EXAMPLES, 1), np.nan),
        "valid": np.zeros((ROWS, EXAMPLES), bool),
    }
    for row, unit in enumerate(units):
        rng = np.random.default_rng([seed, unit])
        x, y = rng.normal(size=(EXAMPLES, toy.FEATURES)), rng.normal(size=(EXAMPLES, 1))
        there = np.array([(unit, place) not in missing for place in range(EXAMPLES)])
        examples["x"][row, there], examples["y"][row, there] = x[there], y[there]
        examples["valid"][row] = there
    unit = np.full(ROWS, -1, np.int32)
    unit[: len(units)] = units
    return {"examples": examples, "unit": unit}


def by_hand(params, batch, step, bound):
    """Sum of the gradients of the units, one after another, each multiplied with bound(its norm); and the norms."""
    key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(SECRET.keys()[1]), step))[0]
    model, total, norms = toy.separable(jnp.float64), jax.tree.map(jnp.zeros_like, params), []
    for row, unit in enumerate(batch["unit"]):
        if unit >= 0:
            own = {name: np.nan_to_num(values[row]) for name, values in batch["examples"].items()}
            rng = jax.random.fold_in(key, unit)
            grads = jax.grad(lambda p, own=own, rng=rng: model.loss(p, {}, own, rng, jax.vmap)[0])(params)
            norms.append(float(optax.tree.norm(grads)))
            total = jax.tree.map(lambda t, g, n=norms[-1]: t + bound(n) * g, total, grads)
    return total, norms


def moved(before, after):
    """Expected batch size times the step that the parameters made, at a learning rate of 1."""
    return jax.tree.map(lambda b, a: EXPECTED * (np.asarray(b) - np.asarray(a)), before, after.params)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def flat():
    """The program without noise."""
    with jax.enable_x64(True):
        return make()


@pytest.fixture(scope="module")
def adaptive():
    """An adaptive clip norm, counts with noise but gradients almost without, and public examples."""
    with jax.enable_x64(True):
        return make(Adaptive(initial=0.5, rate=0.2, count_noise=0.2), noise=1e-9, public_weight=0.25)


def run(made, batch):
    """(parameters before, state after, metrics); the program's own first state is left alone."""
    start, step = made
    before = jax.tree.map(np.asarray, start.params)
    after, metrics = step(jax.tree.map(jnp.copy, start), batch)
    return before, after, metrics


@pytest.mark.parametrize(
    "settings, bound",
    [
        (None, lambda norm: min(1, 0.5 / norm)),  # of the fixture
        ({"clipping": Normalised(stability=0.1), "micro_batch": 4}, lambda norm: 1 / (norm + 0.1)),
        ({"gradients": "ghost", "micro_batch": 4}, lambda norm: min(1, 0.5 / norm)),
    ],
)
def test_a_step_equals_a_loop_over_units(flat, settings, bound):
    batch = batch_of([3, 1, 70, 12, 9], missing={(1, 0), (9, 1), (9, 2)})
    before, after, metrics = run(make(**settings) if settings else flat, batch)
    wanted, norms = by_hand(before, batch, 0, bound)
    assert len(norms) == 5 and max(norms) > 0.5
    chex.assert_trees_all_close(moved(before, after), wanted, rtol=1e-6, atol=1e-9)
    assert int(metrics["finite"]) == 1 and int(after.step) == 1


def test_nothing_of_a_single_example_is_published(flat):
    _, _, metrics = run(flat, batch_of([3, 1]))
    assert metrics.keys() == {"grad_norm", "param_norm", "update_norm", "learning_rate", "finite"}


def test_each_step_draws_other_numbers_for_the_loss(flat):
    start, step = flat
    state, _ = step(jax.tree.map(jnp.copy, start), batch_of([3, 1]))
    before = jax.tree.map(np.asarray, state.params)
    after, _ = step(state, batch_of([3, 1]))
    wanted, _ = by_hand(before, batch_of([3, 1]), 1, lambda norm: min(1, 0.5 / norm))
    chex.assert_trees_all_close(moved(before, after), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("other", [[3, 1, 70], [3, 1, 70, 50]])
def test_one_unit_changes_the_sum_by_at_most_the_clip_norm(flat, other):
    before, one, _ = run(flat, batch_of([3, 1, 70, 12]))
    _, two, _ = run(flat, batch_of(other))
    change = float(optax.tree.norm(jax.tree.map(np.subtract, moved(before, one), moved(before, two))))
    assert 0.1 < change <= 0.5 * (len(other) - 2) + 1e-9  # to replace one is to remove one and to add one


def test_order_padding_and_rows_change_nothing(flat):
    before, one, _ = run(flat, batch_of([3, 1, 70]))
    batch = batch_of([3, 1, 70])
    turned = jax.tree.map(lambda x: np.roll(x, 4, axis=0), batch)
    turned["examples"]["valid"][turned["unit"] < 0] = True  # padding may hold anything
    _, two, _ = run(flat, turned)
    chex.assert_trees_all_close(moved(before, one), moved(before, two), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("units", [[], [3]])
def test_nothing_is_added_by_an_empty_batch_or_by_an_example_that_is_not_finite(flat, units):
    batch = batch_of(units)
    batch["examples"]["x"][:1] = np.inf
    before, after, metrics = run(flat, batch)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, after.params), before)
    assert float(metrics["grad_norm"]) == 0 and int(metrics["finite"]) == 1


def test_noise_has_its_deviation_and_no_two_leaves_are_alike():
    tree = {"a": jnp.zeros((1000, 500)), "b": jnp.zeros((1000, 500)), "none": None}
    drawn = with_noise(tree, jax.random.key(0), jnp.float32(2.5))
    again = with_noise(tree, jax.random.key(1), 2.5)
    flat = np.concatenate([np.ravel(drawn[name]) for name in "ab"])
    assert flat.std() == pytest.approx(2.5, rel=0.003) and abs(flat.mean()) < 0.01
    for one, other in [("a", "b"), ("a", "again"), ("b", "again")]:
        right = again["a"] if other == "again" else drawn[other]
        assert abs(np.corrcoef(np.ravel(drawn[one]), np.ravel(right))[0, 1]) < 0.01


def test_an_empty_batch_is_pure_noise_on_trained_parameters_whose_averages_are_kept():
    optimizer = dataclasses.replace(PLAIN, frozen=("head",))
    model = toy.separable(jnp.float64, frozen=("norm",), hidden=300)
    before, after, _ = run(make(noise=3.0, model=model, optimizer=optimizer, ema_decay=0.9), batch_of([]))
    for name in ("head", "norm"):
        chex.assert_trees_all_equal(jax.tree.map(np.asarray, after.params[name]), before[name])
    drawn = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(moved(before, after)["stem"])])
    assert drawn.std() == pytest.approx(3.0 * 0.5, rel=4 / np.sqrt(2 * drawn.size))
    assert abs(drawn.mean()) < 4 * 1.5 / np.sqrt(drawn.size)
    wanted = jax.tree.map(lambda b, a: 0.1 * b + 0.9 * np.asarray(a), before, after.params)  # the first decay is 0.1
    chex.assert_trees_all_close(after.ema_params, wanted, rtol=1e-6, atol=1e-7)


def test_another_generator_by_default_does_not_change_the_noise():
    """Generators that are quicker are not made to be unpredictable."""
    before, after, _ = run(made := make(noise=3.0), batch_of([]))
    with jax.default_prng_impl("unsafe_rbg"):
        _, again, _ = run((made[0], make(noise=3.0)[1]), batch_of([]))
    chex.assert_trees_all_equal(after.params, again.params)
    assert optax.tree.norm(moved(before, after)) > 1


PUBLIC = {name: 9 * np.random.default_rng(0).normal(size=(4, size)) for name, size in (("x", toy.FEATURES), ("y", 1))}
PUBLIC["valid"] = np.ones(4, bool)


def test_an_adaptive_clip_norm_follows_the_noisy_share_of_unclipped_gradients(adaptive):
    start, step = adaptive
    batch, clips = batch_of([3, 1, 70, 12]) | {"public": PUBLIC}, [0.01]
    before = jax.tree.map(np.asarray, start.params)
    _, norms = by_hand(before, batch, 0, lambda norm: 1.0)
    state = start._replace(opt_state=start.opt_state | {"clip_norm": jnp.float32(0.01)})
    for _ in range(120):
        state = jax.tree.map(jnp.copy, state)._replace(params=jax.tree.map(jnp.asarray, before))
        state, metrics = step(state, batch)
        assert float(metrics["clip_norm"]) == pytest.approx(clips[-1])
        clips.append(float(state.opt_state["clip_norm"]))
    assert np.median(clips[90:]) == pytest.approx(np.median(norms), rel=0.5)
    steps = np.diff(np.log(clips[:10]))  # where all are clipped the share is 0, but for the noise
    assert steps.mean() == pytest.approx(0.2 * 0.5, abs=4 * 0.2 * 0.2 / 3) and np.ptp(steps) > 0.01


def test_an_adaptive_clip_norm_pays_for_its_counts():
    privacy = Privacy(noise_multiplier=1.0, clipping=Adaptive(count_noise=0.05))
    found = Mechanism(privacy, 1000, 100, 1.0, 10)
    # two Gaussian releases of the same unit, of sensitivity 1 and 1/2, compose to one of noise multiplier 1
    assert found.gradient_noise**-2 + (found.count_noise / 0.5) ** -2 == pytest.approx(1.0)
    assert found.count_noise == 5 and found.gradient_noise > 1


def test_public_examples_are_added_without_clipping_and_noise(adaptive):
    batch = batch_of([3, 1])
    before, after, metrics = run(adaptive, batch | {"public": PUBLIC})
    private_part, _ = by_hand(before, batch, 0, lambda norm: min(1, 0.5 / norm))
    key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(SECRET.keys()[1]), 0))[1]
    loss = lambda params: toy.separable(jnp.float64).loss(params, {}, PUBLIC, key, jax.vmap)[0]
    value, grads = jax.value_and_grad(loss)(before)
    wanted = jax.tree.map(lambda a, b: a + 0.25 * EXPECTED * b, private_part, grads)
    chex.assert_trees_all_close(moved(before, after), wanted, rtol=1e-6, atol=1e-7)
    assert float(metrics["public_loss"]) == pytest.approx(float(value))
    assert float(optax.tree.norm(grads)) > 1


def test_shapes_and_models_that_do_not_fit_are_refused():
    start, step = make(micro_batch=3)
    with refused(8, 3, where="privacy.micro_batch"):
        step(start, batch_of([3]))
    with refused("sum over examples", where="privacy"):
        make(model=toy.model())
    with refused("micro_batch", where="accumulate"):
        dataclasses.replace(toy.RECIPE, accumulate=2, privacy=Privacy(epsilon=1.0))


def test_no_program_holds_the_secret():
    """Compiled programs are cached on disk with their constants."""
    privacy = Privacy(noise_multiplier=1.0)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    made = private(toy.separable(), toy.RECIPE, Protection(Mechanism(privacy, 100, 4, 1.0, 10), SECRET), mesh)
    program = on_mesh(made, mesh)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), batch_of([]))
    shapes["unit"] = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    shapes["examples"]["valid"] = jax.ShapeDtypeStruct((ROWS, EXAMPLES), bool)
    text = program.update.lower(program.state, made.constants, shapes).as_text()
    assert len(text) > 1000
    assert not any(str(word) in text for word in SECRET.words)
    assert str(SECRET.words[0]) not in repr(made.protection)
