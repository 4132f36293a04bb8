"""Cost of a step that distils over the student's own step and one forward pass of the teacher, by mode.

    python benchmarks/distillation.py --size=384x256 --batch=2 --modes=lesion,image,classwise,pkd,fgd,cwd

Every program is timed in every round; ratios are within a round. The last line of the output is one JSON object;
benchmarks/README.md explains it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import measure, workload  # noqa: E402
from configs.recipes.detector import detector as recipe_of  # noqa: E402
from elk_jax import fields, host_memory  # noqa: E402
from elk_jax.detection import detectors  # noqa: E402
from elk_jax.detection.detector import Detector  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.tasks.detection.model import trainable  # noqa: E402
from elk_jax.tasks.detection.recipe import DetectionRecipe  # noqa: E402
from elk_jax.tasks.distillation.model import MODES, aligning, learning  # noqa: E402
from elk_jax.tasks.distillation.recipe import DistillationRecipe  # noqa: E402
from elk_jax.training import mesh as meshes  # noqa: E402
from elk_jax.training.model import Model, Params  # noqa: E402
from elk_jax.training.step.gradient import gradient  # noqa: E402
from elk_jax.training.step.step import fresh_params, on_mesh  # noqa: E402
from elk_jax.training.timing import peak_memory  # noqa: E402

RECIPE = replace(workload.RECIPE, optimizer=replace(workload.RECIPE.optimizer, frozen=()))
"""All layers learn, as in configs/comoto.py."""
PLAIN, MAPS, ALIGNED = "student alone", "teacher's maps", "aligned teacher"
LOGITS, OUTPUTS = "teacher's maps and logits", "teacher's maps, logits and boxes"
READS = {"classwise": LOGITS, "outputs": OUTPUTS}
"""What modes read of the teacher besides its maps."""
AIM = 1.4
"""A step that distils over both parts; not more on a CPU."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="384x256", help="canvas, HEIGHTxWIDTH")
    parser.add_argument("--batch", type=measure.count, default=2, help="images of the student, and of the teacher")
    parser.add_argument(
        "--stride", type=int, default=32, help="pixels per cell of the level that lesion and image read"
    )
    parser.add_argument("--modes", default=",".join(MODES), help="modes of configs/comoto.py, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="a few channels, for tests")
    parser.add_argument("--repetitions", type=measure.count, default=5, help="rounds; each times every program once")
    parser.add_argument("--least_seconds", type=float, default=0.5, help="least time per program and round")
    measure.add_clock(parser)
    options = parser.parse_args(arguments)
    modes = options.modes.split(",")
    config = network("tiny" if options.tiny else "small")
    levels = detectors.build(config).strides
    if options.stride not in levels:
        todo = f"choose from {', '.join(map(str, levels))}"
        raise UserError(f"no level has {options.stride} pixels per cell", where="--stride", todo=todo)
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise UserError(f"no mode '{unknown[0]}'", where="--modes", todo=f"choose from {', '.join(MODES)}")
    host_memory.keep_freed()  # as in the launch scripts
    jax.config.update("jax_enable_compilation_cache", options.tiny)
    result = benchmark(
        config,
        modes,
        stride=options.stride,
        size=workload.parse_size(options.size),
        batch_size=options.batch,
        repetitions=options.repetitions,
        least_seconds=options.least_seconds,
        clock=options.clock,
    )
    print(json.dumps(result, allow_nan=False))


def network(size: str) -> Any:
    """The RetinaNet of a size of the recipes: small is a ResNet-18."""
    recipe = recipe_of(size, frozenset({"retinanet"}))
    return fields.build(DetectionRecipe, {"model": recipe["model"]}, "model").model


def benchmark(
    config: Any,
    modes: Sequence[str],
    *,
    stride: int,
    size: tuple[int, int],
    batch_size: int,
    repetitions: int,
    least_seconds: float,
    clock: str,
) -> dict[str, Any]:
    mesh, own = meshes.make_mesh(), detectors.build(config)
    data = workload.phantom_data(size, batch_size, threads=2)
    programs, compile_seconds, flops = compiled(own, config, modes, stride, data.batch, mesh)
    calls = {name: measure.calls_for(call, least_seconds) for name, call in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repetitions):
        for name, call in programs.items():
            times[name].append(measure.seconds_per_call(call, calls[name], clock))
    ratios = {mode: measure.ratios(times[mode], parts(times, mode)) for mode in modes}
    single = {name: [value] for name, value in flops.items()}
    aligned = measure.ratios(times[ALIGNED], times[PLAIN])
    return {
        "settings": {
            "model": config.name,
            "size": list(size),
            "batch": batch_size,
            "modes": list(modes),
            "stride": stride,
        },
        "seconds": {name: measure.spread(values) for name, values in times.items()},
        "distilled_over_parts": ratios,
        "flops": flops,
        "flops_over_parts": {mode: flops[mode] / parts(single, mode)[0] for mode in modes},
        "aligned_over_plain": aligned,
        "aim": AIM,
        "compile_seconds": compile_seconds,
        "peak_memory_bytes": peak_memory(),
        "repetitions": repetitions,
        "calls": calls,
        "clock": clock,
        **measure.surroundings(),
    }


def parts(times: Mapping[str, Sequence[float]], mode: str) -> list[float]:
    """For every round, the sum of the student's own step and the teacher's computation for the mode."""
    teacher = times[READS.get(mode, MAPS)]
    return [own + other for own, other in zip(times[PLAIN], teacher, strict=True)]


def compiled(
    own: Detector, config: Any, modes: Sequence[str], stride: int, batch: Mapping[str, np.ndarray], mesh: Any
) -> tuple[dict[str, Callable[[], Any]], dict[str, float], dict[str, float]]:
    """(programs by name, each a call that returns without waiting; seconds to compile each; FLOPs of each)."""
    weights = jax.jit(own.init)(jax.random.key(1))
    canvas = batch["image"].shape[1:3]
    placed = meshes.put_batch({**batch, "distilled": np.ones(len(batch["valid"]), bool), "beside": dict(batch)}, mesh)
    alone = meshes.put_batch(dict(batch), mesh)
    recipe = lambda mode: DistillationRecipe(model=config, mode=mode, stride=stride)
    steps = {PLAIN: (trainable(own), alone), ALIGNED: (aligning(own, recipe("lesion")), alone)}
    steps |= {mode: (learning(own, own, weights, recipe(mode), canvas), placed) for mode in modes}
    teacher = meshes.place_constants(weights, mesh)
    found: dict[str, Callable[[], Any]] = {}
    seconds: dict[str, float] = {}
    flops: dict[str, float] = {}
    for name, (model, fed) in steps.items():
        start = time.perf_counter()
        found[name], flops[name] = _step(model, fed, mesh)
        seconds[name] = time.perf_counter() - start
    forward: dict[str, Callable[..., Any]] = {MAPS: own.features}
    anchored = partial(_anchored, own, canvas)
    if "classwise" in modes:
        forward[LOGITS] = lambda *given: anchored(*given)[0]
    if "outputs" in modes:
        forward[OUTPUTS] = anchored
    for name, call in forward.items():
        start = time.perf_counter()
        program = jax.jit(call).lower(teacher, alone).compile()
        found[name], flops[name] = partial(program, teacher, alone), measure.flops(program.cost_analysis()) or 0.0
        seconds[name] = time.perf_counter() - start
    return found, seconds, flops


def _anchored(own: Detector, canvas: tuple[int, int], params: Params, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Logits and boxes for all anchors."""
    assert own.anchored is not None
    return own.anchored(own.outputs(params, own.features(params, batch)), canvas)[:2]


def _step(model: Model, batch: Any, mesh: Any) -> tuple[Callable[[], Any], float]:
    """One update of a model, as the training loop makes it, and its FLOPs."""
    step = gradient(model, RECIPE, mesh)
    program, constants = on_mesh(step, mesh), meshes.place_constants(model.constants, mesh)
    state = [program.init(fresh_params(step, mesh))]
    update = program.update.lower(state[0], constants, batch).compile()

    def call() -> Any:
        state[0], metrics = update(state[0], constants, batch)
        return metrics

    return call, measure.flops(update.cost_analysis()) or 0.0


if __name__ == "__main__":
    run_main(main)
