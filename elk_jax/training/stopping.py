"""Stopping a run by SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Records SIGTERM and Ctrl-C so that the loop can stop between two steps; a second Ctrl-C acts at once.

    seen: whether there was one, in a process that runs alone.
    """

    def __init__(self) -> None:
        self.seen = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        # With several processes, JAX's own service catches SIGTERM and finds a step common to all of them.
        # Outside the main thread, signals are handled elsewhere.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.seen = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def requested(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.seen
