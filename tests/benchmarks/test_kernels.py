"""The kernels' benchmark: shares worked out by hand, and a run on a tiny detector."""

from __future__ import annotations

import json

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


def test_every_kernel_is_timed(tiny_config):
    from benchmarks import kernels

    found = json.loads(json.dumps(kernels.benchmark(tiny_config, (64, 64), 2, repetitions=2, least_seconds=0.005)))
    assert found["kernels"].keys() == {"proposal_selection", "nms", "roi_align", "matching", "sampling"}
    assert all(kernel["forward_seconds"]["min"] > 0 for kernel in found["kernels"].values())
    assert found["kernels"]["roi_align"]["forward_backward_seconds"]["median"] > 0
    assert found["share"]["median"] > 0 and found["step_seconds"]["median"] > 0
