"""Model folders of detectors, as an import writes them and as earlier versions did."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.numpy

from elk_jax import files
from elk_jax.detection import faster_rcnn_config
from elk_jax.weights import classifiers, detectors, model_folder

ORIGIN = classifiers.Origin("detectron2", "theirs.pkl", "0" * 64)


def save_imported(folder: str | os.PathLike, params: Any, model: Any = None, absent: Sequence[str] = ()) -> None:
    """model: the settings of the detector; detectron2's where None."""
    model = model or faster_rcnn_config.detectron2()
    described = detectors.Imported("faster_rcnn", model, ("mass",), tuple(absent), ORIGIN)
    model_folder.save_params(folder, params, described)


EARLIER = {
    "architecture": "faster_rcnn", "model": {}, "classes": [], "absent": [".*"], "source": dataclasses.asdict(ORIGIN)
}  # fmt: skip
"""An import without parameters, of a detector with the default settings, as earlier versions described it."""


def save_earlier(folder: str | os.PathLike, params: Any, description: Mapping[str, Any]) -> None:
    """A folder without format and hash, whose model.json may lack what has a default."""
    path = files.make_folder(folder)
    (path / model_folder.PARAMS).write_bytes(safetensors.numpy.save(model_folder.flatten(params)))
    files.write_json(Path(path) / model_folder.CONFIG, description)
