"""Progress bars for what `data` does to many images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from elk_jax.progress import Progress
from elk_jax.threads import Watch

T = TypeVar("T")

LONG = 2.0
"""Seconds from which on work is worth a bar."""


def watched(title: str) -> Watch:
    """For `data.many.for_each`: a progress bar with this title, where it takes long."""

    def watch(results: Iterable[T], total: int) -> Iterator[T]:
        with Progress(title, total, unit="image", patience=LONG) as bar:
            for done, result in enumerate(results, start=1):
                bar.update(done)
                yield result

    return watch
