"""The requirements of a train stage on a slice of chips, found by compiling it without data, weights or chips.

A plan compiles the actual training step and prediction of a stage for every given slice, and analyses the compiled
programs: memory by purpose, arithmetic and bytes by part of the model, collectives, and a lower bound on the time from
the roofline of the chip. Shapes replace arrays throughout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from elk_jax.errors import UserError, is_out_of_memory
from elk_jax.experiments.needs import check_needs
from elk_jax.experiments.parse import kind_of, parse
from elk_jax.planning.here import Measured, measure_step
from elk_jax.planning.largest import largest_batch
from elk_jax.programs import roofline, topology
from elk_jax.programs.account import Account, account
from elk_jax.programs.memory import Memory, memory
from elk_jax.programs.roofline import Bound
from elk_jax.programs.topology import Slice
from elk_jax.tasks import folds, private
from elk_jax.tasks.run import Experiment
from elk_jax.tasks.stages import PrivateTrainStage, Stage, TrainStage
from elk_jax.tasks.task import Workload
from elk_jax.tasks.training import step_of
from elk_jax.training import mesh as meshes
from elk_jax.training import prediction
from elk_jax.training.step.step import Step, on_mesh

Say = Callable[[str], None]
STEP, PREDICTION = "training step", "prediction"
SPARE = 0.03
"""Share of a chip's memory that is reserved by its runtime."""


@dataclass(frozen=True)
class Program:
    """One compiled program on one slice.

    what: STEP or PREDICTION. shape: of its batch, such as 800x1344. batch: examples per chip. memory: includes the
    training state, for a prediction too, as it runs during training. fits: in the memory of the chip. compiler_bytes:
    the compiler's own account of memory traffic, which counts loops once and on-chip memory too. compile_seconds:
    processor time of the compiler. measured: seconds of an update, on the devices of this machine.
    """

    what: str
    shape: str
    batch: int
    memory: Memory
    fits: bool
    account: Account
    bound: Bound
    compiler_bytes: float
    compile_seconds: float
    measured: Measured | None = None


class Refused(NamedTuple):
    """A program that the compiler rejected as too large. what, shape: as in `Program`. reason: given by the
    compiler."""

    what: str
    shape: str
    reason: str


@dataclass(frozen=True)
class SlicePlan:
    """A stage on one slice. refused: programs that the compiler rejected as too large.

    largest_batch: examples per chip that fit in training; None if not requested.
    """

    slice: Slice
    mesh: Mapping[str, int]
    programs: tuple[Program, ...]
    refused: tuple[Refused, ...] = ()
    largest_batch: int | None = None

    @property
    def steps(self) -> list[Program]:
        """The training steps, the slowest first."""
        steps = [program for program in self.programs if program.what == STEP]
        return sorted(steps, key=lambda program: -program.bound.exposed)

    @property
    def fits(self) -> bool:
        return not self.refused and all(program.fits for program in self.programs)


@dataclass(frozen=True)
class Plan:
    """A stage on one or more slices. batch: examples per chip. assumed: assumptions that only data and weights could
    confirm.

    steps: of one training with the recipe. folds: trainings of a cross-validation. refit: whether another training
    follows, with at most as many steps, whose model is kept.
    """

    experiment: str
    stage: str
    batch: int
    assumed: tuple[str, ...]
    slices: tuple[SlicePlan, ...]
    steps: int = 0
    folds: int = 0
    refit: bool = True

    @property
    def all_steps(self) -> int:
        """The largest number of steps of the stage, over all its trainings."""
        return (self.folds + self.refit) * self.steps


class Efficiency(NamedTuple):
    """Predicted speed of a chip in a slice, relative to one that exchanges no data with others; the exchange is fully
    hidden behind other work (`hidden`) or not at all (`exposed`)."""

    topology: str
    chips: int
    hidden: float
    exposed: float


