"""The report of teachers and students, from the summaries of their stages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from elk_jax.tasks.distillation import report


@pytest.mark.parametrize(
    "folds, row",
    [({}, "Mean sensitivity, validation"), ({"folds": {"curves": [{}, {}, {}]}}, "Mean sensitivity, 3 folds")],
)
def test_a_value_over_folds_is_not_called_validation(folds, row, tmp_path):
    student = {"role": "student", "mode": "lesion", "intra_align": True, "best_step": 4, **folds}
    student["best"] = {"mean_sensitivity": 0.625}
    learned, _ = report.part(SimpleNamespace(folder=tmp_path), {"student": student}).sections
    assert f">{row}</th>" in learned.html and "0.625" in learned.html
