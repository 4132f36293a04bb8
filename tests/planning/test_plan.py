"""Plans of trainings: here, where the devices are, and for TPUs, where libtpu is."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cem_real, variants
from elk_jax.experiments.parse import parse
from elk_jax.output import Console
from elk_jax.planning import folder, tables
from elk_jax.planning.page import page
from elk_jax.planning.plan import PREDICTION, STEP, Plan, Refused, _Compiler, _train_stage, efficiencies, plan
from elk_jax.privacy.settings import Privacy
from elk_jax.programs import chips, libtpu, roofline, topology
from elk_jax.programs.account import Account, Cost
from elk_jax.programs.costs import Collective
from elk_jax.programs.parts import Part
from elk_jax.tasks import TASKS
from elk_jax.tasks.stages import PrivateTrainStage
from elk_jax.training import mesh as meshes
from tests.experiments import toy_task
from tests.refusals import refused
from tests.tpu import need_compiler

V5E = next(chip for chip in chips.CHIPS if chip.name == "v5e")


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The toy task, and no measurement of this machine."""
    monkeypatch.setitem(TASKS, "toy", toy_task.TASK)
    monkeypatch.setattr(topology, "measured_chip", lambda device, devices: replace_memory(V5E, 16 * chips.GIB))


def replace_memory(chip: chips.Chip, memory: float) -> chips.Chip:
    return chip._replace(memory=memory, links=float("inf"))


def config(**changes):
    found = toy_task.get_config()
    for key, value in changes.items():
        found.update_from_flattened_dict({key.replace("__", "."): value})
    return found


def test_a_plan_here_compiles_measures_and_is_shown(tmp_path):
    found = plan(config(), "", ["here"])
    (one,) = found.slices
    step, prediction = one.programs
    assert (step.what, prediction.what, step.shape) == (STEP, PREDICTION, "8x8") and one.fits
    weights = 4 * (8 * 8 + 1)
    assert step.memory.parameters == step.memory.averages == prediction.memory.parameters == weights
    assert step.memory.optimizer == prediction.memory.optimizer >= 2 * weights  # a training predicts as well
    assert prediction.memory.averages == weights
    assert step.measured is not None and 0 < step.measured.least <= step.measured.median <= step.measured.most
    assert prediction.measured is None
    console = Console(width=120, file=io.StringIO())
    tables.print_plan(found, console)
    text = console.file.getvalue()
    for word in ("no noise", "fits in 16.0 GiB", "parameters", "least time", "measured", "parts of the training step"):
        assert word in text, word
    folder.write_plan(found, tmp_path)
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["slices"][0]["programs"][0]["memory"]["parameters"] == weights
    assert written["slices"][0]["chip"]["links"] is None  # JSON has no infinity
    shown = (tmp_path / "plan.html").read_text()
    assert all(word in shown for word in ("elk_jax plan", "toys: train", "Parts of the prediction", "no noise"))


def test_a_plan_counts_the_trainings_of_folds():
    """40 steps of three folds and of the last training: 160, of which each takes the least time of a step."""
    found = plan(config(toy__folds=3, toy__steps=40), "", ["here"])
    assert (found.folds, found.steps, found.all_steps) == (3, 40, 160)
    written = folder.as_json(found)
    assert (written["folds"], written["steps"], written["steps_in_all"]) == (3, 40, 160)
    seconds = tables.duration(160 * found.slices[0].steps[0].bound.exposed)
    assert all(word in tables.length(found) for word in ("4 trainings", "3 folds", "160", seconds))
    assert tables.length(found) in page(found).summary
    joined = replace(found, refit=False)
    assert joined.all_steps == 120 and all(word in tables.length(joined) for word in ("3 folds", "120"))
    alone = replace(found, folds=0)
    assert alone.all_steps == 40 and "fold" not in tables.length(alone)


