"""Speed of drawing phantoms on one core, which a run repeats whenever it opens `phantom:`.

    python benchmarks/phantom.py --size=512 --images=20

The last line of the output is one JSON object; benchmarks/README.md explains it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402

from benchmarks import measure  # noqa: E402
from elk_jax import host_memory  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.synthesis.phantom import PhantomConfig, sample  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    print(json.dumps(benchmark(options.size, options.images, options.repetitions, options.clock), allow_nan=False))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of an image, pixels")
    parser.add_argument("--images", type=int, default=20, help="images per repetition, always the same")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--clock", default="cpu", choices=sorted(measure.CLOCKS),
                        help="cpu: processor time, for a busy CPU; wall: elapsed time")  # fmt: skip
    options = parser.parse_args(arguments)
    for name in ("images", "repetitions"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}", where=f"--{name}", todo="give at least 1")
    return options


def benchmark(size: int, images: int, repetitions: int, clock: str = "cpu") -> dict[str, Any]:
    """The content of the JSON line."""
    surroundings = measure.surroundings()
    config, threads = PhantomConfig(size=size), cv2.getNumThreads()
    lesions: list[int] = []
    index = itertools.cycle(range(images))
    host_memory.keep_freed()  # as in the launch scripts
    draw = lambda: lesions.append(len(sample(0, next(index), config).boxes))
    cv2.setNumThreads(1)
    try:
        measure.seconds_per_call(draw, images, clock)  # warms up
        seconds = [measure.seconds_per_call(draw, images, clock) for _ in range(repetitions)]
    finally:
        cv2.setNumThreads(threads)
    return {
        "benchmark": "phantom",
        "size": [size, size],
        "images": images,
        "lesions": sum(lesions[:images]),
        "repetitions": repetitions,
        "clock": clock,
        "seconds_per_image": measure.spread(seconds),
        "images_per_second_per_core": measure.spread([1 / each for each in seconds]),
        **surroundings,
    }


if __name__ == "__main__":
    run_main(main)
