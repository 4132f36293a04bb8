"""Image collections as plain data, and functions that derive one from another. `open.py` opens them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, Literal

import numpy as np

from elk_jax.data.sources import checks
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo, Record
from elk_jax.privacy.mechanism import Statement, once
from elk_jax.randomness import Purpose, random_order
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

Read = Callable[[int], np.ndarray]
"""Position -> image [H, W, 1] float32 in [0, 1]."""

CACHE_BYTES = 1 << 30
"""Memory for the decoded images of a source (`cached`): 4000 images of 512 x 512 px, or 80 full mammograms, in 8
bits."""


@dataclass(frozen=True)
class ImageSource:
    """A random-access collection of images: what every loader, split and evaluation is built on.

    skipped: (image id, reason) of the unreadable images that were left out.
    seen_patients: for painted images, hashes (`patients.patient_hash`) of the patients seen by their painter.
    promises: ledgers of the private training runs behind generated images; None if they claim privacy without a record
    of its cost, so that it cannot be composed.
    category_ids: the id of each class in a COCO file, in label order; None if classes have no ids.
    mixed: names of the mixed sources, indexed by `ImageInfo.source`; () if none are mixed.
    partner: for pairs, reads the second image; boxes and metadata belong to the first. None for single images.
    """

    name: str
    classes: tuple[str, ...]
    infos: tuple[ImageInfo, ...]
    read: Read
    skipped: tuple[tuple[str, str], ...] = ()
    seen_patients: frozenset[str] = frozenset()
    promises: tuple[Statement, ...] | None = ()
    category_ids: tuple[int, ...] | None = None
    mixed: tuple[str, ...] = ()
    partner: Read | None = None

    @property
    def images(self) -> int:
        """I, images per record: 2 for pairs."""
        return 1 if self.partner is None else 2

    def __len__(self) -> int:
        return len(self.infos)

    def __getitem__(self, index: int) -> Record:
        """Decode one image [H, W, I]. UserError if it is missing, damaged, not finite, or of the wrong size."""
        info = self.infos[index]
        where = f"{self.name}, image {info.image_id} ({info.file_name})"
        image = self.read(index)
        checks.check_pixels(image, info.width, info.height, where)
        if self.partner is None:
            return Record(info, image)
        partner = self.partner(index)
        checks.check_pixels(partner, info.width, info.height, f"{where}, its partner")
        return Record(info, np.concatenate([image, partner], axis=-1))


def subset(source: ImageSource, positions: Sequence[int] | np.ndarray) -> ImageSource:
    """The records at `positions`, in that order."""
    chosen = tuple(int(position) for position in positions)
    infos = tuple(source.infos[position] for position in chosen)
    return reread(source, lambda read: partial(read_at, read, chosen), infos)


def reread(
    source: ImageSource, wrap: Callable[[Read], Read], infos: tuple[ImageInfo, ...] | None = None
) -> ImageSource:
    """The source with `wrap` applied to every reader of its images; with other infos, if given."""
    partner = None if source.partner is None else wrap(source.partner)
    return replace(source, infos=source.infos if infos is None else infos, read=wrap(source.read), partner=partner)


def fewshot(source: ImageSource, patients: int, seed: int = 0) -> ImageSource:
    """All images of `patients` random patients. With one seed, fewer patients are a subset of more."""
    names = sorted({info.patient_id for info in source.infos})
    check_fewshot(patients, len(names), source.name)
    order = random_order(len(names), seed, Purpose.PATIENTS)
    chosen = {names[position] for position in order[:patients]}
    return subset(source, [i for i, info in enumerate(source.infos) if info.patient_id in chosen])


def check_fewshot(patients: int, there: int, where: object) -> None:
    """UserError unless `patients` can be drawn from those that are there."""
    if not 1 <= patients <= there:
        what = f"{patients} patients requested, but the source has {there}"
        raise UserError(what, where=where, todo=f"choose a number from 1 to {there}")


def share_of(source: ImageSource, share: float, of: Literal["patients", "images"], seed: int = 0) -> ImageSource:
    """All images of a share of the patients, or a share of the images (rounded, at least one), drawn by the seed.

    A smaller share is a subset of a larger one.
    """
    if of == "patients":
        patients = len({info.patient_id for info in source.infos})
        return fewshot(source, max(1, round(share * patients)), seed)
    order = random_order(len(source), seed, Purpose.PATIENTS)
    return subset(source, sorted(order[: max(1, round(share * len(source)))].tolist()))


def concatenate(sources: Sequence[ImageSource]) -> ImageSource:
    """Several sources as one, in order. `ImageInfo.source` is the index in `mixed` of a record's source.

    UserError if the sources have different classes, or only some contain pairs.
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
        if source.images != sources[0].images:
            where = f"{sources[0].name} and {source.name}"
            what = "only one of these sources has pairs"
            raise UserError(what, where=where, todo="set `partner` for both, or for neither")
    places = tuple((part, position) for part, source in enumerate(sources) for position in range(len(source)))
    partners = tuple(source.partner for source in sources if source.partner is not None)
    ids = {source.category_ids for source in sources}
    return ImageSource(
        name=" + ".join(source.name for source in sources),
        classes=sources[0].classes,
        infos=tuple(replace(sources[part].infos[position], source=part) for part, position in places),
        read=partial(read_part, tuple(source.read for source in sources), places),
        skipped=tuple(entry for source in sources for entry in source.skipped),
        seen_patients=frozenset().union(*(source.seen_patients for source in sources)),
        promises=promises_of(sources),
        mixed=tuple(source.name for source in sources),
        category_ids=ids.pop() if len(ids) == 1 else None,
        partner=partial(read_part, partners, places) if partners else None,
    )


