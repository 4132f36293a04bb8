"""The report of fused detectors, from the summaries of their stages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from elk_jax.tasks.unified import report


@pytest.mark.parametrize(
    "folds, row",
    [({}, "Mean sensitivity, validation"), ({"folds": {"curves": [{}, {}, {}]}}, "Mean sensitivity, 3 folds")],
)
def test_a_value_over_folds_is_not_called_validation(folds, row, tmp_path):
    fused = {"second": "partner", "drop": 0.5, "members": {}, "shares_of_other": {}, "best_step": 4, **folds}
    fused["best"] = {"mean_sensitivity": 0.625}
    made, _ = report.part(SimpleNamespace(folder=tmp_path), {"dropout": fused}).sections
    assert f">{row}</th>" in made.html and "0.625" in made.html
