"""Bring the second image of every view into the frame of the first: one COCO file of whole images, each with a partner.

  python data_prep/paired_images.py --first=coco:sm.json --second=coco:ffdm.json --output=data/pairs
  python data_prep/paired_images.py --first=phantom_volumes:modality=synthetic_2d --output=data/phantom_pairs \\
      --second=phantom_volumes:modality=mammogram,shift=24,zoom=0.03
  python data_prep/paired_images.py --first=... --second=... --output=... --register=none --shift=16 --zoom=0.02

Images that agree in patient_id, laterality, view and, if given, study_date form a pair. If a view has several images,
they are matched in the order of `acquisition` (else of ids). Boxes and all other fields are those of the first image.
The second image is aligned to it:
  --register=affine   by the skin line and the edges of tissue (elk_jax/data/registration.py)
  --register=breast   so that the rectangles around the breasts match
  --register=none     not at all; images of different sizes are rescaled to the same pixel size, by their field
                      pixel_spacing (row, column, mm), which the others need where it differs by more than a third
The remaining misalignment is measured in two fields of every image: `overlap` of the breast masks (intersection over
union) and `likeness` of the edges (their correlation). Pairs that overlap less than --least_overlap or could not be
registered are dropped, counted and listed in summary.json. overlays/ shows some pairs: the second image in green, the
first in magenta.
--shift and --zoom misalign the second image again, at random but by known amounts (`moved`, `zoomed`), to measure the
effect of misalignment.
Read the output as coco:data/pairs/pairs.json with --config.data.NAME.partner=partner; without it, only the first images
are read:
  python launch/train.py --config=configs/unified.py:small --config.data.sm.spec=coco:data/pairs/pairs.json \\
      --config.data.pairs.spec=coco:data/pairs/pairs.json --config.data.pairs.partner=partner \\
      --config.data.ffdm.spec=coco:ffdm.json
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
from pairing import Matched

from elk_jax.data import registration
from elk_jax.data.registration import Agreement, Alignment
from elk_jax.data.sources.checks import checked_spacing
from elk_jax.data.sources.coco import write_coco
from elk_jax.data.sources.decode import DECODING, encode_png
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.source import ImageSource, promises_of, summary
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError, run_main
from elk_jax.files import make_folder, write_bytes, write_json
from elk_jax.images.schema import ImageInfo
from elk_jax.randomness import Purpose, check_seed, generator
from elk_jax.spread import spread

INDEX, SUMMARY = "pairs.json", "summary.json"
FIELD = "partner"
"""Field of the images in the index: the file of the second image."""

ROUNDING = 1.0
"""Pixels by which two images of the same field of view may differ after rescaling to the same pixel size."""


@dataclass(frozen=True)
class Prepared:
    """A processed pair. info: its entry in the index; None if it is dropped. failure: why it could not be registered,
    or ""."""

    file: str
    found: Agreement
    info: ImageInfo | None = None
    failure: str = ""


def main(argv: list[str]) -> None:
    flags = parse(argv)
    first, second = (
        open_source(SourceSpec(spec, bit_depth=flags.bit_depth), cache_bytes=0) for spec in (flags.first, flags.second)
    )
    matches = pairing.matched(first, second)
    pairs = matches.pairs
    names = pairing.file_names([first.infos[i] for i, _ in pairs])
    inputs = [SourceSpec(spec).place for spec in (flags.first, flags.second)]
    with new_folder(flags.output, INDEX, flags.overwrite, inputs) as built:
        for name in ("images/first", "images/second", "overlays"):
            make_folder(built / name)
        drawn = set(spread(len(pairs), pairing.OVERLAYS).tolist())

        def prepare(number: int) -> Prepared:
            return prepared(first, second, pairs[number], names[number], number, flags, built, number in drawn)

        results = pairing.with_progress(prepare, len(pairs), "registering pairs")
        infos = [result.info for result in results if result.info is not None]
        if not infos:
            raise UserError(
                f"none of {len(pairs)} pairs is left; the first: {reason(results[0])}",
                where=flags.second,
                todo="check the images of a pair, choose another --register, or give a smaller --least_overlap",
            )
        description = f"{flags.second} in the frame of {flags.first}"
        seen = first.seen_patients | second.seen_patients
        promises = promises_of([first, second])
        write_coco(built / INDEX, infos, first.classes, description, seen_patients=seen, promises=promises)
        counts = summarised(flags, matches, results)
        write_json(built / SUMMARY, counts)
    splits = ", ".join(f"{split or 'no split'} {count['images']}" for split, count in counts["splits"].items())
    print(
        f"built {flags.output}: {counts['pairs']} pairs ({splits}); "
        f"{len(counts['not_registered'])} not registered, {len(counts['below_overlap'])} overlap less than "
        f"{flags.least_overlap:g}, {len(counts['without_partner'])} images without a partner, "
        f"{len(counts['surplus'])} more than the other source has of their view"
    )


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="paired_images.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = "coco:FILE.json, tfds:DIR, phantom_volumes:KEY=VALUE,... or another source of images"
    parser.add_argument("--first", required=True, metavar="SPEC", help=f"{text}: provides the frame and the boxes")
    parser.add_argument("--second", required=True, metavar="SPEC", help="the partners")
    parser.add_argument("--output", required=True, help="folder to build; it appears once it is complete")
    parser.add_argument("--register", choices=ALIGN, default="affine", help="(default: %(default)s)")
    parser.add_argument(
        "--least_overlap",
        type=float,
        default=0.85,
        help="least overlap of the breasts; 0 keeps all (default: %(default)s)",
    )
    parser.add_argument("--shift", type=float, default=0.0, help="misalign by up to this many px (default: 0)")
    parser.add_argument("--zoom", type=float, default=0.0, help="misalign by a factor of up to 1 +- this (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of --shift and --zoom (default: %(default)s)")
    parser.add_argument("--bit_depth", type=int, default=0, help="significant bits of 16-bit files, for example 12")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder once the new one is complete")
    flags = parser.parse_args(argv)
    if not 0 <= flags.least_overlap <= 1:
        what = f"least_overlap is {flags.least_overlap}"
        raise UserError(what, where="--least_overlap", todo="give a share from 0 to 1")
    if not 0 <= flags.shift < np.inf:
        raise UserError(f"shift is {flags.shift}", where="--shift", todo="give pixels, 0 or more")
    if not 0 <= flags.zoom <= 0.5:
        raise UserError(f"zoom is {flags.zoom}", where="--zoom", todo="give a share from 0 to 0.5")
    check_seed(flags.seed, "--seed")
    return flags


def prepared(
    first: ImageSource,
    second: ImageSource,
    pair: tuple[int, int],
    name: str,
    number: int,
    flags: argparse.Namespace,
    built: Path,
    drawn: bool,
) -> Prepared:
    """Register one pair and write its images below `built`. number: selects its misalignment."""
    fixed, moving = (source[at].image[..., 0] for source, at in zip((first, second), pair))
    info, other = first.infos[pair[0]], second.infos[pair[1]]
    alignment = ALIGN[flags.register](moving, fixed, (other, info))
    found = registration.agreement(moving, fixed, alignment.matrix)
    matrix, displaced = alignment.matrix, {}
    if flags.shift or flags.zoom:
        rng = generator(flags.seed, Purpose.MISPLACED_PAIR, number)
        away = registration.misplacement(rng, flags.shift, flags.zoom, registration.chest_wall(fixed))
        matrix = registration.followed(registration.inverse(away.matrix), matrix)
        displaced = {"moved": rounded(away.moved), "zoomed": round(away.factor, 6)}
    moved = registration.warp(moving, matrix, fixed.shape)
    if drawn:
        pairing.write_overlay(built / "overlays" / f"{name}_{found.overlap:.2f}.jpg", moved, fixed)
    if alignment.failure or found.overlap < flags.least_overlap:
        return Prepared(info.file_name, found, failure=alignment.failure)
    for folder, image, original in (("first", fixed, fixed), ("second", moved, moving)):
        write_bytes(built / "images" / folder / f"{name}.png", encode_png(pairing.stored_as(image, original)))
    fields = {
        FIELD: f"second/{name}.png",
        "first_file": info.file_name,
        "second_file": other.file_name,
        "overlap": round(found.overlap, 4),
        "likeness": round(found.likeness, 4),
        "matrix": [rounded(row) for row in matrix],
        **displaced,
    }
    kept = {key: value for key, value in info.meta.items() if key not in DECODING}  # the files are new
    return Prepared(info.file_name, found, replace(info, file_name=f"first/{name}.png", meta=kept | fields))


def unregistered(moving: np.ndarray, fixed: np.ndarray, infos: tuple[ImageInfo, ImageInfo]) -> Alignment:
    """Images of equal size are unchanged; others are rescaled by pixel size, if both then have the same field of
    view."""
    if moving.shape == fixed.shape:
        return Alignment(np.eye(2, 3), 0.0)
    sizes = " and ".join(f"{shape[1]} x {shape[0]} px" for shape in (moving.shape, fixed.shape))
    factor = pixels_for_one(infos)
    if factor is None:
        return Alignment(np.eye(2, 3), 0.0, f"{sizes}, without a pixel_spacing to rescale them")
    if (np.abs(np.array(moving.shape) / factor - fixed.shape) > ROUNDING).any():
        return Alignment(np.eye(2, 3), 0.0, f"{sizes}, which are not the same field of view")
    return Alignment(registration.scaling(factor[::-1]), 0.0)


def pixels_for_one(infos: tuple[ImageInfo, ImageInfo]) -> np.ndarray | None:
    """(rows, columns): pixels of the moving image per pixel of the fixed image; None if unknown."""
    moving, fixed = (
        checked_spacing(info.meta.get("pixel_spacing"), f"image {info.image_id} ({info.file_name})") for info in infos
    )
    return None if moving is None or fixed is None else np.divide(fixed, moving)


def scale_of(infos: tuple[ImageInfo, ImageInfo]) -> float:
    """As `pixels_for_one`, averaged over both axes; 1 if unknown."""
    factor = pixels_for_one(infos)
    return 1.0 if factor is None else float(factor.mean())


ALIGN = {
    "affine": lambda moving, fixed, infos: registration.register(moving, fixed, scale_of(infos)),
    "breast": lambda moving, fixed, infos: registration.match_breasts(moving, fixed, scale_of(infos)),
    "none": unregistered,
}
"""--register -> (moving image, fixed image, infos of both) -> alignment."""


def reason(result: Prepared) -> str:
    """Why a pair was dropped."""
    return result.failure or f"the breasts overlap by {result.found.overlap:.2f}"


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def summarised(flags: argparse.Namespace, matches: Matched, results: list[Prepared]) -> dict[str, Any]:
    """The content of summary.json."""
    kept = [result for result in results if result.info is not None]
    infos = [result.info for result in results if result.info is not None]
    of_split = Counter(info.split for info in infos)
    overlaps, likenesses = (
        [round(float(value), 4) for value in np.quantile(values, (0, 0.5, 1))]
        for values in ([one.found.overlap for one in kept], [one.found.likeness for one in kept])
    )
    return {
        **{name: getattr(flags, name) for name in ("first", "second", "register", "least_overlap", "shift", "zoom")},
        "seed": flags.seed,
        "pairs": len(infos),
        "patients": len({info.patient_id for info in infos}),
        "splits": {name: summary(info for info in infos if info.split == name) for name in sorted(of_split)},
        "overlap_least_median_most": overlaps,
        "likeness_least_median_most": likenesses,
        "not_registered": [[result.file, result.failure] for result in results if result.failure],
        "below_overlap": [
            [result.file, round(result.found.overlap, 4)]
            for result in results
            if result.info is None and not result.failure
        ],
        "without_partner": list(matches.alone),
        "surplus": list(matches.surplus),
    }


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
