"""Which records make which batch: pure functions of infos, seed and epoch. No pixel is read here.

Every batch holds records of one bucket (canvas size), so a training step is compiled once per bucket. All
epochs have the same number of batches, so batch number k is found without walking through the batches before
it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elk_jax.data.augment import Augmentation, Resize
from elk_jax.data.sources.splits import largest_remainder
from elk_jax.data.transforms import scaled_size, short_side_scale
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo

Canvas = tuple[int, int]
"""(height, width) in px."""


@dataclass(frozen=True)
class Stratum:
    """Records that are drawn equally often: one part of a mix, with or without lesions, one bucket."""

    positions: np.ndarray  # [n] in the source
    bucket: int
    draws: int  # per epoch


@dataclass(frozen=True)
class PlannedBatch:
    """One global batch: source positions, and their slots in the epoch (for the random streams)."""

    positions: np.ndarray  # [B] int
    slots: np.ndarray  # [B] int, unique within the epoch
    valid: np.ndarray  # [B] bool, False for filler
    bucket: int
    epoch: int


def worst_size(info: ImageInfo, resize: Resize, augmentation: Augmentation) -> Canvas:
    """The largest (height, width) this record can have in a batch."""
    size = (info.height, info.width)
    scale = max(short_side_scale(size, side, resize.max_long_side) for side in resize.short_sides)
    height, width = scaled_size(size, scale)
    if augmentation.rotate90 > 0:
        return max(height, width), max(height, width)
    return height, width


def choose_buckets(
    infos: Sequence[ImageInfo], resize: Resize, augmentation: Augmentation, multiple: int = 32
) -> tuple[Canvas, ...]:
    """One canvas that holds every record, sides rounded up to `multiple`.

    UserError where it does not follow from the records: see `check_canvas_follows`.
    """
    check_canvas_follows(resize)
    sizes = np.array([worst_size(info, resize, augmentation) for info in infos])
    height, width = (np.ceil(sizes.max(axis=0) / multiple) * multiple).astype(int).tolist()
    return ((height, width),)


def check_canvas_follows(resize: Resize) -> None:
    """Raise UserError where jitter fits images to their canvas: then only the configuration can say how large it is."""
    if resize.jitter:
        raise UserError(
            "resize.jitter scales images to fit their canvas, and no canvas is given",
            where="loader.buckets",
            todo="give one or more (height, width), or use short_sides with jitter=()",
        )


def assign_buckets(
    infos: Sequence[ImageInfo], buckets: Sequence[Canvas], resize: Resize, augmentation: Augmentation
) -> np.ndarray:
    """Bucket [n] of each record: the smallest canvas that holds it; with jitter, the one it fills best.

    UserError that names the first record which fits no bucket.
    """
    area = np.array([height * width for height, width in buckets])
    chosen = np.zeros(len(infos), int)
    for position, info in enumerate(infos):
        if resize.jitter:
            # every image is scaled to fit, so nothing is too large: the least empty canvas is the best
            scale = [min(h / info.height, w / info.width) for h, w in buckets]
            filled = np.array(scale) ** 2 * info.height * info.width / area
            chosen[position] = int(np.argmax(filled))
            continue
        height, width = worst_size(info, resize, augmentation)
        fits = np.array([h >= height and w >= width for h, w in buckets])
        if not fits.any():
            raise UserError(
                f"image {info.image_id} becomes {height} x {width} px (height x width) and fits no bucket of "
                f"{[tuple(bucket) for bucket in buckets]}",
                where=info.file_name,
                todo="add a larger bucket or lower short_sides or max_long_side",
            )
        chosen[position] = int(np.argmin(np.where(fits, area, np.inf)))
    return chosen


def plan_strata(
    infos: Sequence[ImageInfo],
    buckets: np.ndarray,
    batch_size: int,
    weights: Sequence[float] = (),
    lesion_share: float | None = None,
) -> tuple[Stratum, ...]:
    """Divide the records into strata and say how often each is drawn in an epoch of about len(infos) draws.

    weights: share of the draws for each part of a mix (`meta["mix_part"]`), any positive scale; () draws by size.
    lesion_share: share of the draws, within each part, that shows a lesion (ignore boxes do not count); None:
    as is. The draws of a bucket are rounded up to whole batches.
    """
    parts = np.array([int(info.meta.get("mix_part", 0)) for info in infos])
    lesion = np.array([bool((~info.ignore).any()) for info in infos])
    if len(infos) == 0:
        raise UserError("the source has no image to train on")
    check_weights(weights, int(parts.max()) + 1)
    check_lesion_share(lesion_share)
    groups: list[tuple[np.ndarray, int, float]] = []
    for part in np.unique(parts):
        part_share = weights[part] / sum(weights) if weights else float((parts == part).mean())
        for has_lesion in (False, True):
            group = (parts == part) & (lesion == has_lesion)
            share = group.sum() / (parts == part).sum()
            if lesion_share is not None and 0 < share < 1:
                share = lesion_share if has_lesion else 1 - lesion_share
            for bucket in np.unique(buckets[group]):
                positions = np.flatnonzero(group & (buckets == bucket))
                groups.append((positions, int(bucket), part_share * share * len(positions) / group.sum()))
    groups = [group for group in groups if group[2] > 0]
    strata = []
    for bucket in sorted({group[1] for group in groups}):
        members = [group for group in groups if group[1] == bucket]
        share = np.array([group[2] for group in members])
        batches = max(1, int(np.ceil(share.sum() * len(infos) / batch_size - 1e-9)))
        draws = largest_remainder(
            share, batches * batch_size, at_least=int(len(members) <= batches * batch_size)
        )
        strata += [
            Stratum(positions, bucket, int(n)) for (positions, _, _), n in zip(members, draws) if n > 0
        ]
    return tuple(strata)


def check_weights(weights: Sequence[float], sources: int) -> None:
    """Raise UserError for weights of a mix of `sources` that cannot be. (): by size."""
    if not isinstance(weights, list | tuple):
        raise UserError(f"mixing weights {weights!r}", todo="give one number >= 0 per source, as in (0.5, 0.5)")
    numbers = all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in weights)
    if weights and not (numbers and len(weights) == sources and sum(weights) > 0):
        raise UserError(
            f"{len(weights)} mixing weights {list(weights)} for {sources} sources",
            todo="give one number >= 0 per source, not all 0; or () for shares by size",
        )


def check_lesion_share(share: float | None) -> None:
    """Raise UserError for a share that is none. None: as the lesions come."""
    if share is not None and not 0 <= share <= 1:
        raise UserError(f"lesion_share is {share}", todo="choose a number from 0 to 1")


def batches_per_epoch(strata: Sequence[Stratum], batch_size: int) -> int:
    """Number of batches in every epoch."""
    return sum(stratum.draws for stratum in strata) // batch_size


def epoch_batches(strata: Sequence[Stratum], batch_size: int, seed: int, epoch: int) -> list[PlannedBatch]:
    """The batches of one epoch, in order: a pure function of its arguments.

    Each stratum is an endless chain of shuffles of its records, of which an epoch takes the next `draws`:
    over any run the counts of two records of a stratum differ by at most one.
    """
    batches = []
    slot = 0
    for bucket in sorted({stratum.bucket for stratum in strata}):
        drawn = [
            _draw(i, stratum, seed, epoch) for i, stratum in enumerate(strata) if stratum.bucket == bucket
        ]
        order = np.concatenate(drawn)
        order = order[_rng(seed, 1, bucket, epoch).permutation(len(order))]
        for start in range(0, len(order), batch_size):
            slots = np.arange(slot + start, slot + start + batch_size)
            valid = np.ones(batch_size, bool)
            batches.append(PlannedBatch(order[start : start + batch_size], slots, valid, bucket, epoch))
        slot += len(order)
    shuffle = _rng(seed, 2, 0, epoch).permutation(len(batches))
    return [batches[position] for position in shuffle]


def ordered_batches(buckets: np.ndarray, batch_size: int) -> list[PlannedBatch]:
    """Every record once, bucket by bucket in the source's order; a bucket's last batch is filled up."""
    batches = []
    for bucket in np.unique(buckets):
        positions = np.flatnonzero(buckets == bucket)
        for start in range(0, len(positions), batch_size):
            chosen = positions[start : start + batch_size]
            valid = np.arange(batch_size) < len(chosen)
            filled = np.concatenate([chosen, np.repeat(chosen[-1:], batch_size - len(chosen))])
            batches.append(PlannedBatch(filled, filled, valid, int(bucket), 0))
    return batches


def describe(strata: Sequence[Stratum], infos: Sequence[ImageInfo]) -> dict[str, int]:
    """Draws per epoch by origin and kind, for the log: {"real with lesion": 80, ...}."""
    counts: Counter[str] = Counter()
    for stratum in strata:
        info = infos[stratum.positions[0]]
        kind = "with lesion" if (~info.ignore).any() else "without lesion"
        counts[f"{info.meta.get('mix_origin', 'all')} {kind}"] += stratum.draws
    return dict(counts)


def _draw(number: int, stratum: Stratum, seed: int, epoch: int) -> np.ndarray:
    size = len(stratum.positions)
    wanted = np.arange(epoch * stratum.draws, (epoch + 1) * stratum.draws)
    rounds = {
        int(turn): _rng(seed, 0, number, int(turn)).permutation(size) for turn in np.unique(wanted // size)
    }
    return np.array([stratum.positions[rounds[int(i // size)][i % size]] for i in wanted])


def _rng(seed: int, purpose: int, number: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, number, epoch])
