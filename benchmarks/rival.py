"""The other side of a comparison, in a separate process: torchvision_side.py, opacus_side.py and others."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from elk_jax.errors import UserError

HERE = Path(__file__).parent


class Rival:
    """Answers of the other process; see torch_side.py."""

    def __init__(self, process: subprocess.Popen, folder: Path, library: str):
        self._process, self.folder, self._library = process, folder, library
        self.description = self._read()

    @property
    def weights(self) -> Path:
        return self.folder / "weights.pth"

    def seconds(self, what: str, calls: int) -> float:
        """Mean time of `calls` calls in a row of 'train' (one update), 'infer' (one batch), or another name of the
        side."""
        return self.ask(f"{what} {calls}")["seconds"]

    def ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is read below
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            lines = (self.folder / "errors.txt").read_text().strip().splitlines()
            raise UserError(
                f"{self._library} failed: {lines[-1] if lines else 'without output'}",
                where="--torch_python",
                todo=f"give a Python with torch and {self._library}, or --torch_python=none",
            )
        return json.loads(line)


def default_python(library: str = "torchvision") -> str:
    """This Python if it has torch and the library, else ''."""
    found = all(importlib.util.find_spec(name) for name in ("torch", library))
    return sys.executable if found else ""


def chosen_python(given: str, library: str = "torchvision") -> str:
    """The Python of --torch_python, "auto" for this one; '' for "none", and where "auto" has no torch or library."""
    return {"auto": default_python(library), "none": ""}.get(given, given)


@contextmanager
def start(
    python: str,
    settings: Mapping[str, Any],
    batch: Mapping[str, np.ndarray],
    library: str = "torchvision",
    side: str = "",
) -> Iterator[Rival | None]:
    """SIDE_side.py, started by `python` on this batch and ready to be timed; None if `python` is ''.

    library: required besides torch. side: "" if it has the name of the library.
    """
    if not python:
        yield None
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "settings.json").write_text(json.dumps(settings))
        np.savez(folder / "batch.npz", allow_pickle=False, **batch)
        with open(folder / "errors.txt", "w") as errors:
            try:
                process = subprocess.Popen(
                    [python, str(HERE / f"{side or library}_side.py"), name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            except OSError as error:
                raise UserError(f"cannot start {python}: {error.strerror}", where="--torch_python") from error
            try:
                yield Rival(process, folder, library)
            finally:
                process.kill()
                process.communicate()
