"""The log of a run: metrics.jsonl, pictures, and TensorBoard files of both."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from elk_jax import files
from elk_jax.errors import UserError, from_os_error

PICTURES = "pictures"
FLUSH = 30.0
"""Seconds after which TensorBoard sees new events."""


class Writer:
    """Writes under `folder`: `metrics.jsonl`, one object `{"step": ..., ...}` per line, and `tensorboard/`.

    Only process 0 writes. `resume_step` is the step from which a run resumes (0 for a new one): entries of an earlier
    attempt for later steps are dropped, and its pictures, so that both equal those of an uninterrupted run, except for
    keys that begin with `time/`, which hold all wall-clock measurements.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int = 0, tensorboard: bool = True):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._path = files.make_folder(folder) / "metrics.jsonl"
        start_after(self._path, resume_step)
        _remove_after(self._path.parent / PICTURES, resume_step)
        try:
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run)
        except OSError as error:
            raise from_os_error(error, self._path) from error
        self._board = _Board(Path(folder) / "tensorboard", resume_step) if tensorboard else None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line of metrics.jsonl (a non-finite value becomes null) and one point per curve."""
        if not self._active:
            return
        values = {key: _plain(value) for key, value in scalars.items()}
        try:
            self._file.write(json.dumps({"step": int(step)} | values, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise from_os_error(error, self._path) from error
        if self._board is not None:
            self._board.write_scalars(int(step), {key: value for key, value in values.items() if value is not None})

    def write_pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Pictures [H, W, 3] uint8, each as `pictures/NAME-STEP.png` and to TensorBoard."""
        if not self._active:
            return
        folder = files.make_folder(self._path.parent / PICTURES)
        for name, pixels in pictures.items():
            content = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
            files.write_bytes(folder / f"{name}-{step:06d}.png", content)
            if self._board is not None:
                self._board.write_picture(int(step), name, pixels)

    def close(self) -> None:
        if self._active:
            with contextlib.suppress(OSError):  # each line was flushed, which raised the error of a full disk
                self._file.close()
            if self._board is not None:
                self._board.close()


class _Board:
    """A TensorBoard file. Each event is written by the caller: `tensorboardX.SummaryWriter` has a thread for it, which
    a full disk ends, and then waits for it for ever."""

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder, self._event, self._summary = files.make_folder(folder), Event, summary
        self._flushed = time.monotonic()
        with self._errors():
            self._writer = EventsWriter(str(folder / "events"))
        # events of this step and later ones in earlier files are hidden
        self._write(resume_step + 1, file_version="brain.Event:2")
        self._write(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def write_picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """pixels: [H, W, 3] uint8."""
        self._write(step, summary=self._summary.image(name, pixels, dataformats="HWC"))

    def _write(self, step: int, **content: Any) -> None:
        with self._errors():
            self._writer.write_event(self._event(step=step, wall_time=time.time(), **content))
            if time.monotonic() - self._flushed >= FLUSH:  # it waits for the disk
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # as above
            self._writer.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise from_os_error(error, self._folder) from error


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last line truncated by a crash. [] if there is no file.

    UserError for any other line that is not a record.
    """
    return [record for record, _ in _lines(Path(path))]


def start_after(path: Path, step: int) -> None:
    """Reduce a metrics.jsonl to the lines up to `step`, without a broken last one; an empty file for step 0."""
    kept = [line for record, line in _lines(path) if record["step"] <= step] if step else []
    files.write_bytes(path, b"".join(kept))


def _remove_after(folder: Path, step: int) -> None:
    """Remove the pictures of later steps."""
    for path in folder.glob("*-*.png"):
        number = path.stem.rpartition("-")[2]
        if number.isdecimal() and int(number) > step:
            path.unlink()


def _lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    """(record, its line) of a metrics.jsonl."""
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(files.read_bytes(path).splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break  # truncated by a crash: a line is written together with its newline
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            todo = "remove the line; the others can be used unchanged"
            raise UserError(f"line {number} is damaged", where=path, todo=todo)
        found.append((record, line))
    return found


def _plain(value: Any) -> float | int | None:
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None
