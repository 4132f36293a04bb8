"""Checkpoints: parameters, optimiser, position in the data and the rest of a run's state, either complete or absent.

A checkpoint is a folder `<step>/` with the items `params`, `optimizer`, `ema_params` (if kept), the JSON `meta`
(data-iterator states by process, and entries of the loop) and, after an evaluation, the metric that selects the best.
Orbax writes it under a temporary name and renames it when it is complete. Before that, the file `sha256.json` is
written with the hashes of the other files: a checkpoint that has changed since is detected and set aside as
`<step>.damaged`. A checkpoint that is no longer kept is first moved to the folder `removed/`, so that a kill during its
deletion leaves no partial checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from elk_jax import files
from elk_jax.errors import UserError, from_os_error
from elk_jax.threads import map_in_threads
from elk_jax.training.mesh import gathered
from elk_jax.training.state import TrainState

SCORE = "score"
"""A checkpoint's key for the score that selects the best one: the metric, negated if less is better."""

ITEMS = ("params", "optimizer", "ema_params")

SECRET = "secret"
"""Key in `meta` of the checkpoints of private training; text."""

REMOVED = "removed"
"""Folder of checkpoints to be deleted, beside those that are kept."""

HASHES = "sha256.json"
MARK = "hashed"
"""Key in `meta` of checkpoints that have HASHES; those of earlier versions have neither."""
LONGEST_WRITE = 10**8
"""Seconds that writing a checkpoint may take; Orbax needs a limit."""
UNHASHED = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files that Orbax writes last, about the write itself; the state does not depend on them."""


class Checkpoints:
    """The checkpoints of one run: the last `keep` and the best one, by the metric given to `save`.

    Every process of a run creates one and calls its methods in the same order. Damaged checkpoints are set aside first,
    by the main process for all; UserError if no other is left. damaged: step -> what is wrong with it. secret: only the
    owner of the files may read them.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 2,
        best_mode: Literal["max", "min"] = "max",
        secret: bool = False,
    ):
        self.folder, self._secret = Path(folder).absolute(), secret
        found = {}
        if jax.process_index() == 0:
            files.make_folder(self.folder)
            if secret:
                files.hide(self.folder)
            self._delete_removed()  # left by a killed run
            found = _set_aside_damaged(self.folder)
        # all processes use what the main one found, which has renamed folders by then
        self.damaged = {int(step): reason for step, reason in json.loads(gathered(json.dumps(found))[0]).items()}
        self._saving = 0
        _raise_without_printing()
        self._sign = 1.0 if best_mode == "max" else -1.0
        options = ocp.CheckpointManagerOptions(
            best_fn=_score,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(max(keep, 1)),
                    checkpoint_managers.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
            cleanup_tmp_directories=True,
            todelete_subdir=REMOVED,
            async_options=_async_options(self._write_hashes),
        )
        handlers = {name: ocp.StandardCheckpointHandler() for name in ITEMS} | {"meta": ocp.JsonCheckpointHandler()}
        with _user_errors(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """Step of the last complete checkpoint."""
        return self._manager.latest_step()

    def check_kept(self, step: int) -> None:
        """UserError if the best checkpoint, of this step, is damaged: training would need it at the end."""
        aside = _aside(self.folder, step)
        if aside.is_dir() and not (self.folder / str(step)).is_dir():
            todo = f"remove {self.folder.parent} to retrain the stage"
            raise UserError(f"the best checkpoint, of step {step}, is damaged", where=aside, todo=todo)

    def save(
        self, step: int, state: TrainState, data_state: Any, meta: Mapping[str, Any], metric: float | None = None
    ) -> None:
        """Write a checkpoint. Returns once the arrays are copied; they are written while the training continues.

        data_state: the result of `get_state()` of this process's data iterator, JSON. meta: JSON.
        metric: finite or NaN (which is never the best). The error of a failed earlier write is raised here.
        """
        content = dict(meta) | {"data_states": gathered(json.dumps(data_state)), MARK: True}
        items: dict[str, Any] = {
            "params": ocp.args.StandardSave(state.params),
            "optimizer": ocp.args.StandardSave(state.opt_state),
            "meta": ocp.args.JsonSave(content),
        }
        if state.ema_params is not None:
            items["ema_params"] = ocp.args.StandardSave(state.ema_params)
        # without an evaluation the score is -inf: Orbax needs one with every checkpoint, and of equals it takes the
        # last
        metrics = {SCORE: -math.inf if metric is None or math.isnan(metric) else self._sign * metric}
        self.wait()
        self._saving = step
        with _user_errors(self.folder):
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)

    def _write_hashes(self) -> None:
        """Called by Orbax in a thread of the main process, after everything is written and before the final rename."""
        partial = next(self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"), self.folder / str(self._saving))
        files.write_json(partial / HASHES, _hashes(partial))
        if self._secret:
            for path in (partial, *partial.rglob("*")):
                files.hide(path)

    def restore(self, target: TrainState) -> tuple[TrainState, Any, dict[str, Any]]:
        """(state, data state of this process, meta) of the last checkpoint.

        target: a TrainState of jax.ShapeDtypeStruct with shardings; the arrays are restored with this layout, on any
        number of devices. Raises UserError if the checkpoint's tree differs, naming the first leaf that does.
        """
        self.wait()
        step = self.latest()
        if step is None:
            raise UserError("no checkpoint to restore", where=self.folder)
        wanted = {"params": target.params, "optimizer": target.opt_state}
        if target.ema_params is not None:
            wanted["ema_params"] = target.ema_params
        where = self.folder / str(step)
        with _user_errors(where):
            saved = self._manager.item_metadata(step)
            for name, tree in wanted.items():
                _check_tree(name, dict(saved).get(name), tree, where)
            items: dict[str, Any] = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
            items["meta"] = ocp.args.JsonRestore()
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        meta = dict(restored["meta"])
        meta.pop(MARK, None)
        texts = meta.pop("data_states")
        count = jax.process_count()
        if len(texts) != count and len(set(texts)) > 1:
            raise UserError(
                f"the data was read by {len(texts)} processes, but this run has {count}",
                where=where,
                todo="resume with the same number of processes",
            )
        text = texts[jax.process_index()] if len(texts) == count else texts[0]
        # the step counter is the folder's name; an explicit dtype keeps it int32 even under x64
        counter = jax.make_array_from_callback((), target.step.sharding, lambda _: np.asarray(step, np.int32))
        state = TrainState(
            step=counter,
            params=restored["params"],
            opt_state=restored["optimizer"],
            ema_params=restored["ema_params"] if target.ema_params is not None else None,
        )
        return state, json.loads(text), meta

    def wait(self) -> None:
        """Return when the last `save` is on disk; raises UserError if it failed."""
        with _user_errors(self.folder):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        self._delete_removed()

    def close(self) -> None:
        """Wait and release the threads."""
        with _user_errors(self.folder):
            self._manager.close()
        self._delete_removed()

    def _delete_removed(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self.folder / REMOVED, ignore_errors=True)


def load_state(folder: str | os.PathLike, step: int) -> TrainState:
    """The state at a step, as nested dicts of NumPy arrays, without the optimiser: `opt_state` is None.

    folder: the run's checkpoint folder. UserError if it has no such checkpoint, and for a damaged one.
    """
    folder = Path(folder).absolute()
    todo = "train this stage first, or give the folder that contains the numbered checkpoints"
    # Read without a CheckpointManager, since a single process of several may call this.
    if step not in _steps(folder):
        raise UserError(f"no checkpoint of step {step}", where=folder, todo=todo)
    damage = find_damage(folder / str(step), ("params", "ema_params"))
    if damage:
        todo = f"remove {folder.parent} to retrain the stage"
        raise UserError(f"the checkpoint is damaged: {damage}", where=folder / str(step), todo=todo)
    params, ema_params = (_load_item(folder / str(step) / name) for name in ("params", "ema_params"))
    return TrainState(jnp.asarray(step, jnp.int32), params, None, ema_params)


def _async_options(before_rename: Callable[[], None]) -> ocp.AsyncOptions:
    """A process that runs alone waits for its own disk for any time: it may be paused, or the machine be suspended.
    Of several processes, each waits for the others as long as Orbax does by default, since one may hang."""
    waits = {"timeout_secs": LONGEST_WRITE} if jax.process_count() == 1 else {}
    return ocp.AsyncOptions(post_finalization_callback=before_rename, **waits)


def kept_secret(folder: Path) -> tuple[str, Path] | None:
    """(the secret of private training, as text; where it was found), from the last readable checkpoint.

    None without checkpoints, or if they do not belong to private training.
    """
    for step in reversed(_steps(folder) if folder.is_dir() else []):
        place = folder / str(step) / "meta" / "metadata"
        try:
            found = files.read_object(place).get(SECRET)
        except UserError:  # a damaged one, which `Checkpoints` sets aside
            continue
        return None if found is None else (found, place)
    return None


def find_damage(checkpoint: Path, items: Sequence[str] | None = None) -> str:
    """A description of what has changed in the folder of a checkpoint since it was written; "" if nothing has.

    items: those to check; None for all. A checkpoint of an earlier version has no hashes, and counts as unchanged.
    """
    try:
        if not os.path.lexists(checkpoint / HASHES) and MARK not in files.read_object(checkpoint / "meta" / "metadata"):
            return ""
        known = files.read_json(checkpoint / HASHES)
    except UserError as error:
        return f"{Path(error.where).name}: {error.what}"
    if not isinstance(known, dict):
        return f"{HASHES} is not a list of files"
    known = {name: value for name, value in known.items() if items is None or name.split("/")[0] in items}
    missing = [name for name in known if not (checkpoint / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    found = _hashes(checkpoint, known)
    return next((f"{name} has changed" for name, value in known.items() if found[name] != value), "")


def _hashes(checkpoint: Path, names: Collection[str] | None = None) -> dict[str, str]:
    """File -> SHA-256, for these files of a checkpoint, or for all that matter."""
    if names is None:
        below = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name not in UNHASHED)
        names = [path.relative_to(checkpoint).as_posix() for path in below]
    ordered = list(names)
    found = map_in_threads(lambda index: files.sha256(checkpoint / ordered[index]), len(ordered))
    return dict(zip(ordered, found))


def _set_aside_damaged(folder: Path) -> dict[int, str]:
    """Rename damaged checkpoints, so that the last intact one becomes the last. UserError if none is intact."""
    damaged = {step: damage for step in _steps(folder) if (damage := find_damage(folder / str(step)))}
    if damaged and len(damaged) == len(_steps(folder)):
        last = max(damaged)
        what = f"the checkpoint is damaged, and there is no other: {damaged[last]}"
        raise UserError(
            what, where=folder / str(last), todo=f"remove {folder.parent} to retrain the stage from scratch"
        )
    for step in damaged:
        aside = _aside(folder, step)
        try:
            shutil.rmtree(aside, ignore_errors=True)  # from an earlier attempt
            (folder / str(step)).rename(aside)
        except OSError as error:
            raise from_os_error(error, folder / str(step)) from error
    return damaged


def _aside(folder: Path, step: int) -> Path:
    return folder / f"{step}.damaged"


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def _load_item(folder: Path) -> Any:
    """None if a checkpoint has no such item."""
    if not folder.is_dir():
        return None
    handler = ocp.PyTreeCheckpointHandler()
    with _user_errors(folder):
        tree = _metadata_tree(handler.metadata(folder))
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def tree_difference(saved: Any, wanted: Any) -> str | None:
    """A description of the first leaf (by path) in which two trees of arrays or shapes differ; None if they agree."""
    have, want = _leaves(saved), _leaves(wanted)
    for path in sorted(have.keys() | want.keys()):
        if path not in have:
            return f"{path} {_shape(want[path])} is missing from the checkpoint"
        if path not in want:
            return f"{path} {_shape(have[path])} of the checkpoint is not in this model"
        if _shape(have[path]) != _shape(want[path]):
            return f"{path} is {_shape(have[path])} in the checkpoint and {_shape(want[path])} in this model"
    return None


def _leaves(tree: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat if hasattr(leaf, "shape")
    }


def _shape(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _check_tree(name: str, saved: Any, wanted: Any, where: Path) -> None:
    difference = "it is not in the checkpoint" if saved is None else tree_difference(_metadata_tree(saved), wanted)
    if difference:
        raise UserError(
            f"the checkpoint does not fit ({name}): {difference}",
            where=where,
            todo="resume with the configuration that wrote it, or choose another workdir",
        )


def _metadata_tree(saved: Any) -> Any:
    return saved.tree if hasattr(saved, "tree") else saved


def _score(metrics: Mapping[str, float]) -> float:
    return float(metrics[SCORE])


def _raise_without_printing() -> None:
    """Silence Orbax and TensorStore, which print the traceback of a failed write in each thread before raising it."""
    logging.getLogger("absl").addFilter(_is_not_of_orbax)
    logging.getLogger("asyncio").addFilter(_is_not_of_orbax)
    if not isinstance(sys.unraisablehook, _UnraisableHook):
        sys.unraisablehook = _UnraisableHook(sys.unraisablehook)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if isinstance(record.exc_info, tuple) else None
    return not any("orbax" in frame.filename for frame in traceback.extract_tb(trace))


@dataclass(frozen=True)
class _UnraisableHook:
    """`sys.unraisablehook` without the errors of threads that are still writing after another has failed."""

    before: Callable[[Any], object]

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.before(unraisable)


@contextlib.contextmanager
def _user_errors(where: Path) -> Iterator[None]:
    """Turn errors of Orbax and TensorStore about the disk into UserErrors."""
    try:
        yield
    except Exception as error:
        seen: BaseException | None = error
        while seen is not None and not isinstance(seen, UserError):
            if isinstance(seen, jax.errors.JaxRuntimeError):  # about devices or another process, not the disk
                raise seen from seen.__cause__
            if isinstance(seen, TimeoutError) and seen.errno is None:
                todo = "rerun the same command to resume from the checkpoint before"
                raise UserError(f"writing a checkpoint takes too long: {seen}", where=where, todo=todo) from error
            if isinstance(seen, OSError) and seen.errno is not None:
                raise from_os_error(seen, where) from error
            text = str(seen)
            if "No space left" in text or "Disk quota" in text:
                todo = "free some space and rerun the same command"
                raise UserError("the disk is full", where=where, todo=todo) from error
            if "File too large" in text:
                raise from_os_error(OSError(errno.EFBIG, text), where) from error
            if "Permission denied" in text or "Read-only file system" in text:
                raise UserError("permission denied", where=where, todo="choose another folder") from error
            seen = seen.__cause__ or seen.__context__
        if isinstance(error, (ValueError, KeyError, FileNotFoundError, json.JSONDecodeError)):
            raise UserError(
                f"the checkpoint cannot be read or written: {error}",
                where=where,
                todo="remove this checkpoint to resume from an earlier one",
            ) from error
        raise
