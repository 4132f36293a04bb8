"""Where the time and the memory of a run go."""

from __future__ import annotations

import resource
import sys
import time

import jax


class Timer:
    """Where the time goes between two log lines. `before`: seconds of earlier attempts."""

    def __init__(self, before: float = 0.0):
        self._before, self._began = before, time.monotonic()
        self._mark, self._wait, self._pause, self._compile = self._began, 0.0, 0.0, 0.0
        self._steps = self._images = 0

    def clock(self) -> float:
        return self._before + time.monotonic() - self._began

    def count(self, images: int) -> None:
        self._steps, self._images = self._steps + 1, self._images + images

    def waiting_for_data(self) -> _Span:
        return _Span(self, "_wait")

    def paused(self) -> _Span:
        """Evaluation and saving: not part of a training step."""
        return _Span(self, "_pause")

    def compiling(self) -> _Span:
        return _Span(self, "_compile")

    def take(self) -> dict[str, float]:
        """The measurements since the last call."""
        now = time.monotonic()
        busy = max(now - self._mark - self._pause - self._compile, 1e-9)
        values = {
            "step_seconds": busy / max(self._steps, 1),
            "images_per_second": self._images / busy,
            "data_wait_share": self._wait / busy,
            "elapsed_seconds": self.clock(),
            "peak_memory_bytes": float(peak_memory()),
        }
        if self._compile:
            values["compile_seconds"] = self._compile
        self._mark, self._wait, self._pause, self._compile = now, 0.0, 0.0, 0.0
        self._steps = self._images = 0
        return values


class _Span:
    def __init__(self, timer: Timer, name: str):
        self._timer, self._name = timer, name

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        setattr(self._timer, self._name, getattr(self._timer, self._name) + time.monotonic() - self._start)


def peak_memory() -> int:
    """Bytes: of the first device where it keeps count, else of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
