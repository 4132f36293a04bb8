"""Running counts per patient, weighted by patient: what metrics on resampled patients are made of.

A dense table of P patients and J scores grows with the square of the number of images. Only events are stored here.

Shapes: P patients, J columns (scores, descending), R weightings of the patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Running:
    """The number of events of each patient in every column and all columns before it."""

    events: sparse.csr_array  # [J, P] events in this column

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """The running numbers of all patients together, [R, J] float64, for weights [R, P]."""
        in_column = self.events @ np.asarray(weights, np.float32).T
        return np.cumsum(in_column, axis=0, dtype=np.float64).T

    def at(self, column: int) -> np.ndarray:
        """The running numbers [P] of each patient at a column."""
        end = self.events.indptr[column + 1]
        return np.bincount(self.events.indices[:end], self.events.data[:end], self.events.shape[1])


def running(patients: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> Running:
    """Count events by their patient and column; those in column J, after the last one, do not count.

    patients, columns: of each event. shape: (P, J).
    """
    inside = columns < shape[1]
    places = columns[inside], patients[inside]
    return Running(sparse.csr_array((np.ones(len(places[0]), np.float32), places), shape=shape[::-1]))
