"""Teacher and student as models to train: a detector with one additional loss term.

Shape legend: B images, M padded boxes, N points, h w cells, A anchors, Q classes.

A batch of a student contains that of its own images, `beside` (a batch of the teacher's images) if the mode reads one,
and `distilled` [B] bool: whether this step distils. If the teacher sees partners, the images are pairs. The trained
parameters of the loss term are stored under LEARNED next to those of the detector, and are not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.data.batches.detection import blank_batch
from elk_jax.detection.detector import Anchored, Detector, Pyramid, image_of
from elk_jax.detection.matching import NEGATIVE, POSITIVE, match
from elk_jax.distillation import fgd, lesions, likeness, maps, outputs, points
from elk_jax.distillation.likeness import Moments
from elk_jax.distillation.points import Grid, Points
from elk_jax.errors import UserError
from elk_jax.images.grey import AIR
from elk_jax.tasks.detection.model import trainable
from elk_jax.tasks.distillation.recipe import SIMILARITY, DistillationRecipe
from elk_jax.training.model import Batch, Constants, MapImages, Metrics, Model, Params

LEARNED = "distillation"
NOT_TAPPED = {"pyramid": f"^(?!(backbone|fpn|{LEARNED})/)", "backbone": f"^(?!(backbone|{LEARNED})/)"}
"""Parameters that are not trained in a student that only learns to resemble its teacher: its maps do not use them."""
COLLAPSED = 0.1
"""Spread of a student's maps, as a share of the teacher's, below which they count as collapsed."""
CONFIDENT = 0.3
"""Probability from which a teacher's box is a target, unless the recipe gives another."""
HARD_NEGATIVES = 100
"""Number of anchors per image that represent the background in class-wise distillation."""
PKD_LEVELS = 4
"""Number of pyramid levels, starting at the finest, whose maps PKD compares (mmrazor's `pkd_fpn_*`); the coarsest of P3
to P7 have too few cells for a correlation."""


class Side(NamedTuple):
    """A detector, its input, and its maps at these strides. outputs: of its heads, in modes that read them."""

    detector: Detector
    pyramid: Pyramid
    batch: Batch
    strides: tuple[int, ...]
    outputs: Any = None

    @property
    def canvas(self) -> tuple[int, int]:
        return self.batch["image"].shape[1], self.batch["image"].shape[2]

    def level(self, stride: int) -> jax.Array:
        return self.pyramid[self.strides.index(stride)]

    @property
    def lesions(self) -> jax.Array:
        """[B, M] bool: boxes to detect, in images that count."""
        return self.batch["gt_valid"] & ~self.batch["gt_ignore"] & self.batch["valid"][:, None]


Loss = Callable[[Side, Side, Params, DistillationRecipe, MapImages], tuple[jax.Array, Metrics]]
"""(teacher, student, parameters of the loss, recipe, map_images) -> (the loss before its weight, metrics)."""


@dataclass(frozen=True)
class Mode:
    """A distillation mode.

    reads: the images of the teacher: beside, its own; same, those of the student, or their partners. weight: as
    published.
    of_two_stages: the weight for two-stage detectors, if it differs. init: (rng, levels {stride: (h, w, C)}, recipe) ->
    parameters of the loss. one_canvas: these depend on the size of the map. of_anchors: it reads predictions for
    anchors, so that the heads are trained by it. mapped: (the student's maps, parameters of the loss) -> the maps that
    resemble those of the teacher.
    """

    loss: Loss
    reads: str
    weight: float
    of_two_stages: float | None = None
    init: Callable[[jax.Array, Mapping[int, tuple[int, ...]], DistillationRecipe], Params] = lambda *_: {}
    one_canvas: bool = False
    of_anchors: bool = False
    mapped: Callable[[Pyramid, Params], Pyramid] = lambda maps, _: maps


# ---- The losses ------------------------------------------------------------------------------------------------------


