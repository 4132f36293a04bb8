"""From a source to an inpainter's batches: close-ups of lesions, and of healthy tissue with masks like lesions.

Shapes: B batch, W side of the square window in the image's pixels, S side of the model's picture. A batch is a
function of (seed, batch number) alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

import numpy as np

from elk_jax.data.batches.detection import host_rows
from elk_jax.data.batches.stream import Stream, finite
from elk_jax.errors import UserError
from elk_jax.images.breast import breast_mask
from elk_jax.images.schema import Source
from elk_jax.synthesis.closeups import Closeup, lesion_closeup, tissue_closeup, usable_lesions
from elk_jax.synthesis.compositing import to_model
from elk_jax.synthesis.placement import AreaRule, area_rule


class CloseupBatch(TypedDict):
    """One batch of close-ups, a plain dict of arrays."""

    image: np.ndarray  # [B, S, S, 1] float32 in [0, 1]
    mask: np.ndarray  # [B, S, S, 1] float32, 1 where the lesion (or the place of one) is
    lesion: np.ndarray  # [B] float32, 1 for a lesion, 0 for healthy tissue under the mask
    index: np.ndarray  # [B] int32, which image of the source
    valid: np.ndarray  # [B] bool, False for examples that only fill the last batch


@dataclass(frozen=True)
class CloseupConfig:
    """How a source becomes close-ups.

    window: W, native pixels. size: S.
    margin: of a lesion's width and height, by which the mask reaches beyond its box on each side. Lesions that do not
        fit into the window with it are left out.
    batch_size: of the GLOBAL batch, over all hosts.
    tissue_share: of the examples that show healthy tissue under the mask instead of a lesion.
    horizontal_flip, vertical_flip: probabilities. gain: grey values are multiplied by 1 - gain to 1 + gain.
    threads, workers, prefetch: see `stream.Stream`.
    """

    window: int = 512
    size: int = 512
    margin: float = 0.0
    batch_size: int = 8
    tissue_share: float = 0.0
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    gain: float = 0.0
    threads: int = 2
    workers: int = 0
    prefetch: int = 4

    def __post_init__(self) -> None:
        for name, least in {"window": 1, "size": 1, "batch_size": 1, "threads": 1, "prefetch": 1, "workers": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"closeups.{name} is {getattr(self, name)}", todo=f"give at least {least}")
        for name in ("margin", "tissue_share", "horizontal_flip", "vertical_flip", "gain"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"closeups.{name} is {getattr(self, name)}", todo="give 0 to 1")

    @property
    def largest(self) -> int:
        """Native pixels that both sides of a lesion's box must be below."""
        return int(self.window / (1 + 2 * self.margin))


def train_closeups(
    source: Source, config: CloseupConfig, seed: int, process_index: int = 0, process_count: int = 1
) -> Stream[CloseupBatch]:
    """Endless batches of random close-ups. Every lesion comes once an epoch, at a new place of a new window; where
    healthy tissue is drawn (`tissue_share`), it takes the place of a lesion.

    UserError: no lesion fits into the window, no image has healthy tissue where some is wanted, batch size not
    divisible by the number of hosts, unreadable image (when it is reached).
    """
    rows = host_rows(config.batch_size, process_index, process_count)
    make = _TrainCloseups(source, config, seed, rows)
    return Stream(make, digest(source, config, seed), config.threads, config.workers, config.prefetch)


