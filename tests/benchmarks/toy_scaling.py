"""benchmarks/scaling.py with a toy instead of the inpainter, which compiles in no time: run as a program.

python -m tests.benchmarks.toy_scaling FLAGS of scaling.py
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import jax
import numpy as np

from benchmarks import scaling
from elk_jax.errors import run_main
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.step import on_mesh
from tests.training import toy

HIDDEN = 8192  # large enough for the rule to split its parameters


def training(options: Any) -> scaling.Training:
    model = toy.model(np.dtype(options.dtype), hidden=HIDDEN)
    return scaling.Training(
        {"workload": "toy", "dtype": options.dtype},
        program=lambda mesh: on_mesh(gradient(model, toy.RECIPE, mesh), mesh),
        params=lambda: model.init(jax.random.key(0)),
        batches=lambda count, batch: list(itertools.islice(iter(toy.Batches(batch).__next__, None), count)),
    )


def main() -> None:
    scaling.inpainter = training  # type: ignore[assignment]
    scaling.main(["--workload=inpainter", *sys.argv[1:]])


if __name__ == "__main__":
    run_main(main)
