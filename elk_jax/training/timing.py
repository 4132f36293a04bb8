"""Time and memory of a run."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Literal

import jax


class Timer:
    """Time spent on what between two log lines. `before`: seconds of earlier attempts."""

    def __init__(self, before: float = 0.0):
        self._before, self._began = before, time.monotonic()
        self._restart(self._began)

    def _restart(self, now: float) -> None:
        self._mark, self._spent = now, {"data": 0.0, "pause": 0.0, "compile": 0.0}
        self._steps = self._images = 0

    def clock(self) -> float:
        return self._before + time.monotonic() - self._began

    def count(self, images: int) -> None:
        self._steps, self._images = self._steps + 1, self._images + images

    @contextlib.contextmanager
    def spending(self, what: Literal["data", "pause", "compile"]) -> Iterator[None]:
        """data: waiting for data. pause: evaluation and saving, which are not part of a training step."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] += time.monotonic() - start

    def take(self) -> dict[str, float]:
        """The measurements since the last call."""
        now = time.monotonic()
        busy = max(now - self._mark - self._spent["pause"] - self._spent["compile"], 1e-9)
        values = {
            "step_seconds": busy / max(self._steps, 1),
            "images_per_second": self._images / busy,
            "data_wait_share": self._spent["data"] / busy,
            "elapsed_seconds": self.clock(),
            "peak_memory_bytes": float(peak_memory()),
        }
        if self._spent["compile"]:
            values["compile_seconds"] = self._spent["compile"]
        self._restart(now)
        return values


def peak_memory() -> int:
    """Peak memory in bytes: of the first device if it keeps count, else of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
