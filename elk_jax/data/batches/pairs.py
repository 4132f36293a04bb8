"""Aligned pairs of tiles: the low-energy and the subtracted image of one breast, pixel by pixel.

Shapes: B batch, S side of a tile. Pairs come from

- a COCO file whose images are the subtracted ones, each with a field `low_energy` that names its partner's file (what
  data_prep/paired_tiles.py writes), or
- the embedded phantom, which has both.

Images larger than S are cut into tiles, and those that are mostly black are left out (`tiles.py`). Batches are a
function of (seed, batch number) alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypedDict

import numpy as np

from elk_jax.data import tiles
from elk_jax.data.batches.detection import host_rows
from elk_jax.data.batches.stream import Stream, finite
from elk_jax.data.sources import coco
from elk_jax.data.sources import source as sources
from elk_jax.data.sources.decode import decode_image
from elk_jax.data.sources.phantom import MODALITIES, parse_options, read_phantom
from elk_jax.data.sources.source import ImageSource, Read
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import Window, boxes_in, cut
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

PARTNER = "low_energy"
"""Field of an image that names the file of its low-energy partner."""

LEAST_SHOWN = 1
"""Pixels of a lesion, in each direction, that a tile must show: less is rounded away in a file."""


class PairBatch(TypedDict):
    """One batch of pairs, a plain dict of arrays."""

    low_energy: np.ndarray  # [B, S, S, 1] float32 in [0, 1]
    subtracted: np.ndarray  # [B, S, S, 1] float32 in [0, 1]
    index: np.ndarray  # [B] int32, which of the pairs
    valid: np.ndarray  # [B] bool, False for examples that only fill the last batch


@dataclass(frozen=True)
class PairConfig:
    """How pairs become batches.

    size: S. stride: pixels from a tile to the next where images are larger than S; 0: S. max_black: share of a tile of
    the low-energy image that may be black. batch_size: of the GLOBAL batch, over all hosts. horizontal_flip,
    vertical_flip: probabilities, of both images together. threads, workers, prefetch: see `stream.Stream`.
    """

    size: int = 512
    stride: int = 0
    max_black: float = tiles.MAX_BLACK
    batch_size: int = 8
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    threads: int = 2
    workers: int = 0
    prefetch: int = 4

    def __post_init__(self) -> None:
        for name, least in {"size": 1, "batch_size": 1, "threads": 1, "prefetch": 1, "workers": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"pairs.{name} is {getattr(self, name)}", todo=f"give at least {least}")
        for name in ("max_black", "horizontal_flip", "vertical_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"pairs.{name} is {getattr(self, name)}", todo="give 0 to 1")
        if not 0 <= self.stride <= self.size:
            raise UserError(f"pairs.stride is {self.stride}", todo=f"give 0 to pairs.size, {self.size}")


@dataclass(frozen=True)
class Pairs:
    """A random-access collection of pairs.

    places: (image, window in it) of every tile; infos: of the subtracted tiles.
    """

    name: str
    low_energy: Read
    subtracted: Read
    places: tuple[tuple[int, Window], ...]
    infos: tuple[ImageInfo, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(low-energy tile, subtracted tile), both [S, S, 1] float32 in [0, 1]."""
        position, window = self.places[index]
        return cut(self.low_energy(position), window), cut(self.subtracted(position), window)


