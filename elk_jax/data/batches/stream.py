"""Batches prefetched by Grain, in threads or worker processes, from any function batch number -> batch.

A batch is a function of its number only, so a position in the stream is one number: threads, workers and restarts
change nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Generic, TypeVar

import cv2
import grain.python as grain

from elk_jax.errors import UserError
from elk_jax.fields import AtLeast, check

T = TypeVar("T")

_ENDLESS = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How batches are read; their content does not depend on it.

    threads, workers: threads of this process, or (workers > 0) worker processes instead. prefetch: batches read ahead.
    """

    threads: Annotated[int, AtLeast(1)] = 2
    workers: Annotated[int, AtLeast(0)] = 0
    prefetch: Annotated[int, AtLeast(1)] = 4

    def __post_init__(self) -> None:
        check(self)


class Stream(Iterator[T], Generic[T]):
    """Endless batches make(0), make(1), ... `get_state()` is JSON; `set_state()` resumes exactly there.

    digest: fingerprint of everything that `make` depends on; a state with another digest is refused. Worker processes
    are sent `make`, so it must be picklable.
    """

    def __init__(self, make: Callable[[int], T], digest: str, reading: Reading):
        self._make, self._digest, self._reading = make, digest, reading
        self._next = 0
        self._stream: grain.DatasetIterator | None = None

    def __next__(self) -> T:
        if self._stream is None:
            self._stream = iter(_read_ahead(self._make, self._next, _ENDLESS - self._next, self._reading))
        batch = next(self._stream)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Number of the next batch, and the digest of the stream."""
        return {"next_batch": self._next, "stream": self._digest}

    def set_state(self, state: dict[str, Any]) -> None:
        """Resume at `state`. UserError if it belongs to other data, another configuration or another seed."""
        if state.get("stream") != self._digest:
            raise UserError(
                "the checkpoint was made with other data, another data configuration or another seed",
                todo="restore the old configuration, or start in a new workdir",
            )
        self.close()
        self._next = int(state["next_batch"])

    def close(self) -> None:
        """Stop prefetching; the next batch starts it again."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None


def finite(make: Callable[[int], T], count: int, reading: Reading) -> Iterator[T]:
    """make(0), ..., make(count - 1), prefetched. Reading stops when the caller stops, even before the end."""
    return _closing(iter(_read_ahead(make, 0, count, reading)))


def digest(settings: Reading, *others: Any) -> str:
    """Fingerprint of what a stream depends on: its settings, except those for reading, and `others` (for JSON)."""
    reading = {field.name for field in fields(Reading)}
    values = {name: value for name, value in asdict(settings).items() if name not in reading}
    return hashlib.sha256(json.dumps([values, *others]).encode()).hexdigest()[:16]


def _closing(stream: grain.DatasetIterator) -> Iterator[Any]:
    try:
        yield from stream
    finally:
        stream.close()


def _read_ahead(make: Callable[[int], Any], start: int, count: int, reading: Reading) -> grain.IterDataset:
    """Batches start, start + 1, ... in order, prefetched."""
    _one_thread()
    dataset = grain.MapDataset.source(_Numbers(start, count)).map(make)
    if reading.workers == 0:
        return dataset.to_iter_dataset(grain.ReadOptions(reading.threads, reading.prefetch))
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain passes its flags to the workers
    buffer = max(1, reading.prefetch // reading.workers)
    options = grain.MultiprocessingOptions(reading.workers, per_worker_buffer_size=buffer)
    return dataset.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(options, worker_init_fn=_one_thread)


def _one_thread(*_: object) -> None:
    cv2.setNumThreads(0)  # OpenCV's own threads, in each reading thread, would only compete for the cores


@dataclass(frozen=True)
class _Numbers:
    """The whole numbers from `start` on, as a Grain source."""

    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return self.start + int(index)
