"""One of two processes that train together, and one of which is killed by the system in the middle of it:

python -m tests.training.one_of_two WORKDIR INDEX PORT VICTIM
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from elk_jax.errors import run_main
from elk_jax.training import mesh as meshes
from tests.training import toy

STEPS, SAVED, ROWS = 8, 4, 8


def run(workdir, rows=slice(None), before=lambda number: None):
    batches = toy.Batches(rows=rows, before=before)
    return toy.train(workdir, batches=batches, steps=STEPS, checkpoint_every=SAVED, log_every=1)


def main():
    workdir, index, port, victim = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    meshes.initialize_distributed(
        {"ELK_COORDINATOR": f"localhost:{port}", "ELK_NUM_PROCESSES": "2", "ELK_PROCESS_ID": str(index)}
    )

    def before(number):
        if number == SAVED + 2 and index == victim:
            while not (Path(workdir) / "checkpoints" / str(SAVED)).is_dir():  # it is written beside the training
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

    run(workdir, slice(ROWS * index, ROWS * (index + 1)), before)


if __name__ == "__main__":
    run_main(main)
