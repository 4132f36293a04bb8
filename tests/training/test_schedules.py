import math

import jax
import jax.numpy as jnp
import pytest

from elk_jax.errors import UserError
from elk_jax.training import schedules


def test_multistep_follows_hand_computed_values():
    rate = schedules.warmup_multistep(2.0, warmup_steps=4, warmup_factor=0.1, milestones=(6, 8), gamma=0.5)
    # warm-up: 0.1 * (1 - t/4) + t/4 = 0.1, 0.325, 0.55, 0.775; the rate halves AT the milestones 6 and 8
    wanted = [0.2, 0.65, 1.1, 1.55, 2.0, 2.0, 1.0, 1.0, 0.5, 0.5]
    assert [float(rate(t)) for t in range(10)] == pytest.approx(wanted, rel=1e-6)


def test_constant_warm_up_and_milestone_within_it():
    rate = schedules.warmup_multistep(1.0, warmup_steps=4, warmup_factor=0.1, milestones=(2,), gamma=0.5, linear=False)
    assert [float(rate(t)) for t in range(6)] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.5, 0.5])


def test_elk_recipe_starts_at_a_thousandth():
    rate = schedules.build({"name": "warmup_multistep", "base": 2.5e-4}, total_steps=3000)
    assert float(rate(0)) == pytest.approx(2.5e-7)
    assert float(rate(500)) == pytest.approx(2.5e-4 * (0.001 * 0.5 + 0.5))
    assert float(rate(1000)) == float(rate(2999)) == pytest.approx(2.5e-4)


def test_cosine_rises_then_falls_to_its_end():
    rate = schedules.warmup_cosine(1.0, warmup_steps=3, total_steps=13, end_factor=0.1)
    assert [float(rate(t)) for t in range(3)] == pytest.approx([0.25, 0.5, 0.75])
    assert float(rate(3)) == pytest.approx(1.0)
    assert float(rate(8)) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert float(rate(13)) == pytest.approx(0.1) and float(rate(99)) == pytest.approx(0.1)


def test_constant_reaches_its_value():
    rate = schedules.constant(0.4, warmup_steps=1)
    assert [float(rate(t)) for t in range(3)] == pytest.approx([0.2, 0.4, 0.4])


def test_shares_of_the_run_become_steps():
    config = {"name": "warmup_multistep", "base": 1.0, "warmup_steps": 0.1, "milestones": (0.5, 80)}
    rate = schedules.build(config, total_steps=100)
    assert float(rate(9)) < 1.0 == float(rate(10)) == float(rate(49))
    assert [float(rate(50)), float(rate(79)), float(rate(80))] == pytest.approx([0.1, 0.1, 0.01])


@pytest.mark.parametrize("name", ["warmup_multistep", "warmup_cosine", "constant"])
def test_inside_jit(name):
    rate = schedules.build({"name": name, "base": 1.0, "warmup_steps": 5}, total_steps=20)
    steps = jnp.arange(20, dtype=jnp.int32)
    assert jax.jit(jax.vmap(rate))(steps) == pytest.approx([float(rate(int(t))) for t in steps], rel=1e-5)


@pytest.mark.parametrize(
    "config, part",
    [
        ({"name": "step", "base": 1.0}, "unknown schedule 'step'"),
        ({"base": 1.0}, "unknown schedule"),
        ({"name": "constant"}, "schedule.base"),
        ({"name": "constant", "base": 1.0, "gamma": 0.1}, "no argument 'gamma'"),
        ({"name": "warmup_multistep", "base": 1.0, "milestones": (9, 3)}, "increasing"),
    ],
)
def test_wrong_settings_are_named(config, part):
    with pytest.raises(UserError, match=part):
        schedules.build(config, 100)