def lesion(
    teacher: Side, student: Side, learned: Params, recipe: DistillationRecipe, _: MapImages
) -> tuple[jax.Array, Metrics]:
    t, s = (lesion_points(side, recipe) for side in (teacher, student))
    loss = partial(lesions.lskd, t, s, temperature=recipe.temperature or 4.0, normalised=recipe.normalised)
    return loss(learned), {
        "kl_identity": loss(lesions.identity_map(recipe.points)),
        "distinct_cells": _distinct(student, recipe),
    }


def image(
    teacher: Side, student: Side, learned: Params, recipe: DistillationRecipe, _: MapImages
) -> tuple[jax.Array, Metrics]:
    t, s = (side.level(recipe.stride) for side in (teacher, student))
    valid = teacher.batch["valid"], student.batch["valid"]

    def loss(learned: Params) -> jax.Array:
        return lesions.image_level(t, s, learned, recipe.temperature or 4.0, *valid, recipe.normalised)

    return loss(learned), {"kl_identity": loss(lesions.identity_map(len(learned["bias"])))}


def classwise(
    teacher: Side, student: Side, _: Params, recipe: DistillationRecipe, map_images: MapImages
) -> tuple[jax.Array, Metrics]:
    found = [anchor_classes(side, map_images) for side in (teacher, student)]
    return lesions.classwise(*found[0], *found[1], recipe.temperature or 2.0), {}


def pkd(
    teacher: Side, student: Side, _: Params, recipe: DistillationRecipe, __: MapImages
) -> tuple[jax.Array, Metrics]:
    pairs = _levels(teacher, student)[:PKD_LEVELS]
    return jnp.stack([maps.normalised_mse(*pair) for pair in pairs]).sum(), _alike(pairs)


def cwd(
    teacher: Side, student: Side, _: Params, recipe: DistillationRecipe, __: MapImages
) -> tuple[jax.Array, Metrics]:
    temperature = recipe.temperature or 1.0
    return jnp.stack([maps.cwd(*pair, temperature) for pair in _levels(teacher, student)]).sum(), {}


def resembling(loss: Callable[..., jax.Array]) -> Loss:
    """The mean over levels of a loss of `maps`: (teacher, student, weights, tolerance)."""

    def of_levels(
        teacher: Side, student: Side, _: Params, recipe: DistillationRecipe, __: MapImages
    ) -> tuple[jax.Array, Metrics]:
        pairs = _levels(teacher, student)
        return jnp.stack([loss(*pair, recipe.tolerance) for pair in pairs]).mean(), _alike(pairs)

    return of_levels


def contrastive(
    teacher: Side, student: Side, learned: Params, recipe: DistillationRecipe, _: MapImages
) -> tuple[jax.Array, Metrics]:
    temperature, pairs = recipe.temperature or 0.1, _levels(teacher, student)
    found = [maps.contrastive(*pair, learned[f"level{n}"], temperature) for n, pair in enumerate(pairs)]
    return jnp.stack(found).mean(), _alike(pairs)


def hints(
    teacher: Side, student: Side, learned: Params, recipe: DistillationRecipe, _: MapImages
) -> tuple[jax.Array, Metrics]:
    pairs = _levels(teacher, student)
    found = [maps.hint(*pair, learned[f"level{n}"]) for n, pair in enumerate(pairs)]
    mapped = student._replace(pyramid=_regressed(student.pyramid, learned))
    return jnp.stack(found).mean(), _alike(_levels(teacher, mapped))


def soft_outputs(
    teacher: Side, student: Side, _: Params, recipe: DistillationRecipe, __: MapImages
) -> tuple[jax.Array, Metrics]:
    (logits, boxes, _), (own_logits, own_boxes, _) = (_anchored(side) for side in (teacher, student))
    counts, confidence = student.batch["valid"], CONFIDENT if recipe.confidence is None else recipe.confidence
    found = {
        "soft_classes": outputs.soft_classes(logits, own_logits, counts, recipe.temperature or 2.0),
        "soft_boxes": outputs.confident_boxes(logits, boxes, own_boxes, counts, confidence),
    }
    confident = outputs.confident(logits, counts, confidence).sum() / jnp.maximum(counts.sum(), 1)
    return jnp.stack(list(found.values())).sum(), {**found, "confident_anchors": confident}


