"""The training loop: one for all tasks. Read `train` top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from elk_jax.errors import UserError, is_out_of_memory
from elk_jax.progress import Progress
from elk_jax.training import mesh as meshes
from elk_jax.training.checkpoint import SECRET, Checkpoints, load_state, tree_difference
from elk_jax.training.model import Params
from elk_jax.training.state import TrainState
from elk_jax.training.step.step import Protection, Step, fresh_params, fresh_shapes, on_mesh
from elk_jax.training.stopping import StopSignal
from elk_jax.training.timing import Timer
from elk_jax.training.window import Window
from elk_jax.training.writer import Writer

RECOMPILED = "compilations of the step for"
"""Part of the warning about more compilations than batch shapes."""
IN_FLIGHT = 2
"""Steps queued on the device ahead of the host: enough to hide the host's work, few enough to bound the memory of
batches."""


class DataIterator(Protocol):
    """Endless batches, as dicts of arrays with the process's share of the batch as leading axis.

    get_state / set_state (JSON) save the exact position: after set_state the same batches follow.
    """

    def __next__(self) -> Mapping[str, Any]: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


@dataclass(frozen=True)
class Intervals:
    """Intervals in steps. Everything is also done at the end; 0: only at the end."""

    log: int = 20
    checkpoint: int = 500
    evaluation: int = 0


@dataclass(frozen=True)
class Evaluation:
    """How parameters are evaluated, and which checkpoint is the best.

    measure:     (params on the devices, step) -> metrics.
    best_metric: the metric that decides; best_mode: whether more (`max`) or less (`min`) is better.
    draw:        (params on the devices, step) -> pictures [H, W, 3] uint8 by name, at every evaluation.
    """

    measure: Callable[[Params, int], Mapping[str, Any]]
    best_metric: str
    best_mode: Literal["max", "min"] = "max"
    draw: Callable[[Params, int], dict[str, np.ndarray]] | None = None


class TrainResult(NamedTuple):
    """state: at the last step. params, best_params: evaluation parameters of the last step and of the best evaluation.

    metrics, best_metrics: of the last and the best evaluation; empty if there was none. best_step: step of the best.
    seconds_before: training time of earlier attempts, up to the checkpoint from which this one resumed. compilations:
    of the update, one per batch shape.
    """

    state: TrainState
    params: Params
    best_params: Params
    metrics: dict[str, float]
    best_metrics: dict[str, float]
    best_step: int
    seconds_before: float
    compilations: int


def train(
    step: Step,
    *,
    workdir: str | Path,
    data_iterator: DataIterator,
    total_steps: int,
    mesh: Mesh,
    initial_params: Params | None = None,
    intervals: Intervals = Intervals(),
    evaluation: Evaluation | None = None,
    identity: Mapping[str, str] | None = None,
    buckets: int = 1,
    tensorboard: bool = True,
    title: str = "training",
) -> TrainResult:
    """Do `total_steps` updates of `step`, or resume from the last checkpoint in `workdir/checkpoints`.

    A run that is interrupted at any moment and restarted with the same arguments ends with bit-identical metrics and
    weights (on the same number of devices). On a GPU this requires deterministic operations, which cost speed: set
    XLA_FLAGS=--xla_gpu_deterministic_ops=true in the environment.
    Without it, the order of sums may differ from run to run, interrupted or not.

    identity:   for example hashes of configuration and split; a checkpoint with another identity is refused.
    buckets:    number of batch shapes in the data; more compilations than that are reported.
    Writes `workdir/checkpoints/`, `workdir/metrics.jsonl` (keys `train/`, `eval/`, `time/`), `workdir/tensorboard/`,
    `workdir/pictures/`. Raises UserError for a step that is not finite (naming step and term; the last good checkpoint
    stays) and for everything that a user can correct; KeyboardInterrupt after SIGTERM or Ctrl-C, once the checkpoint is
    written.
    """
    workdir = Path(workdir)
    identity = dict(identity or {})
    check_alike(identity, data_iterator)
    program = on_mesh(step, mesh)
    constants = meshes.place_constants(step.constants, mesh)

    # ---- State: (1) this run's last checkpoint, (2) the given weights, (3) fresh weights ----
    best_mode = "max" if evaluation is None else evaluation.best_mode
    protection = step.protection
    checkpoints = Checkpoints(workdir / "checkpoints", best_mode=best_mode, secret=protection is not None)
    if checkpoints.latest() is not None:
        state, memory = resumed(checkpoints, program.state, data_iterator, identity, protection)
    else:
        state, memory = program.init(first_params(step, initial_params, mesh)), Memory()
    start, seconds_before = int(state.step), memory.clock
    wanted_steps = total_steps
    if protection is not None:
        total_steps = min(total_steps, protection.mechanism.steps)

    # ---- The loop ----
    writer = Writer(workdir, resume_step=start, tensorboard=tensorboard)
    window = Window(memory.window)
    timer = Timer(memory.clock)
    compiled: dict[Any, Any] = {}
    in_flight: deque[jax.Array] = deque()
    alone = False
    due = 0  # the step whose log line is pending: its numbers are fetched while the next step runs

    def log(number: int) -> str:
        scalars, times = window.take(number), timer.take()
        published = {f"train/{k}": v for k, v in scalars.items()}
        if protection is None:  # the duration of a step would reveal the size of its batch
            published |= {f"time/{k}": v for k, v in times.items()}
        writer.write_scalars(number, published)
        return f"loss {scalars['loss']:.4g}" if "loss" in scalars else ""

    def save(number: int, metric: float | None) -> None:
        memory.clock, memory.window = timer.clock(), window.on_host()
        meta = {"identity": identity, "memory": dataclasses.asdict(memory), **protected(protection, number)}
        checkpoints.save(number, state, data_iterator.get_state(), meta, metric)

    def evaluate(number: int, evaluation: Evaluation) -> float | None:
        """The metric of the step if it is the best so far, and its checkpoint to be kept; else None."""
        params = step.evaluation_params(state)  # until the end of this function: the next update donates its buffers
        with timer.spending("pause"):
            found = evaluation.measure(params, number)
            memory.last = {name: float(value) for name, value in found.items()}
        writer.write_scalars(number, {f"eval/{k}": v for k, v in memory.last.items()})
        if evaluation.draw is not None:
            with timer.spending("pause"):
                writer.write_pictures(number, evaluation.draw(params, number))
        score = chosen(memory.last, evaluation.best_metric)
        if not as_good(score, memory.best.get(evaluation.best_metric), evaluation.best_mode):
            return None
        memory.best, memory.best_step = memory.last, number
        return score

    try:
        with StopSignal() as stop, Progress(title, total_steps, start=start) as bar:
            for number, damage in checkpoints.damaged.items():
                bar.say(f"warning: the checkpoint of step {number} is damaged and was set aside: {damage}")
            if start:
                bar.say(f"resuming from the checkpoint of step {start}")
            if total_steps < wanted_steps:
                bar.say(f"the privacy budget allows {total_steps} of {wanted_steps} steps")
            if protection is not None and checkpoints.latest() is None:
                save(0, None)  # an attempt whose secret is lost would cost its privacy twice
                checkpoints.wait()
            stopping = False
            for number in range(start + 1, total_steps + 1):
                last = number == total_steps
                # 1. data
                with timer.spending("data"):
                    batch = next(data_iterator)
                placed = meshes.put_batch(batch, mesh)
                # 2. update: compiled once per batch shape; on an accelerator it runs while the host continues
                key = jax.tree.structure(placed), tuple((x.shape, x.dtype) for x in jax.tree.leaves(placed))
                if key not in compiled:
                    with timer.spending("compile"):
                        compiled[key] = program.update.lower(state, constants, placed).compile()
                    if len(compiled) > buckets:
                        bar.say(f"warning: {len(compiled)} {RECOMPILED} {buckets} batch shape(s)")
                state, metrics = compiled[key](state, constants, placed)
                window.add(number, metrics)
                timer.count(len(jax.tree.leaves(placed)[0]))
                in_flight.append(metrics["finite"])
                if len(in_flight) > IN_FLIGHT:
                    in_flight.popleft().block_until_ready()
                # 3. log, one step late
                note = None
                if due:
                    note, due = log(due), 0
                if last or is_due(number, intervals.log):
                    due = number
                # 4. evaluate, save, stop: only with a state that is known to be finite
                stopping = stop.requested(number)
                evaluating = evaluation if last or is_due(number, intervals.evaluation) else None
                saving = last or is_due(number, intervals.checkpoint) or stopping
                if evaluating or saving:
                    window.on_host()
                    if due:
                        note, due = log(due), 0
                metric = evaluate(number, evaluating) if evaluating else None
                if saving or metric is not None:
                    with timer.spending("pause"):
                        save(number, metric)
                bar.update(number, note)
                if stopping:
                    break
            checkpoints.wait()
            if stopping or stop.seen:  # during the last evaluation too
                number = checkpoints.latest() or 0
                bar.say(f"stopped at step {number}: checkpoint written to {checkpoints.folder / str(number)}")
                raise KeyboardInterrupt(f"stopped at step {number}")
    except jax.errors.JaxRuntimeError as error:
        # another process may have ended, and a checkpoint would wait for it; one that ran out of memory is still there
        alone = jax.process_count() > 1 and not is_out_of_memory(error)
        raise
    finally:
        writer.close()
        if not alone:
            with contextlib.suppress(UserError):  # a failed write was raised by `wait`; any other error matters more
                checkpoints.close()

    # ---- Result ----
    params = step.evaluation_params(state)
    best_params = params
    if memory.best_step not in (0, total_steps):
        best = load_state(checkpoints.folder, memory.best_step)
        best_params = meshes.place(step.evaluation_params(best), mesh)
    return TrainResult(
        state=state,
        params=params,
        best_params=best_params,
        metrics=memory.last,
        best_metrics=memory.best,
        best_step=memory.best_step or total_steps,
        seconds_before=seconds_before,
        compilations=len(compiled),
    )


@dataclass
class Memory:
    """The loop's state across restarts, kept in the checkpoint's meta: JSON.

    clock: seconds of training so far, over all attempts. window: [step, metrics] since the last log line. last, best:
    metrics of the last and the best evaluation.
    """

    clock: float = 0.0
    window: list[list[Any]] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0


def resumed(
    checkpoints: Checkpoints,
    shape: Any,
    data_iterator: DataIterator,
    identity: Mapping[str, str],
    protection: Protection | None,
) -> tuple[TrainState, Memory]:
    """The state and memory of the last checkpoint; the data are put into its position.

    shape: of the state, with its layout. UserError for a checkpoint of another training.
    """
    state, data_state, meta = checkpoints.restore(shape)
    check_identity(meta["identity"], identity, checkpoints.folder)
    check_protection(meta, protection, int(state.step), checkpoints.folder)
    memory = Memory(**meta["memory"])
    checkpoints.check_kept(memory.best_step)
    data_iterator.set_state(data_state)
    return state, memory


def first_params(step: Step, initial: Params | None, mesh: Mesh) -> Params:
    """The given weights on the devices, or fresh ones. UserError for weights that do not fit."""
    if initial is None:
        return fresh_params(step, mesh)
    difference = tree_difference(initial, fresh_shapes(step))
    if difference:
        raise UserError(f"the initial weights do not fit: {difference}", where="initial_params")
    return meshes.place(initial, mesh)


def check_identity(saved: Mapping[str, str], now: Mapping[str, str], where: Path) -> None:
    """Refuse to resume from a checkpoint of another configuration or split."""
    for key in sorted(saved.keys() | now.keys()):
        if saved.get(key) != now.get(key):
            raise UserError(
                f"the checkpoint was made with another {key}",
                where=where,
                todo="start in a new workdir, or restore the settings that this one was started with",
            )


def check_alike(identity: Mapping[str, str], data_iterator: DataIterator) -> None:
    """UserError if the processes of a run read different data: their parts would not be those of one batch."""
    if len(set(meshes.gathered(json.dumps([dict(identity), data_iterator.get_state()], sort_keys=True)))) > 1:
        raise UserError(
            "the processes of this run read different images or annotations",
            where="data",
            todo="give every machine the same files; with on_error=skip, make sure that all of them can be read there",
        )


def protected(protection: Protection | None, number: int) -> dict[str, Any]:
    """Entries for protected training in the meta of a checkpoint of this step."""
    if protection is None:
        return {}
    ledger = protection.mechanism.ledger(number)
    return {SECRET: protection.secret.text(), "ledger": ledger and dataclasses.asdict(ledger)}


def check_protection(meta: Mapping[str, Any], protection: Protection | None, number: int, where: Path) -> None:
    """Refuse to resume protected training without protection, with another secret, or with another ledger.

    Sampling rate and noise are fixed for the whole training: its budget was shown before it began.
    """
    wanted = json.loads(json.dumps(protected(protection, number)))
    for name, words in ((SECRET, "another secret, or none"), ("ledger", "other privacy settings")):
        if meta.get(name) != wanted.get(name):
            raise UserError(
                f"the checkpoint was made with {words}",
                where=where,
                todo="start in a new workdir, or restore the settings that this one was started with",
            )


def is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def chosen(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        todo = f"choose one of {', '.join(sorted(metrics))}"
        raise UserError(f"the evaluation has no metric {name!r}", where="best_metric", todo=todo)
    return float(metrics[name])


def as_good(metric: float, best: float | None, mode: str) -> bool:
    """Whether a metric is at least as good as the best so far. Of equals the later one wins, since it has been trained
    longer, at lower rates.

    Ties are common with few lesions in the validation data, and with none all are equal. NaN is never good, and
    anything else is better than no metric.
    """
    if math.isnan(metric):
        return False
    return best is None or (metric >= best if mode == "max" else metric <= best)
