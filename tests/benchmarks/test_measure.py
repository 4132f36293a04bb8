"""Numbers about numbers, worked out by hand."""

from __future__ import annotations

import importlib
import time

import pytest


@pytest.fixture(scope="module")
def measure():
    from benchmarks import measure

    return measure


def test_spread(measure):
    assert measure.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {
        "median": 3, "quartile_1": 2, "quartile_3": 4, "min": 1, "max": 5
    }  # fmt: skip
    assert set(measure.spread([7.0]).values()) == {7.0}


def test_ratio_is_of_neighbours_and_above_one_when_ours_is_faster(measure):
    found = measure.ratios(theirs=[2.0, 30.0, 6.0], ours=[1.0, 10.0, 1.5])
    assert (found["min"], found["median"], found["max"]) == (2, 3, 4)


def test_seconds_per_call_counts_every_call(measure):
    calls = []

    def call():
        calls.append(1)
        time.sleep(0.01)

    seconds = measure.seconds_per_call(call, 3)
    assert len(calls) == 3 and seconds >= 0.01


@pytest.mark.parametrize("script", ["classifier_thresholds", "operating_points", "kernels", "gan"])
@pytest.mark.parametrize("number", ["0", "-1", "few"])
def test_a_number_of_rounds_is_at_least_one(script, number, capsys):
    """Trials on no patients would never end, and no repetition has no median."""
    flag = "--patients" if script in ("classifier_thresholds", "operating_points") else "--repetitions"
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{script}").main([f"{flag}={number}"])
    assert end.value.code == 2 and f"{flag}: " in capsys.readouterr().err


def test_peak_of_known_devices(measure):
    assert measure.peak_bf16("NVIDIA H200") == measure.peak_bf16("NVIDIA H100 80GB HBM3") == 989e12
    assert measure.peak_bf16("NVIDIA A100-SXM4-80GB") == 312e12
    assert measure.peak_bf16("cpu") is None


@pytest.mark.parametrize(
    "cost, flops", [({"flops": 5.0}, 5), ([{"flops": 5.0}], 5), ({}, None), (None, None), ([], None)]
)
def test_flops_of_every_form_of_cost_analysis(measure, cost, flops):
    assert measure.flops(cost) == flops


def test_timing_by_hand(measure):
    found = measure.timing([0.4, 0.1, 0.2], batch=4, calls=3, operations=1e9)
    seconds = {"median": 0.2, "quartile_1": 0.15, "quartile_3": 0.3, "min": 0.1, "max": 0.4}
    assert found["seconds"] == pytest.approx(seconds) and found["calls_per_repetition"] == 3
    assert found["images_per_second"] == pytest.approx(20)
    assert found["model_flops"] == 1e9 and found["model_flops_per_second"] == pytest.approx(5e9)
    assert found["share_of_bf16_peak"] is None  # a CPU has no entry in the table
