"""Whether a stage is finished, and whether it may be resumed, with the settings and inputs that it was started with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elk_jax import files
from elk_jax.data.sources.decode import DECODING
from elk_jax.data.sources.open import has_volumes
from elk_jax.data.sources.slices import OF_BOXES
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.tasks import folds, private
from elk_jax.tasks.run import Experiment, Run
from elk_jax.tasks.stages import Stage, SynthesizeStage, TrainStage
from elk_jax.tasks.training import annotated
from elk_jax.training.mesh import gathered

PAINTED = "synth*.json"
"""Files of a synthesis stage: the annotations, and the settings that determine the images."""

RESULTS = ("*.json", "*/*.json")
"""Files of an evaluation that the report shows, besides the stage's own files."""
FINISHED, DEPENDS = "finished.json", "config.json"
"""The stage's own files: its summary (written last), and what it depends on."""
SWEEP = "sweep.json"
"""File in the folder of a sweep."""


def settings(experiment: Experiment, stage: Stage) -> dict[str, Any]:
    """The settings that a stage's result depends on, as read back from JSON.

    They include only the data sources that it reads and the parts of the recipe that it uses. `data.on_error` may
    change.
    """
    found = {
        "seed": experiment.seed,
        "data": {name: dataclasses.asdict(experiment.data[name]) for name, _ in stage.data()},
        "stage": dataclasses.asdict(stage),
    }
    if stage.recipe:
        found["recipe"] = dataclasses.asdict(stage.relevant(experiment.recipe_of(stage)))
    return json.loads(json.dumps(found))


def inputs(experiment: Experiment, folder: Path, stage: Stage) -> dict[str, Any]:
    """Fingerprints of the output of other stages that a stage reads (models, synthetic data), as it may be made again.

    folder: of the run. Removed output counts as unchanged, because a finished stage no longer needs it.
    """
    written = folder / stage.name / DEPENDS
    places = {model: (folder / model / "model", "*") for model in stage.trained()}
    places |= {model: (experiment.model_folder(folder, model), "*") for model in stage.named_models().values()}
    writers = (experiment.writers.get(data.source) for data in stage.data())
    places |= {writer: (folder / writer, PAINTED) for writer in writers if writer}
    before = files.read_object(written).get("models", {}) if written.exists() else {}
    found = {name: files.fingerprint(*place) or before.get(name, "") for name, place in places.items()}
    return {"models": found} if found else {}


def annotation_hash(run: Run, stage: Stage) -> str:
    """Hash of the annotations of the data that a stage reads: images, files, volumes, patients, boxes and classes.

    "" if unknown: for data that a stage makes or that are drawn, for protected ones, and for those that are not where
    they were, which a finished stage needs no longer.
    """
    return _annotation_hash(run, stage, _described)


def _annotation_hash(run: Run, stage: Stage, describe: Callable[[ImageSource, SourceSpec], list]) -> str:
    """describe: (source, its settings) -> its annotations, for JSON."""
    places = [place for place in stage.data() if run.is_listed(place.source)]
    if not places or private.is_withheld(run.experiment, stage):
        return ""
    try:
        found = [[*place, describe(run.list(*place), run.spec(place.source))] for place in places]
    except UserError:
        return ""
    return hashlib.sha256(json.dumps(found, default=lambda array: array.tolist()).encode()).hexdigest()[:16]


def _described(source: ImageSource, spec: SourceSpec) -> list:
    """The file of a whole volume is left out: its path is that of this machine, and its name identifies it."""
    partner, whole = spec.partner, has_volumes(spec)
    fields = (*OF_BOXES, *DECODING, *((partner, *(f"{partner}_{name}" for name in DECODING)) if partner else ()))
    places = [
        ["" if whole else info.file_name, info.volume, info.slice, *(info.meta.get(field) for field in fields)]
        for info in source.infos
    ]
    return [source.classes, annotated(source.infos), places]


def _described_earlier(source: ImageSource, spec: SourceSpec) -> list:
    """As earlier versions did, whose finished stages stay finished."""
    return annotated(source.infos)


def have_changed(run: Run, stage: Stage) -> bool:
    """Whether the annotations of a finished stage are known to have changed."""
    finished = run.folder / stage.name / FINISHED
    known = files.read_object(finished).get("annotations", "") if finished.exists() else ""
    if not known or annotation_hash(run, stage) in ("", known):
        return False
    return _annotation_hash(run, stage, _described_earlier) != known


def check_annotations(run: Run, stage: Stage) -> None:
    """Refuse to accept a training or a synthesis as finished if its annotations have changed. (Other stages are
    repeated; a synthesis only adds to the images in its folder.)"""
    if isinstance(stage, (TrainStage, SynthesizeStage)) and have_changed(run, stage):
        folder = run.folder / stage.name
        todo = f"restore them, remove {folder} to run the stage again, or name another --workdir"
        raise UserError(f"the annotations have changed since stage {stage.name} finished", where=folder, todo=todo)


