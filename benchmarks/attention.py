"""Attention of the U-Net, forward and backward: a kernel (cuDNN on a GPU), blocks of the matrix, and the whole matrix.

    python benchmarks/attention.py --model=sd15 --size=512 --batch=8 --dtype=bfloat16
    python benchmarks/attention.py --topology=v5e:1x1 --model=sd15 --size=512 --batch=1 --dtype=bfloat16

Every attention layer of the U-Net gives two cases: self-attention, and attention to the text. With --topology nothing
is run: every form, including `flash`, is compiled with its gradient for a slice of TPUs, with --batch images per chip.
The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import measure, painter  # noqa: E402
from elk_jax import host_memory  # noqa: E402
from elk_jax.diffusion.attention import attend  # noqa: E402
from elk_jax.diffusion.unet import WITH_ATTENTION  # noqa: E402
from elk_jax.errors import UserError, is_out_of_memory, run_main  # noqa: E402
from elk_jax.programs import topology  # noqa: E402
from elk_jax.programs.account import account  # noqa: E402
from elk_jax.training import mesh as meshes  # noqa: E402
from elk_jax.training.timing import peak_memory  # noqa: E402

FORMS: dict[str, Callable[..., jax.Array]] = {
    "cudnn": lambda q, k, v: attend(q, k, v, "cudnn"),
    "flash": attend,
    "blocks": lambda q, k, v: attend(q, k, v, "xla"),
    "matrix": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="xla"),
}
"""flash: the TPU kernel. matrix: all scores at once, as in plain code."""


class Case(NamedTuple):
    """Attention of `queries` to `keys` positions."""

    queries: int
    keys: int
    heads: int
    head_size: int


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15", choices=sorted(painter.MODELS), help="see diffusion.py")
    parser.add_argument(
        "--size", type=measure.count, default=512, help="side of the images in pixels; an eighth for latents"
    )
    parser.add_argument("--batch", type=measure.count, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--forms", default="", help=f"of {','.join(FORMS)}; default: all, cudnn on a GPU only")
    parser.add_argument("--repetitions", type=measure.count, default=5, help="rounds; each times every program once")
    parser.add_argument("--least_seconds", type=float, default=0.2, help="least time per program and round")
    parser.add_argument("--topology", default="", help="compile only, for a slice of TPUs such as v5e:2x2")
    options = parser.parse_args(arguments)
    kernel = "flash" if options.topology else "cudnn" if jax.default_backend() == "gpu" else ""
    here = [name for name in FORMS if name in (kernel, "blocks", "matrix")]
    forms = options.forms.split(",") if options.forms else here
    unknown = [name for name in forms if name not in FORMS]
    if unknown:
        raise UserError(f"unknown form '{unknown[0]}'", where="--forms", todo=f"give some of {','.join(FORMS)}")
    host_memory.keep_freed()  # as in the launch scripts
    work = painter.Workload(options.model, options.size, options.batch, options.dtype)
    if options.topology:
        print(json.dumps(compiled(work, forms, topology.find(options.topology)), allow_nan=False))
        return
    print(json.dumps(benchmark(work, forms, options.repetitions, options.least_seconds), allow_nan=False))


def cases(work: painter.Workload) -> list[Case]:
    """The layers of the downward path of the U-Net, each with attention to itself and to the text."""
    config, side = work.unet, work.size // painter.FACTOR
    found = []
    for level, (block, width) in enumerate(zip(config.down_block_types, config.block_out_channels)):
        if block == WITH_ATTENTION:
            heads = config.attention_head_dim
            heads = heads if isinstance(heads, int) else heads[level]
            positions = (side >> level) ** 2
            found += [Case(positions, keys, heads, width // heads) for keys in (positions, painter.TOKENS)]
    return found


def benchmark(work: painter.Workload, forms: list[str], repetitions: int, least_seconds: float) -> dict[str, Any]:
    """The content of the JSON line."""
    surroundings = measure.surroundings()
    return {
        "benchmark": "attention",
        "settings": {"model": work.model, "size": work.size, "batch": work.batch, "dtype": work.dtype,
                     "repetitions": repetitions},
        **surroundings,
        "cases": [measured(case, work, forms, repetitions, least_seconds) for case in cases(work)],
        "peak_memory_bytes": peak_memory(),
    }  # fmt: skip


def compiled(work: painter.Workload, forms: list[str], target: topology.Slice) -> dict[str, Any]:
    """The content of the JSON line: bytes read and written, and memory, of every form with its gradient on each
    chip."""
    mesh = meshes.make_mesh(devices=target.devices)
    sharding = meshes.batch_sharding(mesh)

    def one(case: Case, form: str) -> dict[str, float]:
        shapes = [(work.batch * mesh.size, n, case.heads, case.head_size) for n in (case.queries, case.keys, case.keys)]
        inputs = [jax.ShapeDtypeStruct(shape, work.dtype, sharding=sharding) for shape in (*shapes, shapes[0])]

        def both(query, key, value, cotangent):
            found, back = jax.vjp(FORMS[form], query, key, value)
            return found, back(cotangent)

        start = time.perf_counter()
        program = topology.compile_for(jax.jit(meshes.traced_on(mesh, both)).lower(*inputs), target)
        return {
            "bytes": account(program, mesh.size).total.bytes,
            "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
            "compile_seconds": time.perf_counter() - start,
        }

    return {
        "benchmark": "attention_compiled",
        "settings": {"model": work.model, "size": work.size, "batch": work.batch, "dtype": work.dtype,
                     "topology": target.name},
        "cases": [{**case._asdict(), "forms": {form: one(case, form) for form in forms}} for case in cases(work)],
    }  # fmt: skip


def measured(
    case: Case, work: painter.Workload, forms: list[str], repetitions: int, least_seconds: float
) -> dict[str, Any]:
    """A case with every form, in turn; a form that does not fit in the device's memory has `error` instead of times.

    difference: the largest difference from the whole matrix in float32, relative to its largest entry.
    ratio: time of a form / time of the first, in the same round: above 1, the first is faster.
    """
    random = np.random.default_rng(0)
    shapes = [(work.batch, n, case.heads, case.head_size) for n in (case.queries, case.keys, case.keys, case.queries)]
    *qkv, cotangent = (jnp.asarray(random.standard_normal(shape), work.dtype) for shape in shapes)
    exact = jax.jit(lambda *one: FORMS["matrix"](*(x.astype("float32") for x in one)))(*(x[:1] for x in qkv))

    found: dict[str, dict[str, Any]] = {}
    programs: dict[str, dict[str, Callable[[], Any]]] = {}
    for name in forms:
        forward = jax.jit(FORMS[name])
        both = jax.jit(lambda q, k, v, c, form=FORMS[name]: jax.vjp(form, q, k, v)[1](c))
        try:
            compiled = {"forward": forward.lower(*qkv).compile(), "both": both.lower(*qkv, cotangent).compile()}
            programs[name] = {
                "forward": partial(compiled["forward"], *qkv),
                "both": partial(compiled["both"], *qkv, cotangent),
            }
            got = programs[name]["forward"]()[:1].astype("float32")
            jax.block_until_ready(programs[name]["both"]())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            programs.pop(name, None)
            found[name] = {"error": "out of device memory"}
            continue
        found[name] = {
            "difference": float(jnp.abs(got - exact).max() / jnp.abs(exact).max()),
            "program_bytes": {kind: measure.program_bytes(program) for kind, program in compiled.items()},
        }
    counts = {
        (name, kind): measure.calls_for(call, least_seconds)
        for name, calls in programs.items()
        for kind, call in calls.items()
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in counts}
    for _ in range(repetitions):
        for (name, kind), count in counts.items():
            times[name, kind].append(measure.seconds_per_call(programs[name][kind], count))
    first = next(iter(programs), None)
    for name in programs:
        for kind in ("forward", "both"):
            found[name][f"{kind}_seconds"] = measure.spread(times[name, kind])
            if first is not None and name != first:
                found[name][f"{kind}_ratio"] = measure.ratios(times[name, kind], times[first, kind])
    return {**case._asdict(), "forms": found}


if __name__ == "__main__":
    run_main(main)
