"""Plan a training run before renting a machine: does it fit, how long does a step take, how far does it scale?

  python launch/plan.py --config=configs/cem_mixed.py:paper --stage=real --topology=v5e:2x2
  python launch/plan.py --config=configs/cem_mixed.py:paper --stage=real --topology=v5e:1x1,v5e:2x2,v5e:4x4,v5e:16x16
  python launch/plan.py --config=configs/cem_mixed.py:paper --stage=inpainter --topology=v5p:2x2x2 --config.mesh.fsdp=8
  python launch/plan.py --config=configs/cem_mixed.py --stage=real --topology=here
  python launch/plan.py --config=configs/swin_dp.py:paper --stage=network --topology=v5e:2x2 --quick

Compiles the stage's training step and its prediction for a slice of TPUs (v4, v5e, v5p, v6e) with the TPU's own
compiler (pip install 'elk_jax[tpu]'). No data, weights or TPU are needed. Prints the memory by purpose, arithmetic and
bytes by part of the model, data exchanged between chips, and a lower bound on the time of a step from the published
speed of chips and links; for several slices also the efficiency of weak scaling. `here` compiles for the devices of
this machine and also measures a step. In private training the examples are units (patients or images), and a batch has
rows for the most that can be drawn. plan.json and plan.html in the output folder contain the same.

Compiling takes minutes, for Stable Diffusion most of an hour: the TPU compiler needs ten seconds per convolution.
--quick takes an eighth of the time; its programs need more memory and move more bytes than those used in training.
--largest takes several times as long, and finds how many examples fit on a chip.
"""

from __future__ import annotations

from pathlib import Path

import command_line
from absl import flags
from ml_collections import config_flags

PLANS = "plans"
"""The folder of all plans, unless --output names another."""

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: configs/NAME.py[:variant].")
STAGE = flags.DEFINE_string("stage", "", "The stage that trains. Default: the only one.")
TOPOLOGY = flags.DEFINE_list("topology", None, "Slices of TPUs, such as v5e:4x4 or v5p:2x2x4, or `here`.")
flags.DEFINE_alias("topologies", "topology")
BATCH = flags.DEFINE_integer(
    "batch",
    0,
    "Examples per chip. Default: the recipe's batch, divided among the chips if possible, else all of it on each.",
    lower_bound=0,
)
LARGEST = flags.DEFINE_bool("largest", False, "Find the largest batch that fits on a chip of the first slice.")
EVERY_SHAPE = flags.DEFINE_bool("every_shape", False, "Compile all canvases of the recipe, not only the largest.")
QUICK = flags.DEFINE_bool("quick", False, "Compile with the least effort: memory and bytes are upper bounds.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for plan.json and plan.html. Default: plans/NAME_STAGE_SLICES.")


def main() -> None:
    config = command_line.required(CONFIG, "configs/cem_mixed.py:paper")
    slices = command_line.required(TOPOLOGY, "v5e:2x2")
    from elk_jax import files
    from elk_jax.planning.folder import write_plan
    from elk_jax.planning.plan import plan
    from elk_jax.planning.tables import print_plan
    from elk_jax.tasks.run import new_console

    files.check_writable(OUTPUT.value or PLANS)  # before minutes of compiling
    console = new_console()
    asked = (BATCH.value, EVERY_SHAPE.value, LARGEST.value, QUICK.value)
    found = plan(config, STAGE.value, slices, *asked, say=console.print)
    print_plan(found, console)
    names = "_".join([found.experiment, found.stage, *(one.slice.name.replace(":", "-") for one in found.slices)])
    folder = Path(OUTPUT.value or f"{PLANS}/{names}")
    write_plan(found, folder)
    console.print(f"page: {folder / 'plan.html'}")


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
