"""The diffusion benchmark says what it promises. How fast it is, no test asserts."""

from __future__ import annotations

import json
import os

import pytest

from tests.refusals import refused


def tiny(**changes):
    from benchmarks import painter

    return painter.Workload(**{"model": "tiny", "size": 32, "batch": 2, "steps": 3, **changes})


@pytest.fixture(scope="module")
def result():
    from benchmarks import diffusion

    found = diffusion.benchmark(tiny(), repetitions=2, least_seconds=0.01)
    return json.loads(json.dumps(found, allow_nan=False))


def test_says_what_ran_where(result):
    assert result["benchmark"] == "diffusion"
    assert result["settings"] | {"model": "tiny", "size": 32, "batch": 2, "steps": 3} == result["settings"]
    assert {"platform", "device", "cpu", "cores", "load_average"} <= result["hardware"].keys()
    assert result["finite"] and result["first_loss"] > 0 and result["parameters"] > 0
    assert all(number > 0 for number in result["program_bytes"].values())
    assert result["diffusers"] is None and result["ratio"] is None


@pytest.mark.parametrize("part", ["train", "sampling"])
def test_times_with_their_spread(result, part):
    seconds = result[part]["seconds"]
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    assert result[part]["images_per_second"] == pytest.approx(2 / seconds["median"])
    assert result[part]["model_flops_per_second"] == pytest.approx(result[part]["model_flops"] / seconds["median"])


def test_a_sampling_is_a_forward_pass_for_both_prompts_and_every_step(result):
    # 3 steps x 2 prompts = 6 forward passes; forward and two products backward are about three.
    assert 1.5 < result["sampling"]["model_flops"] / result["train"]["model_flops"] < 3


def test_bad_sizes_are_refused():
    with refused(36, where="--size"):
        tiny(size=36)
    with refused("'large'", where="--model"):
        tiny(model="large")


def test_beside_diffusers():
    """On the same weights and latents both find the same loss, and paint the same."""
    python = os.environ.get("ELK_JAX_DIFFUSERS_PYTHON", "")
    if not python:
        pytest.skip("set ELK_JAX_DIFFUSERS_PYTHON to a Python with torch and diffusers")
    from benchmarks import diffusion

    result = diffusion.benchmark(tiny(), repetitions=1, least_seconds=0.01, python=python, compiled=False)
    theirs = result["diffusers"]
    assert theirs["first_loss"] == pytest.approx(result["first_loss"], rel=1e-4)
    assert theirs["largest_difference"] < 1e-3 * theirs["largest_latent"]
    assert result["ratio"]["train"]["median"] > 0 and result["ratio"]["sampling"]["median"] > 0
