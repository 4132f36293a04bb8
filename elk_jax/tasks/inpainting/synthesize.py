"""Paint lesions into healthy breasts with a trained inpainter: a COCO folder, which can be resumed.

Output: `images/NAME.png`, `masks/NAME.png` (the painted region: the lesion's box and its margin),
`provenance/NAME.json` (written last, when the lesion is complete) and, when all exist, `synthetic.json`. Lesion `index`
is a function of (seed, index), the model and the canvases only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jax.sharding import Mesh

from elk_jax import files
from elk_jax.data.sources import coco
from elk_jax.data.sources import source as sources
from elk_jax.data.sources.open import drawn, open_source
from elk_jax.data.sources.source import ImageSource, counted, summary
from elk_jax.data.sources.spec import OnError, SourceSpec
from elk_jax.diffusion import inpainter
from elk_jax.diffusion.inpainter import LossConfig
from elk_jax.errors import UserError
from elk_jax.images.breast import breast_mask
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import Window, blocked_by, box_mask, cut, shifted, widened
from elk_jax.privacy.mechanism import Statement, once
from elk_jax.progress import Progress, progress_bar
from elk_jax.randomness import Purpose, generator
from elk_jax.synthesis import canvases as healthy
from elk_jax.synthesis.compositing import paste_lesion, to_model
from elk_jax.synthesis.placement import AreaRule, Placement, plan_placement
from elk_jax.tasks import private, sampling
from elk_jax.tasks.inpainting import model as inpainters
from elk_jax.tasks.inpainting.recipe import LoraConfig, PaintSettings, PaintStage
from elk_jax.tasks.run import Run, is_main, meet, new_console, skipped_images, skipped_lines
from elk_jax.tasks.stages import TrainStage
from elk_jax.tasks.task import Summary
from elk_jax.training import mesh as meshes
from elk_jax.weights import model_folder

SETTINGS = "synthesis.json"
PROVENANCE = ("canvas", "window", "box", "seed", "index")
"""Fields of a painted image that its entry in the COCO file keeps."""


@dataclass(frozen=True)
class Planned:
    """A lesion to paint: its position, its canvas, and the input of the model."""

    name: str
    placement: Placement
    region: Window  # the painted region in pixels of the window: the box and its margin
    pixels: np.ndarray  # [H, W] the canvas, uint8 or uint16
    breast: np.ndarray  # [H, W] bool, without the canvas's own lesions
    image: np.ndarray  # [S, S] float32
    mask: np.ndarray  # [S, S] bool


@dataclass(frozen=True)
class Planner:
    """Plans lesions in canvases. positions: of the canvases with room for a window of `window` pixels. margin: of the
    painted region (`Description`). side: of the model's images. rule: the sizes of the lesions."""

    canvases: ImageSource
    positions: tuple[int, ...]
    window: int
    margin: float
    side: int
    rule: AreaRule
    seed: int
    _breasts: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def breast(self, position: int) -> np.ndarray:
        """The breast [H, W] bool of a canvas."""
        if position not in self._breasts:  # packed, one bit per pixel, as every canvas is needed again
            self._breasts[position] = np.packbits(breast_mask(self.canvases[position].image), axis=None)
        info = self.canvases.infos[position]
        bits = np.unpackbits(self._breasts[position], count=info.height * info.width)
        return bits.reshape(info.height, info.width).astype(bool)

    def plan(self, index: int) -> Planned:
        """The lesion of this number. UserError if no canvas has room for it."""
        place = plan_placement(
            self.seed, index, self.canvases.infos, self.positions, self.breast, self.window, self.rule
        )
        canvas = self.canvases[place.position].image[..., 0]
        breast = self.breast(place.position)
        breast &= ~blocked_by(self.canvases.infos[place.position].boxes, *breast.shape)
        region = widened(np.array(place.box), self.margin, self.window, cut(breast, place.window))
        painted = box_mask(np.array(region), self.window, self.window)
        image, mask = to_model(cut(canvas, place.window), painted, self.side)
        return Planned(f"{index:06d}", place, region, sources.pack(canvas), breast, image, mask)


def check_start(run: Run, stage: PaintStage, recipe: None, names: Collection[str]) -> None:
    """UserError if an inpainter trained on files would paint their lesions into phantom breasts."""
    trained = run.experiment.stages.get(stage.model)
    if not isinstance(trained, TrainStage) or drawn(run.spec(stage.canvases)) is None:
        return
    for name in trained.train_on:
        if drawn(run.spec(name)) is None:
            todo = "give healthy images of your own, or use a variant for your own images, such as small"
            where = f"config.data.{stage.canvases}.spec"
            raise UserError(f"lesions of '{name}' would be painted into phantom breasts", where=where, todo=todo)


