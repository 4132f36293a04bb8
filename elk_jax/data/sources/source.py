"""Opening, filtering and joining image collections: every function here returns an `ImageSource`.

A source is opened by a short text: `coco:FILE.json`, `tfds:DIR`, `phantom:OPTIONS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from elk_jax.data.sources import checks, coco
from elk_jax.data.sources.cleaning import clean_info, ignore_large
from elk_jax.data.sources.decode import check_bit_depth, decode_image
from elk_jax.data.sources.phantom import read_phantom
from elk_jax.data.sources.splits import draw_splits
from elk_jax.data.sources.tfds import read_tfds
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo, Record
from elk_jax.randomness import Purpose, random_order
from elk_jax.threads import Watch, for_each, unwatched

Read = Callable[[int], np.ndarray]
"""Position -> image [H, W, 1] float32 in [0, 1]."""

KEPT_BYTES = 1 << 30
"""Of decoded images that `cached` keeps in memory: 4000 of 512 x 512 px, or 80 full mammograms of 8 bits."""


@dataclass(frozen=True)
class ImageSource:
    """A `schema.Source` made of plain data and `read(position) -> image [H, W, 1] float32 in [0, 1]`.

    skipped: (image id, reason) of the images left out when the source was opened with on_error="skip".
    learned_from: of painted images, marks (`trained.mark`) of the patients that their painter was trained on.
    mixed: names of the sources that it mixes, by `ImageInfo.source`; () for one that mixes none.
    """

    name: str
    classes: tuple[str, ...]
    infos: tuple[ImageInfo, ...]
    read: Read
    skipped: tuple[tuple[str, str], ...] = ()
    learned_from: frozenset[str] = frozenset()
    mixed: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.infos)

    def __getitem__(self, index: int) -> Record:
        """Decode one image. UserError if it is missing, damaged, not finite, or of another size."""
        info = self.infos[index]
        image = self.read(index)
        checks.check_pixels(
            image, info.width, info.height, f"{self.name}, image {info.image_id} ({info.file_name})"
        )
        return Record(info, image)


def open_source(
    spec: str,
    split: str = "",
    where: Mapping[str, Any] | None = None,
    clean: bool = False,
    on_error: str = "stop",
    keep_bytes: int = 0,
    watch: Watch = unwatched,
    ignore_over: float = 0.0,
    split_shares: Sequence[float] = (),
    bit_depth: int = 0,
) -> ImageSource:
    """Open a data source.

    spec: `coco:FILE.json`, `tfds:DIR` or `phantom:KEY=VALUE,...`.
    split: only images of this split; "" takes all.
    where: only images whose fields have these values, or are written like them (`true`, `5`); a list or tuple
        means any of its entries.
    clean: merge overlapping boxes as ELK does (`cleaning.py`).
    ignore_over: boxes that cover more than this share of the image become ignore boxes; 0 for none.
    on_error: "stop" raises at a missing file now, at an unreadable one when it is read; "skip" decodes every
        image once now, leaves the unreadable ones out and lists them in `.skipped`, so that what follows is
        as deterministic as without them; "late" looks at no file now: for a few images of a source that was
        opened as a whole before.
    keep_bytes: of decoded images, kept in memory for when they are read again; see `cached`.
    watch: shows how far the reading of TFDS records, the drawing of phantoms, the decoding of "skip" is.
    split_shares: of train, val and test, for images that name no split: patients are dealt out, the same at every
        opening (`splits.draw_splits`). () for none.
    bit_depth: significant bits of 16-bit files that hold fewer (12); 0: all. A field `bit_depth` of a COCO image
        says it for that image.

    UserError: unknown kind of source, split or field; nothing left; a patient in two splits; any bad
    annotation.
    """
    if on_error not in ("stop", "skip", "late"):
        raise UserError(f"on_error is '{on_error}'", todo="use stop or skip")
    kind, _, place = spec.partition(":")
    if kind not in _OPENERS:
        raise UserError(f"unknown data source '{spec}'", todo="write coco:FILE.json, tfds:DIR or phantom:")
    check_bit_depth(bit_depth, spec)
    source = _OPENERS[kind](place, "" if split_shares else split, bit_depth, watch)
    if split_shares:
        source = replace(source, infos=draw_splits(source.infos, split_shares, where=source.name))
    checks.check_no_patient_in_two_splits(source.infos, where=source.name)
    source = _in_split(source, split)
    if where:
        source = _where(source, where)
    if not 0 <= ignore_over <= 1:
        raise UserError(f"ignore_over is {ignore_over}", todo="give a share of the image, 0 to 1; 0 ignores no box")
    if ignore_over:
        source = replace(source, infos=tuple(ignore_large(info, ignore_over) for info in source.infos))
    if clean:
        source = replace(source, infos=tuple(clean_info(info) for info in source.infos))
    if keep_bytes and kind != "phantom":  # phantoms are in memory anyway
        source = cached(source, keep_bytes)
    if on_error == "skip":
        return without_unreadable(source, watch)
    if kind == "coco" and on_error == "stop":
        checks.check_files(source.infos, coco.image_folder(place), source.name)
    return source


def category_ids(spec: str) -> tuple[int, ...] | None:
    """The id that a COCO file gives to each class, in label order; None for sources that number no classes."""
    kind, _, place = spec.partition(":")
    return coco.category_ids(place) if kind == "coco" else None


def _open_coco(path: str, split: str, bit_depth: int, watch: Watch) -> ImageSource:
    infos, classes = coco.read_coco(path)
    files = tuple((info.file_name, info.meta.get("bit_depth") or bit_depth) for info in infos)
    for info, (_, depth) in zip(infos, files):
        check_bit_depth(depth, f"{path}, image {info.image_id}")
    read = partial(_read_file, coco.image_folder(path), files)
    return ImageSource(path, classes, infos, read, learned_from=coco.learned_from(path))


def _open_tfds(path: str, split: str, bit_depth: int, watch: Watch) -> ImageSource:
    infos, classes, read = read_tfds(path, bit_depth, watch)
    return ImageSource(path, classes, infos, read)


def _open_phantom(options: str, split: str, bit_depth: int, watch: Watch) -> ImageSource:
    infos, classes, read = read_phantom(options, split, watch)
    return ImageSource(f"phantom:{options}", classes, infos, read)


_OPENERS: dict[str, Callable[[str, str, int, Watch], ImageSource]] = {
    "coco": _open_coco,
    "tfds": _open_tfds,
    "phantom": _open_phantom,
}


def subset(source: ImageSource, positions: Sequence[int] | np.ndarray) -> ImageSource:
    """The records at `positions`, in that order."""
    chosen = tuple(int(position) for position in positions)
    infos = tuple(source.infos[position] for position in chosen)
    return replace(source, infos=infos, read=partial(read_at, source.read, chosen))


def fewshot(source: ImageSource, patients: int, seed: int = 0) -> ImageSource:
    """All images of `patients` random patients. With one seed, fewer patients are a subset of more."""
    names = sorted({info.patient_id for info in source.infos})
    if not 1 <= patients <= len(names):
        raise UserError(
            f"{patients} patients wanted, the source has {len(names)}",
            where=source.name,
            todo=f"choose a number from 1 to {len(names)}",
        )
    order = random_order(len(names), seed, Purpose.PATIENTS)
    chosen = {names[position] for position in order[:patients]}
    return subset(source, [i for i, info in enumerate(source.infos) if info.patient_id in chosen])


def concatenate(sources: Sequence[ImageSource]) -> ImageSource:
    """Several sources as one, in order. `ImageInfo.source` tells which of `mixed` a record is from.

    UserError if the sources name different classes.
    """
    if not sources:
        raise UserError("no source to join")
    for source in sources[1:]:
        if source.classes != sources[0].classes:
            raise UserError(
                f"classes differ: {', '.join(sources[0].classes)} against {', '.join(source.classes)}",
                where=f"{sources[0].name} and {source.name}",
                todo="rename the categories of one of them",
            )
    infos: list[ImageInfo] = []
    places: list[tuple[int, int]] = []
    for part, source in enumerate(sources):
        for position, info in enumerate(source.infos):
            infos.append(replace(info, source=part))
            places.append((part, position))
    skipped = tuple(entry for source in sources for entry in source.skipped)
    name = " + ".join(source.name for source in sources)
    read = partial(_read_part, tuple(source.read for source in sources), tuple(places))
    learned_from = frozenset().union(*(source.learned_from for source in sources))
    mixed = tuple(source.name for source in sources)
    return ImageSource(name, sources[0].classes, tuple(infos), read, skipped, learned_from, mixed)


def cached(source: ImageSource, max_bytes: int = KEPT_BYTES) -> ImageSource:
    """Keep decoded images in memory, up to `max_bytes`: 8 bits per pixel where exact, else 16 (error < 1e-5).

    A record has the same pixels whether it was in memory or not.
    """
    return replace(source, read=Cache(source.read, max_bytes))


def without_unreadable(source: ImageSource, watch: Watch = unwatched) -> ImageSource:
    """Decode every image once; those that fail are left out and listed with their reason in `.skipped`."""

    def failure(position: int) -> str:
        try:
            source[position]
            return ""
        except UserError as error:
            return str(error)

    failures = for_each(failure, len(source), watch)
    good = [position for position, reason in enumerate(failures) if not reason]
    bad = [(info.image_id, reason) for info, reason in zip(source.infos, failures) if reason]
    if not good:
        raise UserError(f"none of {len(bad)} images can be read; the first: {bad[0][1]}", where=source.name)
    return replace(subset(source, good), skipped=(*source.skipped, *bad))


def summary(infos: Iterable[ImageInfo]) -> dict[str, int]:
    """Counts for logs and reports; `lesions` leaves out ignore boxes."""
    infos = list(infos)
    lesions = [int((~info.ignore).sum()) for info in infos]
    return {
        "images": len(infos),
        "patients": len({info.patient_id for info in infos}),
        "lesions": sum(lesions),
        "lesion_free": lesions.count(0),
    }


def _in_split(source: ImageSource, split: str) -> ImageSource:
    if not source.infos:
        raise UserError("the source has no image", where=source.name)
    if not split:
        return source
    counts = Counter(info.split for info in source.infos)
    if not counts[split]:
        named = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()) if name)
        raise UserError(
            f"no image in split '{split}'",
            where=source.name,
            todo=f"choose one of: {named}"
            if named
            else "add a field `split` to the images, or set split_shares=0.7,0.15,0.15 to have patients dealt out",
        )
    return subset(source, [i for i, info in enumerate(source.infos) if info.split == split])


def _where(source: ImageSource, where: Mapping[str, Any]) -> ImageSource:
    for key in where:
        if not any(key in info.meta for info in source.infos):
            known = sorted({name for info in source.infos for name in info.meta})
            raise UserError(
                f"no image has the field '{key}'", where=source.name, todo=f"use one of: {', '.join(known)}"
            )

    positions = [
        i
        for i, info in enumerate(source.infos)
        if all(_fits(info.meta.get(key), wanted) for key, wanted in where.items())
    ]
    if not positions:
        values = {key: sorted({str(info.meta.get(key)) for info in source.infos})[:8] for key in where}
        raise UserError(f"no image fits {dict(where)}", where=source.name, todo=f"values present: {values}")
    return subset(source, positions)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a field has the wanted value, or is written like it; of a list or tuple one entry is enough."""
    if isinstance(wanted, tuple | list):
        return any(_fits(value, one) for one in wanted)
    return value == wanted or str(value).lower() == str(wanted).lower()


