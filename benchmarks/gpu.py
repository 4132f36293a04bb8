"""Runs the parts of benchmarks/gpu.sh one after another, each with a time limit, and merges their results.

It needs only Python itself and creates the environments for the parts. A part that fails or takes too long has an
`error` instead of a `result`, and does not stop the others.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".gpu"
TORCH = ("torch", "torchvision", "effdet", "diffusers", "opacus", "safetensors", "numpy")
"""Packages for the other side of a comparison."""
CUDA_13 = 580
"""Major version of the first driver for CUDA 13."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A benchmark. full, tiny: its arguments on a GPU, and in a dry run. seconds: its time limit.

    torch: the torch library for comparison. data: pass --data if there are real images.
    """

    name: str
    script: str
    full: tuple[str, ...]
    tiny: tuple[str, ...]
    seconds: int
    torch: str = ""
    data: bool = False


SD15 = ("--model=sd15", "--size=512", "--batch=8", "--dtype=bfloat16")
SHORT = ("--repetitions=1", "--least_seconds=0.001")
DETECTOR = ("--size=800x1333", "--depth=50", "--dtype=bfloat16")
WHOLE_CELLS = ("--detector=efficientdet", "--size=768x1280")  # multiples of the coarsest level's cells of 128 px
TINY_DETECTOR = ("--tiny", "--size=64x64", "--batch=2", *SHORT)
TINY_UNET = ("--model=tiny", "--size=32", "--batch=2", *SHORT)
PARTS = (
    Part("detector", "detector.py", (*DETECTOR, "--batch=8"), (*TINY_DETECTOR, "--loop_steps=1"), 420, "torchvision"),
    Part("kernels", "kernels.py", (*DETECTOR, "--batch=8"), TINY_DETECTOR, 300),
    Part("attention", "attention.py", SD15, TINY_UNET, 180),
    Part("training", "diffusion.py", (*SD15, "--remat", "--only=train"),
         (*TINY_UNET, "--only=train"), 480, "diffusers"),
    Part("sampling", "diffusion.py", (*SD15, "--steps=20", "--repetitions=3", "--only=sampling"),
         (*TINY_UNET, "--steps=2", "--only=sampling"), 480, "diffusers"),
    Part("privacy", "privacy.py", ("--model=swin_t", "--batch=64", "--dtype=bfloat16",
         "--ways=per_example/8,per_example/64,ghost/8,ghost/64"),
         ("--model=translator", "--tiny", "--size=16", "--batch=2", "--ways=per_example/1", *SHORT), 420, "opacus"),
    Part("real_images", "real_images.py", ("--dtype=bfloat16", "--batch=8", "--steps=1200", "--threads=8"),
         ("--variant=tiny",), 480, data=True),
    Part("retinanet", "detector.py", (*DETECTOR, "--batch=8", "--detector=retinanet_v2"),
         (*TINY_DETECTOR, "--loop_steps=0", "--detector=retinanet_v2"), 420, "torchvision"),
    Part("efficientdet", "detector.py", (*WHOLE_CELLS, "--batch=8", "--dtype=bfloat16", "--variant=d0"),
         ("--detector=efficientdet", "--tiny", "--size=128x128", "--batch=2", *SHORT, "--loop_steps=0"), 420, "effdet"),
    Part("distillation", "distillation.py", ("--size=1024x512", "--batch=8", "--modes=lesion,pkd,fgd,outputs"),
         ("--tiny", "--size=64x64", "--batch=2", "--stride=8", "--modes=lesion", *SHORT), 300),
)  # fmt: skip
"""Most important first. A new benchmark is a line here: it prints one JSON object as its last line."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    until = time.monotonic() + 60 * options.minutes
    left = lambda most: min(most, until - time.monotonic())
    card = None if options.dry_run else graphics_card()
    found = previous(options.output, card, options.dry_run)
    environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if options.dry_run else {})
    python, torch_python = options.python, options.torch_python
    if options.dry_run:
        python, torch_python = python or sys.executable, torch_python or "none"
    if card is not None and not python:
        python = str(ENVIRONMENTS / "elk_jax" / "bin" / "python")
        place = {"ELK_JAX_VENV": str(ENVIRONMENTS / "elk_jax"), "PYTHON": sys.executable}
        extra = "cuda13" if card["driver"] >= CUDA_13 else "cuda12"
        found["set_up"] = run(["bash", "launch/setup.sh", extra], left(600), environment | place)
        write(options.output, found)
        if "error" in found["set_up"]:
            fail(f"set-up failed: {found['set_up']['error']}. See its output in {options.output}")
    if card is not None:  # JAX would silently use the CPU instead
        code = "import jax; assert jax.default_backend() == 'gpu', jax.devices()"
        probe = run([python, "-c", code], 120, environment)
        if "error" in probe:
            fail(f"the JAX of {python} does not use the GPU ({explained(probe)})")
    if card is not None and not torch_python and any(part.torch for part in options.parts):
        found["set_up_torch"], torch_python = set_up_torch(left(600), environment)
        write(options.output, found)
    for part in options.parts:
        done = measure(part, options, python, torch_python, left(part.seconds), environment)
        print(f"{part.name}: {done.get('error', 'done')} ({done['seconds']:.0f} s)", flush=True)
        found["parts"][part.name] = done
        write(options.output, found)
    print(summary(found))
    print(json.dumps(found))
    if any("error" in found["parts"][part.name] for part in options.parts):
        sys.exit(1)


