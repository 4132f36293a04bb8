"""From a source to a detector's batches: an endless stream for training, a finite ordered one for evaluation.

What a batch holds follows from (seed, batch number) alone: threads, workers, hosts and restarts change nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from elk_jax.data.augment import NO_AUGMENTATION, Augmentation, Resize, augment, resize_only
from elk_jax.data.batches import plan
from elk_jax.data.batches.stream import Stream, finite
from elk_jax.data.paste import MAX_PASTED
from elk_jax.data.transforms import Example
from elk_jax.errors import UserError
from elk_jax.images.schema import Batch, ImageInfo, Source


@dataclass(frozen=True)
class LoaderConfig:
    """How a source becomes batches.

    batch_size: examples of the GLOBAL batch, over all hosts.
    buckets: canvases (height, width); () chooses one that holds every image, sides a multiple of 32.
    max_boxes: M, padded lesions per image; 0 finds it from the source (a multiple of 8).
    weights, lesion_share: mixing and oversampling, see `plan.plan_strata`; training only.
    threads, workers: reading threads of this process, or (workers > 0) worker processes instead.
    prefetch: batches read ahead.
    """

    batch_size: int = 2
    resize: Resize = field(default_factory=Resize)
    augmentation: Augmentation = field(default_factory=Augmentation)
    buckets: tuple[plan.Canvas, ...] = ()
    max_boxes: int = 0
    weights: tuple[float, ...] = ()
    lesion_share: float | None = None
    threads: int = 2
    workers: int = 0
    prefetch: int = 4

    def __post_init__(self) -> None:
        for name, least in {
            "batch_size": 1,
            "max_boxes": 0,
            "threads": 1,
            "workers": 0,
            "prefetch": 1,
        }.items():
            if getattr(self, name) < least:
                raise UserError(f"loader.{name} is {getattr(self, name)}", todo=f"give at least {least}")
        for canvas in self.buckets:
            if len(canvas) != 2 or min(canvas) < 1:
                raise UserError(f"loader.buckets has {canvas}", todo="give pairs (height, width) in px")
        if not self.buckets:
            plan.check_canvas_follows(self.resize)
        plan.check_lesion_share(self.lesion_share)


def train_batches(
    source: Source, config: LoaderConfig, seed: int, process_index: int = 0, process_count: int = 1
) -> TrainBatches:
    """Endless batches of augmented records; host p of n gets rows p*B/n to (p+1)*B/n of every global batch.

    Each example's randomness comes from (seed, epoch, slot in the epoch). UserError: an image fits no bucket,
    too many lesions for `max_boxes`, batch size not divisible by the number of hosts, unreadable image (when
    it is reached).
    """
    augmentation = config.augmentation
    canvases = config.buckets or plan.choose_buckets(source.infos, config.resize, augmentation)
    buckets = plan.assign_buckets(source.infos, canvases, config.resize, augmentation)
    strata = plan.plan_strata(source.infos, buckets, config.batch_size, config.weights, config.lesion_share)
    pasted = MAX_PASTED if augmentation.copy_paste > 0 else 0
    donors = np.flatnonzero([bool((~info.ignore).any()) for info in source.infos])
    examples = _TrainExamples(source, config, canvases, strata, donors, seed)
    rows = host_rows(config.batch_size, process_index, process_count)
    loader = _Batches(examples, rows, canvases, find_max_boxes(source.infos, config.max_boxes, pasted))
    return TrainBatches(
        loader, config, plan.batches_per_epoch(strata, config.batch_size), _digest(source, config, seed)
    )


def eval_batches(
    source: Source, config: LoaderConfig, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Every record once, resized without randomness, in the order of the source within a bucket.

    The last batch of a bucket is filled with copies whose `valid` is False. Every host gets the same number
    of batches.
    """
    canvases = config.buckets or plan.choose_buckets(source.infos, config.resize, NO_AUGMENTATION)
    buckets = plan.assign_buckets(source.infos, canvases, config.resize, NO_AUGMENTATION)
    batches = plan.ordered_batches(buckets, config.batch_size)
    rows = host_rows(config.batch_size, process_index, process_count)
    max_boxes = find_max_boxes(source.infos, config.max_boxes)
    loader = _Batches(_EvalExamples(source, config, canvases, batches), rows, canvases, max_boxes)
    return finite(loader, len(batches), config.threads, config.workers, config.prefetch)