def plan(
    config: ConfigDict,
    stage: str,
    slices: Sequence[str],
    batch: int = 0,
    every_shape: bool = False,
    largest: bool = False,
    quick: bool = False,
    say: Say = lambda text: None,
) -> Plan:
    """Compile a train stage for every slice (`topology.find`): its step, and for the first slice its prediction.

    stage: "" for the only one that trains. batch: examples per chip; 0: the recipe's global batch divided among the
    chips of the first slice if possible, else all of it on every chip. every_shape: compile all shapes of batches, not
    only the one with the most pixels. largest: search for the largest batch that fits on a chip of the first slice.
    quick: the least effort of the TPU's compiler. say: called with progress messages. UserError for a stage that does
    not train, a slice that does not exist, slices of different chips, and settings that no training accepts.
    """
    experiment = parse(config)
    chosen = _train_stage(experiment, stage)
    check_needs(experiment, [chosen])
    found = _slices(slices)
    if quick and found[0].is_here:
        what = "the compiler of this machine has no least effort, only that of TPUs"
        raise UserError(what, where="--quick", todo="leave it out, or name a slice of TPUs")
    meshed = [meshes.make_mesh(experiment.mesh.data, experiment.mesh.fsdp, target.devices) for target in found]
    make, chips = _workloads(experiment, chosen), len(found[0].devices)
    recipes_own = make(None, chips)
    assumed = recipes_own.assumed
    if not batch:
        whole = recipes_own.batch_size
        batch = whole // chips if whole % chips == 0 else whole
        if whole % chips:
            assumed += (f"{whole} examples on each chip, as the recipe's batch is not divisible by {chips} chips",)
    shapes = list(recipes_own.training)
    if not every_shape:
        shapes = [max(shapes, key=lambda shape: sum(map(np.size, jax.tree.leaves(recipes_own.training[shape]))))]
    if quick:
        assumed += (
            "the least effort of the compiler: the program used in training needs less memory and moves fewer bytes",
        )
    planned: list[SlicePlan] = []
    for target, mesh in zip(found, meshed):
        compiler = _Compiler(experiment, chosen, make, target, mesh, quick, say)
        first = not planned
        one = compiler.plan(batch, shapes, (STEP, PREDICTION) if first else (STEP,))
        planned.append(replace(one, largest_batch=compiler.largest(one, batch)) if largest and first else one)
    recipe = chosen.paced(experiment.recipe_of(chosen))
    dealt = folds.count_of(chosen, recipe)
    refit = not folds.makes_ensemble(chosen, recipe)
    return Plan(experiment.name, chosen.name, batch, assumed, tuple(planned), recipe.steps, dealt, refit)


def efficiencies(plan: Plan) -> list[Efficiency]:
    """Weak scaling from the roofline, by number of chips. Slices whose step was refused are left out."""
    steps = {one.slice: one.steps[0].bound for one in plan.slices if one.steps}
    ordered = sorted(steps, key=lambda target: len(target.devices))
    if not ordered:
        return []
    alone = steps[ordered[0]].alone
    return [
        Efficiency(target.name, len(target.devices), alone / steps[target].least, alone / steps[target].exposed)
        for target in ordered
    ]


def _slices(names: Sequence[str]) -> list[Slice]:
    """The slices of these names, each once."""
    found = [topology.find(name) for name in dict.fromkeys(names)]
    for target in found[1:]:
        if target.chip.name != found[0].chip.name:
            what = f"{found[0].name} and {target.name} have different chips, whose times cannot be compared"
            raise UserError(what, where="--topology", todo="plan each kind of chip separately")
    return found


def _train_stage(experiment: Experiment, name: str) -> TrainStage:
    trained = [s for s in experiment.stages.values() if isinstance(s, TrainStage) and kind_of(s).workload]
    if not trained:
        raise UserError(f"{experiment.name} has no stage that trains", where="--config", todo="choose another config")
    known = ", ".join(stage.name for stage in trained)
    for stage in trained:
        if stage.name == name or (not name and len(trained) == 1):
            return stage
    what = f"'{name}' is not a stage that trains" if name else f"{experiment.name} has several stages that train"
    raise UserError(what, where=f"--stage={name}", todo=f"choose from {known}")


Make = Callable[[int | None, int], Workload]
"""(global batch size or None for the recipe's; devices) -> the computation of a stage."""


def _workloads(experiment: Experiment, stage: Stage) -> Make:
    make, recipe = kind_of(stage).workload, experiment.recipe_of(stage)
    assert make is not None  # _train_stage

    def workload(batch_size: int | None, devices: int) -> Workload:
        work = make(stage, recipe, batch_size)
        if recipe.privacy is None or not isinstance(stage, PrivateTrainStage):
            return work
        return private.of_units(work, recipe.privacy, devices, recipe.releases)

    return workload


def _of_testing_alone(workload: Workload) -> list[str]:
    """The largest shape of batches that only prediction has, such as that of a larger size in testing; [] for none."""
    size = lambda shape: sum(map(np.size, jax.tree.leaves(workload.prediction[shape])))
    return sorted(workload.prediction.keys() - workload.training.keys(), key=size)[-1:]


