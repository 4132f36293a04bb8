"""Which records go into which batch: mixing of sources, oversampling, buckets. No pixels are read here.

Every batch holds records of one bucket (`buckets.py`). All epochs have the same number of batches, so that batch
number k is found without computing the batches before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elk_jax.data.batches.shuffle import Shuffle, batch_count, filled_rows
from elk_jax.data.sources.splits import largest_remainder
from elk_jax.errors import UserError
from elk_jax.images.boxes import relative_side
from elk_jax.images.schema import ImageInfo
from elk_jax.randomness import Purpose, random_order

SMALL_SIDE = 0.08
"""Side of a small lesion as a share of the image's longer side: 40 of 512 px."""


@dataclass(frozen=True)
class Stratum:
    """Records that are drawn equally often: of one source, one bucket and one kind (without lesions, with large lesions
    only, or with a small one)."""

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


def plan_strata(
    infos: Sequence[ImageInfo],
    buckets: np.ndarray,
    batch_size: int,
    weights: Sequence[float] = (),
    lesion_share: float | None = None,
    small_share: float | None = None,
    small_side: float = SMALL_SIDE,
) -> tuple[Stratum, ...]:
    """Divide the records into strata and compute how often each is drawn in an epoch of about len(infos) draws.

    weights: share of the draws for each of the mixed sources (`info.source`), on any scale; () draws by size.
    lesion_share: within each source, the share of draws that show a lesion (ignore boxes do not count); None: as in the
    data. small_share: the share of those that show a small one (`shows_small`); None: as in the data. The draws of a
    bucket are rounded up to whole batches. UserError for weights that do not match the sources.
    """
    if len(infos) == 0:
        raise UserError("the source has no image to train on")
    sources = np.array([info.source for info in infos])
    lesion = np.array([info.has_lesions for info in infos])
    small = np.array([small_share is not None and shows_small(info, small_side) for info in infos])
    check_weights(weights, int(sources.max()) + 1)
    groups: list[tuple[np.ndarray, int, float]] = []
    for source in np.unique(sources):
        of_source = sources == source
        source_share = weights[source] / sum(weights) if weights else float(of_source.mean())
        with_lesion = _share(of_source, lesion, lesion_share)
        with_small = _share(of_source & lesion, small, small_share)
        for group, of_kind in (
            (of_source & ~lesion, 1 - with_lesion),
            (of_source & lesion & ~small, with_lesion * (1 - with_small)),
            (of_source & lesion & small, with_lesion * with_small),
        ):
            for bucket in np.unique(buckets[group]):
                positions = np.flatnonzero(group & (buckets == bucket))
                groups.append((positions, int(bucket), source_share * of_kind * len(positions) / group.sum()))
    groups = [group for group in groups if group[2] > 0]
    strata = []
    for bucket in sorted({group[1] for group in groups}):
        members = [group for group in groups if group[1] == bucket]
        share = np.array([group[2] for group in members])
        batches = max(1, int(np.ceil(share.sum() * len(infos) / batch_size - 1e-9)))
        draws = largest_remainder(share, batches * batch_size, at_least=int(len(members) <= batches * batch_size))
        strata += [Stratum(positions, bucket, int(n)) for (positions, _, _), n in zip(members, draws) if n > 0]
    return tuple(strata)


def shows_small(info: ImageInfo, side: float) -> bool:
    """Whether a lesion of the image is small: its `boxes.relative_side` is below `side`."""
    return bool((relative_side(info.boxes[~info.ignore], info.width, info.height) < side).any())


def _share(group: np.ndarray, kind: np.ndarray, wanted: float | None) -> float:
    """Share of a group's draws of one kind: the wanted share if the group has both kinds, else that of the data."""
    found = float(kind[group].mean()) if group.any() else 0.0
    return found if wanted is None or found in (0.0, 1.0) else wanted


def check_weights(weights: Sequence[float], sources: int) -> None:
    """Raise UserError unless there is one weight for each of `sources` sources, or none (shares by size)."""
    shares = all(0 <= weight < math.inf for weight in weights)
    if weights and not (shares and len(weights) == sources and sum(weights) > 0):
        raise UserError(
            f"{len(weights)} mixing weights {list(weights)} for {sources} sources",
            where="weights",
            todo="give one number >= 0 per source, not all 0; or () for shares by size",
        )


def batches_per_epoch(strata: Sequence[Stratum], batch_size: int) -> int:
    """Number of batches in every epoch."""
    return sum(stratum.draws for stratum in strata) // batch_size


def epoch_batches(strata: Sequence[Stratum], batch_size: int, seed: int, epoch: int) -> list[PlannedBatch]:
    """The batches of one epoch, in order: a pure function of its arguments.

    Each stratum is an endless chain of shuffles of its records, from which an epoch takes the next `draws`. Over any
    run, the counts of two records of a stratum differ by at most one.
    """
    batches = []
    slot = 0
    for bucket in sorted({stratum.bucket for stratum in strata}):
        order = np.concatenate([_draw(i, s, seed, epoch) for i, s in enumerate(strata) if s.bucket == bucket])
        order = order[random_order(len(order), seed, Purpose.BUCKET_ORDER, bucket, epoch)]
        for start in range(0, len(order), batch_size):
            slots = np.arange(slot + start, slot + start + batch_size)
            valid = np.ones(batch_size, bool)
            batches.append(PlannedBatch(order[start : start + batch_size], slots, valid, bucket, epoch))
        slot += len(order)
    return [batches[position] for position in random_order(len(batches), seed, Purpose.BATCH_ORDER, epoch)]


def ordered_batches(buckets: np.ndarray, batch_size: int) -> list[PlannedBatch]:
    """Every record once, bucket by bucket in the source's order; a bucket's last batch is padded."""
    batches = []
    for bucket in np.unique(buckets):
        positions = np.flatnonzero(buckets == bucket)
        size = batch_count(len(positions), batch_size) * batch_size
        filled, valid = positions[filled_rows(len(positions), size)], np.arange(size) < len(positions)
        for start in range(0, size, batch_size):
            rows = slice(start, start + batch_size)
            batches.append(PlannedBatch(filled[rows], filled[rows], valid[rows], int(bucket), 0))
    return batches


def describe(strata: Sequence[Stratum], infos: Sequence[ImageInfo], names: Sequence[str] = ()) -> dict[str, int]:
    """Draws per epoch by source and kind, for the log: {"real with lesion": 80, ...}. names: of the mixed sources."""
    counts: Counter[str] = Counter()
    for stratum in strata:
        info = infos[stratum.positions[0]]
        free = all(infos[position].is_lesion_free for position in stratum.positions)
        kind = "with lesion" if info.has_lesions else "without lesion" if free else "without lesion to find"
        counts[f"{names[info.source] if names else 'all'} {kind}"] += stratum.draws
    return dict(counts)


def _draw(number: int, stratum: Stratum, seed: int, epoch: int) -> np.ndarray:
    shuffle = Shuffle(len(stratum.positions), seed, Purpose.STRATUM_ORDER, (number,))
    draws = range(epoch * stratum.draws, (epoch + 1) * stratum.draws)
    return stratum.positions[[shuffle(draw) for draw in draws]]
