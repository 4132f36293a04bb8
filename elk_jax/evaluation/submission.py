"""The CSV file of the DBTex challenge: one row per detection, identified by the volume's study and view.

Columns: PatientID, StudyUID, View, X, Width, Y, Height, Z, Depth, Score; X, Y the top left corner in pixels of the
oriented slice, Z the first slice, from 0.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.evaluation.volumes import VolumeDetections, VolumeResult, VolumeTruth, no_detections

KEY = ("PatientID", "StudyUID", "View")
ROUNDING = 1.0
"""Slices by which a finding may extend beyond its volume."""
NUMBERS = ("X", "Width", "Y", "Height", "Z", "Depth", "Score")
NO_DEPTH = -1


def text(results: Sequence[VolumeResult]) -> str:
    """The content of the file for these detections; boxes are rounded to whole pixels."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*KEY, *NUMBERS])
    for result in results:
        found, volume = result.found, [result.truth.patient_id, result.truth.study, result.truth.view]
        for box, first, depth, score in zip(found.boxes, found.first, found.depth, found.scores, strict=True):
            x0, y0, x1, y1 = (round(float(side)) for side in box)
            writer.writerow([*volume, x0, x1 - x0, y0, y1 - y0, round(first), round(depth), float(score)])
    return out.getvalue()


def read(path: str | os.PathLike, truths: Sequence[VolumeTruth]) -> list[VolumeResult]:
    """The detections in a file, joined with the truth of each volume; a volume without a row has none.

    UserError, with the file and the line, for missing columns, non-finite numbers, negative sizes, slices that the
    volume does not have and a volume that is not in `truths`: the published evaluation counts such rows as false
    positives or silently drops them. Also for two volumes with the same study and view, which rows cannot distinguish.
    """
    known: dict[tuple[str, str], VolumeTruth] = {}
    for truth in truths:
        if known.setdefault(truth.key, truth) is not truth:
            what = f"the evaluated data has two volumes of the study {truth.study} and the view '{truth.view}'"
            raise UserError(what, where=path, todo="give each its own view, such as lcc and lcc2")
    rows: dict[tuple[str, str], list[list[float]]] = {key: [] for key in known}
    for where, row in files.read_table(path, (*KEY, *NUMBERS)):
        key = (row["StudyUID"], row["View"].lower())
        if key not in known:
            todo = "evaluate on the split for which the file was made, or remove the row"
            raise UserError(f"no volume {row['StudyUID']} {row['View']} in the evaluated data", where=where, todo=todo)
        if row["PatientID"] != known[key].patient_id:
            what = f"the study {key[0]} belongs to patient {known[key].patient_id}, not {row['PatientID']}"
            raise UserError(what, where=where, todo="correct the row")
        rows[key].append(_numbers(row, known[key].slices, where))
    return [VolumeResult(truth, _detections(rows[truth.key])) for truth in truths]


def _numbers(row: Mapping[str, str], slices: int, where: str) -> list[float]:
    """x0, y0, x1, y1, first, depth, score. slices: of the volume; 0 if unknown.

    A Depth of -1 means that no depth was predicted, and is treated as in the challenge: the centre is Z - 0.5.
    """
    x, width, y, height, first, depth, score = (files.number(row, name, where) for name in NUMBERS)
    if min(width, height) < 0 or (depth < 0 and depth != NO_DEPTH):
        what = f"Width, Height and Depth must not be negative, except for a Depth of {NO_DEPTH}"
        raise UserError(what, where=where, todo="correct the row")
    last = first + max(depth, 0)
    if first < -ROUNDING or (slices and last > slices - 1 + ROUNDING):
        what = f"slices {first:g} to {last:g} of a volume with {slices or 'any number of'} slices"
        raise UserError(what, where=where, todo="count slices from 0, and correct the row")
    return [x, y, x + width, y + height, first, depth, score]


def _detections(rows: list[list[float]]) -> VolumeDetections:
    if not rows:
        return no_detections()
    values = np.array(rows)
    first, depth = values[:, 4], values[:, 5]
    best = np.rint(first + np.maximum(depth, 0) / 2).astype(int)
    return VolumeDetections(values[:, :4], first, depth, best, values[:, 6], np.zeros(len(rows), int))