def focal_global(
    teacher: Side, student: Side, learned: Params, recipe: DistillationRecipe, _: MapImages
) -> tuple[jax.Array, Metrics]:
    constants = fgd.TWO_STAGES if student.detector.stages == 2 else fgd.Weights()
    boxes, counts = student.batch["gt_boxes"], student.batch["valid"]
    total: dict[str, Any] = {}
    for number, (t, s, cells) in enumerate(_levels(teacher, student)):
        relations = learned[f"level{number}"]
        terms = fgd.of_level(t, s, boxes, student.lesions, counts, relations, student.canvas, constants, cells)
        total = {name: total.get(name, 0) + term for name, term in terms.items()}
    return jnp.stack(list(total.values())).sum(), {f"fgd_{name}": term for name, term in total.items()}


def _map_of_points(rng: jax.Array, _: Any, recipe: DistillationRecipe) -> Params:
    return lesions.init_map(rng, recipe.points)


def _map_of_cells(rng: jax.Array, levels: Mapping[int, tuple[int, ...]], recipe: DistillationRecipe) -> Params:
    height, width, _ = levels[recipe.stride]
    return lesions.init_map(rng, height * width)


def _relations(rng: jax.Array, levels: Mapping[int, tuple[int, ...]], _: DistillationRecipe) -> Params:
    def of_level(number: int, channels: int) -> Params:
        keys = jax.random.split(jax.random.fold_in(rng, number))
        return {name: fgd.init_relation(key, channels) for name, key in zip(("teacher", "student"), keys)}

    return {f"level{number}": of_level(number, shape[-1]) for number, shape in enumerate(levels.values())}


def _projections(rng: jax.Array, levels: Mapping[int, tuple[int, ...]], _: DistillationRecipe) -> Params:
    keys = jax.random.split(rng, len(levels))
    return {f"level{n}": maps.init_projections(keys[n], shape[-1]) for n, shape in enumerate(levels.values())}


def _regressors(rng: jax.Array, levels: Mapping[int, tuple[int, ...]], _: DistillationRecipe) -> Params:
    keys = jax.random.split(rng, len(levels))
    widths = [shape[-1] for shape in levels.values()]
    return {f"level{n}": maps.init_regressor(keys[n], width, width) for n, width in enumerate(widths)}


def _regressed(student: Pyramid, learned: Params) -> Pyramid:
    return tuple(maps.regressed(level, learned[f"level{n}"]) for n, level in enumerate(student))


MODES: dict[str, Mode] = {
    "lesion": Mode(lesion, "beside", 2.0, init=_map_of_points),
    "image": Mode(image, "beside", 2.0, init=_map_of_cells, one_canvas=True),
    "classwise": Mode(classwise, "beside", 0.5, of_anchors=True),
    "pkd": Mode(pkd, "same", 10.0, of_two_stages=6.0),
    "fgd": Mode(focal_global, "same", 1.0, init=_relations),
    "cwd": Mode(cwd, "same", 10.0),
    "mse": Mode(resembling(maps.normalised_mse), "same", 1.0),
    "sigmoid_l2": Mode(resembling(maps.sigmoid_l2), "same", 1.0),
    "contrastive": Mode(contrastive, "same", 1.0, init=_projections),
    "hints": Mode(hints, "same", 1.0, init=_regressors, mapped=_regressed),
    "outputs": Mode(soft_outputs, "same", 1.0, of_anchors=True),
}
"""The losses by `recipe.mode`; pretraining and none have no loss."""


# ---- What they read --------------------------------------------------------------------------------------------------


def lesion_points(side: Side, recipe: DistillationRecipe) -> Points:
    """The points of the lesions on the level of `recipe.stride`."""
    boxes, canvas = framed(side, recipe)
    return points.read(side.level(recipe.stride), boxes, side.lesions, canvas, recipe.points, recipe.sampling)


