"""The training loop: one for all tasks. Read `train` top to bottom."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from elk_jax.errors import UserError, is_out_of_memory
from elk_jax.progress import Progress
from elk_jax.training import mesh as meshes
from elk_jax.training import optimizer as optimizers
from elk_jax.training import schedules
from elk_jax.training.checkpoint import Checkpoints, load_params, tree_difference
from elk_jax.training.model import Params, Task
from elk_jax.training.state import TrainState, create
from elk_jax.training.step.gradient import gradient_step
from elk_jax.training.stopping import StopSignal
from elk_jax.training.timing import Timer
from elk_jax.training.window import Window
from elk_jax.training.writer import Writer

IN_FLIGHT = 2
"""Steps handed to the device ahead of the host: enough to hide the host, few enough to bound the memory of
batches."""


class DataIterator(Protocol):
    """Batches without end, as dicts of arrays with the process's share of the batch as leading axis.

    get_state / set_state (JSON, or bytes) save the place, exactly: after set_state the same batches follow.
    """

    def __next__(self) -> Mapping[str, Any]: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


class TrainResult(NamedTuple):
    """state: at the last step. params, best_params: of the last step and of the best evaluation (smoothed
    where kept).

    metrics, best_metrics: of the last and of the best evaluation; empty without one. best_step: where it was.
    seconds_before: of training in earlier attempts, up to the checkpoint that this one went on from.
    """

    state: TrainState
    params: Params
    best_params: Params
    metrics: dict[str, float]
    best_metrics: dict[str, float]
    best_step: int
    seconds_before: float


def train(
    task: Task,
    *,
    workdir: str | Path,
    data_iterator: DataIterator,
    total_steps: int,
    optimizer: optimizers.OptimizerConfig | Mapping[str, Any],
    schedule: Mapping[str, Any],
    mesh: Mesh | None = None,
    seed: int = 0,
    ema_decay: float | None = None,
    accumulate: int = 1,
    initial_params: Params | None = None,
    log_every: int = 20,
    checkpoint_every: int = 500,
    eval_every: int = 0,
    evaluate: Callable[[Params, int], dict[str, float]] | None = None,
    draw: Callable[[Params, int], dict[str, np.ndarray]] | None = None,
    best_metric: str = "",
    best_mode: str = "max",
    keep: int = 2,
    identity: Mapping[str, str] | None = None,
    buckets: int = 1,
    step_builder: Callable[..., Any] = gradient_step,
    tensorboard: bool = True,
    title: str = "training",
) -> TrainResult:
    """Train `task` for `total_steps` updates, or go on from the last checkpoint in `workdir/checkpoints`.

    A run that was stopped at any moment and started again with the same arguments ends with the same metrics
    and the same weights, to the bit, as one that was not (same number of devices). On a GPU to the bit only
    where its operations are deterministic, which costs speed: XLA_FLAGS=--xla_gpu_deterministic_ops=true in
    the environment. Without it sums may be taken in another order from run to run, stopped or not.

    evaluate:   (params on the devices, step) -> metrics; every `eval_every` steps and at the end.
                `best_metric` names the one that decides, `best_mode` whether more (`max`) or less (`min`) is
                better.
    draw:       (params on the devices, step) -> pictures [H, W, 3] uint8 by name, with every evaluation.
    identity:   hashes of configuration and split, say; a checkpoint made under another identity is refused.
    buckets:    how many batch shapes the data has: more compilations than that are reported.
    Writes `workdir/checkpoints/`, `workdir/metrics.jsonl` (keys `train/`, `eval/`, `time/`),
    `workdir/tensorboard/`, `workdir/pictures/`. Raises UserError on a non-finite loss (naming step and term; the
    last good checkpoint stays) and for everything a user can put right; KeyboardInterrupt after SIGTERM or
    Ctrl-C, when the checkpoint is written.
    """
    workdir = Path(workdir)
    mesh = meshes.make_mesh() if mesh is None else mesh
    identity = dict(identity or {})
    if evaluate is not None and not best_metric:
        raise UserError("evaluation needs a metric that chooses the best checkpoint", where="best_metric")

    # ---- Shapes, optimiser, layout ----
    init_rng, abstract_params = jax.random.key(seed), jax.eval_shape(task.init, jax.random.key(seed))
    rate = schedules.build(schedule, total_steps)
    trainable = optimizers.trainable_mask(abstract_params, optimizer, task.frozen)
    tx = optimizers.build(optimizer, rate, abstract_params, task.frozen)
    abstract = jax.eval_shape(lambda params: create(params, tx, ema_decay is not None), abstract_params)
    layout = meshes.tree_shardings(abstract, mesh)
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, layout)
    update = step_builder(
        task.loss,
        tx,
        ema_decay,
        seed,
        schedule=rate,
        accumulate=accumulate,
        trainable=trainable,
        out_shardings=(layout, meshes.replicated(mesh)),
    )

    # ---- State: (1) this run's last checkpoint, (2) the given weights, (3) fresh weights ----
    checkpoints = Checkpoints(workdir / "checkpoints", keep=keep, best_mode=best_mode)
    memory = Memory()
    if checkpoints.latest() is not None:
        state, data_state, meta = checkpoints.restore(target)
        check_identity(meta["identity"], identity, checkpoints.folder)
        memory = Memory(**meta["memory"])
        data_iterator.set_state(data_state)
    else:
        if initial_params is None:
            params = meshes.init_sharded(task.init, init_rng, mesh=mesh)
        else:
            difference = tree_difference(initial_params, abstract_params)
            if difference:
                raise UserError(f"the initial weights do not fit: {difference}", where="initial_params")
            params = meshes.place(initial_params, mesh)
        state = jax.jit(lambda params: create(params, tx, ema_decay is not None), out_shardings=layout)(params)
        del params
    start, seconds_before = int(state.step), memory.clock

    # ---- The loop ----
    writer = Writer(workdir, resume_step=start, tensorboard=tensorboard)
    window = Window(memory.window)
    timer = Timer(memory.clock)
    compiled: dict[Any, Any] = {}
    in_flight: deque[jax.Array] = deque()
    alone = False
    due = 0  # the step whose log line still waits for its numbers: they are fetched while the next step runs

    def log(step: int) -> str:
        scalars = window.take(step)
        writer.write_scalars(
            step,
            {f"train/{k}": v for k, v in scalars.items()} | {f"time/{k}": v for k, v in timer.take().items()},
        )
        return f"loss {scalars['loss']:.4g}"

    def save(step: int, metric: float | None) -> None:
        memory.clock, memory.window = timer.clock(), window.on_host()
        meta = {"identity": identity, "memory": memory._asdict()}
        checkpoints.save(step, state, data_iterator.get_state(), meta, metric)

    try:
        with StopSignal() as stop, Progress(title, total_steps, start=start) as bar:
            if start:
                bar.say(f"going on from the checkpoint of step {start}")
            for step in range(start + 1, total_steps + 1):
                # 1. data
                with timer.waiting_for_data():
                    batch = next_batch(data_iterator, step)
                placed = meshes.put_batch(batch, mesh)
                # 2. update: compiled once per batch shape; on an accelerator it runs while the host goes on
                key = jax.tree.structure(placed), tuple((x.shape, x.dtype) for x in jax.tree.leaves(placed))
                if key not in compiled:
                    meshes.check_micro_batches(len(jax.tree.leaves(placed)[0]), accumulate, mesh)
                    with timer.compiling():
                        compiled[key] = update.lower(state, placed).compile()
                    if len(compiled) > buckets:
                        bar.say(f"warning: {len(compiled)} compilations of the step for {buckets} batch shape(s)")
                state, metrics = compiled[key](state, placed)
                window.add(step, metrics)
                timer.count(len(jax.tree.leaves(placed)[0]))
                in_flight.append(metrics["loss"])
                if len(in_flight) > IN_FLIGHT:
                    in_flight.popleft().block_until_ready()
                # 3. log, one step late
                note = None
                if due:
                    note, due = log(due), 0
                if step % log_every == 0 or step == total_steps:
                    due = step
                # 4. evaluate, save, stop: only a state that is known to be finite
                stopping = stop.requested(step)
                evaluating = evaluate is not None and (step == total_steps or is_due(step, eval_every))
                saving = step == total_steps or is_due(step, checkpoint_every) or stopping
                if evaluating or saving:
                    window.on_host()
                    if due:
                        note, due = log(due), 0
                metric = None
                if evaluating:
                    assert evaluate is not None
                    with timer.paused():
                        found = evaluate(state.evaluation_params, step)
                        memory.last = {name: float(value) for name, value in found.items()}
                    writer.write_scalars(step, {f"eval/{k}": v for k, v in memory.last.items()})
                    if draw is not None:
                        with timer.paused():
                            writer.write_pictures(step, draw(state.evaluation_params, step))
                    score = chosen(memory.last, best_metric)
                    if as_good(score, memory.best.get(best_metric), best_mode):
                        memory.best, memory.best_step, saving = memory.last, step, True
                        metric = score  # written with a new best alone, so that it stays
                if saving:
                    with timer.paused():
                        save(step, metric)
                bar.update(step, note)
                if stopping and step < total_steps:
                    checkpoints.wait()
                    bar.say(f"stopped at step {step}: checkpoint written to {checkpoints.folder / str(step)}")
                    raise KeyboardInterrupt(f"stopped at step {step}")
        checkpoints.wait()
    except jax.errors.JaxRuntimeError as error:
        # another process may be gone, and a checkpoint would wait for it; one without memory is still there
        alone = jax.process_count() > 1 and not is_out_of_memory(error)
        raise
    finally:
        writer.close()
        if not alone:
            with contextlib.suppress(UserError):  # a failed write was raised by `wait`; any other error matters more
                checkpoints.close()

    # ---- Result ----
    params = state.evaluation_params
    best_params = params
    if memory.best_step not in (0, total_steps):
        best_params = meshes.place(load_params(checkpoints.folder, step=memory.best_step), mesh)
    best_step = memory.best_step or total_steps
    return TrainResult(state, params, best_params, memory.last, memory.best, best_step, seconds_before)


class Memory:
    """What the loop remembers across restarts, kept in the checkpoint's meta: JSON."""

    def __init__(self, clock=0.0, window=(), last=None, best=None, best_step=0):
        self.clock: float = clock  # seconds of training so far, over all attempts
        self.window: list[list[Any]] = list(window)  # [step, metrics] since the last log line
        self.last: dict[str, float] = last or {}
        self.best: dict[str, float] = best or {}
        self.best_step: int = best_step

    def _asdict(self) -> dict[str, Any]:
        return dict(vars(self))


