"""Draw patches of every class with a trained generator: a COCO folder that is also a folder of classes.

Output: `images/CLASS/NUMBER.png`, and, when all exist, `synthetic.json`, with the origin of each patch. A patch is a
function of (seed, its number, its class) and the model; drawing more patches of a class does not change the first ones.
An interrupted set is resumed. `synthesis.json` has the ledgers of private trainings behind the generator, and
`synthetic.json` their promises; drawing costs no privacy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from elk_jax import files
from elk_jax.data.sources import coco
from elk_jax.data.sources.decode import encode_png
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.progress import Progress
from elk_jax.tasks import sampling
from elk_jax.tasks.generation.model import Trained, load
from elk_jax.tasks.generation.recipe import Drawing, SampleSettings, SampleStage
from elk_jax.tasks.generation.train import drawn
from elk_jax.tasks.run import Run, is_main, meet, new_console
from elk_jax.tasks.stages import TrainStage
from elk_jax.tasks.task import Summary
from elk_jax.training import mesh as meshes
from elk_jax.weights import model_folder

SETTINGS = "synthesis.json"
OF_DENOISERS = ("guidance", "sampler_steps")
"""Fields of `SampleSettings` that only a denoiser has."""


def check_classes(run: Run, stage: SampleStage, recipe: None, names: Collection[str]) -> None:
    """UserError for a class that the generator will not have, before it is trained."""
    known: Sequence[str] = ()
    settings, where = settings_of(stage), f"config.stages.{stage.name}"
    if stage.model not in names:
        folder = run.model_folder(stage.model)
        known = drawing(folder, settings).description.classes
    else:
        trainer = run.experiment.stages[stage.model]
        assert isinstance(trainer, TrainStage)  # the parser checks it
        _changed(run.experiment.recipe_of(trainer), settings, where)
        if all(map(run.is_listed, trainer.train_on)):
            known = run.list(trainer.train_on, "train").classes
    if known:
        _check_known(stage.classes, known, f"{where}.classes")


def synthesize(run: Run, stage: SampleStage, recipe: None) -> Summary:
    """Draw `per_class` patches of each class into `<stage>/`."""
    settings = settings_of(stage)
    model, output = run.model_folder(stage.model), run.folder / stage.name
    counts = sample(model, stage.per_class, output, settings, run.seed, run.mesh)
    return {"kind": "synthesize", "counts": counts, "model": stage.model, "skipped": []}


def settings_of(stage: SampleStage) -> SampleSettings:
    """The settings of what a stage draws."""
    return SampleSettings(**{field.name: getattr(stage, field.name) for field in fields(SampleSettings)})


def synthesize_files(*, model: Path, count: int, output: Path, seed: int, settings: SampleSettings) -> None:
    """Draw patches into a folder, for launch/synthesize.py. count: of each class."""
    counts = sample(model, count, output, settings, seed, meshes.make_mesh())
    named = ", ".join(f"{value} {name}" for name, value in counts.items())
    console = new_console()
    console.print(f"{named}: {output / coco.SYNTHETIC}, and the folders of {output / 'images'}")
    if promise := model_folder.promise(model):
        console.print(promise)


def sample(
    model: Path, per_class: int, output: Path, settings: SampleSettings, seed: int, mesh: Mesh
) -> dict[str, int]:
    """Write the patches; returns how many of each class. model: a generator's model folder.

    UserError for a class that the generator does not know, settings that do not apply to it, and a folder that was
    started with other settings.
    """
    if per_class < 1:
        raise UserError(f"{per_class} patches per class", where="count", todo="give 1 or more")
    trained = drawing(model, settings)
    params, description = trained
    known = description.classes
    _check_known(settings.classes, known)
    chosen = [label for label, name in enumerate(known) if name in (settings.classes or known)]
    places = [(label, number) for label in chosen for number in range(per_class)]
    begun = {"model": files.fingerprint(model), "seed": seed, "classes": [known[label] for label in chosen]}
    begun |= _given(settings)
    with files.locked(files.make_folder(output)) if is_main() else contextlib.nullcontext():
        if is_main():
            _begin(output, begun | {"trained": _trained(description.trained)}, (*begun, *OF_DENOISERS))
            _check_others(output / "images", {_name(known, *place) for place in places})
            for label in chosen:
                files.make_folder(output / "images" / known[label])
        meet("sampling begun")
        todo = [place for place in places if not (output / "images" / _name(known, *place)).exists()]
        meet("sampling counted")  # before the main process adds files that the others count
        draw = sampling.compile_sampler(trained, mesh)
        placed, size = meshes.place(params, mesh), settings.batch_size
        with Progress("  drawing", len(places), start=len(places) - len(todo), unit="image") as bar:
            for first in range(0, len(todo), size):
                some = todo[first : first + size]
                labels, numbers = np.array(some, np.int32).T
                # patches of different classes with the same number are independent
                made = drawn(draw, placed, labels, numbers * len(known) + labels, seed, size)
                for place, patch in zip(some, made):
                    if is_main():
                        grey = (patch * 255).round().astype(np.uint8)
                        files.write_bytes(output / "images" / _name(known, *place), encode_png(grey))
                bar.update(bar.done + len(some))
        if is_main():
            infos = [_info(known, label, number, description.size, seed) for label, number in places]
            coco.write_coco(
                output / coco.SYNTHETIC,
                infos,
                known,
                "Patches drawn by a generator",
                seen_patients=model_folder.seen_patients(model),
                promises=model_folder.promises(model),
            )
    return {known[label]: per_class for label in chosen}


def drawing(model: Path, settings: SampleSettings) -> Trained:
    """The generator with the given settings for sampling. UserError if they do not apply to it."""
    trained = load(model)
    return trained._replace(description=_changed(trained.description, settings, model))


def _changed(how: Any, settings: SampleSettings, where: object) -> Any:
    """The recipe or description with the given settings for sampling. UserError if they do not apply to it."""
    given = _given(settings)
    if not given:
        return how
    if not isinstance(how, Drawing):
        what = f"{' and '.join(given)} does not apply to a generator that is not a denoiser"
        raise UserError(what, where=where, todo="leave it out")
    try:
        return how.changed(settings)
    except UserError as error:
        raise UserError(error.what, where=where, todo=error.todo) from error


def _given(settings: SampleSettings) -> dict[str, Any]:
    """The settings that apply to denoisers, by name."""
    return {name: value for name in OF_DENOISERS if (value := getattr(settings, name)) is not None}


def _name(classes: tuple[str, ...], label: int, number: int) -> str:
    return f"{classes[label]}/{number:06d}.png"


def _trained(trained: model_folder.Training | None) -> dict | None:
    """The provenance of the generator, without hashes of patients."""
    return None if trained is None else {k: v for k, v in asdict(trained).items() if k != "patients"}


def _begin(output: Path, settings: dict, fixed: tuple[str, ...]) -> None:
    """Refuse to resume in a folder that was started with other settings, or that has images of unknown origin."""
    before = output / SETTINGS
    if not before.exists() and (output / "images").exists():
        raise UserError("the folder has images of unknown origin", where=output, todo="name another --output")
    if before.exists():
        known = files.read_object(before)
        for key in fixed:
            if known.get(key) != settings.get(key):
                raise UserError(
                    f"sampling was started here with {key} {known.get(key)!r}, which is now {settings.get(key)!r}",
                    where=output,
                    todo="name another folder, or remove this one",
                )
    files.write_json(before, settings)


def _check_others(images: Path, names: set[str]) -> None:
    """Refuse patches beyond the size of the set: they would stay in its folders of classes but not in its COCO file."""
    others = sorted({path.relative_to(images).as_posix() for path in images.glob("*/*.png")} - names)
    if others:
        raise UserError(
            f"the folder has more patches than requested: {others[0]}",
            where=images,
            todo="request at least as many as there are, or remove the folder",
        )


def _check_known(classes: Sequence[str], known: Sequence[str], where: str = "classes") -> None:
    """UserError for a class that the generator does not know."""
    for name in classes:
        if name not in known:
            raise UserError(f"no class '{name}'", where=where, todo=f"choose from {', '.join(known)}")


def _info(classes: tuple[str, ...], label: int, number: int, side: int, seed: int) -> ImageInfo:
    name = _name(classes, label, number)
    return ImageInfo(
        image_id=name,
        patient_id=name,
        width=side,
        height=side,
        boxes=np.array([[0, 0, side, side]], np.float32),
        labels=np.array([label], np.int32),
        ignore=np.zeros(1, bool),
        split="train",
        file_name=name,
        meta={"synthetic": True, "class": classes[label], "seed": seed, "number": number},
    )