def is_finished(run: Run, stage: Stage, repeat: bool) -> bool:
    """Whether a stage can be skipped, unless its inputs are made again. repeat: run evaluations anyway."""
    folder = run.folder / stage.name
    if not (folder / FINISHED).exists() or (repeat and not isinstance(stage, TrainStage)):
        return False
    if not isinstance(stage, TrainStage) and have_changed(run, stage):
        return False
    return _without_inputs(files.read_object(folder / DEPENDS)) == settings(run.experiment, stage)


def results(folder: Path) -> dict[str, str]:
    """File -> SHA-256 for the output of an evaluation in its folder."""
    found = sorted(path for pattern in RESULTS for path in folder.glob(pattern) if path.is_file())
    own = (folder / FINISHED, folder / DEPENDS)
    return {str(path.relative_to(folder)): files.sha256(path) for path in found if path not in own}


def check_results(folder: Path) -> None:
    """Refuse a finished evaluation, in its folder, if one of its result files has changed, as reports would show it."""
    if not (folder / FINISHED).exists():
        return
    known, now = files.read_object(folder / FINISHED).get("results", {}), results(folder)
    changed = [name for name in now if known.get(name, now[name]) != now[name]]
    if changed:
        todo = f"restore the file, or remove {folder} to evaluate again"
        raise UserError("the file has changed since it was written", where=folder / changed[0], todo=todo)


def check_experiment(experiment: Experiment, folder: Path) -> None:
    """Refuse a run folder of another experiment, and the folder of a sweep, whose report would be replaced."""
    if (folder / SWEEP).is_file():
        raise UserError("this folder belongs to a sweep", where=folder, todo="name another --workdir")
    path = folder / "config.json"
    found = files.read_json(path) if path.is_file() else {"name": experiment.name}
    known = found.get("name") if isinstance(found, dict) else None
    if known != experiment.name:
        what = f"the experiment {known}" if known else "something else"
        raise UserError(
            f"this run folder belongs to {what}, not to {experiment.name}", where=folder, todo="name another --workdir"
        )


def check_settings(run: Run, stage: Stage) -> None:
    """Refuse to resume a training with settings that differ from those it was started with."""
    if not _is_begun_training(run, stage):
        return
    before, now = _without_inputs(files.read_object(run.folder / stage.name / DEPENDS)), settings(run.experiment, stage)
    found = differences(before, now)
    if not found:
        return
    how, todo = "with other settings", "name another --workdir, or give the same settings"
    if not differences(_filled(before, now), now):
        how, todo = "by an earlier version", "name another --workdir, or finish it with that version (versions.json)"
    raise UserError(f"stage {stage.name} was started here {how}: {'; '.join(found[:3])}", where=run.folder, todo=todo)


def check_inputs(run: Run, stage: Stage, now: dict[str, Any]) -> None:
    """Refuse to resume a training, or to accept it as finished, if its initial weights or painted images have changed.

    now: its `inputs`.
    """
    if not _is_begun_training(run, stage):
        return
    folder = run.folder / stage.name
    known = files.read_object(folder / DEPENDS).get("models", {})
    changed = [name for name, fingerprint in now.get("models", {}).items() if known.get(name) != fingerprint]
    if changed:
        raise UserError(
            f"{changed[0]} has changed since stage {stage.name} was started from it",
            where=folder,
            todo="remove that folder to train the stage again, or name another --workdir",
        )


def check_alike(stage: Stage, depends: dict[str, Any], annotations: str) -> None:
    """Refuse to run a stage in several processes with different settings, inputs or annotations (their hash): all
    compute parts of one result."""
    own = {**depends, "annotations": annotations}
    first, *others = map(json.loads, gathered(json.dumps(own)))
    for number, other in enumerate(others, start=1):
        if found := differences(first, other, verb=f"is {{}} in process 0, but {{}} in process {number}"):
            what = f"the processes of this run differ: {'; '.join(found[:3])}"
            todo = "start every process with the same command, on the same files and model folders"
            raise UserError(what, where=f"stage {stage.name}", todo=todo)


def _is_begun_training(run: Run, stage: Stage) -> bool:
    """Whether a training has reached a checkpoint or its end, so that other settings must not replace it."""
    folder = run.folder / stage.name
    places = [folder, *folder.glob(folds.FOLDERS)]
    checkpoints = any(path.name.isdigit() for place in places for path in place.glob("checkpoints/*"))
    finished = any((place / FINISHED).exists() for place in places)
    begun = (folder / DEPENDS).exists() and (checkpoints or finished)
    return isinstance(stage, TrainStage) and begun


def _without_inputs(written: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in written.items() if key != "models"}


def differences(before: Any, now: Any, key: str = "", verb: str = "was {} and is {}") -> list[str]:
    """The differences between two JSON values, by dotted key, such as "steps was 100 and is 200"."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            text
            for name in {**before, **now}
            for text in differences(before.get(name), now.get(name), f"{key}.{name}" if key else name, verb)
        ]
    return [] if before == now else [f"{key} {verb.format(repr(before), repr(now))}"]


def _filled(before: Any, now: Any) -> Any:
    """`before` with the keys that only `now` has, for settings introduced later."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return before
    return {**now, **{name: _filled(value, now.get(name)) for name, value in before.items()}}
