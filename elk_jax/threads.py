"""The same work on many images: in threads, the results in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")


class Watch(Protocol):
    """(results one by one, their number) -> the same results: whoever hands them on can show how far it is."""

    def __call__(self, results: Iterable[T], total: int, /) -> Iterable[T]: ...


def unwatched(results: Iterable[T], total: int) -> Iterable[T]:
    """Nothing is shown."""
    return results


def for_each(work: Callable[[int], T], count: int, watch: Watch = unwatched) -> list[T]:
    """[work(0), ..., work(count - 1)], computed in threads: decoders let go of Python's lock.

    Of several failures the first by position is raised, and what has not begun by then never begins.
    """

    def results() -> Iterator[T]:
        with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:  # two: one reads while the other decodes
            yield from pool.map(work, range(count))

    return list(watch(results(), count))
