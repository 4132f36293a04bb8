"""An experiment as types, and a run of it: the folder, the devices and the data sources that its stages share."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import jax
from jax.experimental import multihost_utils

from elk_jax import files
from elk_jax.data.patches import resized
from elk_jax.data.sources import folds, patients
from elk_jax.data.sources.coco import SYNTHETIC
from elk_jax.data.sources.duplicates import pixel_hash
from elk_jax.data.sources.open import check_readable, drawn, read_source, reading, select
from elk_jax.data.sources.source import ImageSource, concatenate, with_images
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.fields import AtLeast
from elk_jax.images.schema import ImageInfo
from elk_jax.output import Console
from elk_jax.progress import progress_bar
from elk_jax.randomness import Seed
from elk_jax.tasks.stages import Data, Stage
from elk_jax.threads import map_in_threads
from elk_jax.weights import model_folder


@dataclass(frozen=True)
class MeshSettings:
    """Devices along each axis; -1: all remaining ones. fsdp: number of devices that share parameters and optimiser
    state."""

    data: int = -1
    fsdp: Annotated[int, AtLeast(1)] = 1


@dataclass(frozen=True)
class Experiment:
    """A whole configuration, parsed once (`experiments.parse.parse`).

    on_error: what to do with an unreadable image, stop or skip it. data: all sources by name; one with an empty `spec`
    is not set. recipes: those that a stage reads, by name. stages: in the order in which they run.
    """

    name: str
    seed: Seed
    mesh: MeshSettings
    on_error: Literal["stop", "skip"]
    data: Mapping[str, SourceSpec]
    recipes: Mapping[str, Any]
    stages: Mapping[str, Stage]

    def recipe_of(self, stage: Stage) -> Any:
        """The recipe of a stage; None for a stage without one."""
        return self.recipes[stage.recipe] if stage.recipe else None

    def model_folder(self, folder: Path, name: str) -> Path:
        """The folder of a model: of a stage, given by name, in a run folder; or any model folder."""
        return folder / name / "model" if name in self.stages else Path(name)

    @property
    def writers(self) -> dict[str, str]:
        """Data source -> the stage that writes it, for sources written by a stage (`stage:NAME`)."""
        written = {name: spec.spec.partition(":") for name, spec in self.data.items()}
        return {name: stage for name, (kind, _, stage) in written.items() if kind == "stage"}


SKIPPED = "skipped.csv"
"""The table of the files that a prediction or an evaluation skipped, each with the reason."""
MOST_LINES = 20
"""Skipped images that are printed: of large folders there are thousands."""


@dataclass(frozen=True)
class Fold:
    """A part of a cross-validation, in which the patients of the training and validation splits are divided anew.

    source: the data source. number: of the fold, from 1, of `count`. held_out: the patients that validate; the others
    train. steps: None in a fold. In the training of `steps` steps that follows the folds, all patients train and all
    are in `held_out`: choices are made on the predictions of the folds.
    """

    source: str
    number: int
    count: int
    held_out: frozenset[str]
    steps: int | None = None

    @property
    def is_last(self) -> bool:
        """Whether it is the training on all patients, after the folds."""
        return self.steps is not None

    @property
    def in_words(self) -> str:
        """The data on which choices are made, in words."""
        return f"{self.count} folds"

    def deal(self, place: Data, opened: Callable[[Data], ImageSource]) -> ImageSource:
        """A split of a source as it is in this part. opened: the split without folds.

        Held-out patients are also removed from the training split of other sources, such as a painted one.
        """
        own = place.source == self.source and place.split in ("train", "val")
        if not own:
            kept = self.is_last or place.split != "train"
            return opened(place) if kept else folds.without_patients(opened(place), self.held_out)
        whole = folds.pooled(*(opened(Data(self.source, split)) for split in ("train", "val")))
        if self.is_last:
            return whole
        return (folds.of_patients if place.split == "val" else folds.without_patients)(whole, self.held_out)


@dataclass(frozen=True)
class Run:
    """One started experiment. Only the main process (`is_main`) writes files and prints. fold: in cross-validation, the
    part whose splits the training reads."""

    experiment: Experiment
    folder: Path
    mesh: jax.sharding.Mesh
    console: Console = field(default_factory=lambda: new_console())
    fold: Fold | None = None
    _read: dict[tuple[SourceSpec, str], ImageSource] = field(default_factory=dict, repr=False)
    _listed: dict[Data, ImageSource] = field(default_factory=dict, repr=False)
    _opened: dict[tuple[Data, int], ImageSource] = field(default_factory=dict, repr=False)
    _hashes: dict[tuple[str, str, str, int], str] = field(default_factory=dict, repr=False)

    @property
    def seed(self) -> int:
        return self.experiment.seed

    @property
    def is_main(self) -> bool:
        return is_main()

    @property
    def in_fold(self) -> bool:
        """Whether it trains one of the folds, whose own thresholds are not used."""
        return self.fold is not None and not self.fold.is_last

    def spec(self, name: str) -> SourceSpec:
        """The settings of a data source; a source written by a stage becomes its COCO file."""
        spec, writer = self.experiment.data[name], self.experiment.writers.get(name)
        return spec if writer is None else replace(spec, spec=f"coco:{self.folder / writer / SYNTHETIC}")

    def is_listed(self, name: str) -> bool:
        """Whether the annotations of a data source exist already: no stage has to write them, and no phantom has to be
        drawn."""
        return name not in self.experiment.writers and drawn(self.spec(name)) is None

    def list(self, sources: str | Sequence[str], split: str) -> ImageSource:
        """One split of the named sources as one source, without looking at image files; annotations are read once."""
        return _joined([self._dealt(Data(name, split), self._list) for name in _names(sources)])

    def open(self, sources: str | Sequence[str], split: str, images: int = 1) -> ImageSource:
        """One split of the named sources as one source whose image files exist.

        Each is opened once per run, and keeps its decoded images for later stages (`source.CACHE_BYTES`).
        images: of a record that are read: 2 for pairs. Where it is 1, no file of a partner is looked at.
        """
        opened = lambda place: self._open(place, images)
        return _joined([self._dealt(Data(name, split), opened) for name in _names(sources)])

    def pixel_hashes(self, source: str, split: str, size: int) -> Sequence[str]:
        """The hash of every image of a split, scaled to `size`; each image is decoded and hashed once per run."""
        found = self.open(source, split)
        keys = [(source, info.split, info.image_id, size) for info in found.infos]
        left = [position for position, key in enumerate(keys) if key not in self._hashes]
        hash_of = lambda position: pixel_hash(resized(found[left[position]].image, size))
        hashes = map_in_threads(hash_of, len(left), progress_bar("  comparing"))
        self._hashes.update(zip([keys[position] for position in left], hashes))
        return [self._hashes[key] for key in keys]

    def with_all_patients(self) -> Run:
        """The same run without held-out patients."""
        return self if self.fold is None else replace(self, fold=replace(self.fold, steps=self.fold.steps or 1))

    def _dealt(self, place: Data, opened: Callable[[Data], ImageSource]) -> ImageSource:
        return opened(place) if self.fold is None else self.fold.deal(place, opened)

    def _list(self, place: Data) -> ImageSource:
        if place not in self._listed:
            name, split = place
            spec = self.spec(name)
            whole = reading(spec, split)
            if whole not in self._read:
                self._read[whole] = read_source(*whole, name=name, progress=progress_bar("  opening"))
            self._listed[place] = select(self._read[whole], spec, split, name=name, seed=self.seed)
        return self._listed[place]

    def _open(self, place: Data, images: int) -> ImageSource:
        if (place, images) not in self._opened:
            spec, on_error = self.spec(place.source), self.experiment.on_error
            wanted = with_images(self._list(place), images)
            self._opened[place, images] = check_readable(wanted, spec, on_error, progress=progress_bar("  opening"))
        return self._opened[place, images]

    def model_folder(self, name: str) -> Path:
        """The folder of a model: of a stage of this run, given by name, or any model folder."""
        return self.experiment.model_folder(self.folder, name)

    def say(self, text: str) -> None:
        if self.is_main:
            self.console.print(text)


def _names(sources: str | Sequence[str]) -> Sequence[str]:
    return (sources,) if isinstance(sources, str) else sources


def _joined(opened: Sequence[ImageSource]) -> ImageSource:
    return opened[0] if len(opened) == 1 else concatenate(opened)


def is_main() -> bool:
    """Whether this process writes and prints."""
    return jax.process_index() == 0


def meet(place: str) -> None:
    """Wait until every process of the run is here; `place` is the same text on all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def new_console() -> Console:
    """A console as wide as the terminal; without a terminal, wide enough for a table of results."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def report_skipped(not_images: Sequence[Path], unreadable: Sequence[tuple[str, str]]) -> None:
    """Print which of the user's files were skipped. unreadable: (file, reason), as in `write_skipped`."""
    say = new_console().print
    if not_images:
        say(f"skipped {len(not_images)} files that are not images, for example {not_images[0]}")
    for line in skipped_lines(unreadable, SKIPPED):
        say(line)


