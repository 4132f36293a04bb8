"""Progress bars for what `data` does to many images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from elk_jax.data.many import Watch
from elk_jax.training.progress import Progress

T = TypeVar("T")

MANY = 50
"""Images from which on a bar is worth its line."""


def watched(title: str) -> Watch:
    """For `data.many.for_each`: a progress bar with this title, where there are many images."""

    def watch(results: Iterable[T], total: int) -> Iterator[T]:
        if total < MANY:
            yield from results
            return
        with Progress(title, total, unit="image") as bar:
            for done, result in enumerate(results, start=1):
                bar.update(done)
                yield result

    return watch
