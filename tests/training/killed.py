"""A training run for `test_loop`, which kills it: python -m tests.training.killed WORKDIR STEPS [SECONDS_PER_BATCH]"""

from __future__ import annotations

import sys
import time

import jax
import numpy as np

from elk_jax.training.loop import Evaluation
from tests.training import toy


def measure(params, step):
    """Best at step 20; reads the parameters, as a real evaluation would."""
    size = float(sum(np.abs(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(params)))
    return {"score": -abs(step - 20) + 1e-6 * size, "size": size}


def run(workdir, steps, before=lambda number: None, **changes):
    arguments = {"log_every": 3, "checkpoint_every": 7, "eval_every": 5, "evaluation": Evaluation(measure, "score")}
    return toy.train(workdir, batches=toy.Batches(before=before), steps=steps, **arguments | changes)


if __name__ == "__main__":
    pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    run(sys.argv[1], int(sys.argv[2]), before=lambda number: time.sleep(pause))