def skipped_lines(unreadable: Sequence[tuple[str, str]], table: str = "", what: str = "") -> list[str]:
    """What to print about skipped images: the first MOST_LINES, each with its reason, and the number of others.

    table: the file that lists all of them. what: before each name, such as "image ".
    """
    lines = [f"skipped {what}{name}: {reason}" for name, reason in unreadable[:MOST_LINES]]
    others = len(unreadable) - len(lines)
    more = f"skipped {others} other{'s' * (others > 1)}{f', see {table}' if table else ''}"
    return [*lines, more] if others else lines


def write_skipped(folder: Path, unreadable: Sequence[tuple[str, str]]) -> None:
    """Write the table of skipped files into the folder of a prediction or an evaluation, or remove an earlier one if
    there are none. Without it, they could not be distinguished from images in which nothing was found.

    unreadable: (file, reason).
    """
    if not unreadable:
        (folder / SKIPPED).unlink(missing_ok=True)
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("file", "reason"), *unreadable])
    files.write_text(folder / SKIPPED, text.getvalue())


class Opened(Protocol):
    """An opened collection. skipped: images left out. seen_patients: of a model behind painted images."""

    @property
    def infos(self) -> tuple[ImageInfo, ...]: ...
    @property
    def skipped(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def seen_patients(self) -> frozenset[str]: ...


def patients_seen(name: str, folder: Path, infos: Sequence[ImageInfo]) -> list[str]:
    """Notes for an evaluation whose model has seen patients of the data, or does not list the patients that it has
    seen.

    name, folder: of the model. infos: of the images that it is evaluated on.
    """
    notes = []
    if said := model_folder.promise(folder):
        notes.append(f"{name} was trained privately and does not list its patients. {said.removesuffix('.')}")
    known = patients.among(patients.named(infos), model_folder.seen_patients(folder))
    if known:
        everyone = len({info.patient_id for info in infos})
        notes.append(
            f"{name} was trained on {len(known)} of these {everyone} patients, for example {known[0]}: it may perform "
            "worse on others"
        )
    return notes


def unread_partners(data: SourceSpec) -> list[str]:
    """A note for the evaluation of a model that reads single images, on data that name a partner for each."""
    if not data.partner:
        return []
    return [f"--partner={data.partner} is not used: the model reads one image of a breast, the first of a pair"]


def skipped_images(*sources: Opened) -> list[list[str]]:
    """The skipped images in the summary of a stage: [image id, reason]."""
    return [list(entry) for source in sources for entry in source.skipped]
