#!/usr/bin/env bash
# One experiment on several GPU machines under SLURM:
#   sbatch launch/slurm.sh --config=configs/cem_real.py:paper --config.data.real.spec=coco:/data/cem/cem.json \
#     --config.stages.real.init_from=weights/coco --config.detector.loader.batch_size=16 \
#     --config.detector.schedule.base=2e-3
# weights/coco is what launch/import_weights.py wrote; it and the data lie where all machines find them.
# The batch is that of all machines together: a multiple of all GPUs (8 here), the learning rate in proportion.
# One process a machine, which uses all its GPUs; the processes find each other through SLURM's own variables.
# The run folder must lie on storage that all machines share. A job that is cut off resumes when it is queued again.
#SBATCH --job-name=elk_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# Once, before the first job, on a machine with network: bash launch/setup.sh cuda12
exec srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" .venv/bin/python launch/train.py \
  --workdir="${ELK_JAX_WORKDIR:-runs/slurm-${SLURM_JOB_ID:-0}}" "$@"
