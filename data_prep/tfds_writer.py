"""Annotated grey images -> a TFDS data set in ArrayRecord files, without TensorFlow.

Shapes: H, W image size in px; N lesions of one image.

The folder is read back by `tfds.builder_from_directory(DIR).as_data_source(SPLIT)` and by `tfds:DIR` of launch/train.py.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elk_jax.data.images import encode_png
from elk_jax.data.schema import ImageInfo
from elk_jax.errors import UserError, from_os_error

TEXT_FIELDS = ("view", "laterality", "modality", "pathology", "birads", "density", "findings", "tags")
"""Fields of an image's `meta` that are kept, as text; missing ones are ""."""


def write_tfds(
    folder: str | Path,
    name: str,
    infos: Sequence[ImageInfo],
    classes: Sequence[str],
    read: Callable[[ImageInfo], np.ndarray],
    *,
    bits: int = 8,
    description: str = "",
    citation: str = "",
    on_image: Callable[[], object] = lambda: None,
) -> None:
    """Build `folder` (which must not exist; dataset_info.json and the shards lie directly in it).

    Args:
      name: of the data set, lower case with underscores.
      infos: the images; every distinct `split` becomes a TFDS split ("" becomes "train").
      read: info -> [H, W] uint8 or uint16 pixels, called once per image.
      bits: 8 or 16 per pixel of all images; an 8-bit image in a 16-bit set is widened (x 257), so that white stays white.
      on_image: called after each image, for a progress bar.

    Raises:
      UserError: the disk is full, the folder cannot be written, or an image is not as large as its info says.
    """
    import tensorflow_datasets as tfds

    features = feature_layout(classes, bits)
    splits: dict[str, list[ImageInfo]] = {}
    for info in infos:
        splits.setdefault(info.split or "train", []).append(info)

    def examples(members: list[ImageInfo]) -> Iterator[tuple[str, dict[str, Any]]]:
        for info in members:
            yield info.image_id, example(info, read(info), bits)
            on_image()

    class ListBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, description=description or name, features=features, citation=citation or None
            )

        def _split_generators(self, dl_manager):
            return {split: examples(members) for split, members in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    ListBuilder.name = name
    folder = Path(folder)
    parent = folder.parent / f".{folder.name}.{os.getpid()}.build"
    try:
        builder = ListBuilder(data_dir=str(parent), file_format="array_record")
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # it speaks of downloads, and there are none
            builder.download_and_prepare()
        os.replace(builder.data_dir, folder)
    except UserError:
        raise
    except OSError as error:
        raise from_os_error(error, folder) from error
    except Exception as error:
        if "No space left" in str(error) or "File too large" in str(error):
            raise UserError("the disk is full", where=folder, todo="free some space and start again") from error
        raise
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def feature_layout(classes: Sequence[str], bits: int):
    """The TFDS features of one record."""
    import tensorflow_datasets as tfds

    text = {key: tfds.features.Text() for key in TEXT_FIELDS}
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint8 if bits == 8 else np.uint16, encoding_format="png"
            ),
            "image_id": tfds.features.Text(),
            "patient_id": tfds.features.Text(),
            "split": tfds.features.Text(),
            "file_name": tfds.features.Text(),
            "width": np.int32,
            "height": np.int32,
            "pixel_spacing": tfds.features.Tensor(shape=(2,), dtype=np.float32, doc="(row, column) mm, NaN if unknown"),
            "fewshot": np.bool_,
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32, doc="xyxy, px"),
                    "label": tfds.features.ClassLabel(names=list(classes)),
                    "ignore": np.bool_,
                }
            ),
            **text,
        }
    )


def example(info: ImageInfo, pixels: np.ndarray, bits: int) -> dict[str, Any]:
    """One record in the layout of `feature_layout`. pixels: [H, W] uint8 or uint16."""
    if pixels.shape != (info.height, info.width):
        raise UserError(f"the image has {pixels.shape[1]} x {pixels.shape[0]} px, not {info.width} x {info.height}",
                        where=info.file_name or info.image_id, todo="correct the annotation file")  # fmt: skip
    if bits == 16 and pixels.dtype == np.uint8:
        pixels = pixels.astype(np.uint16) * 257
    spacing = info.meta.get("pixel_spacing") or (math.nan, math.nan)
    return {
        "image": encode_png(pixels),
        "image_id": info.image_id,
        "patient_id": info.patient_id,
        "split": info.split,
        "file_name": info.file_name,
        "width": info.width,
        "height": info.height,
        "pixel_spacing": np.asarray(spacing, np.float32),
        "fewshot": bool(info.meta.get("fewshot", False)),
        "objects": [
            {"bbox": box, "label": int(label), "ignore": bool(ignore)}
            for box, label, ignore in zip(np.asarray(info.boxes, np.float32), info.labels, info.ignore)
        ],
        **{key: str(info.meta.get(key) or "") for key in TEXT_FIELDS},
    }
