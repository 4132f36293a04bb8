#!/usr/bin/env bash
# One experiment on all workers of a Cloud TPU slice, started from your own machine (gcloud, a project, a zone with quota):
#   export TPU=elk-jax ZONE=us-west4-a NFS=10.0.0.2:/share
#   bash launch/tpu.sh create
#   bash launch/tpu.sh run launch/train.py --config=configs/cem_real.py:paper \
#     --config.data.real.spec=coco:/mnt/elk_jax/cem/cem.json \
#     --config.stages.real.init_from=/mnt/elk_jax/weights/coco --config.detector.loader.batch_size=32 \
#     --config.detector.schedule.base=4e-3 --workdir=/mnt/elk_jax/runs/cem_real
#   bash launch/tpu.sh delete
# create makes the slice, copies the committed state of this repository to every worker, and sets it up there; run it
# again after a commit. run starts the same script on every worker (benchmarks/scaling.py, too): they find each other
# through the slice itself.
# The batch is that of all workers together: a multiple of all chips (16 here), the learning rate in proportion.
# Run folder, data and weights lie on storage that all workers share and lock: an NFS share (Filestore) in the network of
# the slice, mounted at /mnt/elk_jax, which you may write (a new share belongs to root: sudo chmod it once). A bucket
# (gs://) is not a file system; gcsfuse mounts one and serves for data and weights, but it has no locks, so keep the run
# folder on NFS. If a worker is lost, rerun the same command to resume.
set -euo pipefail
cd "$(dirname "$0")/.."
TYPE=${TYPE:-v5litepod-16}               # 16 chips on 4 workers
VERSION=${VERSION:-v2-alpha-tpuv5-lite}  # of the worker's system: v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e
MOUNT=/mnt/elk_jax

usage="usage: TPU=NAME ZONE=ZONE NFS=ADDRESS:/SHARE bash launch/tpu.sh create | run SCRIPT FLAGS | delete"
action=${1:-}
[ $# -eq 0 ] || shift
case $action in create | run | delete) ;; *) echo "$usage" >&2; exit 2 ;; esac
if [ "$action" = run ] && [ ! -f "${1:-}" ]; then echo "error: no script '${1:-}'. $usage" >&2; exit 2; fi
if [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then echo "error: TPU or ZONE is not set. $usage" >&2; exit 2; fi

tpu_vm() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
on_all() { tpu_vm ssh "$TPU" --worker=all --command="set -eu; $1"; }

case $action in
create)
  if [ -z "${NFS:-}" ]; then echo "error: NFS is not set. $usage" >&2; exit 2; fi
  tpu_vm describe "$TPU" >/dev/null 2>&1 || tpu_vm create "$TPU" --accelerator-type="$TYPE" --version="$VERSION"
  archive=$(mktemp --suffix=.tar.gz)
  trap 'rm -f "$archive"' EXIT
  git archive --format=tar.gz --output="$archive" HEAD
  tpu_vm scp "$archive" "$TPU:elk_jax.tar.gz" --worker=all
  # the workers' Ubuntu 22.04 has Python 3.10; 3.12 is from its maintainers' archive of newer versions
  on_all "mkdir -p elk_jax && tar -xzf elk_jax.tar.gz -C elk_jax
    export DEBIAN_FRONTEND=noninteractive
    sudo -E add-apt-repository -y ppa:deadsnakes/ppa
    sudo -E apt-get install -y python3.12 python3.12-venv nfs-common
    PYTHON=python3.12 bash elk_jax/launch/setup.sh tpu
    sudo mkdir -p $MOUNT
    mountpoint -q $MOUNT || sudo mount -t nfs $(printf %q "$NFS") $MOUNT"
  ;;
run)
  on_all "mountpoint -q $MOUNT || { echo \"error: $MOUNT is not mounted on \$(hostname). Run create again\" >&2; exit 2; }
    cd elk_jax
    exec .venv/bin/python$(printf ' %q' "$@")"
  ;;
delete) tpu_vm delete "$TPU" --quiet ;;
esac
