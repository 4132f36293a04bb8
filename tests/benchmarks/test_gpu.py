"""benchmarks/gpu.sh: all parts on the CPU, tiny; and what it does with failures, earlier results and environments."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import detector, gpu, real_images, workload
from tests.refusals import refused

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.sh"
CARD = {"name": "NVIDIA H100", "memory_bytes": 81559 * 2**20, "driver_version": "580.1.2", "driver": 580, "count": 1}


def test_one_command_starts_it(tmp_path):
    output = tmp_path / "gpu.json"
    command = ["bash", SCRIPT, "--dry-run", "--parts=attention", f"--output={output}"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == found and found["dry_run"] and found["card"] is None
    for case in found["parts"]["attention"]["result"]["cases"]:
        assert case["forms"]["blocks"]["difference"] < 1e-5 and case["forms"]["matrix"]["forward_ratio"]["min"] > 0


def test_every_part_works_on_a_cpu(tmp_path, monkeypatch, capsys):
    """In this process, which has imported all that they need."""

    def in_this_process(command, seconds, environment):
        importlib.import_module(f"benchmarks.{Path(command[1]).stem}").main(command[2:])
        return {"command": command, "seconds": 0.0, "result": json.loads(capsys.readouterr().out.splitlines()[-1])}

    monkeypatch.setattr(gpu, "run", in_this_process)
    output = tmp_path / "gpu.json"
    others = ("retinanet", "efficientdet")  # other detectors of a script that is run
    tried = [part.name for part in gpu.PARTS if part.name not in others]
    gpu.main(["--dry-run", f"--parts={','.join(tried)}", f"--output={output}"])
    parts = json.loads(output.read_text())["parts"]
    results = {name: part["result"] for name, part in parts.items()}
    assert list(results) == tried
    for result in results.values():
        assert result["peak_memory_bytes"] > 0 and "jax" in result["versions"]
    assert results["detector"]["train"]["seconds"]["min"] > 0
    kernels = results["kernels"]["kernels"]
    assert kernels.keys() == {"proposal_selection", "nms", "roi_align", "matching", "sampling"}
    assert all(kernel["forward_seconds"]["min"] > 0 for kernel in kernels.values())
    assert kernels["roi_align"]["forward_backward_seconds"]["min"] > 0 and results["kernels"]["share"]["min"] > 0
    assert results["training"]["first_loss"] > 0 and "sampling" not in results["training"]
    assert results["sampling"]["sampling"]["seconds"]["min"] > 0 and "train" not in results["sampling"]
    assert results["real_images"]["evaluation"]["counts"]["images"] > 0


def test_a_retinanet_is_measured_as_the_other_detector():
    of = {part.name: part for part in gpu.PARTS}
    for way in ("full", "tiny"):
        options = [vars(detector.parse(list(getattr(of[name], way)))) for name in ("detector", "retinanet")]
        differ = {key for key in options[0] if options[0][key] != options[1][key]}
        assert differ - {"loop_steps"} == {"detector"}
        assert detector.configure(SimpleNamespace(**options[1])).name == "retinanet"


def test_an_efficientdet_is_measured_beside_effdet_on_whole_cells():
    (part,) = (part for part in gpu.PARTS if part.name == "efficientdet")
    for way in ("full", "tiny"):
        options = detector.parse(list(getattr(part, way)))
        config = detector.configure(options)
        assert part.script == "detector.py" and config.name == "efficientdet" and options.variant == "d0"
        assert part.torch == detector.library(config) and part.torch in gpu.TORCH
        assert all(side % config.strides[-1] == 0 for side in workload.parse_size(options.size))
    assert detector.parse(list(part.full)).dtype == "bfloat16"


def test_real_images_are_found_in_a_folder(tmp_path):
    options = real_images.parse([f"--data={tmp_path}", "--batch=8", "--steps=900", "--dtype=bfloat16"])
    with refused("subtracted.json", where="subtracted.json"):
        real_images.experiment(options)
    (tmp_path / "subtracted.json").touch()
    config = real_images.experiment(options)
    assert config.data.real.spec == f"coco:{tmp_path / 'subtracted.json'}"
    assert (config.detector.model.backbone.depth, config.detector.model.backbone.dtype) == (50, "bfloat16")
    assert (config.detector.loader.batch_size, config.detector.schedule.base) == (8, pytest.approx(4 * 3e-4))
    assert (config.detector.steps, config.detector.eval_every) == (900, 300)


RUNS = {
    "result": ("print('noise'); print('{\"a\": 1}')", {"result": {"a": 1}}),
    "no result": ("print('[1]')", {}),
    "failed": ("print('why'); raise SystemExit(3)", {"error": "exit code 3", "output": ["why"]}),
}


@pytest.mark.parametrize("code, expected", RUNS.values(), ids=RUNS)
def test_the_last_line_is_the_result_or_the_output_explains_the_error(code, expected):
    done = gpu.run([sys.executable, "-c", code], 60, os.environ)
    assert {name: value for name, value in done.items() if name not in ("command", "seconds")} == expected


def test_a_part_without_a_result_has_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "run", lambda command, seconds, environment: {"command": command, "seconds": 1.0})
    output = tmp_path / "gpu.json"
    with pytest.raises(SystemExit) as end:
        gpu.main(["--dry-run", "--parts=kernels", f"--output={output}"])
    assert end.value.code == 1 and "JSON" in json.loads(output.read_text())["parts"]["kernels"]["error"]


@pytest.mark.parametrize("place", [".", "file/gpu.json"])
def test_a_place_where_nothing_can_be_written_is_refused_first(tmp_path, monkeypatch, capsys, place):
    monkeypatch.setattr(gpu, "run", lambda *arguments: pytest.fail("it started"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        gpu.main(["--dry-run", "--parts=kernels", f"--output={tmp_path / place}"])
    assert end.value.code == 2 and "--output" in capsys.readouterr().err


def test_what_takes_too_long_ends_with_all_that_it_started():
    start = time.monotonic()
    done = gpu.run(["bash", "-c", "echo begun; sleep 60 & sleep 60"], 0.3, os.environ)
    assert "longer" in done["error"] and done["output"] == ["begun"]
    assert time.monotonic() - start < 30, "the sleeping child held the pipe open"


def test_a_program_that_is_missing_is_an_error_of_its_part():
    assert "no/such" in gpu.run(["no/such"], 1, os.environ)["error"]


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """(arguments, card) -> (exit code, commands that were run, the content of the file)."""
    monkeypatch.setattr(gpu, "ENVIRONMENTS", tmp_path / "environments")
    (tmp_path / "environments" / "torch").mkdir(parents=True)
    output = tmp_path / "gpu.json"

    def start(*arguments: str, card=CARD, failing: str = "nothing"):
        commands: list[list[str]] = []

        def note(command, seconds, environment):
            commands.append(list(command))
            done = {"command": list(command), "seconds": 1.0}
            return done | ({"error": "failed"} if failing in " ".join(command) else {"result": {"n": len(commands)}})

        monkeypatch.setattr(gpu, "graphics_card", lambda: card)
        monkeypatch.setattr(gpu, "run", note)
        code = 0
        try:
            gpu.main([*arguments, f"--output={output}"])
        except SystemExit as stop:
            code = stop.code
        return code, commands, json.loads(output.read_text())

    return start


@pytest.mark.parametrize("driver, extra", [(580, "cuda13"), (570, "cuda12")])
def test_environments_are_set_up_by_the_driver_and_torch_apart(on_a_gpu, driver, extra):
    code, commands, _ = on_a_gpu("--parts=detector,attention", card=CARD | {"driver": driver})
    ours, uses_gpu, theirs, probe, detector, attention = commands
    assert uses_gpu[0] == detector[0] and "'gpu'" in uses_gpu[-1]
    assert code == 0 and ours == ["bash", "launch/setup.sh", extra] and theirs[-len(gpu.TORCH) :] == list(gpu.TORCH)
    assert probe[-1].startswith("import torch, torchvision; ") and "cuda" in probe[-1]
    assert "--size=800x1333" in detector and detector[-1].endswith("torch/bin/python")
    assert detector[0] == attention[0] and detector[0].endswith("elk_jax/bin/python")
    assert len(on_a_gpu("--parts=detector", card=CARD | {"driver": driver})[1]) == 4, "torch is already there"


def test_given_pythons_are_used_as_they_are(on_a_gpu, tmp_path):
    flags = ["--python=a", "--torch_python=b", f"--data={tmp_path}"]
    _, commands, _ = on_a_gpu("--parts=training,real_images", *flags)
    assert [command[0] for command in commands] == ["a", "b", "a", "a"]
    assert commands[2][-1] == "--torch_python=b" and commands[3][-1] == f"--data={tmp_path}"


def test_results_are_merged_and_a_failure_ends_nothing_else(on_a_gpu):
    given = ["--python=a", "--torch_python=none"]
    on_a_gpu("--parts=detector,kernels", *given)
    code, commands, found = on_a_gpu("--parts=kernels,attention", *given, failing="kernels")
    assert code == 1 and len(commands) == 3
    assert {name: part.get("error") for name, part in found["parts"].items()} == {
        "detector": None, "kernels": "failed", "attention": None
    }  # fmt: skip


def test_without_a_library_of_torch_nothing_is_compared(on_a_gpu):
    code, commands, found = on_a_gpu("--parts=training", "--python=a", "--torch_python=b", failing="import torch")
    assert code == 0 and commands[-1][-1] == "--torch_python=none"
    assert found["parts"]["training"]["not_compared"] == "failed"


def test_parts_after_the_time_is_over_are_not_started(on_a_gpu):
    code, commands, found = on_a_gpu("--python=a", "--torch_python=none", "--minutes=0")
    assert code == 1 and len(commands) == 1 and all("no time" in part["error"] for part in found["parts"].values())


def test_a_jax_that_would_use_the_cpu_measures_nothing(on_a_gpu, capsys):
    on_a_gpu("--parts=attention", "--python=a")
    assert on_a_gpu("--python=a", failing="import jax")[0] == 2
    assert "does not use the GPU" in capsys.readouterr().err


def test_a_set_up_that_fails_ends_everything(on_a_gpu):
    code, commands, found = on_a_gpu(failing="setup.sh")
    assert code == 2 and len(commands) == 1 and found["set_up"]["error"] == "failed" and not found["parts"]
    code, commands, found = on_a_gpu("--parts=detector", failing="torchvision")
    assert code == 0 and commands[-1][-1] == "--torch_python=none" and found["set_up_torch"]["error"] == "failed"


@pytest.mark.parametrize(
    "content, arguments, word",
    [
        ("", [], "no NVIDIA GPU"),
        ("", ["--dry-run", "--parts=detector,nothing"], "'nothing'"),
        ("", ["--dry-run", "--data=/no/such"], "/no/such"),
        ("[]", ["--dry-run"], "not a result"),
        (json.dumps({"benchmark": "gpu", "dry_run": False, "card": CARD}), ["--dry-run"], "H100"),
    ],
)
def test_what_cannot_start_is_said_in_one_line(tmp_path, monkeypatch, capsys, content, arguments, word):
    monkeypatch.setenv("PATH", str(tmp_path))
    output = tmp_path / "gpu.json"
    if content:
        output.write_text(content)
    with pytest.raises(SystemExit) as stop:
        gpu.main([*arguments, f"--output={output}"])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and word in line and line.count("\n") == 1
    assert not output.exists() or output.read_text() == content


def test_a_card_is_read_from_the_driver(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100, 81559, 580.1.2'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu.graphics_card() == CARD