def framed(side: Side, recipe: DistillationRecipe) -> tuple[jax.Array, tuple[int, int]]:
    """(the boxes [B, M, 4], the canvas (height, width)) for reading points.

    If images are stretched, cells are, as published, those of the stretched image, with a ratio from its width alone,
    whatever the input size of the network: the positions of boxes are slightly off.
    """
    boxes, frame = side.batch["gt_boxes"], recipe.loader.resize.stretch
    if recipe.sampling != "cell" or not frame:
        return boxes, side.canvas
    ratio = jnp.asarray(frame, boxes.dtype) / side.batch["image_size"]  # (height, width)
    return boxes * jnp.tile(ratio[:, ::-1], 2)[:, None], frame


def _distinct(side: Side, recipe: DistillationRecipe) -> jax.Array:
    height, width = side.level(recipe.stride).shape[1:3]
    grid = Grid((height, width), side.canvas)
    return points.distinct_share(side.batch["gt_boxes"], side.lesions, grid, recipe.points)


def points_beside(side: Side, recipe: DistillationRecipe, rng: jax.Array, map_images: MapImages) -> Points:
    """As many cells of every image as a lesion has points, drawn outside the lesions. UserError if the map is too
    small."""
    level = side.level(recipe.stride)
    cells = level.shape[1], level.shape[2]
    if cells[0] * cells[1] < recipe.points:
        what = f"a map of {cells[0]} x {cells[1]} has no {recipe.points} cells outside lesions"
        raise UserError(what, where="stride", todo="choose a finer level, fewer points, or larger images")
    grid, (boxes, frame) = Grid(cells, side.canvas), framed(side, recipe)
    outside = points.published_outside if recipe.sampling == "cell" else points.cells_outside
    allowed = outside(boxes, side.batch["gt_valid"], Grid(cells, frame))
    if recipe.negatives == "breast":
        allowed &= points.cells_of_breast(side.batch["image"], grid, AIR)
    keys = jax.random.split(rng, len(level))
    values, enough = map_images(lambda x, free, key: points.draw_cells(x, free, recipe.points, key))(
        level, allowed, keys
    )
    return Points(values, enough & side.batch["valid"])


def anchor_classes(side: Side, map_images: MapImages) -> tuple[jax.Array, jax.Array]:
    """(logits [B, A, Q], class of every anchor [B, A]: of its lesion; Q for the hardest on background; else -1)."""
    logits, _, anchors = _anchored(side)
    background = logits.shape[-1]

    def of_image(logits, boxes, labels, valid, ignore, counts):
        found = match(jnp.asarray(anchors), boxes, valid, ignore, low=0.4, high=0.5, allow_low_quality=True)
        hard = lesions.hardest(logits.max(-1), found.labels == NEGATIVE, min(HARD_NEGATIVES, len(anchors)))
        own = labels[found.gt_index] if background > 1 else jnp.zeros_like(found.gt_index)
        classes = jnp.where(found.labels == POSITIVE, own, jnp.where(hard, background, -1))
        return jnp.where(counts, classes, -1)

    truth = (side.batch[key] for key in ("gt_boxes", "gt_labels", "gt_valid", "gt_ignore", "valid"))
    return logits, map_images(of_image)(jax.lax.stop_gradient(logits), *truth)


def _anchored(side: Side) -> Anchored:
    assert side.detector.anchored is not None
    return side.detector.anchored(side.outputs, side.canvas)


def _levels(teacher: Side, student: Side) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
    """(teacher's map, student's map, weights [B, h, w]: 1 in the breast of both images) of every level."""
    pairs = zip(teacher.pyramid, student.pyramid, strict=True)
    return [(t, s, _breast(student, s) * _breast(teacher, t)) for t, s in pairs]


def _alike(pairs: list[tuple[jax.Array, jax.Array, jax.Array]]) -> Metrics:
    """The correlation of the maps of a batch, averaged over levels."""
    return {"correlation": jnp.stack([maps.correlation(*pair) for pair in pairs]).mean()}