def find_max_boxes(infos: Sequence[ImageInfo], max_boxes: int = 0, pasted: int = 0) -> int:
    """M for these records: `max_boxes` if given and enough, else the need, a multiple of 8."""
    most = max(infos, key=lambda info: len(info.boxes))
    need = len(most.boxes) + pasted
    if not max_boxes:
        return max(8, -(-need // 8) * 8)
    if need > max_boxes:
        raise UserError(
            f"image {most.image_id} needs {need} boxes ({pasted} for copy-paste), max_boxes is {max_boxes}",
            where=most.file_name,
            todo=f"set max_boxes to at least {need}, or to 0 to let it be found",
        )
    return max_boxes


def host_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """Rows of the global batch that this host loads."""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch size {batch_size} cannot be divided among {process_count} hosts",
            todo=f"choose a multiple of {process_count}",
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


class TrainBatches(Stream[Batch]):
    """The training stream of a detector. per_epoch: batches in one epoch."""

    def __init__(self, loader: _Batches, config: LoaderConfig, per_epoch: int, digest: str):
        super().__init__(loader, digest, config.threads, config.workers, config.prefetch)
        self.per_epoch = per_epoch
        self.canvases = loader.canvases
        self.max_boxes = loader.max_boxes


class _TrainExamples:
    """Batch number -> its plan, and the augmented examples of some of its rows."""

    def __init__(self, source, config, canvases, strata, donors, seed):
        self.source, self.config, self.canvases = source, config, canvases
        self.strata, self.donors, self.seed = strata, donors, seed
        self.per_epoch = plan.batches_per_epoch(strata, config.batch_size)
        self._epoch: tuple[int, list[plan.PlannedBatch]] = (-1, [])

    def planned(self, number: int) -> plan.PlannedBatch:
        epoch, position = divmod(number, self.per_epoch)
        known, batches = self._epoch
        if known != epoch:
            batches = plan.epoch_batches(self.strata, self.config.batch_size, self.seed, epoch)
            self._epoch = (epoch, batches)
        return batches[position]

    def example(self, batch: plan.PlannedBatch, row: int) -> Example:
        rng = np.random.default_rng([self.seed, 3, batch.epoch, int(batch.slots[row])])
        record = self.source[int(batch.positions[row])]
        donor = None
        if self.config.augmentation.copy_paste > 0 and len(self.donors):
            donor = self.source[int(rng.choice(self.donors))]
        canvas = self.canvases[batch.bucket]
        return augment(record, self.config.augmentation, self.config.resize, canvas, rng, donor)


class _EvalExamples:
    """Batch number -> its plan, and the resized examples of some of its rows."""

    def __init__(self, source, config, canvases, batches):
        self.source, self.config, self.canvases, self.batches = source, config, canvases, batches

    def planned(self, number: int) -> plan.PlannedBatch:
        return self.batches[number]

    def example(self, batch: plan.PlannedBatch, row: int) -> Example:
        record = self.source[int(batch.positions[row])]
        return resize_only(record, self.config.resize, self.canvases[batch.bucket])


@dataclass(frozen=True)
class _Batches:
    """Callable: batch number -> this host's rows of that batch."""

    examples: _TrainExamples | _EvalExamples
    rows: slice
    canvases: tuple[plan.Canvas, ...]
    max_boxes: int

    def __call__(self, number: int) -> Batch:
        planned = self.examples.planned(number)
        rows = range(len(planned.positions))[self.rows]
        batch = empty_batch(len(rows), self.canvases[planned.bucket], self.max_boxes)
        for out, row in enumerate(rows):
            fill(
                batch,
                out,
                self.examples.example(planned, row),
                int(planned.positions[row]),
                bool(planned.valid[row]),
            )
        return batch


def empty_batch(size: int, canvas: plan.Canvas, max_boxes: int) -> Batch:
    """A batch of which every row is filler."""
    return Batch(
        image=np.zeros((size, *canvas, 1), np.float32),
        image_size=np.zeros((size, 2), np.float32),
        gt_boxes=np.zeros((size, max_boxes, 4), np.float32),
        gt_labels=np.zeros((size, max_boxes), np.int32),
        gt_valid=np.zeros((size, max_boxes), bool),
        gt_ignore=np.zeros((size, max_boxes), bool),
        scale=np.ones((size, 2), np.float32),
        index=np.zeros(size, np.int32),
        valid=np.zeros(size, bool),
    )


def fill(batch: Batch, row: int, example: Example, index: int, valid: bool = True) -> None:
    """Write one example into `row` of a batch, at the top left of its canvas."""
    height, width = example.image.shape[:2]
    count = len(example.boxes)
    batch["image"][row, :height, :width] = example.image
    batch["image_size"][row] = height, width
    batch["gt_boxes"][row, :count] = example.boxes
    batch["gt_labels"][row, :count] = example.labels
    batch["gt_valid"][row, :count] = True
    batch["gt_ignore"][row, :count] = example.ignore
    batch["scale"][row] = example.scale
    batch["index"][row] = index
    batch["valid"][row] = valid


def _digest(source: Source, config: LoaderConfig, seed: int) -> str:
    """Fingerprint of everything the training stream depends on (not: threads, workers, hosts)."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("threads", "workers", "prefetch")}
    records = [
        (info.image_id, info.patient_id, info.boxes.tolist(), info.labels.tolist(), info.ignore.tolist())
        for info in source.infos
    ]
    text = json.dumps([settings, seed, source.classes, records])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
