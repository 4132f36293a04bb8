"""A process that joins the others as its environment says, and writes what JAX made of it.

python -m tests.training.joined OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax

from elk_jax.training import mesh as meshes


def main() -> None:
    meshes.initialize_distributed()
    seen = {
        "process": jax.process_index(),
        "processes": jax.process_count(),
        "gpus": jax.config.values["jax_cuda_visible_devices"],
    }
    Path(sys.argv[1]).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