def _breast(side: Side, level: jax.Array) -> jax.Array:
    """[B, h, w] float32: 1 in the breast of an image that counts."""
    cells = points.cells_of_breast(side.batch["image"], Grid((level.shape[1], level.shape[2]), side.canvas), AIR)
    return (cells & side.batch["valid"][:, None, None]).astype(jnp.float32)


# ---- The models ------------------------------------------------------------------------------------------------------


def aligning(detector: Detector, recipe: DistillationRecipe) -> Model:
    """A teacher trained for detection and intra-modal point alignment (Alberb et al. 2024)."""

    tap = detector.tap(recipe.tap)

    def loss(params: Params, constants: Constants, batch: Batch, rng: jax.Array, map_images: MapImages):
        for_features, for_loss, for_points = jax.random.split(rng, 3)
        mapped = tap.maps(params, batch, for_features)
        pyramid = tap.pyramid(params, mapped)
        value, terms = detector.loss_from_features(params, pyramid, batch, for_loss, map_images)
        side = Side(detector, mapped, batch, tap.strides)
        beside = points_beside(side, recipe, for_points, map_images)
        pull, push = lesions.impa(lesion_points(side, recipe), beside)
        added = {"align_pull": pull, "align_push": push, "distinct_cells": _distinct(side, recipe)}
        return value + recipe.align_weight * (pull + push), {**terms, **added}

    own = trainable(detector)
    return Model(
        init=own.init, loss=loss, predict=own.predict, frozen=own.frozen, statistics=own.statistics, per_example=False
    )


def learning(
    detector: Detector, teacher: Detector, weights: Params, recipe: DistillationRecipe, canvas: tuple[int, int],
    partner: bool = False,
) -> Model:  # fmt: skip
    """A student of a teacher with these weights, which are constants of the model.

    canvas: of its batches, or one of several. partner: the batches consist of pairs, whose second images the teacher
    sees.
    """
    mode, taps = MODES[recipe.mode], [one.tap(recipe.tap) for one in (teacher, detector)]
    published = mode.of_two_stages if detector.stages == 2 and mode.of_two_stages else mode.weight
    factor = published if recipe.weight is None else recipe.weight

    def init(rng: jax.Array) -> Params:
        return {**detector.init(rng), **fresh_part(detector, recipe, canvas, rng)}

    def loss(params: Params, constants: Constants, batch: Batch, rng: jax.Array, map_images: MapImages):
        own, (for_features, for_loss) = of_detector(params), jax.random.split(rng)
        seen = image_of(batch, 0) if partner else batch
        shown: Any = batch["beside"] if mode.reads == "beside" else image_of(batch, 1) if partner else batch
        own_maps = taps[1].maps(own, seen, for_features)
        value, terms, outputs = jnp.float32(0), Metrics(), None
        if recipe.detection_weight or mode.of_anchors:
            pyramid = taps[1].pyramid(own, own_maps)
            outputs = detector.outputs(own, pyramid)  # once for both losses, so that one gradient passes through it
        if recipe.detection_weight:
            value, terms = detector.loss_from_outputs(own, pyramid, outputs, seen, for_loss, map_images)
            terms = {**terms, "loss_detection": value}
        taught = jax.lax.stop_gradient(taps[0].maps(constants["teacher"], shown))
        soft = teacher.outputs(constants["teacher"], taught) if mode.of_anchors else None
        with jax.named_scope("distillation"):
            added, found = mode.loss(
                Side(teacher, taught, shown, taps[0].strides, soft),
                Side(detector, own_maps, seen, taps[1].strides, outputs),
                params.get(LEARNED, {}),
                recipe,
                map_images,
            )
        total = recipe.detection_weight * value + jnp.where(batch["distilled"].any(), factor * added, 0)
        return total, {**terms, "loss_distillation": added, **found}

    own = trainable(detector)
    predict = lambda params, constants, batch, map_images: own.predict(of_detector(params), {}, batch, map_images)
    whole = recipe.detection_weight > 0 or mode.of_anchors
    frozen = own.frozen if whole else (*own.frozen, NOT_TAPPED[recipe.tap])
    return Model(
        init, loss, predict, per_example=False, frozen=frozen, statistics=own.statistics, constants={"teacher": weights}
    )


