"""The TPU's compiler as a package: is it installed, and what it must be told on a machine without a TPU."""

from __future__ import annotations

import glob
import importlib.util
import os

ENVIRONMENT = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # what libtpu would ask of a TPU's metadata server, three of them
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is opened, so that processes need not wait for each other
}


def is_installed() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def only_compile() -> None:
    """Tell libtpu that this machine has no TPU, unless it seems to have one. Call before JAX looks for devices.

    Otherwise libtpu asks servers that are not there, and prints that they did not answer.
    """
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
