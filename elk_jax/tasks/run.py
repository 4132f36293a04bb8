"""What a stage is given: the configuration, the run folder and the devices."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from rich.console import Console

SYNTHETIC = "synthetic.json"
"""The COCO file that a synthesis stage writes, with its images beside it."""


def new_console() -> Console:
    """As wide as the terminal; wide enough for a table of results where there is none."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def say_left_out(no_images: Sequence[Path], skipped: Sequence[tuple[str, str]]) -> None:
    """Print what of the user's files was not worked on. skipped: (file, reason)."""
    say = new_console().print
    if no_images:
        say(f"{len(no_images)} files are no images and were left out, such as {no_images[0]}", markup=False)
    for name, reason in skipped:
        say(f"skipped {name}: {reason}", markup=False)


@dataclass(frozen=True)
class Run:
    """One started experiment. Only the main process (`is_main`) writes files and prints."""

    config: ConfigDict
    folder: Path
    mesh: jax.sharding.Mesh
    console: Console = field(default_factory=new_console)

    @property
    def is_main(self) -> bool:
        return jax.process_index() == 0

    @property
    def data(self) -> ConfigDict:
        """The data sources; those that an earlier stage wrote (`stage:NAME`) as the COCO files they are."""
        data = copy.deepcopy(self.config.data)
        for entry in data.values():
            if isinstance(entry, ConfigDict) and entry.spec.startswith("stage:"):
                entry.spec = f"coco:{self.folder / entry.spec.removeprefix('stage:') / SYNTHETIC}"
        return data

    def say(self, text: str) -> None:
        if self.is_main:
            self.console.print(text, markup=False)

    def meet(self, what: str) -> None:
        """Wait until every process of the run is here; `what` names the place, the same on all of them."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(what)


def model_folder(run: Run, name: str) -> Path:
    """Where a model lies: of a stage of this run by its name, or any model folder."""
    return run.folder / name / "model" if name in run.config.stages else Path(name)


def writing_stage(config: ConfigDict, source: str) -> str:
    """The stage that writes a data source, "" where none does."""
    spec = config.data[source].spec
    return spec.removeprefix("stage:") if spec.startswith("stage:") else ""
