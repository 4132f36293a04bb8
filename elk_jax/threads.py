"""The same work on many images, in threads; the results stay in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")


class ProgressBar(Protocol):
    """(results, their number) -> the same results one by one; shows how many have passed, as tqdm does."""

    def __call__(self, results: Iterable[T], total: int, /) -> Iterable[T]: ...


def no_bar(results: Iterable[T], total: int) -> Iterable[T]:
    """The ProgressBar that shows nothing."""
    return results


def in_parts(progress: ProgressBar, sizes: Sequence[int]) -> ProgressBar:
    """The bar for work done in parts of these sizes: it counts items, not parts."""

    def bar(results: Iterable[T], total: int) -> Iterator[T]:
        def repeated() -> Iterator[tuple[bool, T]]:
            for size, result in zip(sizes, results):
                yield from ((k == 0, result) for k in range(size))

        for is_first, result in progress(repeated(), sum(sizes)):
            if is_first:
                yield result

    return bar


def map_in_threads(work: Callable[[int], T], count: int, progress: ProgressBar = no_bar) -> list[T]:
    """[work(0), ..., work(count - 1)], computed in threads: decoders release Python's lock.

    If several fail, the first by position is raised. Work that has not started by then is cancelled.
    """

    def results() -> Iterator[T]:
        with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:  # two: one reads while the other decodes
            yield from pool.map(work, range(count))

    return list(progress(results(), count))
