"""Cost of a private training step over the plain one, on the same model and examples, by micro-batch.

    python benchmarks/privacy.py --size=64 --batch=8 --micro_batches=1,2,4,8

The model is a translator of tiles. Every program is timed in every round; a ratio is private over plain of one round.
The last line of the output is one JSON object; benchmarks/README.md explains it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import measure  # noqa: E402
from elk_jax import host_memory  # noqa: E402
from elk_jax.diffusion import translator  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.privacy import secret  # noqa: E402
from elk_jax.privacy.mechanism import Mechanism  # noqa: E402
from elk_jax.privacy.settings import Privacy  # noqa: E402
from elk_jax.tasks.translation.recipe import TranslatorModel  # noqa: E402
from elk_jax.training import mesh as meshes  # noqa: E402
from elk_jax.training.model import Model  # noqa: E402
from elk_jax.training.recipe import TrainingRecipe  # noqa: E402
from elk_jax.training.step.gradient import gradient  # noqa: E402
from elk_jax.training.step.private import private  # noqa: E402
from elk_jax.training.step.step import Protection, Step, on_mesh  # noqa: E402

PLAIN = "plain"
TINY: dict[str, Any] = {
    "down_block_types": ("DownBlock2D",), "block_out_channels": (8,), "norm_num_groups": 4, "attention_head_dim": 2,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="side of the tiles in pixels")
    parser.add_argument("--width", type=int, default=48, help="channels of the first block of two")
    parser.add_argument("--tiny", action="store_true", help="a few channels in one block, for tests")
    parser.add_argument("--batch", type=int, default=8, help="units per step, of one tile each")
    parser.add_argument("--micro_batches", default="1,2,4,8", help="units whose gradients are computed at once")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repetitions", type=int, default=5, help="rounds; each times every program once")
    parser.add_argument("--least_seconds", type=float, default=0.5, help="a program is called for so long in a round")
    parser.add_argument("--clock", default="wall", choices=sorted(measure.CLOCKS),
                        help="cpu: processor time of all threads, for a busy CPU")  # fmt: skip
    options = parser.parse_args(arguments)
    micro_batches = parse_sizes(options.micro_batches, options.batch)
    host_memory.keep_freed()  # as in the launch scripts
    jax.config.update("jax_enable_compilation_cache", options.tiny)  # compile time is one of the results
    blocks = TINY if options.tiny else {"block_out_channels": (options.width, 2 * options.width)}
    result = benchmark(
        TranslatorModel(size=options.size, dtype=options.dtype, **blocks),
        options.batch,
        micro_batches,
        repetitions=options.repetitions,
        least_seconds=options.least_seconds,
        clock=options.clock,
    )
    print(json.dumps(result, allow_nan=False))


def parse_sizes(text: str, batch: int) -> tuple[int, ...]:
    """'1,2,8' -> (1, 2, 8). UserError for what does not divide the batch."""
    words = text.split(",")
    wrong = [word for word in words if not word.isdigit() or not int(word) or batch % int(word)]
    if wrong:
        todo = f"give divisors of the batch of {batch}, joined by commas"
        raise UserError(f"a micro-batch of {wrong[0]!r}", where="--micro_batches", todo=todo)
    return tuple(map(int, words))


def benchmark(
    settings: TranslatorModel,
    batch: int,
    micro_batches: Sequence[int],
    *,
    repetitions: int = 5,
    least_seconds: float = 0.5,
    clock: str = "wall",
) -> dict[str, Any]:
    """The content of the JSON line."""
    surroundings = measure.surroundings()
    model, size = translator_model(settings), settings.size
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    recipe = TrainingRecipe(steps=1000)
    rng = np.random.default_rng(0)
    tiles = {name: rng.random((batch, size, size, 1), np.float32) for name in ("low_energy", "subtracted")}
    plain = tiles | {"valid": np.ones(batch, bool)}
    units = {"examples": {name: values[:, None] for name, values in plain.items()}, "unit": np.arange(batch)}
    programs = {PLAIN: Program(gradient(model, recipe, mesh), mesh, plain)}
    for micro_batch in micro_batches:
        privacy = Privacy(noise_multiplier=1.0, micro_batch=micro_batch)
        protection = Protection(Mechanism(privacy, 100 * batch, batch, 1.0, 1000), secret.fresh())
        programs[str(micro_batch)] = Program(private(model, recipe, protection, mesh), mesh, units)
    calls = {name: measure.calls_for(program.step, least_seconds) for name, program in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repetitions):
        for name, program in programs.items():
            times[name].append(measure.seconds_per_call(program.step, calls[name], clock))
    return {
        "benchmark": "privacy",
        "settings": {
            "size": size,
            "channels": list(settings.block_out_channels),
            "batch": batch,
            "dtype": settings.dtype,
            "parameters": programs[PLAIN].parameters,
            "repetitions": repetitions,
            "clock": clock,
        },
        **surroundings,
        "seconds": {name: measure.spread(values) for name, values in times.items()},
        "private_over_plain": {
            name: measure.ratios(values, times[PLAIN]) for name, values in times.items() if name != PLAIN
        },
        "program_bytes": {name: program.bytes for name, program in programs.items()},
        "compile_seconds": {name: program.compile_seconds for name, program in programs.items()},
    }


def translator_model(settings: TranslatorModel) -> Model:
    """The translator without its sampler."""
    config = settings.config()
    return Model(
        init=lambda rng: translator.init(config, rng),
        loss=lambda params, constants, batch, rng, map_images: translator.loss(config, params, batch, rng),
        predict=lambda *_: {},
        per_example=True,
    )


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
