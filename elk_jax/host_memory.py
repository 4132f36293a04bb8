"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import platform

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def keep_freed() -> None:
    """Let this process use its freed memory again, instead of giving it back to the system. Call it before JAX runs.

    A program compiled for the CPU takes its working memory, hundreds of megabytes, anew at every call, and glibc gives
    blocks of that size back as soon as they are freed: fetching their pages again was a sixth of a training step of a
    small U-Net. glibc keeps what the main thread frees, if told so; therefore programs for a CPU of one device run in
    the thread that calls them, and none is in flight while the host goes on.

    The price: a process keeps the most memory that it ever had, on GPU hosts too. Without glibc this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)  # no mapping of its own for a large block: it would be unmapped with it
    mallopt(M_TRIM_THRESHOLD, -1)  # however much of the heap's end is free
    jax.config.update("jax_cpu_enable_async_dispatch", False)
