"""Convert the published CDD-CESM to a COCO folder and a TFDS data set, with ELK's filter, boxes and split.

  python data_prep/cdd_cesm.py --input=CDD-CESM --output=data/cdd_cesm
  python data_prep/cdd_cesm.py --input=CDD-CESM --table_only               only counts, from the tables
  python data_prep/cdd_cesm.py --input=CDD-CESM --output=data/mammo --modality=low_energy --filter=all_masses

The input is the download from TCIA: the folders "Low energy images of CDD-CESM" and "Subtracted images of
CDD-CESM", the table of images (XLSX or CSV) and the table of hand-drawn regions (CSV), anywhere below
--input. Images may be JPG, PNG, TIFF or DICOM. Images that are in the tables but not in the folder are counted and
listed.

To train a detector on the output:
  python launch/train.py --config=configs/cem_real.py \\
      --config.data.real.spec=coco:data/cdd_cesm/coco/cdd_cesm.json
  (or tfds:data/cdd_cesm/tfds)
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  before any import of elk_jax
import numpy as np
from cdd_plan import PUBLISHED, SPLITS, Options, Plan, Planned, counts, make_plan
from cdd_tables import passes, read_tables, squeeze
from folders import new_folder
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tfds_writer import load_tfds, write_tfds

from elk_jax import files
from elk_jax.data.sources.coco import write_coco
from elk_jax.data.sources.decode import SUFFIXES, as_integers, decode_pixels, encode_png
from elk_jax.data.sources.dicom import breast_side
from elk_jax.errors import UserError, run_main
from elk_jax.files import make_folder, write_bytes, write_json
from elk_jax.images.schema import ImageInfo
from elk_jax.output import Console
from elk_jax.randomness import check_seed

NAME, SUMMARY = "cdd_cesm", "summary.json"
CLASSES = ("lesion",)
DESCRIPTION = "CDD-CESM, contrast-enhanced spectral mammography with hand-drawn lesions (Khaled et al. 2022), CC BY 4.0"
CITATION = (
    "Khaled R. et al., Categorized contrast enhanced mammography dataset for diagnostic and artificial "
    "intelligence research, Scientific Data 9:122, 2022, doi:10.7937/29kw-ae92"
)


def find_images(folder: Path, wanted: set[str]) -> dict[str, Path]:
    """Name -> file below `folder`, ignoring extension and spaces. UserError for two files of the same image."""
    found: dict[str, Path] = {}
    for path in files.below(folder):
        name = squeeze(path.stem)
        if path.suffix.lower() not in SUFFIXES or name not in wanted or path.name.startswith("."):
            continue
        if name in found:
            what = f"two files for image {name}: {found[name]} and {path}"
            raise UserError(what, where=folder, todo="remove one of them")
        found[name] = path
    return found


def main(argv: list[str]) -> None:
    flags = parse(argv)
    console, progress_console = Console(), Console(stderr=True)
    options = Options(flags.filter, flags.modality, flags.cleaning, flags.split, flags.split_seed)
    formats = tuple(part.strip() for part in flags.formats.split(",") if part.strip())
    if not formats or not set(formats) <= {"coco", "tfds"}:
        raise UserError(f"unknown formats {flags.formats!r}", where="--formats", todo="give coco, tfds or coco,tfds")
    if not flags.table_only and not flags.output:
        raise UserError("no output folder", where="--output", todo="give --output=FOLDER, or add --table_only")
    rows = read_tables(flags.input)
    plan = make_plan(rows, options)
    print_filter(console, plan)
    if not plan.images:
        raise UserError("no images pass the filter", where=flags.input, todo="choose another --filter or --modality")
    in_tables = counts(plan.images)
    if flags.table_only:
        print_counts(console, options, {"in the tables": in_tables})
        return

    every = {image.row.name: image for image in (*plan.images, *plan.canvases)}
    files = find_images(Path(flags.input), set(every))
    missing = [image.row.name for image in plan.images if image.row.name not in files]
    if len(missing) == len(plan.images):
        raise UserError(f"none of the {len(missing)} images of the tables was found", where=flags.input,
                        todo="put the image folders of CDD-CESM beside the tables")  # fmt: skip
    if "tfds" in formats:
        load_tfds()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        new_folder(flags.output, SUMMARY, flags.overwrite, [flags.input]) as folder,
        Progress(*columns, console=progress_console) as progress,
    ):
        built = build(folder, plan, files, formats, flags.on_error == "skip", progress)
        written = counts([every[info.image_id] for info in built.images])
        for name, lesions in built.lesions.items():
            written[name]["lesions"] = lesions
        summary = {
            "options": asdict(options),
            "tables": {"images": len(rows), "after_filter": len(plan.filtered), "counts": in_tables},
            "written": {"counts": written, "healthy_canvases": [info.image_id for info in built.canvases]},
            "missing_images": missing,
            "unannotated_images": list(plan.unannotated),
            "unreadable_images": built.unreadable,
            "boxes_outside_their_image": built.outside,
            "other_side_than_the_table": built.mirrored,
        }
        write_json(folder / SUMMARY, summary)
    print_counts(console, options, {"in the tables": in_tables, "written": written})
    print_remarks(console, summary, len(built.canvases), flags.output)


@dataclass(frozen=True)
class Built:
    """The result of reading the images."""

    images: list[ImageInfo]
    canvases: list[ImageInfo]
    lesions: dict[str, int]  # per split, after clipping
    unreadable: dict[str, str]
    outside: list[str]
    mirrored: list[str]


def build(
    folder: Path, plan: Plan, files: dict[str, Path], formats: tuple[str, ...], skip: bool, progress: Progress
) -> Built:
    """Decode every image once, write `folder/coco` and `folder/tfds`."""
    every = {image.row.name: image for image in (*plan.images, *plan.canvases)}
    present = [image for name, image in every.items() if name in files]
    infos: dict[str, ImageInfo] = {}
    unreadable: dict[str, str] = {}
    outside: list[str] = []
    mirrored: list[str] = []
    bits = 8
    images = folder / "coco" / "images"
    if "coco" in formats:
        make_folder(images)
    for image in progress.track(present, description="reading images"):
        path = files[image.row.name]
        try:
            pixels, meta = decode_pixels(path)
        except UserError as error:
            if not skip:
                raise
            unreadable[image.row.name] = str(error)
            continue
        plain = path.suffix.lower() in (".jpg", ".jpeg", ".png")
        file_name = image.row.name + (path.suffix.lower() if plain else ".png")
        info = to_info(image, pixels, meta, file_name)
        infos[image.row.name] = info
        if len(info.boxes) < len(image.boxes):
            outside.append(image.row.name)
        if breast_side(pixels) not in (None, image.row.side):
            mirrored.append(image.row.name)
        bits = max(bits, 8 if pixels.dtype == np.uint8 else 16)
        if "coco" in formats:
            write_bytes(images / file_name, path.read_bytes() if plain else encode_png(as_integers(pixels)))

    chosen = [infos[image.row.name] for image in plan.images if image.row.name in infos]
    canvases = [infos[image.row.name] for image in plan.canvases if image.row.name in infos]
    if not chosen:
        raise UserError("no images could be read", where=next(iter(unreadable.values()), folder))
    if "coco" in formats:
        write_coco(folder / "coco" / f"{NAME}.json", chosen, CLASSES, DESCRIPTION, "CC BY 4.0")
        write_coco(folder / "coco" / "healthy_canvases.json", canvases, CLASSES, DESCRIPTION, "CC BY 4.0")
    if "tfds" in formats:
        task = progress.add_task("writing TFDS", total=len(chosen))
        write_tfds(
            folder / "tfds",
            NAME,
            chosen,
            CLASSES,
            lambda info: as_integers(decode_pixels(files[info.image_id])[0]),
            bits=bits,
            description=DESCRIPTION,
            citation=CITATION,
            on_image=lambda: progress.advance(task),
        )
    lesions = {name: sum(len(info.boxes) for info in chosen if info.split == name) for name in SPLITS}
    lesions["all"] = sum(lesions.values())
    lesions["few-shot"] = sum(len(info.boxes) for info in chosen if info.meta["fewshot"])
    return Built(chosen, canvases, lesions, unreadable, outside, mirrored)


def to_info(image: Planned, pixels: np.ndarray, meta: dict[str, Any], file_name: str) -> ImageInfo:
    """The entry of an image: boxes clipped to it, without those outside, and all metadata."""
    height, width = pixels.shape
    boxes = np.clip(image.boxes, 0, np.array([width, height, width, height], np.float32))
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    row = image.row
    spacing = {"pixel_spacing": list(meta["pixel_spacing"])} if meta["pixel_spacing"] else {}
    return ImageInfo(
        image_id=row.name,
        patient_id=row.patient_id,
        width=width,
        height=height,
        boxes=boxes,
        labels=np.zeros(len(boxes), np.int32),
        ignore=np.zeros(len(boxes), bool),
        split=image.split,
        file_name=file_name,
        meta={
            "name": row.name,
            "laterality": row.side,
            "view": row.view,
            "modality": row.modality,
            "pathology": row.pathology,
            "birads": row.birads,
            "density": row.density,
            "findings": row.findings,
            "tags": row.tags,
            "is_mass": passes(row, "elk"),
            "fewshot": image.fewshot and image.split == "train",
            **spacing,
        },
    )


def print_filter(console: Console, plan: Plan) -> None:
    pathology = Counter(row.pathology or "unknown" for row in plan.filtered)
    parts = ", ".join(f"{number} {name.lower()}" for name, number in pathology.most_common())
    patients = len({row.patient_id for row in plan.filtered})
    drawn = sum(len(row.boxes) for row in plan.filtered)
    points = sum(row.points for row in plan.filtered)
    cleaned = sum(len(image.boxes) for image in plan.images)
    console.print(f"filter:    {len(plan.filtered)} images ({parts}) of {patients} patients")
    skipped = f" ({points} points skipped)" if points else ""
    console.print(f"boxes:     {drawn} drawn{skipped}, {cleaned} after cleaning")
    console.print(f"omitted:   {len(plan.unannotated)} images without a region {' '.join(plan.unannotated[:6])}")
    console.print(f"canvases:  {len(plan.canvases)} healthy images of training patients")


def print_counts(console: Console, options: Options, columns: dict[str, Any]) -> None:
    table = Table(title="patients / images / lesions")
    table.add_column("split")
    if options == Options():
        columns = {
            **columns,
            "published": {k: dict(zip(("patients", "images", "lesions"), v)) for k, v in PUBLISHED.items()},
        }
    for name in columns:
        table.add_column(name, justify="right")
    for split in (*SPLITS, "all", "few-shot"):
        cells = [counted[split] for counted in columns.values()]
        table.add_row(split, *(f"{cell['patients']} / {cell['images']} / {cell['lesions']}" for cell in cells))
    console.print(table)


def print_remarks(console: Console, summary: dict[str, Any], canvases: int, output: str) -> None:
    for key in (
        "missing_images",
        "unreadable_images",
        "boxes_outside_their_image",
        "other_side_than_the_table",
    ):
        names = list(summary[key])
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            console.print(f"{key.replace('_', ' ')}: {len(names)} ({', '.join(names[:5])}{more})")
    console.print(f"healthy canvases written: {canvases}")
    console.print(f"built {output}; all counts and lists are in {Path(output) / SUMMARY}")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cdd_cesm.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--input", required=True, help="folder with the images and tables of CDD-CESM")
    parser.add_argument("--output", help="folder to build; it appears once it is complete")
    parser.add_argument("--formats", default="coco,tfds", help="coco, tfds or both (default: %(default)s)")
    parser.add_argument("--filter", default="elk", choices=("elk", "all_masses", "none"),
                        help="elk: the published rule; all_masses: also weakly enhancing masses; "
                        "none: every annotated image, and healthy images as lesion-free images "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--modality", default="subtracted", choices=("subtracted", "low_energy", "both"),
                        help="(default: %(default)s)")  # fmt: skip
    parser.add_argument("--cleaning", default="published", choices=("published", "strict", "none"),
                        help="published: the 555 boxes of the paper, including 4 exact duplicates; strict: "
                        "the rule as stated, 553 boxes; none: all 595 (default: %(default)s)")  # fmt: skip
    parser.add_argument("--split", default="published", choices=("published", "stratified"),
                        help="published: the patients of the paper; stratified: the same sizes, balanced by the "
                        "number of lesions (default: %(default)s)")  # fmt: skip
    parser.add_argument("--split_seed", type=int, default=42, help="(default: %(default)s)")
    parser.add_argument("--table_only", action="store_true", help="only print the counts")
    parser.add_argument("--on_error", default="stop", choices=("stop", "skip"), help="for unreadable images")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the output folder once the new one is complete"
    )
    flags = parser.parse_args(argv)
    check_seed(flags.split_seed, "--split_seed")
    return flags


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
