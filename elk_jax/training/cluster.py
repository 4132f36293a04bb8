"""Whether this process is one of several, from its environment: ELK's own variables, a Cloud TPU slice, or SLURM."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from elk_jax.errors import UserError

ELK = ("ELK_COORDINATOR", "ELK_NUM_PROCESSES", "ELK_PROCESS_ID")
WORKERS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
"""Names of the workers of a TPU slice, in the order in which JAX reads them."""
METADATA_SECONDS = 10.0


def find(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Keyword arguments of `jax.distributed.initialize` for this process; None for a single-process run.

    In this order: ELK_COORDINATOR, ELK_NUM_PROCESSES, ELK_PROCESS_ID (for Kubernetes and by hand); a Cloud TPU slice
    of several workers; a SLURM step of several tasks. From TPU and SLURM, JAX finds coordinator, number and id itself.
    Call this after `import jax`, which records in the environment whether this machine has TPU chips. Raises UserError
    if the description of the processes is incomplete.
    """
    coordinator = environment.get("ELK_COORDINATOR", "")
    count, index = _number(environment, "ELK_NUM_PROCESSES", "0"), _number(environment, "ELK_PROCESS_ID", "-1")
    if coordinator or count > 1:
        if not coordinator or count < 1 or index < 0:
            raise UserError(
                "a run with several processes needs a coordinator, the number of processes and this process's id",
                where=", ".join(ELK),
            )
        return {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": index,
            "local_device_ids": _local_device_ids(environment),
            "cluster_detection_method": "deactivate",  # nothing is left to ask SLURM or Kubernetes for
        }
    method = _tpu_slice(environment)
    if method:
        return {"cluster_detection_method": method}
    if _number(environment, "SLURM_NTASKS", "1") > 1 and "SLURM_PROCID" in environment:
        return {"local_device_ids": _local_device_ids(environment), "cluster_detection_method": "slurm"}
    return None


def _tpu_slice(environment: Mapping[str, str]) -> str:
    """JAX's name for the kind of Cloud TPU slice, if this machine is one of its several workers; else ''.

    On Kubernetes, variables list the workers of a slice; they can also be set by hand: `localhost` means a single
    worker, or no TPU at all (a machine that only compiles for one). On a TPU VM, the metadata server lists them.
    """
    named = next((environment[name] for name in WORKERS if name in environment), None)
    if named is not None:
        workers = len([worker for worker in named.split(",") if worker.strip()])
        if workers * _number(environment, "MEGASCALE_NUM_SLICES", "1") < 2:
            return ""
        if _number(environment, "TPU_WORKER_ID", "-1") < 0:
            raise UserError(
                f"this machine is one of {workers} workers of a TPU slice, but its number is missing",
                where="TPU_WORKER_ID",
                todo=f"set it to the worker's position in {' or '.join(WORKERS)}, counted from 0",
            )
        return "gketpu"
    # JAX sets the first if it found libtpu and chips, and the second if it found no chips
    if "TPU_ML_PLATFORM" not in environment or "TPU_SKIP_MDS_QUERY" in environment:
        return ""
    workers = len((_metadata(environment, "worker-network-endpoints") or "one").split(","))
    slices = re.search(r"^MEGASCALE_NUM_SLICES: *'?(\d+)", _metadata(environment, "tpu-env"), re.MULTILINE)
    count = _number(environment, "MEGASCALE_NUM_SLICES", slices[1] if slices else "1")
    return "gcetpu" if workers * count > 1 else ""


def _metadata(environment: Mapping[str, str], name: str) -> str:
    """An attribute of this machine on Google Cloud; "" if it has none, or is not on Google Cloud."""
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine's own link
    try:
        with direct.open(request, timeout=METADATA_SECONDS) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        problem = f"HTTP {error.code}"
    except TimeoutError:
        problem = "no answer"
    except urllib.error.URLError as error:
        if not isinstance(error.reason, TimeoutError):  # no such host, or connection refused: not on Google Cloud
            return ""
        problem = "no answer"
    raise UserError(
        f"the metadata server did not list the workers of this TPU slice ({problem})",
        where=url,
        todo=f"rerun, or set TPU_WORKER_HOSTNAMES=localhost for a single machine, or {', '.join(ELK)} for several",
    )


def _number(environment: Mapping[str, str], name: str, default: str) -> int:
    text = environment.get(name, "").strip() or default
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{text!r} is not a number", where=name, todo="give a whole number") from error


def _local_device_ids(environment: Mapping[str, str]) -> list[int] | None:
    """The visible GPUs that this process uses; [] for all.

    All of them, unless SLURM started several tasks on a machine and all GPUs are visible to each of them: then each
    task has its own. Under SLURM, JAX would use only one, whatever the number of tasks. None: JAX_LOCAL_DEVICE_IDS
    decides.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    tasks = _number(environment, "SLURM_NTASKS", "1")
    machines = _number(environment, "SLURM_STEP_NUM_NODES", str(tasks))  # absent: no step of srun, no tasks beside it
    if tasks <= machines or "SLURM_GPUS_PER_TASK" in environment:
        return []
    return [_number(environment, "SLURM_LOCALID", "0")]
