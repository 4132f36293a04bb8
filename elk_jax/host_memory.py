"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def keep_freed() -> None:
    """Let this process use its freed memory again, instead of giving it back to the system. Call it before JAX runs.

    A program compiled for the CPU takes its working memory, hundreds of megabytes, anew at every call, and glibc gives
    blocks of that size back at once: fetching their pages again was a sixth of a training step of a small U-Net. glibc
    can be told to keep what its main thread frees, so programs run in the thread that calls them (not of any effect
    where JAX runs on a GPU). Elsewhere than on Linux with glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    mallopt(M_MMAP_MAX, 0)  # no block of its own for any size
    mallopt(M_TRIM_THRESHOLD, -1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