def pair_up(subtracted: ImageSource, spec: str, bit_depth: int = 0, progress: ProgressBar = no_bar) -> ImageSource:
    """The low-energy images of the subtracted ones that `sources.open_source` opened from `spec`, in their order.

    progress: shows how far the drawing of phantoms is.
    UserError where `spec` has no pairs: an image without partner, a data set of another kind.
    """
    kind, _, place = spec.partition(":")
    if kind == "phantom":
        if parse_options(place).modality != MODALITIES[0]:
            todo = f"leave modality out: pairs are of {' and '.join(MODALITIES)}"
            raise UserError("pairs of phantoms of one modality", where=spec, todo=todo)
        splits = {info.split for info in subtracted.infos}
        split = splits.pop() if len(splits) == 1 else ""
        infos, _, read = read_phantom(f"{place},modality={MODALITIES[1]}", split, progress)
        at = {info.image_id: position for position, info in enumerate(infos)}
        chosen = tuple(at[info.image_id] for info in subtracted.infos)
        return replace(subtracted, read=partial(sources.read_at, read, chosen))
    if kind != "coco":
        raise UserError(f"'{spec}' has no pairs", todo="give coco:FILE.json of data_prep/paired_tiles.py, or phantom:")
    for info in subtracted.infos:
        if not isinstance(info.meta.get(PARTNER), str):
            raise UserError(
                f"the field '{PARTNER}' is missing, which names the low-energy partner",
                where=f"{place}, image {info.image_id} ({info.file_name})",
                todo="make pairs with data_prep/paired_tiles.py",
            )
    partners = tuple(replace(info, file_name=info.meta[PARTNER]) for info in subtracted.infos)
    folder = coco.image_folder(place)
    files = tuple((folder / info.file_name, info.meta.get("bit_depth") or bit_depth) for info in partners)
    return sources.cached(replace(subtracted, infos=partners, read=partial(_read, files)))


def cut_pairs(
    low_energy: ImageSource,
    subtracted: ImageSource,
    config: PairConfig,
    on_error: str = "stop",
    progress: ProgressBar = no_bar,
) -> Pairs:
    """Tiles of all images, as `config` says; every image is decoded once. low_energy: the partners, in the same order.

    on_error: "stop" raises at the first pair that cannot be read, differs in size or is smaller than a tile, "skip"
    leaves it out. UserError as well when no tile is left.
    """

    def of_image(position: int) -> list[Window] | str:
        info = subtracted.infos[position]
        where = f"{subtracted.name}, {info.file_name}"
        try:
            windows = tiles.tile_windows(info.height, info.width, config.size, config.stride, where)
            image = low_energy[position].image
            subtracted[position]  # is read once now, too: it may be damaged
        except UserError as error:
            if on_error == "stop":
                raise
            return str(error)
        return [window for window in windows if tiles.black_share(cut(image, window)) <= config.max_black]

    found = map_in_threads(of_image, len(subtracted), progress)
    skipped = [(subtracted.infos[i].image_id, what) for i, what in enumerate(found) if isinstance(what, str)]
    places = tuple((i, window) for i, windows in enumerate(found) if not isinstance(windows, str) for window in windows)
    if not places:
        raise UserError(
            f"no tile of {config.size} px with enough breast in {len(subtracted)} images",
            where=subtracted.name,
            todo=f"raise pairs.max_black ({config.max_black}), or look at the images",
        )
    infos = tuple(tile_info(subtracted.infos[i], window) for i, window in places)
    known = (*subtracted.skipped, *skipped)
    return Pairs(subtracted.name, low_energy.read, subtracted.read, places, infos, known)


def concatenate(parts: Sequence[Pairs]) -> Pairs:
    """Several collections as one, in order."""
    if len(parts) == 1:
        return parts[0]
    images = [max(position for position, _ in part.places) + 1 for part in parts]
    firsts = np.cumsum([0, *images[:-1]])
    origin = tuple((number, i) for number, count in enumerate(images) for i in range(count))
    places = [(int(first) + i, window) for first, part in zip(firsts, parts) for i, window in part.places]
    return Pairs(
        " + ".join(part.name for part in parts),
        partial(_read_part, tuple(part.low_energy for part in parts), origin),
        partial(_read_part, tuple(part.subtracted for part in parts), origin),
        tuple(places),
        tuple(info for part in parts for info in part.infos),
        tuple(entry for part in parts for entry in part.skipped),
    )


# ---- Batches ------------------------------------------------------------------------------------------------------


def train_pairs(
    pairs: Pairs, config: PairConfig, seed: int, process_index: int = 0, process_count: int = 1
) -> Stream[PairBatch]:
    """Endless batches: every pair once an epoch, in a new order, mirrored at random (both images alike)."""
    rows = host_rows(config.batch_size, process_index, process_count)
    make = _Train(pairs, config, seed, rows)
    return Stream(make, _digest(pairs, config, seed), config.threads, config.workers, config.prefetch)