@dataclass(frozen=True)
class _Compiler:
    """Compiles the programs of a stage for one slice."""

    experiment: Experiment
    stage: Stage
    make: Make
    target: Slice
    mesh: Mesh
    quick: bool
    say: Say

    def plan(self, batch: int, shapes: Sequence[str], kinds: Sequence[str]) -> SlicePlan:
        """Programs of the stage with `batch` examples per chip."""
        workload = self.make(batch * self.mesh.size, self.mesh.size)
        programs: list[Program] = []
        refused: list[Refused] = []
        for what in kinds:
            for shape in (*shapes, *_of_testing_alone(workload)) if what == PREDICTION else shapes:
                program = self.program(workload, what, shape)
                if isinstance(program, Program):
                    programs.append(self.during_training(program, programs))
                else:
                    refused.append(Refused(what, shape, program))
        return SlicePlan(self.target, dict(self.mesh.shape), tuple(programs), tuple(refused))

    def largest(self, planned: SlicePlan, batch: int) -> int:
        """Examples per chip in the largest training step that fits, for the shape that needs the most memory."""
        steps, parts = planned.steps, self.experiment.recipe_of(self.stage).accumulate
        too_large = [shape for what, shape, _ in planned.refused if what == STEP]
        shape = too_large[0] if too_large else max(steps, key=lambda step: step.memory.total).shape
        known = {batch: next((float(step.memory.total) for step in steps if step.shape == shape), math.inf)}

        def total(size: int) -> float:
            if size not in known:
                program = self.program(self.make(size * self.mesh.size, self.mesh.size), STEP, shape)
                known[size] = float(program.memory.total) if isinstance(program, Program) else math.inf
            return known[size]

        # a micro-batch has a whole number of examples on each chip
        most = largest_batch(lambda each: total(each * parts), batch // parts, self.target.chip.memory * (1 - SPARE))
        return most * parts

    def during_training(self, program: Program, before: Sequence[Program]) -> Program:
        """The program with the memory of the training state, which stays allocated during prediction."""
        if program.what != PREDICTION or not before:
            return program
        state = before[0].memory
        held = program.memory._replace(optimizer=state.optimizer, averages=state.averages)
        return replace(program, memory=held, fits=self.fits(held))

    def fits(self, held: Memory) -> bool:
        return held.total <= self.target.chip.memory * (1 - SPARE)

    def program(self, workload: Workload, what: str, shape: str) -> Program | str:
        """The compiled program, or the compiler's reason for rejecting it as too large."""
        batch, chip = workload.batch_size // self.mesh.size, self.target.chip
        self.say(f"compiling the {what} for {shape} on {self.target.name}, {batch} examples per chip")
        lowered = self.lowered(workload, what, shape)
        start = time.process_time()
        try:
            compiled = topology.compile_for(lowered, self.target, self.quick)
        except jax.errors.JaxRuntimeError as error:
            if is_out_of_memory(error):
                return str(error).strip().splitlines()[0]
            raise
        seconds = time.process_time() - start
        held, read = memory(compiled), account(compiled, self.mesh.size)
        program = Program(
            what=what,
            shape=shape,
            batch=batch,
            memory=held,
            fits=self.fits(held),
            account=read,
            bound=roofline.bound(read, chip),
            compiler_bytes=float((compiled.cost_analysis() or {}).get("bytes accessed", 0.0)),
            compile_seconds=seconds,
        )
        if self.target.is_here and what == STEP:
            measured = measure_step(compiled, self.step(workload), self.mesh, workload.training[shape])
            program = replace(program, measured=measured)
        return program

    def step(self, workload: Workload) -> Step:
        recipe = self.experiment.recipe_of(self.stage)
        return step_of(workload.model, recipe, self.mesh, self.experiment.seed, workload.protection)

    def lowered(self, workload: Workload, what: str, shape: str) -> Any:
        """The program as traced in training and prediction, from shapes."""
        model, mesh, step = workload.model, self.mesh, self.step(workload)
        if what == STEP:
            program, constants = on_mesh(step, mesh), _laid_out(step.constants, mesh)
            return program.update.lower(program.state, constants, self._shapes(workload.training[shape]))
        constants = _laid_out(model.constants, mesh)
        evaluated = lambda rng: step.evaluation_params(step.init(step.fresh(rng)))
        params = _laid_out(jax.eval_shape(evaluated, jax.random.key(0)), mesh)
        batch = self._shapes(workload.prediction[shape])
        return prediction.on_mesh(model, mesh).lower(params, constants, batch)

    def _shapes(self, batch: Mapping[str, Any]) -> Any:
        sharding = meshes.batch_sharding(self.mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding), dict(batch))


def _laid_out(tree: Any, mesh: Mesh) -> Any:
    """Shapes with their layout on the mesh."""
    layout = meshes.tree_shardings(tree, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout)
