"""Run a detector on the images of a source, for validation and testing, or on image files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import jax
import numpy as np
from jax.sharding import Mesh

from elk_jax import files
from elk_jax.data import breast
from elk_jax.data.augment import NO_AUGMENTATION, Resize
from elk_jax.data.batches import detection as batches
from elk_jax.data.batches.buckets import assign_buckets
from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.data.flips import flip_boxes, flipped
from elk_jax.data.slice_greys import slices_in
from elk_jax.data.sources import folder as image_files
from elk_jax.data.sources.source import ImageSource, with_images
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.detection import detectors
from elk_jax.errors import UserError
from elk_jax.evaluation import detections, fusion, operating
from elk_jax.evaluation.detections import Detections, ImageResult, join
from elk_jax.evaluation.operating import OperatingPoint
from elk_jax.fields import SHARE
from elk_jax.images.schema import ImageInfo
from elk_jax.progress import Progress, progress_bar
from elk_jax.tasks.detection.model import (
    Ensemble,
    Input,
    Trained,
    at_scale,
    in_words,
    load,
    trainable,
)
from elk_jax.tasks.run import SKIPPED, new_console, report_skipped, write_skipped
from elk_jax.training import mesh as meshes
from elk_jax.training import prediction
from elk_jax.training.model import Model, Params
from elk_jax.weights import model_folder

COLOUR = (64, 196, 255)  # BGR
FINDINGS = "findings.json"
PICTURES = "pictures"
"""The folder of the pictures in the output."""
WRITTEN = (FINDINGS, "findings.csv", SKIPPED, "report.html", f"{PICTURES}/[0-9][0-9][0-9][0-9]*_*.png")
"""Files of a prediction, of images or of volumes."""

Predictor = Callable[[Params, Mapping[str, jax.Array]], dict[str, Any]]


# ---- Over a source -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """The input of a detector from a source: the images, or the breasts cut out of them.

    whole: the source's own images. windows: of the breasts in them; None if whole images are used.
    """

    source: ImageSource
    whole: tuple[ImageInfo, ...]
    windows: tuple[breast.Window, ...] | None


def view(source: ImageSource, crop_to_breast: bool) -> View:
    """`source` as a detector sees it. Decodes every image once if breasts are cut out.

    The truth does not influence where an image is cut.
    """
    if not crop_to_breast:
        return View(source, source.infos, None)
    seen, windows = breast.crop_to_breast(without_truth(source), progress_bar("  finding the breasts"))
    return View(seen, source.infos, windows)


def compile_predictor(model: Model, mesh: Mesh) -> Predictor:
    """(params, placed batch) -> predictions, and the batch's own `index`, `scale`, `valid`, on every process."""
    predict = prediction.on_mesh(model, mesh, echo=("index", "scale", "valid"))
    constants = meshes.place_constants(model.constants, mesh)

    def predictor(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        found, own = predict(params, constants, batch)
        return {"predictions": found, "batch": own}

    return predictor


def detect(
    predictor: Predictor,
    params: Params,
    source: ImageSource,
    config: LoaderConfig,
    mesh: Mesh,
    score_floor: float = 0.0,
    title: str = "  detecting",
    pad: bool = False,
) -> list[ImageResult]:
    """Run a detector on a source and join its detections with the truth, in the source's own pixels. title: of
    the progress bar; "": none is shown. pad: as of `eval_batches`."""
    needed = ("image", "image_size", "index", "scale", "valid")
    # the batch size of a private training is an expected number, which the devices need not divide
    config = replace(config, batch_size=-(-config.batch_size // mesh.size) * mesh.size)
    host_batches = batches.eval_batches(source, config, jax.process_index(), jax.process_count(), pad)

    def outputs(host_batches: Iterable[Mapping[str, Any]]):
        waiting = None  # fetch the result of a batch while the next one is computed
        for batch in host_batches:
            running = predictor(params, meshes.put_batch({key: batch[key] for key in needed}, mesh))
            if waiting is not None:
                yield fetch(waiting)
            waiting = running
        if waiting is not None:
            yield fetch(waiting)

    def fetch(result):
        host = jax.device_get(result)
        if bar is not None:
            bar.update(bar.done + int(host["batch"]["valid"].sum()))
        return host["batch"], host["predictions"]

    with Progress(title, len(source), unit="image") if title else nullcontext() as bar:
        return detections.join_batches(source.infos, outputs(host_batches), score_floor)


class Look(NamedTuple):
    """One view of the images. scale: factor on the size of the input. mirrored: 0: the images themselves, k: the k-th
    of the mirrored views."""

    scale: float
    mirrored: int


def looks(flips: Sequence[str], scales: Iterable[float]) -> list[Look]:
    """All views of the images, in the order in which they are computed."""
    return [Look(scale, number) for scale in scales for number in range(len(flips) + 1)]


def detect_views(
    predictor: Predictor,
    params: Params,
    seen: View,
    inputs: Mapping[float, LoaderConfig],
    mesh: Mesh,
    score_floor: float = 0.0,
    flips: Sequence[str] = (),
    progress: bool = True,
) -> dict[Look, list[ImageResult]]:
    """Detections and truth in the pixels of the whole images; at each scale first of the images themselves, then of
    each mirrored view.

    inputs: scale -> the input of the detector (`at_scale`). `together` fuses the views.
    """

    def find(look: Look) -> list[ImageResult]:
        flip = flips[look.mirrored - 1] if look.mirrored else ""
        source = flipped(seen.source, flip) if flip else seen.source
        how = (f" mirrored ({flip})" if flip else "") + in_words((look.scale,))
        title, pad = f"  detecting{how}" if progress else "", look.scale != 1
        found = detect(predictor, params, source, inputs[look.scale], mesh, score_floor, title, pad)
        found = _unflipped(found, flip) if flip else found
        return found if seen.windows is None else _uncut(found, seen.whole, seen.windows)

    return {look: find(look) for look in looks(flips, inputs)}


def together(views: Sequence[list[ImageResult]], score_floor: float, same: float = fusion.SAME) -> list[ImageResult]:
    """The fused detections of several views of the same images; those of a single view are left unchanged.

    same: IoU from which boxes count as the same lesion."""
    return views[0] if len(views) == 1 else detections.above(fusion.fuse(views, same), score_floor)


def detect_with(
    trained: Trained | Ensemble,
    source: ImageSource,
    mesh: Mesh,
    score_floor: float = 0.0,
    whole_volumes: bool = False,
) -> list[ImageResult]:
    """Run a trained detector, or an ensemble, on a source, in the views of its input.

    score_floor: boxes with a lower score are dropped, after the fusion of views or members: the fusion uses the floor
    with which the model was made, so that its thresholds hold for any floor. whole_volumes: the images are slices of
    volumes, with the grey values set for the detector (`Input.slice_greys`).
    """
    if isinstance(trained, Ensemble):
        how, floor = trained.description, own_floor(trained, score_floor)
        of_members = members_views(trained.members, how.scales, source, mesh, floor, whole_volumes)
        return fuse_members(of_members, how.weights, how.same, score_floor)
    detector, params, description = trained
    if description.classes != source.classes:
        raise UserError(
            f"the model knows the classes {list(description.classes)}, but the data have {list(source.classes)}",
            where=source.name,
            todo="evaluate on data with the classes of its training",
        )
    model_folder.check_fits(params, model_folder.shapes_of(detector.init), model_folder.CONFIG)
    if source.images < detector.tested_images:
        what = f"the detector reads {detector.tested_images} images of a breast, but there is one"
        raise UserError(what, where=source.name, todo="evaluate it on pairs (partner), or choose another --stage")
    source = with_images(source, detector.tested_images)
    if whole_volumes:
        source = slices_in(source, description.input.slice_greys, description.input.resize.float16_white or 255)
    flips, scales = description.input.flips, description.input.scales
    floor = own_floor(trained, score_floor) if flips or len(scales) > 1 else score_floor
    model = trainable(detectors.build(replace(detector.config, score_floor=floor)))
    predictor, placed = compile_predictor(model, mesh), meshes.place(params, mesh)
    seen = view(source, description.input.crop_to_breast)
    inputs = {scale: input_of(at_scale(description.input, scale), seen.source.infos) for scale in scales}
    views = detect_views(predictor, placed, seen, inputs, mesh, floor, flips)
    return together([*views.values()], score_floor, description.input.same)


def own_floor(trained: Trained | Ensemble, otherwise: float) -> float:
    """The lowest score of the boxes with which a model was made: those that it fuses, and those on which its thresholds
    were chosen. otherwise: for an ensemble without it."""
    if isinstance(trained, Ensemble):
        return otherwise if trained.description.score_floor is None else trained.description.score_floor
    return float(trained.detector.config.score_floor)


MemberViews = Sequence[Sequence[Sequence[ImageResult]]]
"""The results of each member at each scale."""


def members_views(
    members: Sequence[Trained],
    scales: Sequence[float],
    source: ImageSource,
    mesh: Mesh,
    score_floor: float = 0.0,
    whole_volumes: bool = False,
) -> MemberViews:
    """The detections of each detector of an ensemble at each scale of its input. whole_volumes: as in `detect_with`."""

    def at(member: Trained, scale: float) -> list[ImageResult]:
        entry = member.description.input
        scaled = replace(member.description, input=replace(entry, scales=tuple(scale * own for own in entry.scales)))
        return detect_with(member._replace(description=scaled), source, mesh, score_floor, whole_volumes)

    return [[at(member, scale) for scale in scales] for member in members]


def fuse_members(views: MemberViews, weights: Sequence[float], same: float, score_floor: float) -> list[ImageResult]:
    """The fused boxes with a score of at least `score_floor`; every scale of a member has the weight of the member.

    A box found by few members gets a lower score than in each of them.
    """
    each = [weight for weight, own in zip(weights, views, strict=True) for _ in own]
    return detections.above(fusion.fuse([results for own in views for results in own], same, each), score_floor)


def input_of(entry: Input, infos: Sequence[ImageInfo]) -> LoaderConfig:
    """The input of a trained detector; images that fit none of its canvases share one more."""
    return LoaderConfig(
        batch_size=2,
        resize=entry.resize,
        augmentation=NO_AUGMENTATION,
        buckets=entry.buckets if _all_fit(infos, entry.buckets, entry.resize) else (),
        lesion_share=None,
    )


def without_truth(source: ImageSource) -> ImageSource:
    """The same images without their annotations."""
    boxes, labels, ignore = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    infos = (replace(info, boxes=boxes, labels=labels, ignore=ignore) for info in source.infos)
    return replace(source, infos=tuple(infos))


def _all_fit(infos: Sequence[ImageInfo], buckets: Sequence[tuple[int, int]], resize: Resize) -> bool:
    try:
        assign_buckets(infos, buckets, resize, NO_AUGMENTATION)
    except UserError:
        return False
    return bool(buckets)


def _unflipped(results: Sequence[ImageResult], flip: str) -> list[ImageResult]:
    """Results of mirrored images, in the pixels of the images."""
    return [replace(r, boxes=flip_boxes(r.boxes, r.width, r.height, flip)) for r in results]


def _uncut(
    results: Sequence[ImageResult], infos: Sequence[ImageInfo], windows: Sequence[breast.Window]
) -> list[ImageResult]:
    """Results on breasts cut out of their images, in the pixels of the whole images."""
    origin = {info.image_id: np.array([*window[:2], *window[:2]], float) for info, window in zip(infos, windows)}
    found = {r.image_id: Detections(r.boxes + origin[r.image_id], r.scores, r.labels) for r in results}
    return join(infos, found)


UNCHOSEN = 0.5
"""The threshold used for a model that has none."""

# ---- Over image files ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictSettings:
    """threshold: score from which a box is a finding; None: the operating point of `operating.MAIN`. score_floor: boxes
    that score less are not written. pictures: write a picture of every image. volumes: the inputs are volumes of
    slices. volume_rule: how detections of their slices become findings."""

    threshold: Annotated[float, SHARE] | None = None
    score_floor: Annotated[float, SHARE] = 0.01
    pictures: bool = True
    volumes: bool = False
    volume_rule: Literal["group", "comoto"] = "group"

    def __post_init__(self) -> None:
        if self.volume_rule != "group" and not self.volumes:
            what = "the rule is for volumes, but the inputs are images"
            raise UserError(what, where="volume_rule", todo="give --volumes too, or leave it out")


def predict_files(
    *, model: Path, inputs: Sequence[str], decoding: SourceSpec, on_error: str, output: Path, settings: PredictSettings
) -> list[ImageResult]:
    """Write findings.json, findings.csv and (pictures) one PNG an image into `output`. See launch/predict.py."""
    paths, not_images = image_files.find_images(inputs)
    if settings.pictures:
        image_files.check_apart(inputs, output / PICTURES)
    trained = load(model)
    description = trained.description
    classes = description.classes
    source = image_files.open_files(paths, classes, decoding, on_error, progress=progress_bar("  decoding"))
    names = _picture_names(source.infos) if settings.pictures else []
    for name in names:
        files.check_name(name)
    files.check_writable(output)
    threshold = chosen_threshold(description.operating_points) if settings.threshold is None else settings.threshold
    results = detect_with(trained, source, meshes.make_mesh(), settings.score_floor)
    infos = source.infos
    with files.new_results(output, FINDINGS, WRITTEN, paths) as place:
        entries = (entry for r, info in zip(results, infos) for entry in _entries(r, info, classes, threshold))
        files.write_json_list(place / FINDINGS, entries)
        files.write_text(place / "findings.csv", _csv(results, infos, classes, threshold))
        write_skipped(place, source.skipped)
        for index, name in enumerate(progress_bar("  drawing")(names, len(names))):
            drawn = draw(source[index].image, results[index], threshold)
            files.write_bytes(files.make_folder(place / PICTURES) / name, cv2.imencode(".png", drawn)[1].tobytes())
    report_skipped(not_images, source.skipped)
    count = sum(int((r.scores >= threshold).sum()) for r in results)
    for note in notes(trained, settings):
        new_console().print(f"note: {note}")
    say = f"{count} findings at or above {threshold:.3f} in {len(results)} images: {output}"
    new_console().print(say)
    return results


def _picture_names(infos: Sequence[ImageInfo]) -> list[str]:
    """Names that sort in the order of the images; all numbers have the same width."""
    width = max(4, len(str(len(infos) - 1)))
    frames = [f"_{info.slice}" if info.volume else "" for info in infos]
    stems = [f"{Path(info.file_name).stem}{frame}" for info, frame in zip(infos, frames)]
    return [f"{index:0{width}d}_{stem}.png" for index, stem in enumerate(stems)]


def chosen_threshold(points: Sequence[OperatingPoint]) -> float:
    """The operating point that training saved with the model; UNCHOSEN if the model found nothing in validation."""
    saved = _saved_threshold(points)
    return UNCHOSEN if saved is None else saved


def notes(trained: Trained | Ensemble, settings: PredictSettings) -> list[str]:
    """Notes on findings that are less reliable than they seem: the threshold is UNCHOSEN, doubtful (`operating.doubt`),
    chosen on slices instead of volumes, or below the floor, or the model was not trained to detect."""
    points = trained.description.operating_points
    found, saved = unlearned(trained, "the model"), _saved_threshold(points)
    threshold = chosen_threshold(points) if settings.threshold is None else settings.threshold
    if settings.score_floor > threshold:
        what = f"the threshold is {threshold:.3f}, but --score_floor drops boxes below {settings.score_floor:g}"
        found.append(f"{what}, so findings are missing")
    if settings.threshold is None and saved is None:
        what = f"the model has no threshold for {operating.MAIN:g} false positive per image"
        found.append(f"{what}, so findings have a score of at least {UNCHOSEN:g}; choose another with --threshold")
    elif settings.threshold is None and settings.volumes:
        what = f"the threshold was chosen for {operating.MAIN:g} false positive per slice"
        found.append(f"{what}, and a whole volume, with many slices, may have more; choose another with --threshold")
    elif settings.threshold is None and (doubt := operating.doubt(points, trained.description.chosen_on)):
        found.append(doubt)
    return found


def unlearned(trained: Trained | Ensemble, name: str) -> list[str]:
    """A note on a detector or members trained to resemble another detector and not to detect. name: of the model."""
    maps = next((one.description.learned_maps for one in trained.members if one.description.learned_maps), "")
    if not maps:
        return []
    who = name if len(trained.members) == 1 else f"a member of {name}"
    return [f"{who} was trained on maps of the {maps} and not to detect, so its boxes come from untrained layers"]


def _saved_threshold(points: Sequence[OperatingPoint]) -> float | None:
    return next((one.threshold for one in points if one.false_positives_per_image == operating.MAIN), None)


def draw(image: np.ndarray, result: ImageResult, threshold: float) -> np.ndarray:
    """[H, W, 1] in [0, 1] -> [H, W, 3] uint8 BGR with the boxes that reach the threshold."""
    canvas = cv2.cvtColor((np.clip(image[..., 0], 0, 1) * 255).round().astype(np.uint8), cv2.COLOR_GRAY2BGR)
    thickness = max(1, round(max(canvas.shape) / 400))
    for box, score in zip(result.boxes, result.scores):
        if score >= threshold:
            x0, y0, x1, y1 = (round(float(v)) for v in box)
            cv2.rectangle(canvas, (x0, y0), (x1, y1), COLOUR, thickness)
            place = (x0, max(y0 - 3 * thickness, 14 * thickness))
            cv2.putText(canvas, f"{score:.2f}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * thickness, COLOUR, thickness)
    return canvas


def _entries(result: ImageResult, info: ImageInfo, classes: Sequence[str], threshold: float) -> list[dict[str, Any]]:
    """frame: in a file of several, from 0."""
    place: dict[str, Any] = {"file": info.file_name} | ({"frame": info.slice} if info.volume else {})
    return [
        place
        | {
            "class": classes[int(label)],
            "box_xyxy": [round(float(v), 2) for v in box],
            "score": round(float(score), 5),
            "finding": bool(score >= threshold),
        }
        for box, score, label in zip(result.boxes, result.scores, result.labels)
    ]


def _csv(results: Sequence[ImageResult], infos: Sequence[ImageInfo], classes: Sequence[str], threshold: float) -> str:
    """The column `frame` is present if a file has several."""
    several = any(info.volume for info in infos)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", *(["frame"] if several else []), "class", "x0", "y0", "x1", "y1", "score", "finding"])
    for result, info in zip(results, infos):
        place = [info.file_name, *([info.slice if info.volume else ""] if several else [])]
        for box, score, label in zip(result.boxes, result.scores, result.labels):
            corners = [f"{float(v):.2f}" for v in box]
            writer.writerow([*place, classes[int(label)], *corners, f"{score:.5f}", int(score >= threshold)])
    return text.getvalue()