def likeness_of_batch(
    detector: Detector, teacher: Detector, recipe: DistillationRecipe, params: Params, weights: Params, batch: Batch
) -> list[tuple[Moments, Moments]]:
    """For every level, the sums over a batch of pairs, and over mismatched pairs (`likeness.moments`).

    params: of the student, including those of the loss. batch: with `patient` [B] int, a number for each patient.
    """
    own, mapped = of_detector(params), MODES[recipe.mode].mapped
    taps = [one.tap(recipe.tap) for one in (teacher, detector)]
    shown, seen = image_of(batch, 1), image_of(batch, 0)
    sides = (
        Side(teacher, taps[0].maps(weights, shown), shown, taps[0].strides),
        Side(detector, mapped(taps[1].maps(own, seen), params.get(LEARNED, {})), seen, taps[1].strides),
    )
    patients = batch["patient"]
    return [(likeness.moments(*pair), likeness.shuffled(*pair, patients)) for pair in _levels(*sides)]


def likeness_metrics(levels: Sequence[tuple[Moments, Moments]]) -> dict[str, float]:
    """The metrics from the sums over a data set, averaged over levels.

    similarity: the correlation; similarity_shuffled: that of mismatched pairs; similarity_gap: their difference, which
    is what was learned. spread, effective_rank: of the student, and of the teacher.
    """
    own, other = (tuple(Moments(*one) for one in side) for side in zip(*levels))
    mean = lambda values: float(np.mean(list(values)))
    similarity, shuffled = (mean(map(likeness.correlation, side)) for side in (own, other))
    ranks = [likeness.effective_rank(one) for one in own]
    found = {
        SIMILARITY: similarity,
        "similarity_shuffled": shuffled,
        "similarity_gap": similarity - shuffled,
        "cosine": mean(map(likeness.mean_cosine, own)),
        "spread": mean(map(likeness.spread, own)),
        "effective_rank": mean(rank for _, rank in ranks),
        "effective_rank_teacher": mean(rank for rank, _ in ranks),
        **{f"similarity_level{number}": likeness.correlation(one) for number, one in enumerate(own)},
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


def likeness_warnings(before: Mapping[str, float], best: Mapping[str, float]) -> list[str]:
    """Problems of a student's maps, from its metrics before training and at its best: nothing learned beyond what all
    breasts share, or collapsed maps."""
    found, gap = [], "similarity_gap"
    if gap in before and gap in best and best[gap] <= before[gap]:
        change = f"{before[gap]:.3f} before the training and {best[gap]:.3f} after it"
        found.append(f"paired maps are no more similar than maps of different patients: by {change}")
    if best.get("spread", 1) < COLLAPSED:
        found.append(f"the student's maps have collapsed: their spread is {best['spread']:.3f} of the teacher's")
    return found


def of_detector(params: Params) -> Params:
    """The parameters of the detector alone."""
    return {name: part for name, part in params.items() if name != LEARNED}


def fresh_part(detector: Detector, recipe: DistillationRecipe, canvas: tuple[int, int], rng: jax.Array) -> Params:
    """Fresh parameters of the loss of the mode: {LEARNED: ...}; {} if it has none."""
    batch = blank_batch(1, canvas, 1, detector.images)
    blank = {name: jnp.asarray(x) for name, x in batch.items() if name in ("image", "image_size")}
    tap = detector.tap(recipe.tap)
    levels = jax.eval_shape(lambda key: tap.maps(detector.init(key), blank), rng)
    shapes = {stride: level.shape[1:] for stride, level in zip(tap.strides, levels)}
    found = MODES[recipe.mode].init(jax.random.fold_in(rng, 1), shapes, recipe)
    return {LEARNED: found} if found else {}
