"""Cut low-energy and subtracted images of the same views into aligned pairs of tiles, to train image translation.

  python data_prep/paired_tiles.py --low_energy=low_energy.json --subtracted=subtracted.json --output=data/tiles
  python data_prep/paired_tiles.py --low_energy=low_energy.json --subtracted=subtracted.json --output=data/tiles \\
      --tile=128 --stride=64                                        images of 512 px, tiles with half overlap

Both inputs are COCO files whose images have patient_id, laterality and view; images that agree in all three form a
pair. The low-energy image is registered onto the subtracted one (affine); pairs that cannot be registered are omitted
and counted. Tiles that are mostly black are dropped. The output is read as coco:data/tiles/tiles.json: the subtracted
tiles with the boxes of lesions, each with the name of its low-energy tile; overlays/ shows some pairs (low energy in
green, subtracted in magenta). Then:
  python launch/train.py --config=configs/bridge_le_to_cem.py:small --config.data.pairs.spec=coco:data/tiles/tiles.json
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  before any import of elk_jax
import numpy as np
import pairing
from folders import new_folder

from elk_jax.data import tiles
from elk_jax.data.registration import register, warp
from elk_jax.data.sources.coco import write_coco
from elk_jax.data.sources.decode import encode_png
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.pairs import PARTNER
from elk_jax.data.sources.source import ImageSource, promises_of
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError, run_main
from elk_jax.files import make_folder, write_bytes, write_json
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import cut
from elk_jax.spread import spread

INDEX, SUMMARY = "tiles.json", "summary.json"


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
    for source in (low, subtracted):
        refuse_doubles(source)
    found = pairing.matched(low, subtracted)
    pairs, alone = sorted(found.pairs, key=lambda pair: pair[1]), list(found.alone)
    names = pairing.file_names([subtracted.infos[j] for _, j in pairs])
    check_sizes(subtracted, pairs, flags.tile, flags.stride)
    with new_folder(flags.output, INDEX, flags.overwrite, files) as built:
        for name in ("images/low_energy", "images/subtracted", "overlays"):
            make_folder(built / name)
        drawn = set(spread(len(pairs), pairing.OVERLAYS).tolist())

        def prepare(number: int) -> Prepared:
            i, j = pairs[number]
            return prepared(low, i, subtracted, j, names[number], flags, built, number in drawn)

        results = pairing.with_progress(prepare, len(pairs), "registering pairs")
        infos = [info for result in results for info in result.infos]
        if not infos:
            reason = next((result.failure for result in results if result.failure), "all tiles are mostly black")
            raise UserError(
                f"no tiles from {len(pairs)} pairs; the first: {reason}",
                where=flags.subtracted,
                todo="check the images of a pair: they must show the same breast with the same orientation",
            )
        description = "Registered pairs of low-energy and subtracted tiles"
        seen, promises = low.seen_patients | subtracted.seen_patients, promises_of([low, subtracted])
        write_coco(built / INDEX, infos, subtracted.classes, description, seen_patients=seen, promises=promises)
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


def refuse_doubles(source: ImageSource) -> None:
    """UserError for two images of the same view."""
    for key, positions in pairing.by_view(source).items():
        if len(positions) > 1:
            first, other = (source.infos[position] for position in positions[:2])
            raise UserError(
                f"two images of {' '.join(key)}; the first is {first.file_name}",
                where=f"{source.name}, image {other.image_id} ({other.file_name})",
                todo="remove one of them",
            )


def check_sizes(subtracted: ImageSource, pairs: list[tuple[int, int]], tile: int, stride: int) -> None:
    """UserError for tiles larger than an image, before decoding any."""
    for _, position in pairs:
        info = subtracted.infos[position]
        tiles.tile_windows(info.height, info.width, tile, stride, f"{subtracted.name}, {info.file_name}")


def prepared(
    low: ImageSource,
    i: int,
    subtracted: ImageSource,
    j: int,
    name: str,
    flags: argparse.Namespace,
    built: Path,
    drawn: bool,
) -> Prepared:
    """Register one pair and write its tiles below `built`."""
    info = subtracted.infos[j]
    moving, fixed = low[i].image[..., 0], subtracted[j].image[..., 0]
    alignment = register(moving, fixed)
    moved = warp(moving, alignment.matrix, fixed.shape)
    if drawn:
        pairing.write_overlay(built / "overlays" / f"{name}.jpg", moved, fixed)
    if alignment.failure:
        return Prepared(failure=alignment.failure, likeness=alignment.likeness)
    moved, fixed = pairing.stored_as(moved, moving), pairing.stored_as(fixed, fixed)
    white = np.float32(np.iinfo(moved.dtype).max)
    infos, black = [], 0
    for window in tiles.tile_windows(info.height, info.width, flags.tile, flags.stride):
        part = cut(moved, window)
        if tiles.black_share(part / white) > flags.max_black:
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
            **{field: info.meta[field] for field in pairing.VIEW},
            "position": list(window[:2]),
            "cut_from": info.file_name,
            "likeness": round(likeness, 4),
        },
    )


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
