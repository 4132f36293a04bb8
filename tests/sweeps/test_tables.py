"""The tables of settings in configs/: every row is a run that may start, and runs share what they have in common."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import get_args

import pytest

from configs import comoto, comoto_table
from elk_jax.sweeps.plan import plan
from elk_jax.sweeps.settings import baselines, read_rows
from elk_jax.tasks.distillation.recipe import Mode
from elk_jax.tasks.distillation.train import check_start
from elk_jax.tasks.run import Run

OF_PAIRS = {"mse", "sigmoid_l2", "contrastive"}


@pytest.fixture(scope="module")
def planned():
    rows = read_rows(Path(comoto_table.__file__))
    return plan(comoto.get_config("tiny"), rows, 1, Path("none"))


def test_every_mode_stands_in_the_table_with_few_slices_and_with_all(planned):
    found = defaultdict(set)
    for run in planned.runs:
        found[run.experiment.data["dbt"].train_share].add(run.experiment.recipes["distill"].mode)
    assert found == {share: set(get_args(Mode)) - OF_PAIRS for share in (0.1, 1.0)}
    absent = [row for row in planned.rows if row.not_run]
    assert absent and not any(row.overrides for row in absent)


def test_every_student_is_compared_with_pretraining_by_the_same_teacher(planned):
    compared = baselines(planned.rows, "", {})
    assert len(compared) == len(planned.runs) - 1
    runs = {run.row.name: run.experiment for run in planned.runs}
    for name, other in compared.items():
        recipe, reference = (runs[one].recipes["distill"] for one in (name, other))
        assert reference.mode == "pretraining"
        if name.count(",") == 1 and "pretraining" not in name:
            assert runs[name].data["dbt"].train_share == runs[other].data["dbt"].train_share
            assert recipe.intra_align == reference.intra_align or recipe.mode == "none"
    assert compared["all,pretraining"] == "few,pretraining"


def test_every_way_to_distil_may_start(planned):
    chosen = {run.experiment.recipes["distill"].mode: run.experiment for run in planned.runs}
    for experiment in chosen.values():
        stage = experiment.stages["student"]
        check_start(Run(experiment, None, mesh=None), stage, experiment.recipe_of(stage), tuple(experiment.stages))


def test_what_students_alone_read_takes_no_other_teacher(planned):
    teachers = defaultdict(set)
    for run in planned.runs:
        recipe = run.experiment.recipes["distill"]
        read = recipe.intra_align, recipe.points, recipe.sampling, recipe.stride
        teachers[read].add(run.identities["teacher"])
    assert {len(found) for found in teachers.values()} == {1} and len(teachers) == 6
    assert len({run.identities["student"] for run in planned.runs}) == len(planned.runs)
