import dataclasses

import pytest

from elk_jax import fields
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import WarmupMultistep
from tests.refusals import refused


@pytest.mark.parametrize(
    "settings, where",
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"accumulate": 0}, "accumulate"),
        ({"ema_decay": 1.0}, "ema_decay"),  # the averages would never move
        ({"ema_decay": -0.1}, "ema_decay"),
        ({"log_every": 0}, "log_every"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
        ({"eval_every": -1}, "eval_every"),
        ({"optimizer": {"weight_decay": -1.0}}, "optimizer.weight_decay"),
    ],
)
def test_settings_out_of_range_are_named(settings, where):
    with refused(where=f"config.painter.{where}"):
        fields.build(TrainingRecipe, settings, "config.painter")


def test_checkpoints_and_evaluations_may_be_left_to_the_end():
    recipe = fields.build(TrainingRecipe, {"steps": 1, "checkpoint_every": 0, "eval_every": 0}, "config.painter")
    assert (recipe.checkpoint_every, recipe.eval_every) == (0, 0)


def test_milestones_are_in_order_for_some_numbers_of_steps_only():
    recipe = TrainingRecipe(steps=300, schedule=WarmupMultistep(base=0.1, milestones=(0.5, 200)))
    with refused("(500, 200)", where="schedule.milestones"):
        dataclasses.replace(recipe, steps=1000)