def test_a_plan_counts_the_steps_of_the_stage(monkeypatch):
    """A student may take fewer steps than its recipe says."""
    shorter = lambda stage, recipe: replace(recipe, steps=recipe.steps // 10)
    monkeypatch.setattr(toy_task.TrainToyStage, "paced", shorter)
    assert plan(config(toy__steps=40), "", ["here"]).steps == 4


@dataclass(frozen=True, kw_only=True)
class PrivateToyStage(toy_task.TrainToyStage, PrivateTrainStage):
    """The toy as a task that trains in units."""


def test_a_private_training_is_planned_with_units_in_the_turns_that_a_batch_is_expected_to_take(monkeypatch):
    train = replace(toy_task.TASK.stages["train"], settings=PrivateToyStage)
    monkeypatch.setitem(TASKS, "toy", replace(toy_task.TASK, stages={**toy_task.TASK.stages, "train": train}))
    (alone,) = plan(config(), "", ["here"], batch=6).slices
    found = config()
    found.toy.privacy = ConfigDict(variants.settings(Privacy(epsilon=2.0, images=2, micro_batch=3)))
    planned = plan(found, "", ["here"], batch=6)
    (one,) = planned.slices
    step, prediction = one.programs
    assert step.measured is not None and step.batch == 6 and prediction.memory.batch == alone.programs[1].memory.batch
    assert step.memory.batch > 2 * 2 * alone.programs[0].memory.batch  # rows for all batches, of two images
    assert not step.account.unknown_loops
    assert any("2 images" in sentence for sentence in planned.assumed)


def test_a_private_recipe_of_a_task_without_units_is_refused():
    found = config()
    found.toy.privacy = ConfigDict(variants.settings(Privacy(epsilon=2.0)))
    with refused("units", where="privacy"):
        plan(found, "", ["here"])


def test_the_batch_is_spread_over_the_chips_or_is_that_of_each():
    devices = len(jax.devices())
    assert plan(config(toy__images__batch_size=4 * devices), "", ["here"]).batch == 4
    assert plan(config(), "", ["here"], batch=3).slices[0].programs[0].batch == 3


def test_a_plan_for_tpus_counts_what_chips_exchange():
    """The mean gradient of 65 numbers is all that data-parallel chips exchange, beside the two metrics."""
    need_compiler()
    found = plan(config(), "train", ["v5e:1x1", "v5e:2x2"], batch=4, quick=True)
    alone, four = (one.steps[0].account.collectives() for one in found.slices)
    assert not alone and set(four) == {("all-reduce", 4)}
    assert four[("all-reduce", 4)].bytes == 4 * (64 + 1 + 2)
    first, second = efficiencies(found)
    assert first == ("v5e:1x1", 1, 1.0, 1.0) and second.chips == 4
    assert second.exposed < second.hidden <= 1.01
    assert [p.what for p in found.slices[1].programs] == [STEP]  # predictions exchange nothing
    text = folder.as_json(found)["weak_scaling"]
    assert [entry["chips"] for entry in text] == [1, 4]


def test_a_batch_that_does_not_fit_is_told(monkeypatch):
    monkeypatch.setattr(topology, "measured_chip", lambda device, devices: replace_memory(V5E, 500.0))
    found = plan(config(), "", ["here"], largest=True)
    (one,) = found.slices
    assert not one.fits and one.largest_batch == 0  # the weights alone are larger
    assert "does not fit" in tables.headline(found, replace(one, refused=(Refused(STEP, "8x8", "too large"),)))
    assert "not even one" in tables.headline(found, replace(one, largest_batch=0))


def test_the_largest_batch_divides_into_micro_batches(monkeypatch):
    monkeypatch.setattr(topology, "measured_chip", lambda device, devices: replace_memory(V5E, 20_000.0))
    (one,) = plan(config(toy__accumulate=3), "", ["here"], batch=3, largest=True).slices
    assert one.largest_batch > 3 and one.largest_batch % 3 == 0


def test_the_largest_batch_is_that_of_the_shape_that_does_not_fit(monkeypatch):
    experiment = parse(config())
    stage, (one,) = _train_stage(experiment, ""), plan(config(), "", ["here"]).slices
    workload = TASKS["toy"].stages["train"].workload(stage, experiment.recipe_of(stage), None)
    mesh = meshes.make_mesh(devices=one.slice.devices)
    compiler = _Compiler(experiment, stage, lambda size, devices: workload, one.slice, mesh, True, print)
    asked = []
    monkeypatch.setattr(_Compiler, "program", lambda self, workload, what, shape: asked.append(shape) or "too large")
    assert compiler.largest(replace(one, refused=(Refused(STEP, "9x9", "too large"),)), 4) == 0
    assert set(asked) == {"9x9"}


def test_the_larger_sizes_of_testing_are_planned_for_prediction(monkeypatch):
    config = cem_real.get_config("tiny")
    config.detector.test_scales = (1.0, 0.5, 1.1)
    asked = []
    monkeypatch.setattr(
        _Compiler, "program", lambda self, workload, what, shape: asked.append((what, shape)) or "large"
    )
    plan(config, "real", ["here"], every_shape=True)
    assert asked == [(STEP, "128x96"), (PREDICTION, "128x96"), (PREDICTION, "160x128")]


def test_a_slice_is_planned_once():
    assert len(plan(config(), "", ["here", "here"]).slices) == 1


BEFORE = {  # slices of one chip and of different chips -> where
    "fsdp": ({"mesh__fsdp": 2}, ["v5e:2x2", "v5e:1x1"], "mesh.fsdp", "divisor"),
    "data": ({"mesh__data": 4}, ["v5e:2x2", "v5e:1x1"], "mesh", "data=-1"),
    "chips": ({}, ["v5e:2x2", "v6e:2x2"], "--topology", "different chips"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_all_slices_are_checked_before_the_first_is_compiled(name):
    need_compiler()
    changes, slices, where, word = BEFORE[name]
    said = []
    with refused(word, where=where):
        plan(config(**changes), "", slices, say=said.append)
    assert not said


def test_only_the_compiler_of_tpus_has_a_least_effort():
    with refused("TPUs", where="--quick"):
        plan(config(), "", ["here"], quick=True)


def test_an_experiment_without_training():
    with refused("no stage that trains"):
        _train_stage(replace(parse(config()), stages={}), "")


def test_parts_are_divided_without_loss():
    """A part that has large costs itself, beside those of its parts."""
    paths = {("a",): 300, ("a", "b"): 10, ("a", "b", "c"): 20, ("d", "e", "f"): 40, (): 5}
    costs = tuple(Cost("", "fusion", Part(path, "forward"), 1, size, 0, None, False) for path, size in paths.items())
    found = [(name, total.bytes) for name, total in tables.parts(Account(costs, (), 1))]
    assert found == [("a", 300), ("d", 40), ("a/b", 30), ("other", 5)]


REFUSED = {
    "a stage that evaluates": ({"stage": "evaluate"}, "--stage=evaluate", "train"),
    "a stage that is not there": ({"stage": "nothing"}, "--stage=nothing", "train"),
    "a slice that is none": ({"slices": ["v5e"]}, "--topology", "v5e:4x4"),
    "a generation that is none": ({"slices": ["v9:2x2"]}, "--topology", "v5e"),
    "a shape with nothing": ({"slices": ["v5e:0x4"]}, "--topology", "shape"),
    "a shape that nobody sells": ({"slices": ["v5e:3x5"]}, "--topology=v5e:3x5", "2x2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_planned_is_one_line(name):
    given, where, word = REFUSED[name]
    if where.startswith("--topology="):
        need_compiler()
    with refused(word, where=where):
        plan(config(), given.get("stage", ""), given.get("slices", ["here"]))


def test_without_the_compiler_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(libtpu, "is_installed", lambda: False)
    with refused("elk_jax[tpu]", where="--topology=v5e:2x2"):
        topology.find("v5e:2x2")


# ---- Chips and the roofline ------------------------------------------------------------------------------------------

KINDS = {
    **{"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"},
    **{"NVIDIA H100 80GB HBM3": "H100", "NVIDIA H100 PCIe": "H100 PCIe", "NVIDIA H100 NVL": "H100 NVL"},
    **{"NVIDIA H200": "H200", "NVIDIA GH200 480GB": "GH200", "NVIDIA L4": "L4", "NVIDIA L40S": "L40S"},
    **{"NVIDIA A100-SXM4-40GB": "A100", "NVIDIA A100-SXM4-80GB": "A100 80GB"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_devices_are_found_by_jaxs_name(kind):
    assert chips.of_device(kind).name == KINDS[kind] and chips.of_device("cpu") is None


SECONDS = {  # 200 GB/s of a v5e: 1 GB takes 5 ms one way; a ring of n sends (n - 1) / n of it, an all-reduce twice
    ("all-reduce", 4): 2 * 0.75 * 5e-3,
    ("all-gather", 4): 0.75 * 5e-3,
    ("reduce-scatter", 256): 255 / 256 * 5e-3,
    ("collective-permute", 2): 5e-3,
    ("all-reduce", 1): 0.0,
}


@pytest.mark.parametrize("kind, group", SECONDS)
def test_the_least_time_of_a_collective(kind, group):
    found = roofline.seconds(Collective(kind, 10**9, group), V5E)
    assert found == pytest.approx(SECONDS[kind, group])


def test_the_least_time_is_the_longer_of_arithmetic_and_memory_one_by_one():
    part = Part(("a",), "forward")
    costs = (
        Cost("bound by arithmetic", "fusion", part, 2, 819_000_000, 394_000_000_000, None, False),  # 2 x (1, 2 ms)
        Cost("bound by memory", "fusion", part, 1, 1_638_000_000, 0, None, False),  # 2 ms
        Cost("beside", "copy-start", part, 1, 819_000_000, 0, None, True),  # 1 ms, hidden
        Cost("sum", "all-reduce", part, 1, 0, 0, Collective("all-reduce", 10**9, 4), False),  # 7.5 ms
    )
    bound = roofline.bound(Account(costs, (), 4), V5E)
    assert np.allclose(bound, (4e-3, 5e-3, 7.5e-3, 6e-3))
    assert bound.least == pytest.approx(7.5e-3) and bound.exposed == pytest.approx(13.5e-3)


def test_plans_without_a_step_have_no_efficiency():
    empty = replace(plan(config(), "", ["here"]).slices[0], programs=())
    assert efficiencies(Plan("toy", "train", 1, (), (empty,))) == []


WRITTEN = {0: "0 B", 999: "999 B", 1000: "1.00 kB", 999_400: "999 kB", 999_600: "1.00 MB", 12_345_678: "12.3 MB"}


@pytest.mark.parametrize("count", WRITTEN)
def test_sizes_have_three_digits(count):
    assert tables.scaled(count, "B") == WRITTEN[count]
    assert tables.binary(3 << 29) == "1.50 GiB" and tables.duration(0.0123) == "12.3 ms"
