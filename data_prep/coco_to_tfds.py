"""Convert a COCO folder to a TFDS data set (ArrayRecord), with all annotations of an image in one record.

  python data_prep/coco_to_tfds.py --input=mine/annotations.json --output=mine/tfds --name=mine

Images are in `images/` beside the JSON file, as PNG, JPG, TIFF or DICOM. `patient_id`, `split` and all other fields of
an image are preserved; with `bit_depth` (significant bits of a 16-bit file) the values are scaled to 16 bits, and
`frame` selects a frame of a multi-frame DICOM file. The result is read as tfds:mine/tfds.
"""

from __future__ import annotations

import argparse
import os
import re
import sys

import checkout  # noqa: F401  before any import of elk_jax
import numpy as np
from folders import new_folder
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tfds_writer import load_tfds, texts_among_numbers, write_tfds

from elk_jax.data.sources.checks import check_no_patient_in_two_splits, check_split_names
from elk_jax.data.sources.coco import check_patients, image_folder, read_coco
from elk_jax.data.sources.decode import as_integers, check_bit_depth, checked_frame, decode_pixels
from elk_jax.errors import UserError, run_main
from elk_jax.output import Console


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="coco_to_tfds.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, help="the COCO file")
    parser.add_argument("--output", required=True, help="folder to build; it appears once it is complete")
    parser.add_argument("--name", default="detection", help="name of the data set (default: %(default)s)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the output folder once the new one is complete"
    )
    flags = parser.parse_args(argv)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", flags.name):
        raise UserError(f"{flags.name!r} is not a valid name", where="--name", todo="use lower-case letters, digits, _")
    content = read_coco(flags.input)
    infos, classes = content.infos, content.classes
    check_patients(content, flags.input)
    if content.seen_patients or content.promises != ():
        what = "the images were made by a model that has seen patients, and TFDS cannot record them"
        raise UserError(what, where=flags.input, todo="use the COCO file directly, as coco:FILE")
    folder = image_folder(flags.input)
    options = {}
    for info in infos:
        where = f"{flags.input}, image {info.image_id}"
        depth, frame = info.meta.pop("bit_depth", None), checked_frame(info.meta.pop("frame", None), where)
        check_bit_depth(depth, where)
        options[info.image_id] = {"bit_depth": depth, "frame": frame}
    if not infos:
        raise UserError("the file lists no images", where=flags.input, todo="give one with images")
    check_split_names(infos, where=flags.input)
    check_no_patient_in_two_splits(infos, where=flags.input)
    load_tfds()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        new_folder(flags.output, "dataset_info.json", flags.overwrite, [flags.input, folder]) as built,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        wide = [  # read all images before writing, to report errors early and to know the bit depth
            decode_pixels(folder / info.file_name, **options[info.image_id])[0].dtype != np.uint8
            for info in progress.track(infos, description="reading images")
        ]
        task = progress.add_task("writing TFDS", total=len(infos))
        write_tfds(
            built / "tfds",
            flags.name,
            infos,
            classes,
            lambda info: as_integers(decode_pixels(folder / info.file_name, **options[info.image_id])[0]),
            bits=16 if any(wide) else 8,
            on_image=lambda: progress.advance(task),
        )
        for path in (built / "tfds").iterdir():
            os.replace(path, built / path.name)
        (built / "tfds").rmdir()
    for line in texts_among_numbers(infos):
        print(f"note: {line}")
    lesions = sum(len(info.boxes) for info in infos)
    print(f"built {flags.output}: {len(infos)} images, {lesions} boxes, {16 if any(wide) else 8} bits per pixel")


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
