"""Compare synthetic lesions with real ones; leaves `<stage>/evaluation.json`.

If lesions were painted into real images, only the painted lesion counts as synthetic: an image's first box, which is
also its field `box`. Lesions of the canvas are real and left out. In a set without such fields, such as patches of a
generator, all boxes are synthetic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from elk_jax import files
from elk_jax.data.sources.patients import halving_doubt
from elk_jax.data.sources.source import ImageSource, summary
from elk_jax.detection import detectors
from elk_jax.detection.closeups import closeup_features
from elk_jax.errors import UserError
from elk_jax.evaluation import frechet, lesion_statistics, memorised, radiomics
from elk_jax.evaluation.real_or_synthetic import real_or_synthetic
from elk_jax.images.breast import breast_mask
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import box_mask, covered, cut
from elk_jax.progress import Progress, progress_bar
from elk_jax.synthesis.closeups import box_patch, fitting_lesions
from elk_jax.tasks import private
from elk_jax.tasks.lesion_quality.page import quality_table
from elk_jax.tasks.lesion_quality.recipe import LesionQualityStage
from elk_jax.tasks.run import Run, skipped_images
from elk_jax.tasks.task import Summary
from elk_jax.weights import model_folder

CONTEXT = 0.25
"""Margin of a close-up on each side, as a share of the box's sides, so that the border of the lesion is visible."""

CLOSEUP = 128
"""Side, in pixels, of the close-ups for a detector."""

PAIRS = 6
"""Number of synthetic lesions that the report shows next to the most similar training lesion."""

UNLIMITED = 1 << 30
"""Side in pixels that no lesion reaches."""

Place = tuple[int, int]
"""(image of a source, box of that image)."""


@dataclass(frozen=True)
class Lesions:
    """The compared properties of N lesions."""

    names: tuple[str, ...]  # of their images
    patients: tuple[str, ...]
    places: tuple[Place, ...]
    statistics: tuple[dict[str, float], ...]
    radiomics: np.ndarray  # [N, F]
    patches: np.ndarray  # [N, SIDE, SIDE] float32, content of the box
    closeups: np.ndarray  # [N, CLOSEUP, CLOSEUP] float32, box and context

    def __len__(self) -> int:
        return len(self.places)


def check_start(run: Run, stage: LesionQualityStage, recipe: None, names: Collection[str]) -> None:
    """UserError for lesions that would be compared with themselves, for protected ones, and if the model for comparing
    the lesions is not a detector."""
    splits = {stage.split, stage.synthetic_split}
    if run.spec(stage.on) == run.spec(stage.synthetic) and ("" in splits or len(splits) == 1):
        what = f"'{stage.on}' and '{stage.synthetic}' are the same images, which would be compared with themselves"
        where = f"config.stages.{stage.name}.synthetic"
        raise UserError(what, where=where, todo="name the synthetic images, or another split")
    setting = "split" if stage.split in ("train", "") else "repeated"
    todo = "compare with another split, such as val, and set repeated=False"
    private.check_described(run.experiment, stage, stage.on, setting, todo)
    if stage.features and stage.features not in names:
        folder = run.model_folder(stage.features)
        detectors.check_stored(model_folder.architecture_of(folder), folder)


def evaluate(run: Run, stage: LesionQualityStage, recipe: None) -> Summary:
    """Compare the painted lesions of one source with the real ones of another."""
    source, painted_source = run.open(stage.on, stage.split), run.open(stage.synthetic, stage.synthetic_split)
    painted, window = synthetic_places(painted_source)
    most = window or UNLIMITED
    chosen = fitting_lesions(source.infos, most)
    counts = summary(source.infos)
    patients = len({source.infos[position].patient_id for position, _ in chosen})
    run.say(
        f"  {len(painted)} synthetic lesions, {len(chosen)} real ones of {patients} patients, "
        f"{counts['ignored_boxes']} ignored boxes"
    )

    real = describe(source, chosen, "  real lesions")
    synthetic = describe(painted_source, painted, "  synthetic lesions")
    training = real if stage.repeated else None
    if stage.repeated and stage.split != "train":
        # repeated lesions come from the training split, whichever split they are compared with
        known = run.open(stage.on, "train")
        training = describe(known, fitting_lesions(known.infos, most), "  training lesions")
    seen = None
    if stage.features:
        features = _detector_features(run.model_folder(stage.features))
        seen = features(real.closeups), features(synthetic.closeups)
    evaluation = compare(real, synthetic, training, seen, run.seed)
    lesions = int(sum((~info.ignore).sum() for info in source.infos))
    evaluation["counts"] |= {"window": window, "left_out": lesions - len(real)}
    evaluation["notes"] += _notes(evaluation)
    evaluation["notes"] += [doubt] if (doubt := halving_doubt(source.infos)) else []
    if evaluation["detector_features"]:
        evaluation["detector_features"]["model"] = stage.features
    if run.is_main:
        files.write_json(run.folder / stage.name / "evaluation.json", evaluation)
        run.console.print(quality_table(evaluation, f"{stage.synthetic} against the {stage.split} split of {stage.on}"))
    return {
        "kind": "evaluate",
        "on": stage.on,
        "split": stage.split,
        "synthetic": stage.synthetic,
        "synthetic_split": stage.synthetic_split,
        "data": counts,
        "skipped": skipped_images(source, painted_source),
    }


