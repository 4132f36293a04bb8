"""Run an experiment: train its models, evaluate them, and write the report.

  python launch/train.py --config=configs/cem_mixed.py                     the embedded data set, minutes on a CPU
  python launch/train.py --config=configs/cem_real.py:paper --workdir=runs/paper \\
      --config.data.real.spec=coco:/data/cdd_cesm/cem.json \\
      --config.stages.real.init_from=weights/coco                          your own images, published recipe
  python launch/train.py --config=configs/cem_mixed.py --stages=evaluate   only one of its stages

A configuration is configs/NAME.py with an optional variant: quick (default, embedded data), tiny (seconds, for tests),
small (hundreds of real images, a CPU or any GPU), paper (as published); and, after a comma, fewshot (few patients),
half (a ResNet-50 of half the width, for weights of such a network), lite0 (lite1 and lite2 are larger) or swin (other
backbones), retinanet or efficientdet (other detectors), thorough (small lesions more often, three sizes in testing), as
in small,half. Every key can be set on the command line: --config.detector.steps=2000. The run folder contains
config.json, metrics.jsonl, TensorBoard files, checkpoints, predictions and report.html. Rerun the same command to
resume an interrupted run; finished stages are not repeated.

All GPUs or TPUs of a machine are used. To use several machines, start the same command on each, with a shared run
folder. SLURM, Kubernetes and a Cloud TPU slice number the processes (launch/slurm.sh, launch/kubernetes.yaml,
launch/tpu.sh). To number them by hand, on machine I of N, counted from 0:
  ELK_COORDINATOR=MACHINE0:8476 ELK_NUM_PROCESSES=N ELK_PROCESS_ID=I python launch/train.py --config=... --workdir=...
The batch size is global. If one process fails, all stop.
"""

from __future__ import annotations

import command_line
from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: configs/NAME.py[:variant].")
WORKDIR = flags.DEFINE_string("workdir", None, "The run folder. Default: runs/NAME.")
STAGES = flags.DEFINE_list("stages", None, "Run only these stages, in the experiment's own order. Default: all.")


def main() -> None:
    config = command_line.required(CONFIG, "configs/cem_mixed.py")
    from elk_jax.experiments.experiment import run_experiment
    from elk_jax.training.mesh import initialize_distributed

    initialize_distributed()
    run_experiment(config, workdir=WORKDIR.value or f"runs/{config.name}", stages=STAGES.value)


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
