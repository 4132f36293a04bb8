"""The log of a run: metrics.jsonl, pictures, and TensorBoard files of both."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from elk_jax import files
from elk_jax.errors import from_os_error


class Writer:
    """Writes under `folder`: `metrics.jsonl`, one object `{"step": ..., ...}` a line, and `tensorboard/`.

    Only process 0 writes. `resume_step` is the step a run resumes from (0 for a new one): what an earlier attempt wrote
    for later steps is dropped, so that the file ends up as that of an uninterrupted run, except for keys that begin
    with `time/`: wall-clock measurements go there and nowhere else.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int = 0, tensorboard: bool = True):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._path = files.make_folder(folder) / "metrics.jsonl"
        drop_after(self._path, resume_step)
        try:
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run)
        except OSError as error:
            raise from_os_error(error, self._path) from error
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            # events of steps >= purge_step are hidden; a fresh run has nothing to hide
            purge = resume_step + 1 if resume_step else None
            self._board = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=purge)

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
            for key, value in values.items():
                if value is not None:
                    self._board.add_scalar(key, value, int(step))

    def write_pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Pictures [H, W, 3] uint8, each as `pictures/NAME-STEP.png` and to TensorBoard."""
        if not self._active:
            return
        folder = files.make_folder(self._path.parent / "pictures")
        for name, pixels in pictures.items():
            content = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
            files.write_bytes(folder / f"{name}-{step:06d}.png", content)
            if self._board is not None:
                self._board.add_image(name, pixels, int(step), dataformats="HWC")

    def close(self) -> None:
        if self._active:
            self._file.close()
            if self._board is not None:
                self._board.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut off by a crash is left out. [] where there is no file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise from_os_error(error, path) from error
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict) and "step" in record]


def drop_after(path: Path, step: int) -> None:
    """Remove the lines of later steps than `step` (and a broken one) from a metrics.jsonl, atomically."""
    if not path.exists():
        return
    kept = [record for record in read_metrics(path) if record["step"] <= step and step > 0]
    files.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def _plain(value: Any) -> float | int | None:
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None
