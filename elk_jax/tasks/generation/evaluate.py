"""Compare synthetic patches with real ones, class by class; leaves `<stage>/evaluation.json` and `<stage>/pictures/`.

The synthetic set named by the stage can come from a stage, from launch/synthesize.py, or from another program.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from elk_jax import files
from elk_jax.data.patches import whole_images
from elk_jax.data.sources import duplicates
from elk_jax.data.sources.decode import encode_png
from elk_jax.data.sources.labels import class_counts, image_labels
from elk_jax.data.sources.patients import halving_doubt
from elk_jax.data.sources.source import ImageSource
from elk_jax.errors import UserError
from elk_jax.evaluation import appearance, frd, frechet, radiomics_table, spectrum
from elk_jax.evaluation.radiomics_table import Table
from elk_jax.progress import progress_bar
from elk_jax.spread import spread
from elk_jax.tasks import private, sampling
from elk_jax.tasks.generation.model import check_names
from elk_jax.tasks.generation.page import notes_of, samples_tables
from elk_jax.tasks.generation.recipe import EvaluateSamplesStage
from elk_jax.tasks.generation.train import LEAST, SHOWN, check_sizes
from elk_jax.tasks.run import Run, skipped_images
from elk_jax.tasks.task import Summary

ALL = "all"


def check_sources(run: Run, stage: EvaluateSamplesStage, recipe: None, names: Collection[str]) -> None:
    """UserError for images that have no class, several sizes or other classes than the real ones, or are protected."""
    private.check_described(run.experiment, stage, stage.on, "split", "compare with another split, such as val")
    listed = [run.list(name, split) for name, split in stage.data() if run.is_listed(name)]
    for source in listed:
        check_source(source)
    if len(listed) > 1:
        check_same(*listed[:2])


def check_source(source: ImageSource) -> None:
    """UserError for images that cannot be compared."""
    check_names(source.classes, source.name)
    if ALL in source.classes:
        what = f"a class has the name '{ALL}', under which the measures of all patches are written"
        raise UserError(what, where=source.name, todo="rename the class")
    labels = image_labels(source)
    check_sizes(source)
    small = [info for info in source.infos if 0 < info.width < appearance.COARSE]
    if small:
        what = f"an image of {small[0].width} px, too small to compare"
        where = f"{source.name}, image {small[0].image_id}"
        raise UserError(what, where=where, todo=f"give patches of {appearance.COARSE} px or more")
    for label, name in enumerate(source.classes):
        if 0 < (labels == label).sum() < LEAST:
            raise UserError(f"one image of the class {name}", where=source.name, todo=f"give at least {LEAST}")


def check_same(real: ImageSource, made: ImageSource) -> None:
    """UserError for classes that the real images do not have."""
    for name in made.classes:
        if name not in real.classes:
            what = f"the real images have no class '{name}', only {', '.join(real.classes)}"
            raise UserError(what, where=made.name, todo="rename the classes of one of them")


def evaluate(run: Run, stage: EvaluateSamplesStage, recipe: None) -> Summary:
    """Compare the patches of one source with the real ones of another. UserError for a patch that is in both."""
    real, made = run.open(stage.on, stage.split), run.open(stage.synthetic, "")
    for source in (real, made):
        check_source(source)
    check_same(real, made)
    size = min(max(info.width for info in source.infos) for source in (real, made))
    first, second = (
        list(zip(run.pixel_hashes(*place, size), [info.title for info in source.infos]))
        for source, place in ((real, (stage.on, stage.split)), (made, (stage.synthetic, "")))
    )
    duplicates.check_apart(first, second, made.name)
    pictures = {name: whole_images(one, size, progress_bar(f"  {name}"))[..., 0] for name, one in
                (("real", real), ("made", made))}  # fmt: skip
    labels = {name: np.array(one.classes)[image_labels(one)] for name, one in (("real", real), ("made", made))}
    evaluation = {
        "on": stage.on,
        "split": stage.split,
        "synthetic": stage.synthetic,
        "size": size,
        "doubt": halving_doubt(real.infos),
        "classes": compare(
            pictures["real"],
            labels["real"],
            pictures["made"],
            labels["made"],
            run.seed,
            tuple(dict.fromkeys(stage.frd)),
            [info.patient_id for info in real.infos],
        ),
    }
    if run.is_main:
        _write_pictures(run, stage, pictures, labels)
        files.write_json(run.folder / stage.name / "evaluation.json", evaluation)
        for table in samples_tables(evaluation):
            run.console.print(table)
        for note in notes_of(evaluation):
            run.say(f"  {note}")
    return {
        "kind": "evaluate",
        "on": stage.on,
        "split": stage.split,
        "synthetic": stage.synthetic,
        "data": class_counts(real),
        "skipped": skipped_images(real, made),
    }


def compare(
    real: np.ndarray,
    real_labels: np.ndarray,
    made: np.ndarray,
    made_labels: np.ndarray,
    seed: int = 0,
    frd_kinds: Sequence[str] = (),
    patients: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measures of all patches, and of each class present in both sets. Patches [N, S, S] with their classes by name.

    The real patches are halved by patient, ten times (`frechet.draws`): `distance` is the mean of that between a half
    and as many made ones, `reference` of that between the halves; None for too few patches or patients. `frd`: the same
    by radiomics, by version; `note` says why a distance is None that there are enough patches for.
    patients: of the real patches; None: a different one for each.
    """
    owners = np.arange(len(real)).astype(str) if patients is None else np.asarray(patients)
    described = [appearance.descriptors(one) for one in (real, made)]
    tables = {kind: [_table(kind, one, which) for one, which in ((real, "real"), (made, "made"))] for kind in frd_kinds}

    def measured(name: str, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
        by_kind = {}
        for kind, (real_table, made_table) in tables.items():
            sides = _rows(real_table, ours), _rows(made_table, theirs)
            by_kind[kind] = _radiomics(name, kind, *sides, owners[ours], seed)
        looks = _looks(described[0][ours], described[1][theirs], owners[ours], seed)
        return looks | _shares(real[ours], made[theirs]) | ({"frd": by_kind} if tables else {})

    found = {ALL: measured(ALL, *(np.ones(len(one), bool) for one in (real, made)))}
    for name in sorted(set(real_labels) & set(made_labels)):
        found[str(name)] = measured(str(name), real_labels == name, made_labels == name)
    return found


def _table(kind: str, pictures: np.ndarray, which: str) -> Table:
    grey = [picture * 255.0 for picture in pictures]
    return radiomics_table.table(grey, radiomics_table.FEATURE_SETS[kind], progress=progress_bar(f"  {kind}, {which}"))


def _rows(table: Table, chosen: np.ndarray) -> Table:
    return table._replace(values=table.values[chosen])


def _radiomics(name: str, kind: str, real: Table, made: Table, patients: np.ndarray, seed: int) -> dict[str, Any]:
    """Means over random halves of the real patches, split by patient: the distance from one half of as many synthetic
    ones (`made`), and of the other half (`real`). None if there are too few, or if a half has no distance, for example
    a half of copies; `note` then gives the class (`name`) and version. images: number in a half; features: number
    compared."""
    recipe = frd.RECIPES[kind]
    ours, theirs = (np.flatnonzero(frd.defined(one, recipe)) for one in (real, made))
    faults: list[str] = []

    def distance(first: Table, second: Table) -> frd.Distance | None:
        try:
            return frd.distance(first, second, recipe)
        except frd.Undefined as error:
            faults.append(error.what)
            return None

    drawn = frechet.draws(patients[ours].tolist(), len(theirs), seed)
    apart = [distance(_rows(real, ours[d.one]), _rows(made, theirs[d.synthetic])) for d in drawn]
    within = [distance(_rows(real, ours[d.one]), _rows(real, ours[d.other])) for d in drawn]
    known = [one for one in apart if one is not None]
    what = f"class {name}, FRD {kind}: {len(faults)} of {2 * len(drawn)} comparisons of halves have no distance"
    return {
        "made": _mean(apart),
        "real": _mean(within),
        "images": min((one.second for one in known), default=0),
        "features": min((one.features for one in known), default=0),
        "note": f"{what}: {faults[0]}" if faults else "",
    }


def _mean(found: Sequence[frd.Distance | None]) -> float | None:
    """The mean of the distances; None if there are none, or if some are missing."""
    values = [None if one is None else one.value for one in found]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _looks(real: np.ndarray, made: np.ndarray, patients: np.ndarray, seed: int) -> dict[str, Any]:
    """Distances of the descriptors of synthetic patches from those of real ones, and of real ones from each other."""
    drawn = frechet.draws(patients.tolist(), len(made), seed)
    apart = [appearance.of_descriptors(real[draw.one], made[draw.synthetic]) for draw in drawn]
    within = [appearance.of_descriptors(real[draw.one], real[draw.other]) for draw in drawn]
    return {
        "real": len(real),
        "made": len(made),
        "distance": float(np.mean(apart)) if drawn else None,
        "reference": float(np.mean(within)) if drawn else None,
    }


def _shares(real: np.ndarray, made: np.ndarray) -> dict[str, float | None]:
    """Shares of power at the scale of single pixels."""
    return {
        "checkerboard": _share(spectrum.checkerboard(list(made))),
        "real_checkerboard": _share(spectrum.checkerboard(list(real))),
        "fine_share": _share(spectrum.fine(list(made))),
        "real_fine_share": _share(spectrum.fine(list(real))),
    }


def _share(value: float) -> float | None:
    """None for uniform patches, which have no power to share."""
    return None if np.isnan(value) else value


def _write_pictures(run: Run, stage: EvaluateSamplesStage, pictures: dict, labels: dict) -> None:
    """A grid for every class: a row of real patches, a row of synthetic ones."""
    folder = files.make_folder(run.folder / stage.name / "pictures")
    for name in sorted(set(labels["real"]) & set(labels["made"])):
        rows = [pictures[kind][labels[kind] == name] for kind in ("real", "made")]
        count = min(SHOWN, *(len(row) for row in rows))
        grid = sampling.grid([row[spread(len(row), count)][..., None] for row in rows])
        files.write_bytes(folder / f"{name}.png", encode_png(np.ascontiguousarray(grid[..., 0])))
