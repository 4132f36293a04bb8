"""From a source to a detector's batches: an endless stream for training, a finite ordered one for evaluation.

The content of a batch depends on (seed, batch number) only: threads, workers, hosts and restarts change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar, cast

import numpy as np

from elk_jax.data.augment import NO_AUGMENTATION, Augmentation, Resize, augment, resize_only
from elk_jax.data.batches import mixing
from elk_jax.data.batches.buckets import Canvas, Canvases, assign_buckets, choose_buckets, padded
from elk_jax.data.batches.shuffle import blank, host_rows
from elk_jax.data.batches.stream import Reading, Stream, digest, finite
from elk_jax.data.paste import MAX_PASTED
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.transforms import Example
from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, SHARE, AtLeast
from elk_jax.images.schema import Batch, ImageInfo
from elk_jax.randomness import Purpose, generator

LEARNED = ("image", "image_size", "gt_boxes", "gt_labels", "gt_valid", "gt_ignore")
"""The entries of an example that a loss reads."""


@dataclass(frozen=True)
class LoaderConfig(Reading):
    """How a source becomes batches.

    batch_size: examples of the GLOBAL batch, over all hosts.
    buckets: canvases (height, width); () chooses one that holds every image, with sides that are multiples of 32.
    max_boxes: M, padded lesions per image; 0 derives it from the source (a multiple of 8).
    lesion_share: share of an epoch's images that have lesions; None: as in the data. For training only.
    small_share: share of those that have a lesion whose side (root of its area) is below `small_side`, a share of the
        longer side of the image; None: as in the data. For training only.
    """

    batch_size: Annotated[int, AtLeast(1)] = 4
    buckets: Canvases = ((256, 160),)
    resize: Resize = field(default_factory=lambda: Resize(jitter=(0.8, 1.25)))
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(horizontal_flip=0.5, vertical_flip=0.5, gain=0.1, gamma=0.1)
    )
    max_boxes: Annotated[int, AtLeast(0)] = 0
    lesion_share: Annotated[float, SHARE] | None = 0.75
    small_share: Annotated[float, SHARE] | None = None
    small_side: Annotated[float, ABOVE_ZERO, SHARE] = mixing.SMALL_SIDE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize.jitter and not self.buckets:
            what = "resize.jitter scales images to fit their canvas, but no canvas is given"
            todo = "give one or more (height, width), or use short_sides with jitter=()"
            raise UserError(what, where="buckets", todo=todo)


def train_batches(
    source: ImageSource,
    config: LoaderConfig,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    weights: Sequence[float] = (),
) -> TrainBatches:
    """Endless batches of augmented records; host p of n gets rows p*B/n to (p+1)*B/n of every global batch.

    weights: share of the draws for each of the mixed sources, on any scale; () draws by size.
    Each example's randomness depends on (seed, epoch, slot in the epoch). UserError: an image fits no bucket, too many
    lesions for `max_boxes`, batch size not divisible by the number of hosts, unreadable image (when it is reached).
    """
    make = mixed(source, config, seed, process_index, process_count, weights)
    stream_digest = digest(config, seed, tuple(weights), *records(source))
    drawn = mixing.describe(make.examples.strata, source.infos, source.mixed)
    return TrainBatches(make, stream_digest, config, drawn)


def mixed(
    source: ImageSource,
    config: LoaderConfig,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    weights: Sequence[float] = (),
) -> Batches[_TrainExamples]:
    """Batch number -> the batch of `train_batches`."""
    augmentation = config.augmentation
    canvases = config.buckets or choose_buckets(source.infos, config.resize, augmentation)
    buckets = assign_buckets(source.infos, canvases, config.resize, augmentation)
    shares = (config.lesion_share, config.small_share, config.small_side)
    strata = mixing.plan_strata(source.infos, buckets, config.batch_size, weights, *shares)
    donors = np.flatnonzero([info.has_lesions for info in source.infos])
    examples = _TrainExamples(source, config, canvases, strata, donors, seed)
    rows = host_rows(config.batch_size, process_index, process_count)
    if source.images > 1 and augmentation.copy_paste > 0:
        what = "copy-paste works on single images, and these are pairs"
        raise UserError(what, where="augmentation.copy_paste", todo="set it to 0")
    pasted = MAX_PASTED if augmentation.copy_paste > 0 else 0
    most = find_max_boxes(source.infos, config.max_boxes, pasted)
    return Batches(examples, rows, canvases, most, source.images)


def records(source: ImageSource) -> list[Any]:
    """What identifies the images of a source, for JSON."""
    found = [
        (i.image_id, i.patient_id, i.boxes.tolist(), i.labels.tolist(), i.ignore.tolist(), i.source)
        for i in source.infos
    ]
    return [source.classes, found]


def eval_batches(
    source: ImageSource, config: LoaderConfig, process_index: int = 0, process_count: int = 1, pad: bool = False
) -> Iterator[Batch]:
    """Every record once, resized without randomness; within a bucket in the order of the source.

    pad: whether canvases are padded to multiples of 32 px; images keep the size that fits the canvas. The last batch of
    a bucket is filled with copies whose `valid` is False. Every host gets the same number of batches.
    """
    canvases = config.buckets or choose_buckets(source.infos, config.resize, NO_AUGMENTATION)
    buckets = assign_buckets(source.infos, canvases, config.resize, NO_AUGMENTATION)
    batches = mixing.ordered_batches(buckets, config.batch_size)
    rows = host_rows(config.batch_size, process_index, process_count)
    max_boxes = find_max_boxes(source.infos, config.max_boxes)
    shapes = tuple(map(padded, canvases)) if pad else canvases
    make = Batches(_EvalExamples(source, config, canvases, batches), rows, shapes, max_boxes, source.images)
    return finite(make, len(batches), config)


def blank_batch(batch_size: int, canvas: Canvas, max_boxes: int, images: int = 1) -> Batch:
    """A batch of black images that fill their canvas, without lesions; it takes no memory. max_boxes: M; images: I."""
    lesions, numbers = (batch_size, max_boxes), (batch_size,)
    shapes = {"image": (batch_size, *canvas, images), "image_size": (batch_size, 2), "gt_boxes": (*lesions, 4)}
    shapes |= dict.fromkeys(("gt_labels", "gt_valid", "gt_ignore"), lesions)
    shapes |= {"scale": (batch_size, 2), "index": numbers, "source": numbers, "valid": numbers}
    kinds = {"gt_labels": np.int32, "index": np.int32, "source": np.int32, "gt_valid": bool, "gt_ignore": bool}
    found = blank(shapes, valid=bool, **kinds)
    found["image_size"] = np.broadcast_to(np.asarray(canvas, np.float32), (batch_size, 2))
    found["valid"] = np.broadcast_to(True, numbers)
    return cast(Batch, found)


def find_max_boxes(infos: Sequence[ImageInfo], max_boxes: int = 0, pasted: int = 0) -> int:
    """M for these records: `max_boxes` if it is given and sufficient, else the required number, a multiple of 8."""
    most = max(infos, key=lambda info: len(info.boxes))
    need = len(most.boxes) + pasted
    if not max_boxes:
        return max(8, -(-need // 8) * 8)
    if need > max_boxes:
        raise UserError(
            f"image {most.image_id} needs {need} boxes ({pasted} for copy-paste), max_boxes is {max_boxes}",
            where=most.file_name,
            todo=f"set max_boxes to at least {need}, or to 0 to derive it from the data",
        )
    return max_boxes


def augmented(source: ImageSource, config: LoaderConfig) -> Augmented:
    """The examples of a source on one canvas, as private training draws them. UserError for an image that does not fit
    the canvas, or has more lesions than `max_boxes`."""
    assign_buckets(source.infos, config.buckets, config.resize, config.augmentation)
    return Augmented(source, config, find_max_boxes(source.infos, config.max_boxes))


class TrainBatches(Stream[Batch]):
    """The training stream of a detector. draws_per_epoch: {"real with lesion": 80, ...}."""

    def __init__(self, make: Batches[_TrainExamples], digest: str, reading: Reading, draws_per_epoch: dict[str, int]):
        super().__init__(make, digest, reading)
        self.canvases, self.max_boxes = make.canvases, make.max_boxes
        self.draws_per_epoch = draws_per_epoch


@dataclass(frozen=True)
class Augmented:
    """Number of an image -> example, whose augmentation depends on the random numbers only. config: with one canvas."""

    source: ImageSource
    config: LoaderConfig
    max_boxes: int

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        (canvas,) = self.config.buckets
        batch = empty_batch(1, canvas, self.max_boxes, self.source.images)
        fill(batch, 0, augment(self.source[index], self.config.augmentation, self.config.resize, canvas, rng))
        return {name: cast(Any, batch)[name][0] for name in LEARNED}


class _TrainExamples:
    """Batch number -> its plan, and the augmented examples of some of its rows."""

    def __init__(self, source, config, canvases, strata, donors, seed):
        self.source, self.config, self.canvases = source, config, canvases
        self.strata, self.donors, self.seed = strata, donors, seed
        self.per_epoch = mixing.batches_per_epoch(strata, config.batch_size)
        self._epoch: tuple[int, list[mixing.PlannedBatch]] = (-1, [])

    def planned(self, number: int) -> mixing.PlannedBatch:
        epoch, position = divmod(number, self.per_epoch)
        known, batches = self._epoch
        if known != epoch:
            batches = mixing.epoch_batches(self.strata, self.config.batch_size, self.seed, epoch)
            self._epoch = (epoch, batches)
        return batches[position]

    def example(self, batch: mixing.PlannedBatch, row: int) -> Example:
        rng = generator(self.seed, Purpose.AUGMENTATION, batch.epoch, int(batch.slots[row]))
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

    def planned(self, number: int) -> mixing.PlannedBatch:
        return self.batches[number]

    def example(self, batch: mixing.PlannedBatch, row: int) -> Example:
        record = self.source[int(batch.positions[row])]
        return resize_only(record, self.config.resize, self.canvases[batch.bucket])


Examples = TypeVar("Examples", _TrainExamples, _EvalExamples)


@dataclass(frozen=True)
class Batches(Generic[Examples]):
    """Callable: batch number -> this host's rows of that batch."""

    examples: Examples
    rows: slice
    canvases: tuple[Canvas, ...]
    max_boxes: int
    images: int = 1

    def __call__(self, number: int) -> Batch:
        planned = self.examples.planned(number)
        rows = range(len(planned.positions))[self.rows]
        batch = empty_batch(len(rows), self.canvases[planned.bucket], self.max_boxes, self.images)
        for out, row in enumerate(rows):
            position = int(planned.positions[row])
            fill(batch, out, self.examples.example(planned, row))
            batch["index"][out], batch["source"][out] = position, self.examples.source.infos[position].source
            batch["valid"][out] = planned.valid[row]
        return batch


def empty_batch(size: int, canvas: Canvas, max_boxes: int, images: int = 1) -> Batch:
    """A batch in which every row is filler."""
    return Batch(
        image=np.zeros((size, *canvas, images), np.float32),
        image_size=np.zeros((size, 2), np.float32),
        gt_boxes=np.zeros((size, max_boxes, 4), np.float32),
        gt_labels=np.zeros((size, max_boxes), np.int32),
        gt_valid=np.zeros((size, max_boxes), bool),
        gt_ignore=np.zeros((size, max_boxes), bool),
        scale=np.ones((size, 2), np.float32),
        index=np.zeros(size, np.int32),
        source=np.zeros(size, np.int32),
        valid=np.zeros(size, bool),
    )


def fill(batch: Batch, row: int, example: Example) -> None:
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
