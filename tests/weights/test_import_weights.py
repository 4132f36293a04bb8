"""launch/import_weights.py from end to end on a small file."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console

from elk_jax.errors import UserError
from elk_jax.weights import detectors, model_folder

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "torch_files"


def tiny_resnet():
    """A ResNet-18 of width 2 in torchvision's names."""
    tensors = {"conv1.weight": np.ones((2, 3, 7, 7), "f4")} | _norm("bn1", 2)
    for stage in range(4):
        out = 2 * 2**stage
        for i in range(2):
            inputs = out if i or not stage else out // 2
            at = f"layer{stage + 1}.{i}."
            tensors |= {f"{at}conv1.weight": np.ones((out, inputs, 3, 3), "f4")} | _norm(f"{at}bn1", out)
            tensors |= {f"{at}conv2.weight": np.ones((out, out, 3, 3), "f4")} | _norm(f"{at}bn2", out)
            if inputs != out:
                tensors |= {f"{at}downsample.0.weight": np.ones((out, inputs, 1, 1), "f4")}
                tensors |= _norm(f"{at}downsample.1", out)
    return tensors


FC = {"fc.weight": np.ones((3, 16), "f4"), "fc.bias": np.zeros(3, "f4")}


def _norm(name, width):
    return {f"{name}.{part}": np.ones(width, "f4") for part in ("weight", "bias", "running_mean", "running_var")}


def command(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    line = [sys.executable, str(ROOT / "launch" / "import_weights.py"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False)


def test_command_writes_a_model_folder(tmp_path):
    safetensors.numpy.save_file(tiny_resnet() | FC, tmp_path / "r18.safetensors")
    out = tmp_path / "model"
    arguments = ("--format=torchvision", f"--input={tmp_path / 'r18.safetensors'}", f"--output={out}")
    names = ("layer1.0.conv1.weight", "backbone/res2_0/conv1/kernel", "2x2x3x3", "3x3x2x2", "oihw_to_hwio")
    found = ("ResNet-18", "3 classes", "none unused or missing")
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert all(part in done.stdout for part in found) and not any(part in done.stdout for part in names)
    listed = command(*arguments, "--names")
    assert all(part in listed.stdout for part in (*found, *names))
    params, content = model_folder.load_params(out)
    description = content.entries
    assert description["architecture"] == "resnet" and description["model"]["depth"] == 18
    assert description["model"]["num_classes"] == 3 and len(description["source"]["sha256"]) == 64
    assert params["backbone"]["stem"]["conv"]["kernel"].shape == (7, 7, 3, 2)
    assert params["classifier"]["kernel"].shape == (16, 3)


def test_command_ends_in_one_line(tmp_path):
    trap = tmp_path / "trap"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {trap}",)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Hostile()}, 2))
    out = tmp_path / "out"
    failed = command("--format=detectron2", f"--input={tmp_path / 'evil.pth'}", f"--output={out}")
    assert failed.returncode == 2 and failed.stderr.startswith("error: refused")
    assert failed.stderr.count("\n") == 1 and "evil.pth" in failed.stderr and "Traceback" not in failed.stderr
    assert not trap.exists() and not out.exists()


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (("--help",), ["--input", "norm_eps", "torchvision"]),
        ((), ["no --format"]),
        (("--format=caffe",), ["caffe"]),
        (("--format=detectron2",), ["no --input"]),
        (("--format=detectron2", "--input=x", "--output=y", "--set=depth"), ["--set=depth has no value"]),
        (("--format=detectron2", "--input=x", "--output=y", "--set=a=1", "--set=a.b=1"), ["--set=a"]),
        (
            ("--format=diffusers", "--input=x", "--output=y", "--drop=a"),
            ["--drop does not apply to --format=diffusers"],
        ),
        (("--format=torchvision", "--input=x", "--output=y", "--inpainting"), ["--inpainting does not apply to"]),
    ],
)
def test_flags(arguments, parts):
    done = command(*arguments)
    assert done.returncode == (0 if arguments == ("--help",) else 2)
    for part in parts:
        assert part in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [("model.json", {"trained": {"step": 3}}, "trained model"), ("versions.json", {}, "a run"), ("model.json", {}, "")],
)
def test_an_import_does_not_replace_a_trained_model(tmp_path, name, content, word):
    safetensors.numpy.save_file(tiny_resnet() | FC, tmp_path / "r18.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(json.dumps(content))
    done = command("--format=torchvision", f"--input={tmp_path / 'r18.safetensors'}", f"--output={out}")
    if not word:  # of an earlier import
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2 and word in done.stderr and f"({out})" in done.stderr, done.stderr
    assert [path.name for path in out.iterdir()] == [name] and json.loads((out / name).read_text()) == content


def test_wrong_weights_leave_nothing_behind(tmp_path):
    console = Console(quiet=True)
    with pytest.raises(UserError) as error:
        detectors.import_file(GOLDEN / "zip.pth", "detectron2", tmp_path / "out", console=console)
    assert "backbone.bottom_up" in error.value.what
    pickled = tmp_path / "r18.pkl"
    pickled.write_bytes(pickle.dumps(tiny_resnet() | {"conv1.weight": np.ones((2, 4, 7, 7), "f4")}))
    with pytest.raises(UserError) as error:
        detectors.import_file(pickled, "torchvision", tmp_path / "out", console=console)
    for part in ("backbone/stem/conv/kernel", "(7, 7, 4, 2)", "(7, 7, 3, 2)"):
        assert part in error.value.what
    with pytest.raises(UserError) as error:
        detectors.import_file(pickled, "torchvision", tmp_path / "out", changes={"depth": 77}, console=console)
    assert error.value.where == "model.depth" and "101" in error.value.todo
    assert not (tmp_path / "out").exists()
