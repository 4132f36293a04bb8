import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elk_jax import fields
from elk_jax.errors import UserError
from elk_jax.training import optimizer
from elk_jax.training.optimizer import OptimizerConfig
from tests.refusals import refused

PARAMS = {
    "stem": {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.array([0.5])},
    "norm1": {"scale": jnp.array([1.0]), "weight": jnp.array([3.0])},
    "head": {"kernel": jnp.array([4.0])},
}
GRADS = jax.tree.map(lambda p: 0.1 * p + 1.0, PARAMS)
RATE = optax.constant_schedule(0.5)


def run(config, steps=1, frozen=(), grads=GRADS, rate=RATE):
    tx = optimizer.build(OptimizerConfig(**config), rate, PARAMS, frozen)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state, updates


def torch_sgd(p, g, steps, lr, momentum, decay):
    """torch.optim.SGD: d = g + decay * p; buf = momentum * buf + d (first: d); p -= lr * buf."""
    buffer = 0.0
    for _ in range(steps):
        buffer = momentum * buffer + g + decay * p
        p = p - lr * buffer
    return p


def test_sgd_follows_torch():
    params, _, _ = run({"name": "sgd", "weight_decay": 0.2}, steps=3)
    for path, decay in ((("stem", "kernel"), 0.2), (("head", "kernel"), 0.2), (("stem", "bias"), 0.0)):
        p, g = (np.asarray(tree[path[0]][path[1]]) for tree in (PARAMS, GRADS))
        np.testing.assert_allclose(params[path[0]][path[1]], torch_sgd(p, g, 3, 0.5, 0.9, decay), rtol=1e-6)


def test_adamw_decay_is_decoupled():
    params, _, _ = run({"name": "adamw", "weight_decay": 0.2})
    # the first Adam update is the sign of the gradient; then lr * decay * p on top
    np.testing.assert_allclose(params["head"]["kernel"], 4.0 - 0.5 * (1.0 + 0.2 * 4.0), rtol=1e-5)
    np.testing.assert_allclose(params["stem"]["bias"], 0.5 - 0.5, atol=1e-5)


def test_decay_spares_norms_and_biases_only():
    with_decay, _, _ = run({"weight_decay": 0.2})
    without, _, _ = run({"weight_decay": 0.0})
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), with_decay, without)
    assert same == {
        "stem": {"kernel": False, "bias": True},
        "norm1": {"scale": True, "weight": True},
        "head": {"kernel": False},
    }


@pytest.mark.parametrize(
    "path",
    [
        "bn1/weight",
        "layer/norm/mean",
        "gn/scale",
        "LayerNorm_0/x",
        "a/bias",
        "scale",
        "attention/relative_position",
        "node_0/weights",
    ],
)
def test_default_no_decay_matches(path):
    assert any(optimizer.compile_pattern(p, "").search(path) for p in optimizer.NO_DECAY)


@pytest.mark.parametrize(
    "path", ["conv/kernel", "biased/kernel", "scaled/kernel", "fpn/lateral2/kernel", "design/kernel", "stem/depthwise"]
)
def test_default_no_decay_leaves_kernels(path):
    assert not any(optimizer.compile_pattern(p, "").search(path) for p in optimizer.NO_DECAY)


def test_multipliers_scale_the_update_and_the_first_match_counts():
    plain = run({"weight_decay": 0.0})[2]
    scaled = run({"weight_decay": 0.0, "multipliers": (("stem/kernel", 0.1), ("stem", 3.0))})[2]
    ratio = jax.tree.map(lambda a, b: float((a / b)[0]), scaled, plain)
    assert ratio["stem"] == pytest.approx({"kernel": 0.1, "bias": 3.0})
    assert ratio["head"]["kernel"] == ratio["norm1"]["scale"] == 1.0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_parameters_stay_and_cost_nothing(name):
    params, state, updates = run({"name": name, "weight_decay": 0.2, "frozen": ("^stem/",)}, steps=3, frozen=("norm",))
    assert jax.tree.map(lambda a, b: bool(jnp.all(a == b)), params, PARAMS) == {
        "stem": {"kernel": True, "bias": True},
        "norm1": {"scale": True, "weight": True},
        "head": {"kernel": False},
    }
    assert all(not jnp.any(u) for u in jax.tree.leaves((updates["stem"], updates["norm1"])))
    kept = sum(x.size for x in jax.tree.leaves(state) if x.dtype == jnp.float32)
    assert kept == {"sgd": 1, "adamw": 2}[name]  # one or two moments of head/kernel, nothing of the others


