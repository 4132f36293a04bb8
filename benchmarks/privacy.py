"""Cost of a private training step over the plain one, on the same model and examples, by micro-batch and way.

    python benchmarks/privacy.py --model=swin_t --batch=4 --ways=per_example/1,per_example/4,ghost/4 --torch_python=PATH

Every program is timed in every round; ratios are private over plain within a round. With a Python that has torch and
Opacus, the private steps of torch.func and of Opacus are timed over their own plain steps in the same rounds.
The last line of the output is one JSON object; benchmarks/README.md explains it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from elk_jax import host_memory  # noqa: E402
from elk_jax.backbones import efficientnet, swin  # noqa: E402
from elk_jax.diffusion import translator  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.privacy import secret  # noqa: E402
from elk_jax.privacy.mechanism import Mechanism  # noqa: E402
from elk_jax.privacy.settings import Privacy  # noqa: E402
from elk_jax.tasks.classification import model as classification  # noqa: E402
from elk_jax.tasks.translation.recipe import TranslatorModel  # noqa: E402
from elk_jax.training import mesh as meshes  # noqa: E402
from elk_jax.training.model import Model  # noqa: E402
from elk_jax.training.recipe import TrainingRecipe  # noqa: E402
from elk_jax.training.step.gradient import gradient  # noqa: E402
from elk_jax.training.step.private import CLIPPED_SUMS, private  # noqa: E402
from elk_jax.training.step.step import Protection, Step, on_mesh  # noqa: E402
from elk_jax.training.timing import peak_memory  # noqa: E402

PLAIN = "plain"
CLASSES = 2


@dataclass(frozen=True)
class Subject:
    """The subject of training. example: name -> shape and type of its arrays. torch: the same network in torchvision,
    or ''."""

    model: Model
    example: Mapping[str, tuple[tuple[int, ...], str]]
    torch: str = ""


@dataclass(frozen=True)
class Kind:
    """A model of the table. make: (side in pixels, dtype, tiny) -> the subject. size: its side by default."""

    make: Callable[[int, str, bool], Subject]
    size: int


def translator_subject(size: int, dtype: str, tiny: bool) -> Subject:
    """A translator of tiles, of two blocks of 48 and 96 channels, without its sampler."""
    small = {"down_block_types": ("DownBlock2D",), "norm_num_groups": 4, "attention_head_dim": 2}
    blocks: dict[str, Any] = {"block_out_channels": (8,), **small} if tiny else {"block_out_channels": (48, 96)}
    config = TranslatorModel(size=size, dtype=dtype, **blocks).config()
    model = Model(
        init=lambda rng: translator.init(config, rng),
        loss=lambda params, constants, batch, rng, map_images: translator.loss(config, params, batch, rng),
        predict=lambda *_: {},
        per_example=True,
    )
    return Subject(model, dict.fromkeys(("low_energy", "subtracted"), ((size, size, 1), "float32")))


def classifier_subject(config: Any, size: int, torch: str = "") -> Subject:
    """A network that classifies grey images."""
    example: dict[str, Any] = {"image": ((size, size, 1), "float32"), "label": ((), "int32")}
    return Subject(classification.trainable(config), example, torch)


def swin_subject(size: int, dtype: str, tiny: bool) -> Subject:
    """Without stochastic depth, which torch.func cannot draw for every example."""
    small: dict[str, Any] = {"embed": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "window": 2} if tiny else {}
    config = swin.named("tiny", num_classes=CLASSES, drop_path=0.0, dtype=dtype, **small)
    return classifier_subject(config, size, "swin_t")


def efficientnet_subject(size: int, dtype: str, tiny: bool) -> Subject:
    small: dict[str, Any] = {"width": 0.1, "depth": 0.1} if tiny else {}
    return classifier_subject(efficientnet.named("b0", num_classes=CLASSES, dtype=dtype, **small), size)


MODELS = {
    "swin_t": Kind(swin_subject, 224),
    "efficientnet_b0": Kind(efficientnet_subject, 224),
    "translator": Kind(translator_subject, 64),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="swin_t", choices=tuple(MODELS))
    parser.add_argument("--size", type=int, default=0, help="side of the images in pixels; 0: the model's own")
    parser.add_argument("--tiny", action="store_true", help="a few channels in a few blocks, for tests")
    parser.add_argument("--batch", type=measure.count, default=4, help="units per step, of one image each")
    parser.add_argument("--ways", default="per_example/1,per_example/2,per_example/4,ghost/4",
                        help="the ways to time: `gradients` and `micro_batch` of a recipe's privacy")  # fmt: skip
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repetitions", type=measure.count, default=5, help="rounds; each times every program once")
    parser.add_argument("--least_seconds", type=float, default=0.5, help="least time per program and round")
    parser.add_argument("--torch_python", default="auto", help="a Python with torch and Opacus; or auto or none")
    measure.add_clock(parser)
    options = parser.parse_args(arguments)
    ways = parse_ways(options.ways, options.batch)
    python = rival.chosen_python(options.torch_python, "opacus")
    host_memory.keep_freed()  # as in the launch scripts
    jax.config.update("jax_enable_compilation_cache", options.tiny)  # compile time is one of the results
    kind = MODELS[options.model]
    size = options.size or kind.size
    result = benchmark(
        kind.make(size, options.dtype, options.tiny),
        options.batch,
        ways,
        settings={"model": options.model, "size": size, "dtype": options.dtype},
        repetitions=options.repetitions,
        least_seconds=options.least_seconds,
        python=python,
        clock=options.clock,
    )
    print(json.dumps(result, allow_nan=False))


def parse_ways(text: str, batch: int) -> dict[str, Privacy]:
    """'ghost/4,...' -> the settings by that name. UserError for an unknown way, and for a size that does not divide the
    batch."""
    found = {}
    for word in text.split(","):
        way, _, size = word.partition("/")
        if way not in CLIPPED_SUMS or not size.isdigit() or not int(size) or batch % int(size):
            todo = (
                f"give {' or '.join(CLIPPED_SUMS)}, a slash and a divisor of the batch of {batch}, separated by commas"
            )
            raise UserError(f"unknown way {word!r}", where="--ways", todo=todo)
        found[word] = Privacy(noise_multiplier=1.0, micro_batch=int(size), gradients=way)  # type: ignore[arg-type]
    return found


def benchmark(
    subject: Subject,
    batch: int,
    ways: Mapping[str, Privacy],
    *,
    settings: Mapping[str, Any],
    repetitions: int = 5,
    least_seconds: float = 0.5,
    python: str = "",
    clock: str = "wall",
) -> dict[str, Any]:
    """The content of the JSON line. python: a Python with torch and Opacus; '' for none."""
    surroundings = measure.surroundings()
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    recipe = TrainingRecipe(steps=1000)
    plain = examples(subject, batch) | {"valid": np.ones(batch, bool)}
    units = {"examples": {name: values[:, None] for name, values in plain.items()}, "unit": np.arange(batch)}
    programs = {PLAIN: Program(gradient(subject.model, recipe, mesh), mesh, plain)}
    for name, privacy in ways.items():
        protection = Protection(Mechanism(privacy, 100 * batch, batch, 1.0, 1000), secret.fresh())
        programs[name] = Program(private(subject.model, recipe, protection, mesh), mesh, units)
    accelerator = jax.default_backend() != "cpu"
    rival_settings = {
        **settings,
        "network": subject.torch,
        "classes": CLASSES,
        "micro_batches": sorted({privacy.micro_batch for privacy in ways.values()}),
        "clock": clock,
        "accelerator": accelerator,
        "channels_last": accelerator,
    }
    with rival.start(python if subject.torch else "", rival_settings, plain, "opacus") as other:
        timed = {name: partial(_seconds, program.step, clock) for name, program in programs.items()}
        theirs: dict[str, str] = {}  # their program -> the program it is compared with
        if other is not None:
            theirs = other.description["programs"]
            timed |= {name: partial(other.seconds, name) for name in theirs}
        calls = {name: measure.calls_of_seconds(partial(call, 1), least_seconds) for name, call in timed.items()}
        times: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(repetitions):
            for name, call in timed.items():
                times[name].append(call(calls[name]))
    seconds = {name: measure.spread(values) for name, values in times.items()}
    found = {
        "benchmark": "privacy",
        "settings": {
            **settings,
            "batch": batch,
            "parameters": programs[PLAIN].parameters,
            "repetitions": repetitions,
            "clock": clock,
        },
        **surroundings,
        "seconds": {name: seconds[name] for name in programs},
        "private_over_plain": {name: measure.ratios(times[name], times[PLAIN]) for name in programs if name != PLAIN},
        "program_bytes": {name: program.bytes for name, program in programs.items()},
        "compile_seconds": {name: program.compile_seconds for name, program in programs.items()},
        "peak_memory_bytes": peak_memory(),
        "torch": None,
    }
    if other is not None:
        found["torch"] = {
            **other.description,
            "seconds": {name: seconds[name] for name in theirs},
            "private_over_plain": {
                name: measure.ratios(times[name], times[base]) for name, base in theirs.items() if name != base
            },
        }
    return found


def examples(subject: Subject, batch: int) -> dict[str, np.ndarray]:
    """Random images, with alternating labels."""
    rng = np.random.default_rng(0)
    return {
        name: (np.arange(batch) % CLASSES if kind == "int32" else rng.random((batch, *shape))).astype(kind)
        for name, (shape, kind) in subject.example.items()
    }


def _seconds(step: Callable[[], Any], clock: str, calls: int) -> float:
    return measure.seconds_per_call(step, calls, clock)


class Program:
    """A compiled step with its state. `step()` is one update, and returns without waiting."""

    def __init__(self, step: Step, mesh: jax.sharding.Mesh, batch: Any):
        program = on_mesh(step, mesh)
        self.batch = meshes.put_batch(batch, mesh)
        self.constants = meshes.place_constants(step.constants, mesh)
        params = step.fresh(jax.random.key(0))
        self.parameters = int(sum(leaf.size for leaf in jax.tree.leaves(params)))
        self.state = program.init(params)
        start = time.perf_counter()
        self.update: Callable[..., Any] = program.update.lower(self.state, self.constants, self.batch).compile()
        self.compile_seconds = time.perf_counter() - start
        self.bytes = measure.program_bytes(self.update)

    def step(self) -> Any:
        self.state, metrics = self.update(self.state, self.constants, self.batch)
        return self.state, metrics


if __name__ == "__main__":
    run_main(main)
