"""What a report says of lesion synthesis, from what its stages left in the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elk_jax import files
from elk_jax.data.sources.open import list_source
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import cut
from elk_jax.reporting.pictures import Closeup, Strip
from elk_jax.reporting.run import Part
from elk_jax.synthesis.closeups import box_patch, lesion_closeup, usable_lesions
from elk_jax.tasks.detection import settings as detection
from elk_jax.tasks.inpainting.page import InpaintingRun, PaintedSet, Progress, Quality, Step, inpainting_part
from elk_jax.tasks.run import SYNTHETIC, Run
from elk_jax.tasks.sampling import saved_grids
from elk_jax.tasks.trained import kept_step
from elk_jax.training.writer import read_metrics

PAINTED = 9
"""Painted lesions in the gallery, from all over the set."""
REAL = 12
"""Real ones beside them."""
STEPS = 3
"""Rows of the progress: first, last, and between."""
PATCH = 192
"""Side of a lesion in a pair, in pixels."""

TURNS = {"": lambda p: p, "horizontal": np.fliplr, "vertical": np.flipud, "both": lambda p: np.flipud(np.fliplr(p))}


def part(run: Run, summaries: Mapping[str, Any]) -> Part:
    """What the finished stages of lesion synthesis left behind."""
    trained = [name for name, s in summaries.items() if s["kind"] == "train"]
    shown = [progress(run.folder / name, name) for name in trained]
    return inpainting_part(
        InpaintingRun(
            quality=[_quality(run, name, s) for name, s in summaries.items() if s["kind"] == "evaluate"],
            sets=[_painted(run, name, s) for name, s in summaries.items() if s["kind"] == "synthesize"],
            progress=[one for one in shown if one is not None],
            histories={name: read_metrics(run.folder / name / "metrics.jsonl") for name in trained},
            chosen_steps={n: kept_step(run.folder / n / "model", summaries[n]["best_step"]) for n in trained},
        )
    )


def progress(folder: Path, name: str, count: int = STEPS) -> Progress | None:
    """The grids `pictures/painted-*.png` of a training: the first, the last, and what lies evenly between.

    Their rows are (inpainting_stages.py): the close-ups, what is covered, what was painted.
    """
    grids = saved_grids(folder, "painted", count)
    rows = [(step, np.split(grid, 3)) for step, grid in grids if len(grid) % 3 == 0]
    if not rows:
        return None
    real, covered, _ = rows[-1][1]
    return Progress(name, {"Real": real, "Covered": covered}, [Step(step, painted) for step, (*_, painted) in rows])


def _quality(run: Run, name: str, summary: Mapping[str, Any]) -> Quality:
    evaluation = files.read_json(run.folder / name / "evaluation.json")
    data = run.data
    painted = detection.list_data(data, (summary["synthetic"],), "train", run.config.seed)
    training = detection.list_data(data, (summary["on"],), "train", run.config.seed)
    pairs = pair_strips(evaluation["memorised"]["pairs"], painted, training)
    return Quality(f"{summary['split']} split of {summary['on']}", evaluation, pairs)


def pair_strips(
    pairs: Sequence[Mapping[str, Any]], painted: ImageSource, training: ImageSource
) -> list[Strip]:
    """Each synthetic lesion beside the training lesion, turned to lie as the synthetic one does.

    Pairs whose images are not in the sources are left out: a set that was painted anew and not yet compared again.
    """
    at = {info.image_id: i for i, info in enumerate(painted.infos)}
    known = {info.image_id: i for i, info in enumerate(training.infos)}
    shown = []
    for pair in pairs:
        if pair["synthetic"] not in at or pair["training"] not in known:
            continue
        left = _patch(painted, at[pair["synthetic"]], 0)
        position = known[pair["training"]]
        right = TURNS[pair["flip"]](_patch(training, position, pair["lesion"]))
        turned = f", mirrored {_turn(pair['flip'])}" if pair["flip"] else ""
        lesion = f"lesion {pair['lesion'] + 1} of {_name(training.infos[position])}"
        caption = f"and {lesion}{turned}; likeness {pair['similarity']:.2f}"
        shown.append(Strip([Closeup(left), Closeup(right)], f"Synthetic {pair['synthetic']}", caption))
    return shown


def _painted(run: Run, name: str, summary: Mapping[str, Any]) -> PaintedSet:
    stage, data = run.config.stages[name], run.data
    painted = list_source(SourceSpec(f"coco:{run.folder / name / SYNTHETIC}"))
    canvases = detection.list_data(data, (stage.canvases,), "train", run.config.seed)
    shown = painted_strips(painted, canvases)
    inpainter = run.config.stages.get(stage.model, {})
    named = tuple(inpainter.get("train_on", (stage.get("share_of", stage.canvases),)))
    lesions = detection.list_data(data, named, "train", run.config.seed)
    size = len(shown[0].closeups[0].image) if shown else 0
    return PaintedSet(name, summary["count"], shown, real_strips(lesions, size, run.config.seed))


def painted_strips(painted: ImageSource, canvases: ImageSource, count: int = PAINTED) -> list[Strip]:
    """The window of some canvases before and after."""
    at = {info.image_id: i for i, info in enumerate(canvases.infos)}
    shown = []
    for position in _spread(len(painted), count):
        info = painted.infos[position]
        window, canvas = tuple(info.meta["window"]), info.meta["canvas"]
        box = np.array(info.meta["box"], float) - np.array([*window[:2], *window[:2]])
        places, name = [(painted, position)], canvas
        if canvas in at:
            places, name = [(canvases, at[canvas]), *places], _name(canvases.infos[at[canvas]])
        closeups = [Closeup(cut(source[i].image[..., 0], window), box) for source, i in places]
        sides = f"{box[2] - box[0]:.0f} × {box[3] - box[1]:.0f} px"
        shown.append(Strip(closeups, f"Synthetic {info.image_id}", f"in {name}, {sides}"))
    return shown


def real_strips(source: ImageSource, size: int, seed: int, count: int = REAL) -> list[Strip]:
    """Lesions of a source in windows of `size` px; none where no lesion fits."""
    try:
        lesions = usable_lesions(source.infos, size)
    except UserError:
        return []
    shown = []
    for i in _spread(len(lesions), count):
        position, lesion = lesions[i]
        info = source.infos[position]
        rng = np.random.default_rng([seed, i])
        closeup = lesion_closeup(source[position].image[..., 0], info.boxes, lesion, size, rng)
        x, y = closeup.window[:2]
        shown.append(Strip([Closeup(closeup.image, info.boxes[lesion] - [x, y, x, y])], _name(info)))
    return shown


def _patch(source: ImageSource, position: int, lesion: int) -> np.ndarray:
    """A lesion from its darkest to its brightest grey: likeness does not see contrast either."""
    patch = box_patch(source[position].image[..., 0], source.infos[position].boxes[lesion], PATCH)
    low, high = np.percentile(patch, [1, 99])
    return np.clip((patch - low) / max(high - low, 1e-6), 0, 1)


def _name(info: ImageInfo) -> str:
    return Path(info.file_name).stem or info.image_id


def _turn(flip: str) -> str:
    return "both ways" if flip == "both" else f"{flip}ly"


def _spread(total: int, count: int) -> list[int]:
    """`count` positions of `total`, evenly spread."""
    return [int(i) for i in np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))]
