"""Cut low-energy and subtracted images of the same views into aligned pairs of tiles, to train image translation.

  python data_prep/paired_tiles.py --low_energy=low_energy.json --subtracted=subtracted.json --output=data/tiles
  python data_prep/paired_tiles.py --low_energy=low_energy.json --subtracted=subtracted.json --output=data/tiles \\
      --tile=128 --stride=64                                        images of 512 px, tiles with half overlap

Both inputs are COCO files whose images have patient_id, laterality and view; images that agree in all three are a pair.
The low-energy image is registered onto the subtracted one (affine); pairs that cannot be registered are omitted and
counted. Tiles that are mostly black are dropped. The output is read as coco:data/tiles/tiles.json: the subtracted tiles
with the boxes of lesions, each with the name of its low-energy tile; overlays/ shows some pairs (low energy in green,
subtracted in magenta). Then: python launch/train.py --config=configs/bridge_le_to_cem.py:small \\
          --config.data.pairs.spec=coco:data/tiles/tiles.json
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  before any import of elk_jax
import cv2
import numpy as np
from folders import new_folder
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from elk_jax.data import tiles
from elk_jax.data.registration import register, warp
from elk_jax.data.sources import source as sources
from elk_jax.data.sources.coco import write_coco
from elk_jax.data.sources.decode import encode_png
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.pairs import PARTNER
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError, run_main
from elk_jax.files import make_folder, write_bytes, write_json
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import cut
from elk_jax.output import Console
from elk_jax.spread import spread
from elk_jax.threads import map_in_threads

VIEW = ("laterality", "view")
INDEX, SUMMARY = "tiles.json", "summary.json"
OVERLAYS = 8

Key = tuple[str, ...]
"""patient_id, laterality, view."""


@dataclass(frozen=True)
class Prepared:
    """The result for a pair: its tiles, or the reason for having none."""

    infos: tuple[ImageInfo, ...] = ()
    failure: str = ""
    likeness: float = 0.0
    black: int = 0  # dropped tiles


def main(argv: list[str]) -> None:
    flags = parse(argv)
    files = flags.low_energy, flags.subtracted
    specs = (SourceSpec(f"coco:{path}", bit_depth=flags.bit_depth) for path in files)
    low, subtracted = (open_source(spec, cache_bytes=0) for spec in specs)
    pairs, alone = matched(low, subtracted)
    check_sizes(subtracted, pairs, flags.tile, flags.stride)
    cv2.setNumThreads(0)  # pairs are processed in threads
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        new_folder(flags.output, flags.overwrite) as built,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        for name in ("images/low_energy", "images/subtracted", "overlays"):
            make_folder(built / name)
        drawn = set(spread(len(pairs), OVERLAYS).tolist())
        task = progress.add_task("registering pairs", total=len(pairs))

        def advance(results: Iterable[Any], total: int) -> Iterator[Any]:
            for result in results:
                progress.advance(task)
                yield result

        def prepare(number: int) -> Prepared:
            i, j = pairs[number]
            return prepared(low, i, subtracted, j, flags, built, number in drawn)

        results = map_in_threads(prepare, len(pairs), advance)
        infos = [info for result in results for info in result.infos]
        if not infos:
            reason = next((result.failure for result in results if result.failure), "all tiles are mostly black")
            raise UserError(
                f"no tiles from {len(pairs)} pairs; the first: {reason}",
                where=flags.subtracted,
                todo="check the images of a pair: they must show the same breast with the same orientation",
            )
        description = "Registered pairs of low-energy and subtracted tiles"
        write_coco(built / INDEX, infos, subtracted.classes, description)
        summary = summarised(flags, subtracted, pairs, alone, results)
        write_json(built / SUMMARY, summary)
    counts = ", ".join(f"{split or 'no split'} {count}" for split, count in summary["tiles"].items())
    print(
        f"built {flags.output}: {len(infos)} pairs of tiles of {flags.tile} px ({counts}) "
        f"from {summary['pairs']} pairs of images; "
        f"{len(summary['not_registered'])} not registered, {len(alone)} images without a partner, "
        f"{summary['black_tiles']} black tiles dropped"
    )


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="paired_tiles.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--low_energy", required=True, help="COCO file of the low-energy images")
    parser.add_argument("--subtracted", required=True, help="COCO file of the subtracted images")
    parser.add_argument("--output", required=True, help="folder to build; it appears once it is complete")
    parser.add_argument("--bit_depth", type=int, default=0, help="significant bits of 16-bit files, for example 12")
    parser.add_argument("--tile", type=int, default=512, help="side in px (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=0, help="px between tiles; 0: side by side (default)")
    parser.add_argument(
        "--max_black",
        type=float,
        default=tiles.MAX_BLACK,
        help="drop tiles with a larger share of black in the low-energy image (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder once the new one is complete")
    flags = parser.parse_args(argv)
    if not 0 <= flags.max_black <= 1:
        raise UserError(f"max_black is {flags.max_black}", where="--max_black", todo="give a share from 0 to 1")
    return flags


def matched(low: ImageSource, subtracted: ImageSource) -> tuple[list[tuple[int, int]], list[str]]:
    """((position in low, position in subtracted) of every pair, in the order of the latter; images without a partner).

    UserError for an image without laterality or view, two images of one view, a pair in two splits, or no pairs.
    """
    first, second = by_view(low), by_view(subtracted)
    pairs = [(first[key], position) for key, position in second.items() if key in first]
    if not pairs:
        raise UserError(
            "no pairs: no low-energy image has the patient_id, laterality and view of a subtracted image, "
            f"for example {' '.join(next(iter(first)))} and {' '.join(next(iter(second)))}",
            where=f"{low.name} and {subtracted.name}",
            todo="check these fields",
        )
    for i, j in pairs:
        splits = low.infos[i].split, subtracted.infos[j].split
        if splits[0] != splits[1]:
            raise UserError(
                f"a pair in two splits: {low.infos[i].file_name} is in '{splits[0]}', "
                f"{subtracted.infos[j].file_name} in '{splits[1]}'",
                where=low.name,
                todo="give both images of a view the same split",
            )
    alone = [low.infos[i].file_name for key, i in first.items() if key not in second]
    return pairs, alone + [subtracted.infos[j].file_name for key, j in second.items() if key not in first]


def by_view(source: ImageSource) -> dict[Key, int]:
    found: dict[Key, int] = {}
    for position, info in enumerate(source.infos):
        where = f"{source.name}, image {info.image_id} ({info.file_name})"
        for field in VIEW:
            if not info.meta.get(field):
                raise UserError(f"the field '{field}' is missing", where=where, todo="add it: it identifies pairs")
        key = (info.patient_id, *(str(info.meta[field]) for field in VIEW))
        if key in found:
            other = source.infos[found[key]].file_name
            todo = "remove one of them"
            raise UserError(f"two images of {' '.join(key)}; the first is {other}", where=where, todo=todo)
        found[key] = position
    return found


def check_sizes(subtracted: ImageSource, pairs: list[tuple[int, int]], tile: int, stride: int) -> None:
    """UserError for tiles larger than an image, before decoding any."""
    for _, position in pairs:
        info = subtracted.infos[position]
        tiles.tile_windows(info.height, info.width, tile, stride, f"{subtracted.name}, {info.file_name}")


def prepared(
    low: ImageSource, i: int, subtracted: ImageSource, j: int, flags: argparse.Namespace, built: Path, drawn: bool
) -> Prepared:
    """Register one pair and write its tiles below `built`."""
    info = subtracted.infos[j]
    moving, fixed = low[i].image[..., 0], subtracted[j].image[..., 0]
    alignment = register(moving, fixed)
    moved = warp(moving, alignment.matrix, fixed.shape)
    name = "_".join([info.patient_id, *(str(info.meta[field]) for field in VIEW)]).replace("/", "-")
    if drawn:
        picture = overlay(moved, fixed, 1024)
        write_bytes(built / "overlays" / f"{name}.jpg", cv2.imencode(".jpg", picture)[1].tobytes())
    if alignment.failure:
        return Prepared(failure=alignment.failure, likeness=alignment.likeness)
    depth = sources.pack(moving).dtype  # 8 bits stay 8 bits
    white = np.iinfo(depth).max
    moved, fixed = np.round(moved * white).astype(depth), sources.pack(fixed)
    infos, black = [], 0
    for window in tiles.tile_windows(info.height, info.width, flags.tile, flags.stride):
        part = cut(moved, window)
        if tiles.black_share(part / np.float32(white)) > flags.max_black:
            black += 1
            continue
        file = f"{name}_{window[0]:04d}_{window[1]:04d}.png"
        write_bytes(built / "images" / "low_energy" / file, encode_png(part))
        write_bytes(built / "images" / "subtracted" / file, encode_png(cut(fixed, window)))
        infos.append(index_entry(info, window, file, alignment.likeness))
    return Prepared(tuple(infos), likeness=alignment.likeness, black=black)


def index_entry(info: ImageInfo, window: tuple[int, int, int, int], file: str, likeness: float) -> ImageInfo:
    """The entry of a tile in the index: the subtracted tile, its boxes, and the file of its partner."""
    return replace(
        tiles.tile_info(info, window),
        image_id=Path(file).stem,
        file_name=f"subtracted/{file}",
        meta={
            PARTNER: f"low_energy/{file}",
            **{field: info.meta[field] for field in VIEW},
            "position": list(window[:2]),
            "cut_from": info.file_name,
            "likeness": round(likeness, 4),
        },
    )


def overlay(low: np.ndarray, subtracted: np.ndarray, side: int) -> np.ndarray:
    """[h, w, 3] uint8: the low-energy image in green over the subtracted one in magenta, long side at most `side`."""
    colours = (np.dstack([subtracted, low, subtracted]).clip(0, 1) ** 0.6 * 255).astype(np.uint8)
    scale = min(1.0, side / max(colours.shape[:2]))
    return cv2.resize(colours, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def summarised(
    flags: argparse.Namespace,
    subtracted: ImageSource,
    pairs: list[tuple[int, int]],
    alone: list[str],
    results: list[Prepared],
) -> dict[str, Any]:
    """The content of summary.json."""
    infos = [info for result in results for info in result.infos]
    names = [subtracted.infos[j].file_name for _, j in pairs]
    return {
        "tile": flags.tile,
        "stride": flags.stride,
        "max_black": flags.max_black,
        "pairs": sum(not result.failure for result in results),
        "patients": len({info.patient_id for info in infos}),
        "tiles": dict(sorted(Counter(info.split for info in infos).items())),
        "black_tiles": sum(result.black for result in results),
        "median_likeness": round(float(np.median([result.likeness for result in results])), 4),
        "not_registered": [[name, result.failure] for name, result in zip(names, results) if result.failure],
        "without_partner": alone,
    }


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