def eval_pairs(pairs: Pairs, config: PairConfig, count: int = 0) -> Iterator[PairBatch]:
    """`count` pairs (0: all), spread over the whole collection, in order and as they are.

    The last batch is filled with copies whose `valid` is False.
    """
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(count or len(pairs), len(pairs))).round().astype(int))
    make = _Eval(pairs, config.batch_size, tuple(int(i) for i in chosen))
    return finite(make, -(-len(chosen) // config.batch_size), config.threads, config.workers, config.prefetch)


@dataclass(frozen=True)
class _Train:
    """Batch number -> this host's rows of that batch."""

    pairs: Pairs
    config: PairConfig
    seed: int
    rows: slice

    def __call__(self, number: int) -> PairBatch:
        slots = [number * self.config.batch_size + row for row in range(self.config.batch_size)[self.rows]]
        return _batch([self._example(slot) for slot in slots], len(slots))

    def _example(self, slot: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(slot, len(self.pairs))
        index = np.random.default_rng([self.seed, 9, epoch]).permutation(len(self.pairs))[place]
        rng = np.random.default_rng([self.seed, 10, slot])
        across, down = rng.random(2) < (self.config.horizontal_flip, self.config.vertical_flip)
        flip = (slice(None, None, -1 if down else 1), slice(None, None, -1 if across else 1))
        return _example(self.pairs, int(index), flip)


@dataclass(frozen=True)
class _Eval:
    """Batch number -> the pairs of that batch."""

    pairs: Pairs
    batch_size: int
    chosen: tuple[int, ...]

    def __call__(self, number: int) -> PairBatch:
        indices = self.chosen[number * self.batch_size : (number + 1) * self.batch_size]
        return _batch([_example(self.pairs, index) for index in indices], self.batch_size)


def _example(pairs: Pairs, index: int, flip: tuple[slice, ...] = ()) -> dict[str, np.ndarray]:
    low, subtracted = pairs[index]
    return {"low_energy": low[flip], "subtracted": subtracted[flip], "index": np.asarray(index, np.int32)}


def _batch(examples: Sequence[dict[str, np.ndarray]], size: int) -> PairBatch:
    """Stacked, and filled up to `size` with copies of the last example."""
    filled = [*examples, *[examples[-1]] * (size - len(examples))]
    stacked = {key: np.stack([example[key] for example in filled]) for key in filled[0]}
    return PairBatch(**stacked, valid=np.arange(size) < len(examples))  # type: ignore[typeddict-item]


def _digest(pairs: Pairs, config: PairConfig, seed: int) -> str:
    """Fingerprint of everything the stream depends on (not: threads, workers, hosts)."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("threads", "workers", "prefetch")}
    records = [
        (info.image_id, info.file_name, str(info.meta.get(PARTNER, "")), window)
        for info, (_, window) in zip(pairs.infos, pairs.places)
    ]
    return hashlib.sha256(json.dumps([settings, seed, records]).encode()).hexdigest()[:16]


def tile_info(info: ImageInfo, window: Window) -> ImageInfo:
    """Of an image: what its tile shows. Of a lesion at the border at least LEAST_SHOWN pixels must be seen."""
    width, height = window[2] - window[0], window[3] - window[1]
    boxes, kept = boxes_in(info.boxes, window)
    seen = (boxes[:, 2:] - boxes[:, :2] >= LEAST_SHOWN).all(axis=1)
    boxes, kept = boxes[seen], kept[seen]
    return replace(
        info, width=width, height=height, boxes=boxes, labels=info.labels[kept], ignore=info.ignore[kept]
    )


# The functions below are module-level, so that pairs can be sent to worker processes.


def _read(files: tuple[tuple, ...], position: int) -> np.ndarray:
    path, bit_depth = files[position]
    return decode_image(path, bit_depth=bit_depth)[0]


def _read_part(reads: tuple[Read, ...], origin: tuple[tuple[int, int], ...], position: int) -> np.ndarray:
    part, inner = origin[position]
    return reads[part](inner)
