"""The kernels' benchmark: shares worked out by hand. `test_gpu.py` runs it."""

from __future__ import annotations

import pytest


def test_shares():
    from benchmarks import kernels

    found = kernels.shares(
        {
            "proposal_selection": [3.0, 4.0],
            "nms": [1.0, 2.0],
            "roi_align": [1.0, 1.0],
            "roi_align:both": [4.0, 6.0],
            "matching": [0.5, 0.5],
            "sampling": [0.5, 0.5],
            "step": [100.0, 100.0],
        }
    )
    assert found["share"]["min"] == pytest.approx(0.06) and found["share"]["max"] == pytest.approx(0.09)
    assert found["share_with_selection"]["median"] == pytest.approx(0.095)
    assert found["kernels"]["roi_align"]["share"] == pytest.approx(0.05)
    assert found["kernels"]["nms"]["forward_backward_seconds"] is None
