"""The content of the detector's benchmark; no test asserts a speed."""

from __future__ import annotations

import json
import os

import pytest

from tests.refusals import refused

SPREAD = {"median", "quartile_1", "quartile_3", "min", "max"}


@pytest.fixture(scope="module")
def result(tiny_config):
    from benchmarks import detector

    found = detector.benchmark(tiny_config, (64, 64), 2, repetitions=3, loop_steps=4, least_seconds=0.01)
    return json.loads(json.dumps(found, allow_nan=False))


def test_says_what_ran_where(result):
    assert result["benchmark"] == "detector"
    assert result["settings"] | {"size": [64, 64], "batch": 2, "depth": 18, "repetitions": 3} == result["settings"]
    assert {"platform", "device", "cpu", "cores", "load_average"} <= result["hardware"].keys()
    assert {"python", "jax", "jaxlib", "flax"} <= result["versions"].keys()


@pytest.mark.parametrize("part", ["train", "inference"])
def test_both_programs_are_timed(result, part):
    assert result[part]["seconds"].keys() == SPREAD and result[part]["seconds"]["min"] > 0
    assert result[part]["model_flops"] > 1e6 and result["compile_seconds"][part] > 0


def test_a_step_does_one_to_four_times_the_work_of_inference(result):
    # Forward and two products backward are three times; frozen stages take less, more RoIs than in inference more.
    assert 1 < result["train"]["model_flops"] / result["inference"]["model_flops"] < 4


def test_one_compilation_for_batches_with_and_without_lesions(result):
    assert result["loop"]["lesion_free_images"] > 0
    assert result["compilations"] == {"64x64": 1}
    assert 0 <= result["data_wait_share"] <= 1


def test_the_step_really_trains(result):
    assert result["finite"] and result["first_loss"] > 0
    assert result["step_memory_bytes"] > 0 and result["peak_memory_bytes"] > 0
    assert len(result["detections"]) == 2


def test_without_torchvision_nothing_is_compared(result):
    assert result["torchvision"] is None and result["ratio"] is None


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "retinanet_v2", "efficientdet"])
def test_beside_another_library(kind):
    """On the same weights and batch both find a loss of the same size: they do the same work."""
    python = os.environ.get("ELK_JAX_TORCH_PYTHON", "")
    if not python:
        pytest.skip("set ELK_JAX_TORCH_PYTHON to a Python with torch, torchvision and effdet")
    from benchmarks import detector

    options = detector.parse([f"--detector={kind}", "--depth=18", "--variant=lite0"])
    config, size = detector.configure(options), 256 if kind == "efficientdet" else 64
    found = detector.benchmark(
        config, (size, size), 2, repetitions=2, loop_steps=0, variant="lite0", python=python, least_seconds=0.01
    )
    theirs = found[detector.library(config)]
    assert theirs["train"]["seconds"].keys() == SPREAD and theirs["peak_memory_bytes"] > 0
    assert found["ratio"]["train"].keys() == found["ratio"]["inference"].keys() == SPREAD
    assert theirs["first_loss"] == pytest.approx(found["first_loss"], rel=0.2)  # each draws or counts its own samples


@pytest.mark.parametrize(
    ("kind", "library", "variant"),
    [("faster_rcnn", "torchvision", 1), ("retinanet", "torchvision", 1), ("retinanet_v2", "torchvision", 2)],
)
def test_the_detector_that_is_asked_for(kind, library, variant):
    from benchmarks import detector

    config = detector.configure(detector.parse([f"--detector={kind}", "--depth=34"]))
    assert kind.startswith(config.name) and config.backbone.depth == 34
    assert detector.library(config) == library and detector.version_of(config) == variant


def test_effdet_is_told_to_do_the_same_work():
    from benchmarks import detector

    config = detector.configure(detector.parse(["--detector=efficientdet", "--variant=d1"]))
    assert detector.library(config) == "effdet"
    told = detector.rival_settings(config, "d1", (128, 128), accelerator=False, channels_last=False, clock="cpu")
    assert told["name"] == "tf_efficientdet_d1" and told["aspect_ratios"] == [1, 2, 0.5]  # width / height
    # 16 x 16 cells of 9 anchors, and 8 x 8, 4 x 4, 2 x 2 and 1: at most 1000 of a level.
    assert told["detector"]["max_detection_points"] == 1000 + 576 + 144 + 36 + 9
    assert (told["detector"]["fpn_channels"], told["detector"]["fpn_cell_repeats"]) == (88, 4)


@pytest.mark.parametrize(
    "flag, value, word",
    [("--size", "512", "512x512"), ("--size", "8x512", 64), ("--repetitions", "0", 0), ("--batch", "-1", -1)],
)
def test_bad_arguments(flag, value, word):
    from benchmarks import detector

    with refused(word, where=flag):
        detector.main([f"{flag}={value}"])


def test_a_python_without_torchvision_is_one_line(tmp_path):
    from benchmarks import rival

    with refused(str(tmp_path / "python"), where="--torch_python"), rival.start(str(tmp_path / "python"), {}, {}):
        pass
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'ModuleNotFoundError: no torch' >&2\nexit 1\n")
    broken.chmod(0o755)
    with refused("no torch", "none", where="--torch_python"), rival.start(str(broken), {}, {}):
        pass


@pytest.mark.parametrize(
    "name", ["torchvision_side.py", "effdet_side.py", "diffusers_side.py", "gan_side.py", "torch_side.py"]
)
def test_the_other_side_needs_nothing_of_the_project(name):
    """It runs in a Python that has torch, and perhaps neither jax nor this package."""
    from benchmarks import rival

    text = (rival.HERE / name).read_text()
    assert "elk_jax" not in text and "import jax" not in text
    compile(text, name, "exec")