def eval_closeups(source: Source, config: CloseupConfig, seed: int, count: int = 0) -> Iterator[CloseupBatch]:
    """`count` lesions (0: all that fit) in order, each in one random window that is the same every time; no flips.

    Lesions are spread over the whole source. The last batch is filled with copies whose `valid` is False.
    """
    lesions = usable_lesions(source.infos, config.largest)
    chosen = np.linspace(0, len(lesions) - 1, min(count or len(lesions), len(lesions))).round().astype(int)
    make = _EvalCloseups(source, config, seed, tuple(lesions[i] for i in chosen))
    return finite(make, -(-len(chosen) // config.batch_size), config.threads, config.workers, config.prefetch)


def kept_closeups(
    examples: Mapping[str, np.ndarray],
    config: CloseupConfig,
    origin: str,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Stream[dict[str, np.ndarray]]:
    """Endless batches of examples that are in memory (arrays with a leading axis), in a new order every epoch.

    origin: what the examples follow from. Not the examples themselves: computed again they may differ in a last bit,
    and a training must still go on.
    """
    rows = host_rows(config.batch_size, process_index, process_count)
    count = len(next(iter(examples.values())))

    def make(number: int) -> dict[str, np.ndarray]:
        slots = [number * config.batch_size + row for row in range(config.batch_size)[rows]]
        epochs = {slot // count for slot in slots}
        orders = {epoch: np.random.default_rng([seed, 7, epoch]).permutation(count) for epoch in epochs}
        chosen = [orders[slot // count][slot % count] for slot in slots]
        return {key: values[chosen] for key, values in examples.items()}

    return Stream(make, hashlib.sha256(origin.encode()).hexdigest()[:16], config.threads, 0, config.prefetch)


def training_rule(source: Source, largest: int, kind: str = "free") -> AreaRule:
    """Sizes and shapes of the training lesions whose sides are below `largest` px; see `placement.area_rule`."""
    boxes = [info.boxes[~info.ignore] for info in source.infos]
    return area_rule(np.concatenate(boxes), kind, largest)


class _TrainCloseups:
    """Batch number -> this host's rows of that batch."""

    def __init__(self, source: Source, config: CloseupConfig, seed: int, rows: slice):
        self.source, self.config, self.seed, self.rows = source, config, seed, rows
        self.lesions = usable_lesions(source.infos, config.largest)
        self.rule = training_rule(source, config.largest)

    def __call__(self, number: int) -> CloseupBatch:
        slots = [number * self.config.batch_size + row for row in range(self.config.batch_size)[self.rows]]
        return _batch([self._example(slot) for slot in slots], len(slots))

    def _example(self, slot: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, 4, slot])
        if rng.random() < self.config.tissue_share:
            position, closeup = self._tissue(rng)
            return _example(self.config, closeup, position, False, rng)
        epoch, place = divmod(slot, len(self.lesions))
        order = np.random.default_rng([self.seed, 5, epoch]).permutation(len(self.lesions))
        position, lesion = self.lesions[order[place]]
        pixels, boxes = self.source[position].image[..., 0], self.source.infos[position].boxes
        closeup = lesion_closeup(pixels, boxes, lesion, self.config.window, rng, self.config.margin)
        return _example(self.config, closeup, position, True, rng)

    def _tissue(self, rng: np.random.Generator) -> tuple[int, Closeup]:
        """A close-up of healthy tissue of a random image that has one."""
        window = self.config.window
        for position in rng.permutation(len(self.source)):
            info = self.source.infos[int(position)]
            if min(info.width, info.height) < window:
                continue
            pixels = self.source[int(position)].image[..., 0]
            breast, margin = breast_mask(pixels), self.config.margin
            closeup = tissue_closeup(pixels, breast, info.boxes, window, self.rule, rng, margin=margin)
            if closeup is not None:
                return int(position), closeup
        raise UserError(
            f"no image has a healthy window of {window} px",
            where=self.source.name,
            todo="use a smaller window, or closeups.tissue_share=0",
        )


class _EvalCloseups:
    """Batch number -> the lesions of that batch."""

    def __init__(self, source: Source, config: CloseupConfig, seed: int, lesions: Sequence[tuple[int, int]]):
        self.source, self.seed, self.lesions = source, seed, tuple(lesions)
        self.config = CloseupConfig(**{**asdict(config), "horizontal_flip": 0.0, "vertical_flip": 0.0, "gain": 0.0})

    def __call__(self, number: int) -> CloseupBatch:
        size = self.config.batch_size
        chosen = range(number * size, min((number + 1) * size, len(self.lesions)))
        return _batch([self._example(i) for i in chosen], size)

    def _example(self, i: int) -> dict[str, np.ndarray]:
        position, lesion = self.lesions[i]
        rng = np.random.default_rng([self.seed, 6, i])
        pixels, boxes = self.source[position].image[..., 0], self.source.infos[position].boxes
        closeup = lesion_closeup(pixels, boxes, lesion, self.config.window, rng, self.config.margin)
        return _example(self.config, closeup, position, True, rng)


def _example(
    config: CloseupConfig, closeup: Closeup, position: int, lesion: bool, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    image, mask = to_model(closeup.image, closeup.mask, config.size)
    across, down = rng.random(2) < (config.horizontal_flip, config.vertical_flip)
    flip = (slice(None, None, -1 if down else 1), slice(None, None, -1 if across else 1))
    if config.gain:
        image = np.clip(image * np.float32(rng.uniform(1 - config.gain, 1 + config.gain)), 0, 1)
    return {
        "image": image[flip][..., None],
        "mask": mask[flip][..., None].astype(np.float32),
        "lesion": np.asarray(lesion, np.float32),
        "index": np.asarray(position, np.int32),
    }


def _batch(examples: Sequence[dict[str, np.ndarray]], size: int) -> CloseupBatch:
    """Stacked, and filled up to `size` with copies of the last example."""
    filled = [*examples, *[examples[-1]] * (size - len(examples))]
    stacked = {key: np.stack([example[key] for example in filled]) for key in filled[0]}
    return CloseupBatch(**stacked, valid=np.arange(size) < len(examples))  # type: ignore[typeddict-item]


def digest(source: Source, config: CloseupConfig, seed: int) -> str:
    """Fingerprint of everything the stream depends on (not: threads, workers, hosts)."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("threads", "workers", "prefetch")}
    records = [(info.image_id, info.boxes.tolist(), info.ignore.tolist()) for info in source.infos]
    return hashlib.sha256(json.dumps([settings, seed, records]).encode()).hexdigest()[:16]