def test_clipping_counts_trainable_parameters_only():
    huge = jax.tree.map(lambda g: g, GRADS) | {"stem": jax.tree.map(lambda g: 1e6 * g, GRADS["stem"])}
    config = {"momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.1, "frozen": ("stem",)}
    updates = run(config, grads=huge)[2]
    rest = {"norm1": updates["norm1"], "head": updates["head"]}
    assert float(optax.tree.norm(rest)) == pytest.approx(0.5 * 0.1, rel=1e-5)


def test_gradient_within_the_norm_is_not_touched():
    config = {"momentum": 0.0, "weight_decay": 0.0, "clip_norm": 1e3}
    np.testing.assert_allclose(run(config)[2]["head"]["kernel"], -0.5 * GRADS["head"]["kernel"], rtol=1e-6)


def test_rate_follows_the_schedule():
    rate = lambda count: jnp.where(count < 1, 1.0, 0.0)
    once, twice = (run({"weight_decay": 0.0}, steps=n, rate=rate)[0] for n in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, once, twice)


def test_multipliers_and_freezing_together():
    updates = run({"multipliers": (("kernel", 2.0),), "frozen": ("head",), "weight_decay": 0.0})[2]
    np.testing.assert_allclose(updates["stem"]["kernel"], -0.5 * 2.0 * GRADS["stem"]["kernel"], rtol=1e-6)
    assert not jnp.any(updates["head"]["kernel"])


@pytest.mark.parametrize(
    "section, where",
    [
        ({"frozen": ("(",)}, "optimizer.frozen"),
        ({"multipliers": (("(", 1.0),)}, "optimizer.multipliers"),
        ({"multipliers": (("head", -1.0),)}, "optimizer.multipliers"),
        ({"no_decay": "head"}, "optimizer.no_decay"),
        ({"name": "lion"}, "optimizer.name"),
        ({"momentum": 1.0}, "optimizer.momentum"),
        ({"eps": 0.0}, "optimizer.eps"),
        ({"momentun": 0.9}, "optimizer.momentun"),
    ],
)
def test_wrong_settings_are_named(section, where):
    with pytest.raises(UserError) as error:
        fields.build(OptimizerConfig, section, "optimizer")
    assert error.value.where == where


@pytest.mark.parametrize(
    "config, where, keyword",
    [
        ({"frozen": ("backbone",)}, "optimizer.frozen", "'backbone'"),
        ({"multipliers": (("neck", 0.1),)}, "optimizer.multipliers", "'neck'"),
        ({"multipliers": (("head", 0.1), ("head/kernel", 0.5))}, "optimizer.multipliers", "'head/kernel'"),
        ({"frozen": (".",)}, "optimizer.frozen", "every"),
    ],
)
def test_expressions_that_do_not_fit_the_parameters_are_named(config, where, keyword):
    with refused(keyword, where=where):
        run(config)


def test_an_expression_that_matches_nothing_is_answered_with_names_that_exist():
    with refused("stem/kernel", where="optimizer.frozen"):
        run({"frozen": ("backbone",)})


def test_a_models_own_frozen_expression_may_match_nothing():
    assert all(jax.tree.leaves(optimizer.trainable_mask(PARAMS, OptimizerConfig(), frozen=("running_mean",))))
