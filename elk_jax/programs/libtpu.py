"""The TPU's compiler as a package: whether it is installed, and its settings on a machine without a TPU."""

from __future__ import annotations

import glob
import importlib.util
import os

ENVIRONMENT = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # this and the next two replace queries of libtpu to a TPU's metadata server
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is opened, so processes need not wait for each other
}


def is_installed() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def only_compile() -> None:
    """Tell libtpu that this machine has no TPU, unless it seems to have one. Call this before JAX looks for devices.

    Otherwise libtpu queries servers that do not exist, and prints that they did not answer.
    """
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
