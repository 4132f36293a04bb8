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
from tests.refusals import refused

OF_PAIRS = {"mse", "sigmoid_l2", "contrastive"}


def of_size(size, variant=""):
    rows = read_rows(Path(comoto_table.__file__), size)
    own = {row.config: comoto.get_config(row.config.partition(":")[2]) for row in rows if row.config}
    return plan(comoto.get_config(variant or size), rows, 1, Path("none"), own)


@pytest.fixture(scope="module")
def planned():
    return of_size("tiny")


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
        assert recipe.model == reference.model or "pretraining" in name
        if name.count(",") == 1 and "pretraining" not in name:
            assert runs[name].data["dbt"].train_share == runs[other].data["dbt"].train_share
            assert recipe.intra_align == reference.intra_align or recipe.mode == "none"
    assert compared["all,pretraining"] == "few,pretraining"


def test_every_way_to_distil_may_start(planned):
    own = [run for run in planned.runs if not run.row.name.endswith(tuple(name for name, *_ in comoto_table.OTHERS))]
    chosen = {run.experiment.recipes["distill"].mode: run.experiment for run in own}
    for experiment in chosen.values():
        stage = experiment.stages["student"]
        check_start(Run(experiment, None, mesh=None), stage, experiment.recipe_of(stage), tuple(experiment.stages))


def test_what_students_alone_read_takes_no_other_teacher(planned):
    teachers = defaultdict(set)
    for run in planned.runs:
        recipe = run.experiment.recipes["distill"]
        read = recipe.intra_align, recipe.points, recipe.sampling, recipe.stride, recipe.model
        teachers[read].add(run.identities["teacher"])
    assert {len(found) for found in teachers.values()} == {1} and len(teachers) == 6 + len(comoto_table.OTHERS)
    assert len({run.identities["student"] for run in planned.runs}) == len(planned.runs)


def test_other_detectors_and_backbones_are_rows_with_a_teacher_of_their_own(planned):
    own = planned.runs[0].experiment.recipes["distill"].model
    models = {run.row.name: run.experiment.recipes["distill"].model for run in planned.runs}
    compared = baselines(planned.rows, "", {})
    for name, *_ in comoto_table.OTHERS:
        assert models[f"few,lesion,{name}"] == models[f"few,pretraining,{name}"] != own
        assert compared[f"few,lesion,{name}"] == f"few,pretraining,{name}"
        assert compared[f"few,pretraining,{name}"] == "few,pretraining"
    assert {model.name for model in models.values()} == {"retinanet", "faster_rcnn", "efficientdet"}
    backbones = [model.backbone for model in models.values() if model.name == "retinanet"]
    assert {one.name for one in backbones} == {"resnet", "efficientnet", "swin"}
    assert {one.depth for one in backbones if one.name == "resnet"} == {18, 34, 50}
    absent = {row.name: row.not_run for row in planned.rows if row.not_run}
    assert all("GPU" in absent[f"published: {name}"] for name, *_ in (comoto_table.RESNET_50, *comoto_table.PUBLISHED))


@pytest.mark.parametrize("size", ["quick", "small", "published"])
def test_every_row_is_an_experiment_of_its_size(size):
    found = of_size(size)
    assert len(found.runs) == len([row for row in found.rows if not row.not_run])
    others = of_size(size, f"{size},swin").runs  # the rows of other networks stay what they are
    models = [{run.row.name: run.experiment.recipes["distill"].model for run in runs} for runs in (found.runs, others)]
    kept = {name for name, model in models[0].items() if model == models[1][name]}
    assert kept == {run.row.name for run in found.runs if run.row.config}
    if size == "published":
        strides = {run.experiment.recipes["distill"].model.strides for run in found.runs}
        backbones = {run.experiment.recipes["distill"].model.backbone.name for run in found.runs}
        assert strides == {(32,)} and backbones == {"resnet", "monai_swin"}
    if size == "small":  # without a size the rows of other networks are left out, and say so
        unsized = of_size("", size)
        absent = {row.name for row in unsized.rows if row.not_run}
        assert absent >= {f"few,lesion,{name}" for name, *_ in comoto_table.OTHERS}
        assert not any(run.row.config for run in unsized.runs) and len(unsized.runs) > 20
    with refused("no variant 'large'", where="comoto_table.py"):
        read_rows(Path(comoto_table.__file__), "large")
