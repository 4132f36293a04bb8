"""Speed of an inpainting U-Net in training and sampling, compared with diffusers on the same machine and weights.

    python benchmarks/diffusion.py --model=sd15 --size=512 --batch=8 --dtype=bfloat16 --remat      a GPU
    python benchmarks/diffusion.py --model=small --size=256 --steps=10                             a CPU
    python benchmarks/diffusion.py --memory --model=sd15 --size=512 --batch=8 --dtype=bfloat16 --remat --text_encoder

The last line of the output is one JSON object; benchmarks/README.md explains it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch's process

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import measure, painter, rival  # noqa: E402
from elk_jax import host_memory  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.training.timing import peak_memory  # noqa: E402
from elk_jax.weights import diffusers, model_folder  # noqa: E402
from elk_jax.weights.convert import convert  # noqa: E402
from elk_jax.weights.reading import read_safetensors  # noqa: E402

THEIRS = {"train": "train", "sampling": "infer"}
"""Commands of diffusers_side.py."""
MEMORY_LIMIT = 40e9
"""Bytes of accelerator memory for a full fine-tuning."""
UNET_FIELDS = (
    "sample_size", "in_channels", "out_channels", "down_block_types", "block_out_channels", "layers_per_block",
    "attention_head_dim", "cross_attention_dim", "norm_num_groups", "norm_eps", "use_linear_projection",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    host_memory.keep_freed()  # as in the launch scripts
    jax.config.update("jax_enable_compilation_cache", options.model == "tiny")  # compile time is one of the results
    work = painter.Workload(
        options.model,
        options.size,
        options.batch,
        options.dtype,
        options.remat,
        options.attention,
        options.steps,
        options.guidance,
        options.text_encoder,
    )
    if options.memory:
        print(json.dumps(memory(work), allow_nan=False))
        return
    default = "" if work.with_text else rival.default_python("diffusers")
    python = {"auto": default, "none": ""}.get(options.torch_python, options.torch_python)
    if python and work.with_text:
        raise UserError("diffusers trains only the U-Net here", where="--text_encoder", todo="add --torch_python=none")
    result = benchmark(
        work,
        repetitions=options.repetitions,
        python=python,
        compiled={"auto": None, "yes": True, "no": False}[options.torch_compile],
        least_seconds=options.least_seconds,
        clock=options.clock,
        programs=(options.only,) if options.only else painter.PROGRAMS,
    )
    print(json.dumps(result, allow_nan=False))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", choices=sorted(painter.MODELS), help="sd15: Stable Diffusion 1.5")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels; an eighth for latents")
    parser.add_argument("--batch", type=int, default=1, help="images per step and per sampling")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--attention", default="auto", choices=("auto", "xla", "cudnn"))
    parser.add_argument("--steps", type=int, default=50, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=2.0, help="1: no doubled batch")
    parser.add_argument("--text_encoder", action="store_true", help="also train the text encoder (not with diffusers)")
    parser.add_argument("--only", default="", choices=("", *painter.PROGRAMS), help="default: both")
    parser.add_argument("--memory", action="store_true", help="only the memory of a training step, without running it")
    parser.add_argument("--repetitions", type=int, default=5, help="rounds; each times every program once")
    parser.add_argument("--least_seconds", type=float, default=0.5, help="least time per program and round")
    parser.add_argument("--torch_python", default="auto", help="a Python with torch and diffusers; or auto or none")
    parser.add_argument("--torch_compile", default="auto", choices=("auto", "yes", "no"),
                        help="auto: on a GPU, and on a CPU with a C++ compiler")  # fmt: skip
    measure.add_clock(parser)
    options = parser.parse_args(arguments)
    for name in ("batch", "repetitions", "steps"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}", where=f"--{name}", todo="give at least 1")
    return options


def memory(work: painter.Workload) -> dict[str, Any]:
    """The compiler's estimate for one full update, and whether it fits in MEMORY_LIMIT."""
    found = painter.fine_tuning_memory(work)
    total = found["total_bytes"]
    return {
        "benchmark": "diffusion_memory",
        "settings": dataclasses.asdict(work),
        **measure.surroundings(),
        **found,
        "limit_bytes": MEMORY_LIMIT,
        "fits": None if total is None else total <= MEMORY_LIMIT,
    }