# The functions below are module-level, so that sources can be sent to worker processes.


def _read_file(folder: Path, files: tuple[tuple[str, int], ...], position: int) -> np.ndarray:
    name, bit_depth = files[position]
    return decode_image(folder / name, bit_depth=bit_depth)[0]


def read_at(read: Read, positions: tuple[int, ...], position: int) -> np.ndarray:
    """`read` of the images at `positions` alone."""
    return read(positions[position])


def _read_part(reads: tuple[Read, ...], places: tuple[tuple[int, int], ...], position: int) -> np.ndarray:
    part, inner = places[position]
    return reads[part](inner)


class Cache:
    """`read` of a cached source, for any number of threads. A worker process starts with an empty one."""

    def __init__(self, read: Read, max_bytes: int = KEPT_BYTES):
        self.read, self.max_bytes = read, max_bytes
        self.kept: dict[int, np.ndarray] = {}
        self._room, self._lock = max_bytes, Lock()

    def __call__(self, position: int) -> np.ndarray:
        packed = self.kept.get(position)
        return _unpack(self._keep(position, pack(self.read(position))) if packed is None else packed)

    def put(self, position: int, image: np.ndarray) -> None:
        """Keep an image that was decoded for another reason, where there is room for it."""
        self._keep(position, pack(image))

    def _keep(self, position: int, packed: np.ndarray) -> np.ndarray:
        with self._lock:
            if position not in self.kept and packed.nbytes <= self._room:
                self.kept[position] = packed
                self._room -= packed.nbytes
        return packed

    def __reduce__(self) -> tuple[Any, ...]:
        return Cache, (self.read, self.max_bytes)


def pack(image: np.ndarray) -> np.ndarray:
    """uint8 where exact, else uint16; what is not within [0, 1] stays as it is, for the checks to find."""
    if not (image.min() >= 0 and image.max() <= 1):
        return image
    eight = np.round(image * 255).astype(np.uint8)
    return eight if np.array_equal(_unpack(eight), image) else np.round(image * 65535).astype(np.uint16)


def _unpack(packed: np.ndarray) -> np.ndarray:
    if packed.dtype == np.float32:
        return packed
    white = 255 if packed.dtype == np.uint8 else 65535
    return (packed.astype(np.float32) * np.float32(1.0 / white)).clip(0, 1)
