"""One step of MCGAN's generator and discriminator, and the same step in torch in the same rounds.

    python benchmarks/gan.py --size=128 --batch=8 --ratio=2 --torch_python=PATH

A step consists of `ratio` updates of the discriminator, on `batch` real patches each, and one of the generator. With a
Python that has torch, the same step with the same networks, loss and optimisers is timed there in turn. The last line
of the output is one JSON object; benchmarks/README.md explains it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch's process

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import measure, rival  # noqa: E402
from benchmarks.privacy import Program  # noqa: E402
from elk_jax import host_memory  # noqa: E402
from elk_jax.data.batches.labelled import LabelledConfig  # noqa: E402
from elk_jax.errors import run_main  # noqa: E402
from elk_jax.gan.networks import GanConfig  # noqa: E402
from elk_jax.tasks.generation.model import trainable  # noqa: E402
from elk_jax.tasks.generation.recipe import GenerationRecipe  # noqa: E402
from elk_jax.training import mesh as meshes  # noqa: E402
from elk_jax.training.step.adversarial import adversarial  # noqa: E402
from elk_jax.training.timing import peak_memory  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=measure.count, default=128, help="side of the patches in pixels")
    parser.add_argument("--width", type=measure.count, default=64, help="channels of the largest maps; 64 as published")
    parser.add_argument("--batch", type=measure.count, default=8, help="real patches per update of the discriminator")
    parser.add_argument(
        "--ratio", type=measure.count, default=2, help="updates of the discriminator per update of the generator"
    )
    parser.add_argument("--upsampling", default="transposed", choices=("transposed", "resize"),
                        help="upsampling of our generator; torch's is transposed")  # fmt: skip
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repetitions", type=measure.count, default=5, help="rounds; each times both sides once")
    parser.add_argument("--least_seconds", type=float, default=1.0, help="least time per side and round")
    parser.add_argument("--torch_python", default="auto", help="a Python with torch; or auto or none")
    measure.add_clock(parser)
    options = parser.parse_args(arguments)
    python = rival.chosen_python(options.torch_python)
    host_memory.keep_freed()  # as in the launch scripts
    print(json.dumps(benchmark(options, python), allow_nan=False))


def benchmark(options: argparse.Namespace, python: str) -> dict[str, Any]:
    """The content of the JSON line. python: a Python with torch; '' for none."""
    surroundings = measure.surroundings()
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    count, ratio = options.batch * options.ratio, options.ratio
    config = GanConfig(
        size=options.size,
        generator_width=options.width,
        discriminator_width=options.width,
        upsampling=options.upsampling,
        dtype=options.dtype,
    )
    recipe = GenerationRecipe(model=config, images=LabelledConfig(batch_size=count), ratio=ratio, ema_decay=0.0)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.random((count, options.size, options.size, 1), np.float32),
        "label": np.arange(count, dtype=np.int32) % 2,
        "valid": np.ones(count, bool),
    }
    ours = Program(adversarial(trainable(config), recipe, mesh), mesh, batch)
    accelerator = jax.default_backend() != "cpu"
    settings = {name: getattr(options, name) for name in ("size", "width", "batch", "ratio", "dtype", "clock")}
    rival_settings = settings | {"accelerator": accelerator, "channels_last": accelerator}
    with rival.start(python, rival_settings, batch, "torch", side="gan") as other:
        timed = {"ours": lambda calls: measure.seconds_per_call(ours.step, calls, options.clock)}
        if other is not None:
            timed["torch"] = partial(other.seconds, "train")
        calls = {
            name: measure.calls_of_seconds(partial(call, 1), options.least_seconds) for name, call in timed.items()
        }
        times: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(options.repetitions):
            for name, call in timed.items():
                times[name].append(call(calls[name]))
    return {
        "benchmark": "gan",
        "settings": {
            **settings,
            "upsampling": options.upsampling,
            "parameters": ours.parameters,
            "repetitions": options.repetitions,
        },
        **surroundings,
        "seconds": {name: measure.spread(values) for name, values in times.items()},
        "torch_over_ours": measure.ratios(times["torch"], times["ours"]) if "torch" in times else None,
        "program_bytes": ours.bytes,
        "compile_seconds": ours.compile_seconds,
        "peak_memory_bytes": peak_memory(),
        "torch": None if other is None else other.description,
    }


if __name__ == "__main__":
    run_main(main)
