"""The benchmark of distillation, at a tiny size."""

from __future__ import annotations

import json

import pytest

from elk_jax.detection import detectors
from tests.detection import toy_detector
from tests.refusals import refused


def test_a_step_that_distils_is_compared_with_its_parts(monkeypatch):
    from benchmarks import distillation

    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    config, modes = toy_detector.ToyConfig(width=4), ["lesion", "pkd"]
    how = {"stride": 8, "size": (64, 64), "batch_size": 2, "repetitions": 2, "least_seconds": 0.01, "clock": "wall"}
    result = distillation.benchmark(config, modes, **how)
    seconds = {name: entry["median"] for name, entry in result["seconds"].items()}
    assert seconds.keys() == {*modes, distillation.PLAIN, distillation.MAPS, distillation.ALIGNED}
    assert seconds.keys() == result["compile_seconds"].keys() == result["calls"].keys() == result["flops"].keys()
    assert result["distilled_over_parts"].keys() == set(modes) and result["versions"]["jax"]
    assert all(0.99 < ratio < 1.5 for ratio in result["flops_over_parts"].values())
    json.dumps(result, allow_nan=False)


def test_parts_are_those_of_the_same_round_and_of_what_the_mode_reads():
    from benchmarks import distillation

    times = {distillation.PLAIN: [2.0, 4.0], distillation.MAPS: [1.0, 1.5], distillation.LOGITS: [1.2, 1.6]}
    times[distillation.OUTPUTS] = [1.3, 1.7]
    assert distillation.parts(times, "pkd") == [3.0, 5.5]
    assert distillation.parts(times, "classwise") == pytest.approx([3.2, 5.6])
    assert distillation.parts(times, "outputs") == pytest.approx([3.3, 5.7])


def test_an_unknown_mode_is_refused():
    from benchmarks import distillation

    with refused("pretraining", where="--modes"):
        distillation.main(["--modes=lesion,pretraining"])