def benchmark(
    work: painter.Workload,
    *,
    repetitions: int,
    python: str = "",
    compiled: bool | None = False,
    least_seconds: float = 0.5,
    clock: str = "wall",
    programs: Sequence[str] = painter.PROGRAMS,
) -> dict[str, Any]:
    """The content of the JSON line. python: a Python with diffusers; '' for none. programs: those that are timed."""
    surroundings = measure.surroundings()
    batch = painter.random_batch(work)
    with rival.start(python, rival_settings(work, compiled, clock), batch, "diffusers") as other:
        params = None if other is None else rival_weights(other, work)
        subject = painter.Subject(work, batch, params, programs)
        comparison = None if other is None else {**other.description, **agreement(other, subject, programs)}
        first_loss = None
        if "train" in programs:
            jax.block_until_ready(subject.step())
            first_loss = float(subject.metrics["loss"])
        ours = {"train": subject.step, "sampling": subject.infer}
        calls = {name: measure.calls_for(ours[name], least_seconds) for name in programs}
        times: dict[str, list[float]] = {name: [] for name in programs}
        their_times: dict[str, list[float]] = {name: [] for name in programs}
        theirs = {name: partial(other.seconds, THEIRS[name]) for name in programs} if other is not None else {}
        their_calls = {
            name: measure.calls_of_seconds(partial(seconds, 1), least_seconds) for name, seconds in theirs.items()
        }
        for _ in range(repetitions):
            for name in programs:
                times[name].append(measure.seconds_per_call(ours[name], calls[name], clock))
                if other is not None:
                    their_times[name].append(theirs[name](their_calls[name]))
        if other is not None and comparison is not None:
            comparison["peak_memory_bytes"] = other.ask("memory")["bytes"]
            for name in programs:
                comparison[name] = measure.timing(their_times[name], work.batch, their_calls[name])
    return {
        "benchmark": "diffusion",
        "settings": {**dataclasses.asdict(work), "repetitions": repetitions, "clock": clock},
        **surroundings,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(subject.state.params)),
        **{name: measure.timing(times[name], work.batch, calls[name], painter.model_flops(work, batch, name))
           for name in programs},
        "compile_seconds": subject.compile_seconds,
        "program_bytes": subject.memory,
        "peak_memory_bytes": peak_memory(),
        "peak_memory_of": "device" if jax.devices()[0].memory_stats() else "process",
        "first_loss": first_loss,
        "finite": bool(subject.metrics["finite"]) if "train" in programs else None,
        "diffusers": comparison,
        "ratio": {name: measure.ratios(their_times[name], times[name]) for name in programs} if comparison else None,
    }  # fmt: skip


def agreement(other: rival.Rival, subject: painter.Subject, programs: Sequence[str]) -> dict[str, Any]:
    """Evidence that both sides do the same work: the difference of the sampled latents, and diffusers' loss."""
    found: dict[str, Any] = {}
    if "sampling" in programs:
        theirs = np.load(other.ask("image")["path"])
        ours = np.asarray(subject.infer(), np.float32)
        found["largest_difference"] = float(np.abs(theirs - ours).max())
        found["largest_latent"] = float(np.abs(theirs).max())
    if "train" in programs:
        found["first_loss"] = other.ask("loss")["loss"]
    return found


def rival_settings(work: painter.Workload, compiled: bool | None, clock: str) -> dict[str, Any]:
    """The settings of the same U-Net in diffusers."""
    config = dataclasses.asdict(work.unet)
    up = [name.replace("Down", "Up") for name in reversed(work.unet.down_block_types)]
    accelerator = jax.default_backend() != "cpu"
    return {
        "unet": {**{name: config[name] for name in UNET_FIELDS}, "up_block_types": up},
        "dtype": work.dtype,
        "remat": work.remat,
        "steps": work.steps,
        "guidance": work.guidance,
        "clock": clock,
        "accelerator": accelerator,
        "channels_last": accelerator,
        "compile": compiled,
        "optimizer": {"rate": painter.RECIPE.schedule.base, **dataclasses.asdict(painter.RECIPE.optimizer)},
    }


def rival_weights(other: rival.Rival, work: painter.Workload) -> Any:
    """diffusers' random weights, converted, so that both sides do the same work."""
    tensors = read_safetensors(other.folder / "weights.safetensors")
    abstract = jax.eval_shape(lambda key: painter.init(work, key), jax.random.key(0))["unet"]
    shapes = {path: tuple(leaf.shape) for path, leaf in model_folder.flatten(abstract).items()}
    return {"unet": convert(tensors, diffusers.FORMAT, shapes)[0]}


if __name__ == "__main__":
    run_main(main)