def synthesize(run: Run, stage: PaintStage, recipe: None) -> Summary:
    """Paint lesions into the training images of a source: a COCO folder in `<stage>/`."""
    canvases, real = run.open(stage.canvases, "train"), run.open(stage.share_of or stage.canvases, "train")
    count = stage.count or max(1, round(stage.share * summary(real.infos)["lesions"]))
    model, output, settings = run.model_folder(stage.model), run.folder / stage.name, PaintSettings(**stage.settings())
    paint_lesions(model, canvases, count, output, settings, run.seed, run.mesh)
    return {
        "kind": "synthesize",
        "count": count,
        "area": stage.area,
        "model": stage.model,
        "skipped": [] if private.is_withheld(run.experiment, stage) else skipped_images(canvases),
    }


def synthesize_source(
    *,
    model: Path,
    canvases: SourceSpec,
    split: str,
    on_error: OnError,
    count: int,
    output: Path,
    seed: int,
    settings: PaintSettings,
) -> None:
    """Paint lesions into the images of a data source, for launch/synthesize.py."""
    source = open_source(canvases, split, on_error=on_error, progress=progress_bar("  opening"), images=1)
    say = new_console().print
    say(f"canvases: {counted(source.infos)}")
    for line in skipped_lines(source.skipped, what="image "):
        say(line)
    paint_lesions(model, source, count, output, settings, seed, meshes.make_mesh())
    say(f"{count} synthetic lesions: {output / coco.SYNTHETIC}")


def paint_lesions(
    model: Path, canvases: ImageSource, count: int, output: Path, settings: PaintSettings, seed: int, mesh: Mesh
) -> None:
    """Write `count` images, each with one painted lesion besides those of its canvas.

    model: an inpainter's model folder. canvases: images of TRAINING patients. Raises UserError for a folder that was
    started with other settings, for canvases without room for a lesion, and for those without its class.
    """
    if count < 1:
        raise UserError(f"{count} lesions to paint", where="count", todo="give 1 or more")
    _of_training_or_error(canvases)
    parts, params, description = inpainters.load(model)
    model_folder.check_fits(params, model_folder.shapes_of(partial(inpainter.init, parts.model)), model)
    rule, window = inpainters.rule(description.areas, settings.area), description.window
    patients = {info.patient_id for info in canvases.infos}
    positions = healthy.canvas_positions(canvases.infos, patients, window, settings.lesion_free)
    label = _label(description.classes, canvases)
    planner = Planner(canvases, positions, window, description.margin, parts.model.size, rule, seed)
    begun = {
        "model": files.fingerprint(model),
        "canvases": canvases.name,
        "images": _digest(canvases),
        "seed": seed,
        **{name: value for name, value in asdict(settings).items() if name != "batch_size"},
    }
    planner.plan(0)  # canvases without room for a lesion leave no folder behind
    with files.locked(files.make_folder(output)) if is_main() else contextlib.nullcontext():
        if is_main():
            _begin(output, begun, count)
        meet("synthesis begun")
        todo = [i for i in range(count) if not (output / "provenance" / f"{i:06d}.json").exists()]
        meet("synthesis counted")  # before the main process adds files that the others count
        painter = inpainters.trainable(parts, LossConfig(), LoraConfig(), False, None)
        sample, placed = sampling.compile_sampler(painter, mesh), meshes.place(params, mesh)
        with Progress("  painting", count, start=count - len(todo), unit="lesion") as bar:
            for first in range(0, len(todo), settings.batch_size):
                chosen = [planner.plan(index) for index in todo[first : first + settings.batch_size]]
                fill = [*chosen, *[chosen[-1]] * (settings.batch_size - len(chosen))]  # one compilation
                painted = sample(placed, _batch(fill, seed))
                for plan, picture in zip(chosen, painted[..., 0]):
                    if is_main():
                        _write(output, plan, picture, description, begun)
                bar.update(bar.done + len(chosen))
        if is_main():
            seen = canvases.seen_patients | model_folder.seen_patients(model)
            _finish(output, canvases, count, label, seen, _promises(canvases, model))


def _batch(planned: Sequence[Planned], seed: int) -> dict[str, np.ndarray]:
    """The input of the sampler for these lesions."""
    return {
        "image": np.stack([one.image for one in planned])[..., None],
        "mask": np.stack([one.mask for one in planned])[..., None].astype(np.float32),
        "seed": sampling.seeds(seed, [one.placement.provenance["index"] for one in planned]),
    }


def _of_training_or_error(canvases: ImageSource) -> None:
    """Refuse canvases of a split other than training, as their patients would enter the training data."""
    others = sorted({info.split for info in canvases.infos} - {"train", ""})
    if others:
        raise UserError(
            f"canvases of the split '{others[0]}': their patients would enter the training data",
            where=canvases.name,
            todo="paint on images of the split 'train', or on images that name no split",
        )


