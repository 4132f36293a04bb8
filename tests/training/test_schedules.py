import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from elk_jax import fields
from elk_jax.errors import UserError
from elk_jax.training import schedules
from elk_jax.training.recipe import AdversarialRecipe, TrainingRecipe
from elk_jax.training.schedules import Constant, WarmupCosine, WarmupMultistep


def rates(schedule, total_steps, steps):
    rate = schedules.build(schedule, total_steps)
    return [float(rate(t)) for t in steps]


def test_multistep_follows_hand_computed_values():
    schedule = WarmupMultistep(base=2.0, warmup_steps=4, warmup_factor=0.1, milestones=(6, 8), gamma=0.5)
    # warm-up: 0.1 * (1 - t/4) + t/4 = 0.1, 0.325, 0.55, 0.775; the rate halves AT the milestones 6 and 8
    wanted = [0.2, 0.65, 1.1, 1.55, 2.0, 2.0, 1.0, 1.0, 0.5, 0.5]
    assert rates(schedule, 10, range(10)) == pytest.approx(wanted, rel=1e-6)


def test_constant_warm_up_and_milestone_within_it():
    schedule = WarmupMultistep(base=1.0, warmup_steps=4, warmup_factor=0.1, milestones=(2,), gamma=0.5, linear=False)
    assert rates(schedule, 6, range(6)) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.5, 0.5])


def test_elk_recipe_starts_at_a_thousandth():
    first, middle, warm, last = rates(WarmupMultistep(base=2.5e-4), 3000, (0, 500, 1000, 2999))
    assert first == pytest.approx(2.5e-7)
    assert middle == pytest.approx(2.5e-4 * (0.001 * 0.5 + 0.5))
    assert warm == last == pytest.approx(2.5e-4)


def test_cosine_rises_then_falls_to_its_end():
    found = rates(WarmupCosine(base=1.0, warmup_steps=3, end_factor=0.1), 13, (0, 1, 2, 3, 8, 13, 99))
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2))
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, middle, 0.1, 0.1])


def test_constant_reaches_its_value():
    assert rates(Constant(base=0.4, warmup_steps=1), 3, range(3)) == pytest.approx([0.2, 0.4, 0.4])


def test_shares_of_the_run_become_steps():
    schedule = WarmupMultistep(base=1.0, warmup_steps=0.1, milestones=(0.5, 80))
    before, *rest = rates(schedule, 100, (9, 10, 49, 50, 79, 80))
    assert before < 1.0
    assert rest == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("kind", [WarmupMultistep, WarmupCosine, Constant])
def test_inside_jit(kind):
    rate = schedules.build(kind(base=1.0, warmup_steps=5), total_steps=20)
    steps = jnp.arange(20, dtype=jnp.int32)
    assert jax.jit(jax.vmap(rate))(steps) == pytest.approx([float(rate(int(t))) for t in steps], rel=1e-5)


@pytest.mark.parametrize(
    "section, where",
    [
        ({"name": "step", "base": 1.0}, "schedule.name"),
        ({"base": 1.0}, "schedule.name"),
        ({"name": "constant"}, "schedule.base"),
        ({"name": "constant", "base": -1.0}, "schedule.base"),
        ({"name": "constant", "base": 1.0, "gamma": 0.1}, "schedule.gamma"),
        ({"name": "warmup_multistep", "base": 1.0, "milestones": (9, 3)}, "schedule.milestones"),
        ({"name": "warmup_multistep", "base": 1.0, "milestones": (0.5, 20)}, "schedule.milestones"),
        ({"name": "warmup_multistep", "base": 1.0, "milestones": (2.5,)}, "schedule.milestones"),
        ({"name": "warmup_cosine", "base": 1.0, "warmup_steps": 1.5}, "schedule.warmup_steps"),
    ],
)
def test_a_recipe_says_which_setting_is_wrong(section, where):
    with pytest.raises(UserError) as error:
        fields.build(TrainingRecipe, {"schedule": section}, "config.detector")
    assert error.value.where == f"config.detector.{where}"


@pytest.mark.parametrize("kind", [WarmupCosine, Constant])
def test_a_warm_up_that_does_not_end_is_named_with_the_rate_it_reaches(kind):
    # of 5 steps, the last has 5 / 10 of the rate
    (found,) = schedules.warnings(kind(base=0.4, warmup_steps=9), 5)
    assert "9" in found and "5" in found and "0.2 " in found and "0.4" in found
    assert schedules.warnings(kind(base=0.4, warmup_steps=9), 10) == []


def test_milestones_behind_the_end_are_named():
    schedule = WarmupMultistep(base=1.0, warmup_steps=4, milestones=(0.5, 10, 20))
    (found,) = schedules.warnings(schedule, 10)
    assert "10" in found
    assert schedules.warnings(schedule, 21) == []
    # linear from 0 to 1 in 4 steps: the third has a rate of 1/2
    (warming,) = schedules.warnings(WarmupMultistep(base=1.0, warmup_steps=4, warmup_factor=0.0), 3)
    assert "0.5 " in warming


def test_a_recipe_of_two_players_names_what_either_never_reaches():
    recipe = AdversarialRecipe(
        steps=10,
        ratio=3,
        schedule=WarmupCosine(base=1.0, warmup_steps=10),
        discriminator_schedule=WarmupCosine(base=1.0, warmup_steps=29),
    )
    (own,) = recipe.warnings()
    assert "discriminator" not in own
    (other,) = replace(recipe, schedule=Constant(base=1.0), ratio=2).warnings()
    assert "discriminator" in other
