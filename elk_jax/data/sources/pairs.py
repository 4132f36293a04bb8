"""Pixel-aligned pairs of tiles: the low-energy and the subtracted image of one breast.

Shapes: S side of a tile. Pairs come from

- a COCO file whose images are the subtracted ones, each with a field `low_energy` that names its partner's file (what
  data_prep/paired_tiles.py writes), or
- the embedded phantom, which has both.

Images larger than S are cut into tiles, and those that are mostly black are left out (`data/tiles.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from elk_jax.data import tiles
from elk_jax.data.sources import coco
from elk_jax.data.sources import source as sources
from elk_jax.data.sources.decode import files_reader
from elk_jax.data.sources.phantom import MODALITIES, parse_options, read_phantom
from elk_jax.data.sources.source import ImageSource, Read
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import Window, cut
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

PARTNER = "low_energy"
"""Field of an image with the file of its low-energy partner."""


@dataclass(frozen=True)
class Pairs:
    """A random-access collection of pairs.

    places: (image, window in it) of every tile; infos: of the subtracted tiles. seen_patients: as in `ImageSource`.
    """

    name: str
    low_energy: Read
    subtracted: Read
    places: tuple[tuple[int, Window], ...]
    infos: tuple[ImageInfo, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    seen_patients: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(low-energy tile, subtracted tile), both [S, S, 1] float32 in [0, 1]."""
        position, window = self.places[index]
        return cut(self.low_energy(position), window), cut(self.subtracted(position), window)


def pair_up(subtracted: ImageSource, spec: SourceSpec, progress: ProgressBar = no_bar) -> ImageSource:
    """The low-energy images for the subtracted ones opened from `spec`, in the same order.

    progress: shows the drawing of phantoms.
    UserError if `spec` has no pairs: an image without partner, or a data set of another kind.
    """
    kind, place = spec.kind, spec.place
    if kind == "phantom":
        if parse_options(place).modality != MODALITIES[0]:
            todo = f"leave modality out: pairs have {' and '.join(MODALITIES)}"
            raise UserError("pairs of phantoms with only one modality", where=spec.spec, todo=todo)
        splits = {info.split for info in subtracted.infos}
        split = splits.pop() if len(splits) == 1 else ""
        infos, read = read_phantom(f"{place},modality={MODALITIES[1]}", split, progress)
        at = {info.image_id: position for position, info in enumerate(infos)}
        chosen = tuple(at[info.image_id] for info in subtracted.infos)
        return replace(subtracted, read=partial(sources.read_at, read, chosen))
    if kind != "coco":
        todo = "give coco:FILE.json of data_prep/paired_tiles.py, or phantom:"
        raise UserError("the source has no pairs", where=spec.spec, todo=todo)
    partners = coco.partners(subtracted.infos, PARTNER, place)
    read = files_reader(coco.image_folder(place), partners, spec, where=place)
    return sources.cached(replace(subtracted, infos=partners, read=read))


def cut_pairs(
    low_energy: ImageSource,
    subtracted: ImageSource,
    size: int,
    stride: int = 0,
    max_black: float = tiles.MAX_BLACK,
    on_error: str = "stop",
    progress: ProgressBar = no_bar,
) -> Pairs:
    """Tiles of S x S pixels of all images; every image is decoded once.

    low_energy: the partners, in the same order. size: S. stride: pixels from one tile to the next, 0: S. max_black:
    largest black share of a tile of the low-energy image. on_error: "stop" raises at the first pair that is unreadable,
    differs in size or is smaller than a tile; "skip" leaves it out. UserError also if no tile is left.
    """

    def of_image(position: int) -> list[Window] | str:
        info = subtracted.infos[position]
        where = f"{subtracted.name}, {info.file_name}"
        try:
            windows = tiles.tile_windows(info.height, info.width, size, stride, where)
            image = low_energy[position].image
            subtracted[position]  # also read once: it may be damaged
        except UserError as error:
            if on_error == "stop":
                raise
            return str(error)
        return [window for window in windows if tiles.black_share(cut(image, window)) <= max_black]

    found = map_in_threads(of_image, len(subtracted), progress)
    skipped = [(subtracted.infos[i].image_id, what) for i, what in enumerate(found) if isinstance(what, str)]
    places = tuple((i, window) for i, windows in enumerate(found) if not isinstance(windows, str) for window in windows)
    if not places:
        raise UserError(
            f"no tile of {size} px with enough breast in {len(subtracted)} images",
            where=subtracted.name,
            todo=f"raise pairs.max_black ({max_black}), or inspect the images",
        )
    infos = tuple(tiles.tile_info(subtracted.infos[i], window) for i, window in places)
    skips = (*subtracted.skipped, *skipped)
    return Pairs(subtracted.name, low_energy.read, subtracted.read, places, infos, skips, subtracted.seen_patients)


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
        partial(sources.read_part, tuple(part.low_energy for part in parts), origin),
        partial(sources.read_part, tuple(part.subtracted for part in parts), origin),
        tuple(places),
        tuple(info for part in parts for info in part.infos),
        tuple(entry for part in parts for entry in part.skipped),
        frozenset().union(*(part.seen_patients for part in parts)),
    )