def measure(
    part: Part,
    options: argparse.Namespace,
    python: str,
    torch_python: str,
    seconds: float,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The entry of a part: `run`, and `not_compared` with the reason if torch lacks its library or the GPU."""
    command = [python, f"benchmarks/{part.script}", *(part.tiny if options.dry_run else part.full)]
    noted = {}
    if part.torch and torch_python != "none":
        use = "" if options.dry_run else "; torch.zeros(1, device='cuda')"
        probe = run([torch_python, "-c", f"import torch, {part.torch}{use}"], 120, environment)
        if "error" in probe:
            noted["not_compared"] = explained(probe)
    if part.torch:
        command.append(f"--torch_python={'none' if noted else torch_python}")
    if part.data and options.data:
        command.append(f"--data={options.data}")
    print(f"{part.name}: {' '.join(command)}", flush=True)
    if seconds < 1:
        return {"command": command, "seconds": 0.0, "error": f"no time left of {options.minutes:g} minutes"}
    done = run(command, seconds, environment) | noted
    return done if "result" in done or "error" in done else done | {"error": "its last line is not a JSON object"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(names), help="default: all, in this order: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu.json"), help="default: %(default)s")
    parser.add_argument("--data", default="", help="CDD-CESM as a COCO file, or a folder with subtracted.json")
    parser.add_argument(
        "--minutes", type=float, default=25, help="time limit for all parts together; default: %(default)s"
    )
    parser.add_argument("--python", default="", help="a Python with jax for this GPU and what elk_jax needs")
    parser.add_argument("--torch_python", default="", help="a Python with torch and its libraries; none: no comparison")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny, in this Python")
    options = parser.parse_args(arguments)
    words = options.parts.split(",")
    unknown = [word for word in words if word not in names]
    if unknown:
        fail(f"unknown part '{unknown[0]}' (--parts). Give some of {','.join(names)}")
    if options.data and not Path(options.data).exists():
        fail(f"no such file or folder ({options.data}). Check --data")
    options.parts = [part for part in PARTS if part.name in words]
    return options


def graphics_card() -> dict[str, Any]:
    """Name, memory and driver of the first GPU. Ends the program if there is none."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is None or done.returncode or not done.stdout.strip():
        fail("no NVIDIA GPU found (nvidia-smi). To try the parts on a CPU, add --dry-run")
    name, memory, driver = (field.strip() for field in done.stdout.splitlines()[0].split(","))
    return {
        "name": name,
        "memory_bytes": int(memory) * 2**20 if memory.isdigit() else None,
        "driver_version": driver,
        "driver": int(driver.split(".")[0]),
        "count": len(done.stdout.strip().splitlines()),
    }


def previous(path: Path, card: Mapping[str, Any] | None, dry_run: bool) -> dict[str, Any]:
    """The existing results at `path`, or empty ones.

    Ends the program if they are from another card, or if the file cannot be written.
    """
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        fail(f"cannot write the file ({path}). Choose another --output")
    fresh: dict[str, Any] = {"benchmark": "gpu", "dry_run": dry_run, "card": card, "parts": {}}
    if not path.exists():
        return fresh
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("benchmark") != "gpu":
        fail(f"not a result file of this program ({path}). Choose another --output")
    if (found["dry_run"], found["card"]) != (dry_run, card):
        of = "a dry run" if found["dry_run"] else f"{found['card']['name']}, driver {found['card']['driver_version']}"
        fail(f"the existing results are from {of} ({path}). Choose another --output")
    return found


def write(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(path)


def set_up_torch(seconds: float, environment: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The record of the set-up, and a Python with TORCH; 'none' if it cannot be set up."""
    folder = ENVIRONMENTS / "torch"
    python, complete = str(folder / "bin" / "python"), folder / ".complete"
    if complete.exists():
        return {"command": [], "seconds": 0.0}, python
    script = '"$0" -m venv "$1" && "$1/bin/python" -m pip install -q --disable-pip-version-check "${@:2}"'
    done = run(["bash", "-c", script, sys.executable, str(folder), *TORCH], seconds, environment)
    if "error" in done:
        return done, "none"
    complete.touch()
    return done, python


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a command in the repository: its last line as `result` if that is a JSON object.

    `error` instead, with the end of its output, if it fails or takes longer than `seconds`. Its child processes end
    with it.
    """
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return {"command": list(command), "seconds": 0.0, "error": f"{command[0]}: {error.strerror}"}
    problem = ""
    try:
        output, _ = process.communicate(timeout=seconds)
        if process.returncode:
            problem = f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        end(process)
        output, _ = process.communicate()
        problem = f"took longer than {seconds:.0f} seconds"
    finally:
        end(process)
    lines = output.strip().splitlines()
    done: dict[str, Any] = {"command": list(command), "seconds": time.monotonic() - start}
    if problem:
        return done | {"error": problem, "output": lines[-30:]}
    with contextlib.suppress(IndexError, ValueError):
        result = json.loads(lines[-1])
        if isinstance(result, dict):
            done["result"] = result
    return done


def explained(done: Mapping[str, Any]) -> str:
    """The error of a `run`, with the last line of its output."""
    return "; ".join([done["error"], *done.get("output", [])[-1:]])


def end(process: subprocess.Popen) -> None:
    """End a process and all its child processes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def summary(found: Mapping[str, Any]) -> str:
    """A line for each part: the medians of its ratios, or its error."""
    lines = []
    for name, part in found["parts"].items():
        result = part.get("result") or {}
        ratios = {key: value["median"] for key, value in (result.get("ratio") or {}).items()}
        figures = ", ".join(f"{key} {value:.2f} x torch's speed" for key, value in ratios.items())
        peak = result.get("peak_memory_bytes")
        memory = f"peak memory {peak / 1e9:.2f} GB" if peak else ""
        lines.append(f"{name:12} {part.get('error') or ', '.join(filter(None, [figures, memory])) or 'done'}")
    return "\n".join(lines)


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
