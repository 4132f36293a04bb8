"""Findings of volumes with their lesions, in a file, so that the metric can be recomputed without the volumes.

File: JSON, a list of {"truth": fields of `VolumeTruth`, "found": fields of `VolumeDetections`}, arrays as lists.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.evaluation.volumes import VolumeDetections, VolumeResult, VolumeTruth

WHOLE = ("at", "best", "labels")
"""Arrays of whole numbers; the others are float64."""


def write(path: str | os.PathLike, results: Sequence[VolumeResult]) -> None:
    files.write_json(path, [{"truth": _plain(one.truth), "found": _plain(one.found)} for one in results])


def read(path: str | os.PathLike) -> list[VolumeResult]:
    """Read a file of `write`, bit-identical. UserError for any other file."""
    try:
        return [
            VolumeResult(VolumeTruth(**_arrays(entry["truth"])), VolumeDetections(**_arrays(entry["found"])))
            for entry in files.read_json(path)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"damaged: {error}", where=path, todo="restore the file, or rerun the evaluation") from error


def _plain(part: Any) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in asdict(part).items()}


def _arrays(part: dict[str, Any]) -> dict[str, Any]:
    return {name: _array(name, value) if isinstance(value, list) else value for name, value in part.items()}


def _array(name: str, values: list) -> np.ndarray:
    found = np.array(values, int if name in WHOLE else float)
    return found.reshape(-1, 4) if name == "boxes" else found