def _label(classes: Sequence[str], canvases: ImageSource) -> int:
    """The class of painted lesions among those of the canvases. classes: of the model's lesions. A single class of a
    model and a single class of the data count as the same."""
    if len(classes) == len(canvases.classes) == 1:
        return 0
    if len(classes) != 1:  # of an earlier version, which stored all classes of its data
        what = f"the model does not say which of the classes {', '.join(classes)} its lesions have"
        raise UserError(what, where=canvases.name, todo="train it again, on lesions of one class")
    if classes[0] in canvases.classes:
        return canvases.classes.index(classes[0])
    what = f"the model paints lesions of the class {classes[0]}, but the canvases have {', '.join(canvases.classes)}"
    raise UserError(what, where=canvases.name, todo="call the class alike in both, or use other canvases")


def _digest(canvases: ImageSource) -> str:
    """Fingerprint of the parts of the canvases that a painted set depends on."""
    fields = lambda i: (i.image_id, i.patient_id, i.width, i.height, i.boxes.tolist(), i.ignore.tolist())
    records = [fields(info) for info in canvases.infos]
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()[:16]


def _begin(output: Path, settings: dict[str, Any], count: int) -> None:
    """Make the folders, or refuse to resume in one that was started with other settings, or that has images beyond the
    first `count`: they would stay in the folder but not in its COCO file."""
    before = output / SETTINGS
    if before.exists():
        known = files.read_object(before)
        differing = [key for key in settings if known.get(key) != settings[key]]
        if differing:
            key = differing[0]
            raise UserError(
                f"synthesis was started here with {key} {known.get(key)!r}, which is now {settings[key]!r}",
                where=output,
                todo="name another --output, or remove the folder",
            )
    names = {f"{index:06d}.png" for index in range(count)}
    if others := sorted({path.name for path in (output / "images").glob("*.png")} - names):
        todo = "request at least as many as there are, or remove the folder"
        raise UserError(f"the folder has more images than requested: {others[0]}", where=output / "images", todo=todo)
    for name in ("images", "masks", "provenance"):
        files.make_folder(output / name)
    files.write_json(before, settings)


def _write(
    output: Path, plan: Planned, picture: np.ndarray, description: inpainters.Description, settings: dict[str, Any]
) -> None:
    place = plan.placement
    grainy = settings["grain"] and not settings["whole_window"]
    rng = generator(settings["seed"], Purpose.GRAIN, place.provenance["index"]) if grainy else None
    image, extra = paste_lesion(
        plan.pixels, picture, place.window, plan.region, plan.breast, whole_window=settings["whole_window"], grain=rng
    )
    height, width = plan.pixels.shape
    region = shifted(plan.region, *place.window[:2])
    mask = box_mask(np.array(region), height, width).astype(np.uint8) * 255
    files.write_bytes(output / "images" / f"{plan.name}.png", cv2.imencode(".png", image)[1].tobytes())
    files.write_bytes(output / "masks" / f"{plan.name}.png", cv2.imencode(".png", mask)[1].tobytes())
    trained = asdict(description.trained) if description.trained else {}
    record = {
        **place.provenance,
        **extra,
        "region": list(region),
        "prompt": description.prompts.get("lesion", ""),
        "checkpoint": settings["model"],
        "trained": {key: value for key, value in trained.items() if key != "patients"},
        "area": settings["area"],
    }
    files.write_json(output / "provenance" / f"{plan.name}.json", record)


def _promises(canvases: ImageSource, model: Path) -> tuple[Statement, ...] | None:
    """The promises of the private trainings behind the canvases and the model, as in an `ImageSource`."""
    return None if canvases.promises is None else once((*canvases.promises, *model_folder.promises(model)))


def _finish(
    output: Path,
    canvases: ImageSource,
    count: int,
    label: int,
    seen_patients: Collection[str],
    promises: Sequence[Statement] | None,
) -> None:
    """The COCO file of all painted images: the new lesions, with this class, and those of the canvases."""
    infos, by_id = [], {info.image_id: info for info in canvases.infos}
    for index in range(count):
        name = f"{index:06d}"
        record = files.read_object(output / "provenance" / f"{name}.json", *PROVENANCE)
        infos.append(_info(name, by_id[record["canvas"]], record, label))
    description = "Synthetic lesions in real breasts"
    if promises:  # anyone who reads it beside the images would take these for protected
        description += "; the promise is that of the models behind them, the canvases themselves are not protected"
    coco.write_coco(
        output / coco.SYNTHETIC, infos, canvases.classes, description, seen_patients=seen_patients, promises=promises
    )


def _info(name: str, canvas: ImageInfo, record: dict[str, Any], label: int) -> ImageInfo:
    box = np.array([record["box"]], np.float32)
    return replace(
        canvas,
        image_id=name,
        file_name=f"{name}.png",
        boxes=np.concatenate([box, canvas.boxes]),
        labels=np.concatenate([np.array([label], np.int32), canvas.labels]),
        ignore=np.concatenate([np.zeros(1, bool), canvas.ignore]),
        split="train",
        meta={"synthetic": True, **{key: record[key] for key in PROVENANCE}},
    )
