"""Plan a training before a machine is rented: does it fit, how long can a step take, how far does it scale?

  python launch/plan.py --config=configs/cem_mixed.py:paper --stage=real --topology=v5e:2x2
  python launch/plan.py --config=configs/cem_mixed.py:paper --stage=real --topology=v5e:1x1,v5e:2x2,v5e:4x4,v5e:16x16
  python launch/plan.py --config=configs/cem_mixed.py:paper --stage=inpainter --topology=v5p:2x2x2 --config.mesh.fsdp=8
  python launch/plan.py --config=configs/cem_mixed.py --stage=real --topology=here
  python launch/plan.py --config=configs/swin_dp.py:paper --stage=network --topology=v5e:2x2 --quick

It compiles the stage's training step and its prediction for a slice of TPUs (v4, v5e, v5p, v6e) that nobody has, with
the TPU's own compiler: pip install 'elk_jax[tpu]'. No data, no weights and no TPU are needed. It prints memory by what
holds it, arithmetic and bytes by part of the model, data between chips, and the least time of a step by the published
speed of chips and links; with several slices also the efficiency of weak scaling. `here` compiles for the devices of
this machine, and measures a step as well. The examples of a private training are units (patients or images), and its
batches have rows for all that can be drawn. A folder keeps the same as plan.json and plan.html.

Compiling takes minutes, of Stable Diffusion most of an hour: every convolution takes the TPU's compiler ten seconds.
--quick takes an eighth of the time; its programs need more memory and move more bytes than those of a training. With
--largest it takes several times as long, and says how many examples fit on a chip.
"""

from __future__ import annotations

from pathlib import Path

import command_line
from absl import flags
from ml_collections import config_flags

PLANS = "plans"
"""The folder of all plans, where --output names none."""

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: configs/NAME.py[:variant].")
STAGE = flags.DEFINE_string("stage", "", "The stage that trains. Default: the only one.")
TOPOLOGY = flags.DEFINE_list("topology", None, "Slices of TPUs, such as v5e:4x4 or v5p:2x2x4, or `here`.")
flags.DEFINE_alias("topologies", "topology")
BATCH = flags.DEFINE_integer(
    "batch", 0, "Examples a chip. Default: the recipe's batch, spread over the chips or on each of them.", lower_bound=0
)
LARGEST = flags.DEFINE_bool("largest", False, "Find the largest batch that fits a chip of the first slice.")
EVERY_SHAPE = flags.DEFINE_bool("every_shape", False, "Compile every canvas of the recipe, not only the largest.")
QUICK = flags.DEFINE_bool("quick", False, "Use the least effort of the TPU's compiler: figures are upper bounds.")
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