def promises_of(sources: Sequence[ImageSource]) -> tuple[Statement, ...] | None:
    """Ledgers of the private training runs behind several sources, each once; None if any source has None."""
    known = [source.promises for source in sources if source.promises is not None]
    return once(promise for own in known for promise in own) if len(known) == len(sources) else None


def paired(first: ImageSource, second: Read) -> ImageSource:
    """The records of `first`, each with the image that `second` reads at its position as its partner.

    Partners are read lazily: `one_of` opens only the files of the chosen image.
    """
    return replace(first, partner=partial(read_partner, second, first.infos))


def one_of(source: ImageSource, number: int) -> ImageSource:
    """Only the first (0) or the second (1) image of every record; the other is not read. The boxes remain those of the
    first."""
    if number == 0:
        return replace(source, partner=None)
    partner = with_images(source, 2).partner
    assert partner is not None
    return replace(source, read=partner, partner=None)


def with_images(source: ImageSource, images: int) -> ImageSource:
    """The source with `images` images per record: from pairs, the first only. UserError if there are fewer."""
    if source.images < images:
        raise UserError(
            "the source has no pairs",
            where=source.name,
            todo="set its `partner`: the field with the file of the second image, or a modality",
        )
    return one_of(source, 0) if source.images > images else source


def cached(source: ImageSource, max_bytes: int = CACHE_BYTES) -> ImageSource:
    """Keep decoded images in memory, up to `max_bytes`: 8 bits per pixel if exact, else 16 (error < 1e-5).

    A record has the same pixels whether or not it was in memory.
    """
    return reread(source, lambda read: Cache(read, max_bytes // source.images))


def without_unreadable(source: ImageSource, progress: ProgressBar = no_bar) -> ImageSource:
    """Decode every image once; unreadable ones are skipped, and listed with the reason in `.skipped`."""

    def failure(position: int) -> str:
        try:
            source[position]
            return ""
        except UserError as error:
            return str(error)

    failures = map_in_threads(failure, len(source), progress)
    good = [position for position, reason in enumerate(failures) if not reason]
    bad = [(info.image_id, reason) for info, reason in zip(source.infos, failures) if reason]
    if not good:
        what = f"none of {len(bad)} images can be read; the first: {bad[0][1]}"
        raise UserError(what, where=source.name, todo="check that these are the intended files")
    return replace(subset(source, good), skipped=(*source.skipped, *bad))


def summary(infos: Iterable[ImageInfo]) -> dict[str, int]:
    """Counts for logs and reports. `lesions` excludes ignore boxes; `lesion_free` images have no ignore boxes either.

    `doubled_boxes`: boxes that repeat another of the same image and class; `clean_boxes` drops them.
    """
    infos = list(infos)
    boxes = sum(len(info.boxes) for info in infos)
    different = sum(len({*zip(info.labels.tolist(), map(tuple, info.boxes.tolist()))}) for info in infos)
    return {
        "images": len(infos),
        "patients": len({info.patient_id for info in infos}),
        "lesions": sum(int((~info.ignore).sum()) for info in infos),
        "lesion_free": sum(info.is_lesion_free for info in infos),
        "ignored_boxes": sum(int(info.ignore.sum()) for info in infos),
        "doubled_boxes": boxes - different,
    }


def counted(infos: Iterable[ImageInfo]) -> str:
    """The `summary` in words: "20 images (8 without lesions) of 5 patients, 38 lesions, 2 ignored boxes"."""
    counts = summary(infos)
    free = f" ({counts['lesion_free']} without lesions)" if counts["lesion_free"] else ""
    images, patients, lesions = (_several(counts[key], key[:-1]) for key in ("images", "patients", "lesions"))
    boxes = {"ignored box": counts["ignored_boxes"], "doubled box": counts["doubled_boxes"]}
    return ", ".join([f"{images}{free} of {patients}", lesions, *(_several(n, one) for one, n in boxes.items() if n)])


def _several(count: int, one: str) -> str:
    """ "1 box", "2 boxes"."""
    return f"{count} {one}" if count == 1 else f"{count} {one}{'es' if one.endswith('x') else 's'}"


# Module-level functions, not closures, so that sources can be sent to worker processes.


def read_at(read: Read, positions: tuple[int, ...], position: int) -> np.ndarray:
    """`read`, restricted to the images at `positions`."""
    return read(positions[position])


def read_part(reads: tuple[Read, ...], places: tuple[tuple[int, int], ...], position: int) -> np.ndarray:
    """The image from the reader and position in `places`."""
    part, inner = places[position]
    return reads[part](inner)


def read_partner(read: Read, infos: tuple[ImageInfo, ...], position: int) -> np.ndarray:
    """The second image of a pair, which must have the size of the first."""
    image, info = read(position), infos[position]
    if image.shape[:2] != (info.height, info.width):
        raise UserError(
            f"the image has {info.width} x {info.height} px, but its partner {image.shape[1]} x {image.shape[0]} px",
            where=f"image {info.image_id} ({info.file_name})",
            todo="align pairs with data_prep/paired_images.py",
        )
    return image


class Cache:
    """`read` of a cached source; thread-safe. A worker process starts with an empty cache."""

    def __init__(self, read: Read, max_bytes: int = CACHE_BYTES):
        self.read, self.max_bytes = read, max_bytes
        self.kept: dict[int, np.ndarray] = {}
        self._room, self._lock = max_bytes, Lock()

    def __call__(self, position: int) -> np.ndarray:
        packed = self.kept.get(position)
        return _unpack(self._keep(position, pack(self.read(position))) if packed is None else packed)

    def put(self, position: int, image: np.ndarray) -> None:
        """Store an image that was decoded for another reason, if there is room for it."""
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
    """uint8 if exact, else uint16; an image outside [0, 1] is left unchanged for the checks to find."""
    if not (image.min() >= 0 and image.max() <= 1):
        return image
    eight = np.round(image * 255).astype(np.uint8)
    return eight if np.array_equal(_unpack(eight), image) else np.round(image * 65535).astype(np.uint16)


def _unpack(packed: np.ndarray) -> np.ndarray:
    if packed.dtype == np.float32:
        return packed
    white = 255 if packed.dtype == np.uint8 else 65535
    return (packed.astype(np.float32) * np.float32(1.0 / white)).clip(0, 1)