def next_batch(iterator: Iterator[Any] | DataIterator, step: int) -> Mapping[str, Any]:
    try:
        return next(iterator)
    except StopIteration:
        raise UserError(
            f"the data ended before step {step}", where="data", todo="repeat the data or lower total_steps"
        ) from None


def check_identity(saved: Mapping[str, str], now: Mapping[str, str], where: Path) -> None:
    """Refuse to go on from a checkpoint that another configuration or split made."""
    for key in sorted(saved.keys() | now.keys()):
        if saved.get(key) != now.get(key):
            raise UserError(
                f"the checkpoint was made with another {key}",
                where=where,
                todo="start in a new workdir, or go back to the settings that this one was started with",
            )


def is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def chosen(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise UserError(
            f"the evaluation gives no {name!r}",
            where="best_metric",
            todo=f"choose one of {', '.join(sorted(metrics))}",
        )
    return float(metrics[name])


def as_good(metric: float, best: float | None, mode: str) -> bool:
    """At least as good as the best so far: of equals the later wins, which has seen more, at lower rates.

    Equals are common where few lesions validate, and all are equal where none does. NaN is never good, and anything
    else is better than nothing.
    """
    if math.isnan(metric):
        return False
    return best is None or (metric >= best if mode == "max" else metric <= best)