def _detector_features(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """close-ups [N, S, S] -> features [N, D] of the detector in a model folder."""
    params, content = model_folder.load_params(folder)
    detector = detectors.stored(content.entries, content.file, content.whole)
    absent = model_folder.compile_patterns(content.entries.get("absent", ()), f"{content.file}: absent")
    shapes = model_folder.shapes_of(detector.init).items()
    model_folder.check_fits(params, {n: s for n, s in shapes if not model_folder.matches(absent, n)}, folder)
    return closeup_features(detector, params)


def compare(
    real: Lesions,
    synthetic: Lesions,
    training: Lesions | None,
    seen: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All measures, JSON-able. training: the inpainter's training lesions, which it might repeat; None to skip this
    check.

    seen: features [N, D] of the real and [M, D] of the synthetic lesions from a network; None to skip them.
    UserError for fewer than two lesions of a kind, and for identical real ones.
    """
    for lesions, what in ((real, "real"), (synthetic, "synthetic")):
        if len(lesions) < 2:
            raise UserError(
                f"{len(lesions)} {what} lesion to compare", todo="give at least two, which a distribution needs"
            )
    limited = radiomics.standardise(real.radiomics, synthetic.radiomics, limit=radiomics.LIMIT)
    if not limited[0].shape[1]:
        what = "the real lesions are uniform or identical, so none of their radiomics varies"
        raise UserError(what, todo="inspect the images, and give others")
    by_features = None
    if seen is not None:
        by_features = {
            **frechet.compare_sets(*seen, real.patients, seed),
            "real_or_synthetic": _told_apart(real, synthetic, *seen, seed),
        }
    repeated = None
    if training is not None:
        bar = progress_bar("  memorised lesions")
        found = memorised.memorised_report(synthetic.patches, training.patches, training.patients, bar)
        repeated = {**found, "pairs": most_alike(synthetic, training, found, PAIRS)}
    return {
        "counts": {
            "real": len(real),
            "real_patients": len(set(real.patients)),
            "synthetic": len(synthetic),
            "synthetic_patients": len(set(synthetic.patients)),
        },
        "radiomics": frechet.compare_sets(limited[0], limited[1], real.patients, seed),
        "frechet_radiomics": radiomics.frechet_radiomics(real.radiomics, synthetic.radiomics),
        "detector_features": by_features,
        "real_or_synthetic": _told_apart(real, synthetic, real.radiomics, synthetic.radiomics, seed),
        "memorised": repeated,
        "statistics": lesion_statistics.compare_statistics(real.statistics, synthetic.statistics),
        "notes": [],
    }


def synthetic_places(source: ImageSource) -> tuple[list[Place], int | None]:
    """The synthetic boxes of a source, and the side of the largest painted window; None if images are entirely
    synthetic.

    UserError for painted images that do not specify what was painted, and for a source without a synthetic box.
    """
    if not any({"box", "window", "canvas"} & info.meta.keys() for info in source.infos):
        places = [(i, int(box)) for i, info in enumerate(source.infos) for box in np.flatnonzero(~info.ignore)]
        if not places:
            raise UserError("the set has no synthetic lesions", where=source.name, todo="name a set with boxes")
        return places, None
    sides = []
    for info in source.infos:
        box: Any = info.meta.get("box")
        window: Any = info.meta.get("window")
        if not (_is_box(box) and _is_box(window)):
            raise UserError(
                f"image {info.image_id} does not specify the painted lesion: the field 'box' or 'window' is missing",
                where=source.name,
                todo="name a set that a synthesis stage or launch/synthesize.py wrote",
            )
        if not len(info.boxes) or not np.allclose(info.boxes[0], box):
            raise UserError(
                f"the first box of image {info.image_id} is not the painted one, its field 'box'", where=source.name
            )
        sides.append(int(window[2] - window[0]))
    return [(position, 0) for position in range(len(source))], max(sides)


def describe(source: ImageSource, places: Sequence[Place], title: str = "") -> Lesions:
    """Close-ups and numbers of lesions; every image is decoded once."""
    by_image: dict[int, list[int]] = {}
    for position, lesion in places:
        by_image.setdefault(position, []).append(lesion)
    rows: list[tuple[Any, ...]] = []
    with Progress(title or "  lesions", len(places), unit="lesion") as bar:
        for position, lesions in by_image.items():
            pixels, info = source[position].image[..., 0], source.infos[position]
            breast = breast_mask(pixels)
            rows += [_row(pixels, breast, info, position, lesion) for lesion in lesions]
            bar.update(len(rows))
    columns: list[Any] = list(zip(*rows)) or [()] * len(fields(Lesions))
    return Lesions(*columns[:4], *(np.array(column) for column in columns[4:]))


def _row(pixels: np.ndarray, breast: np.ndarray, info: ImageInfo, position: int, lesion: int) -> tuple[Any, ...]:
    """The fields of `Lesions` for one lesion."""
    box = info.boxes[lesion].astype(np.float64)
    others = np.delete(info.boxes, lesion, axis=0)
    pad = CONTEXT * (box[2:] - box[:2])
    window = covered(np.concatenate([box[:2] - pad, box[2:] + pad]))
    x0, y0, x1, y1 = max(window[0], 0), max(window[1], 0), min(window[2], info.width), min(window[3], info.height)
    known = breast | box_mask(box, info.height, info.width)  # air around a lesion is not part of its texture
    side = max(box[2:] - box[:2]) * (0.5 + CONTEXT)
    centre = (box[:2] + box[2:]) / 2
    square = cut(pixels, covered(np.concatenate([centre - side, centre + side])))
    method = cv2.INTER_AREA if len(square) > CLOSEUP else cv2.INTER_LINEAR
    return (
        info.image_id,
        info.patient_id,
        (position, lesion),
        lesion_statistics.describe_lesion(pixels, box, breast, others),
        list(radiomics.radiomics(pixels[y0:y1, x0:x1], known[y0:y1, x0:x1]).values()),
        box_patch(pixels, box, memorised.SIDE),
        cv2.resize(square, (CLOSEUP, CLOSEUP), interpolation=method),
    )


def most_alike(synthetic: Lesions, training: Lesions, report: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The `count` synthetic lesions with the largest margins to a training lesion, each with that lesion and its
    orientation; by similarity where lesions of too few patients leave no margin."""
    margins = [-np.inf if margin is None else margin for margin in report["margin"]]
    order = np.lexsort((-np.array(report["similarity"]), -np.array(margins)))
    pairs = []
    for k in order[:count]:
        j = report["nearest"][k]
        if j < 0:
            continue
        again = memorised.nearest(
            synthetic.patches[k : k + 1], training.patches[j : j + 1], training.patients[j : j + 1]
        )
        pairs.append(
            {
                "synthetic": synthetic.names[k],
                "training": training.names[j],
                "lesion": training.places[j][1],
                "similarity": report["similarity"][k],
                "margin": report["margin"][k],
                "flip": memorised.FLIPS[int(again.flip[0])],
                "transposed": bool(again.transposed[0]),
            }
        )
    return pairs


def _told_apart(
    real: Lesions, synthetic: Lesions, features: np.ndarray, painted_features: np.ndarray, seed: int
) -> dict[str, float | int | None] | None:
    """The AUC of separating real from synthetic lesions; None with a single patient."""
    if len({*real.patients, *synthetic.patients}) < 2:
        return None
    return real_or_synthetic(features, painted_features, real.patients, synthetic.patients, seed=seed)


def _notes(evaluation: Mapping[str, Any]) -> list[str]:
    notes = []
    counts = evaluation["counts"]
    if counts["left_out"]:
        lesions = "1 real lesion is" if counts["left_out"] == 1 else f"{counts['left_out']} real lesions are"
        notes.append(f"{lesions} left out because they do not fit the painted windows of {counts['window']} px")
    half, features = evaluation["radiomics"]["half"], evaluation["frechet_radiomics"]["features"]
    if evaluation["radiomics"]["real_to_real"] is None:
        notes.append("too few real lesions or patients to compare real lesions with each other")
    elif half < features:
        notes.append(f"a half has {half} lesions, fewer than there are features ({features}): distances mean little")
    if (evaluation["real_or_synthetic"] or {"auc": None})["auc"] is None:
        notes.append("lesions of only one patient: the AUC of real against synthetic is undefined")
    if evaluation["memorised"] is not None and evaluation["memorised"]["threshold"] is None:
        notes.append("repeated lesions are not counted: their reference needs training lesions of three patients")
    return notes


def _is_box(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(isinstance(v, (int, float)) for v in value)
