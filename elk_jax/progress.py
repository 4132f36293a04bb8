"""Progress of long work: on a terminal a bar with rate and remaining time, elsewhere an occasional line."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any, TypeVar

import jax

from elk_jax.output import Console, visible
from elk_jax.threads import ProgressBar

T = TypeVar("T")

LONG = 2.0
"""Seconds that work must take before `progress_bar` shows it."""


class Progress:
    """`with Progress("training", total=3000, unit="step") as bar: bar.update(step, "loss 0.41")`.

    On a terminal it is a live bar; in a log file, at most one line every `every` seconds and one at the end. Only
    process 0 shows anything, and work that ends within `patience` seconds is not shown.
    `start` is where the work resumes: it counts as done, but not towards the rate.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        start: int = 0,
        unit: str = "step",
        every: float = 15.0,
        patience: float = 0.0,
        stream: IO[str] | None = None,
    ):
        self.title, self.total, self.start, self.unit, self.every = title, total, start, unit, every
        self.patience = patience
        self.stream = sys.stderr if stream is None else stream
        self.done = start
        self._note = ""
        self._show = jax.process_index() == 0
        self._bar: Any = None
        self._task: Any = None
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> Progress:
        self._began = self._spoke = time.monotonic()
        if self._terminal and not self.patience:
            self._start_bar()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._show and self.done > self.start and self._elapsed() >= self.patience:
            self._line()

    def update(self, done: int, note: str | None = None) -> None:
        """`done` units are finished; `note` is shown after the bar until it is replaced."""
        self.done = done
        self._note = self._note if note is None else note
        if self._terminal and self._bar is None and self._elapsed() >= self.patience:
            self._start_bar()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=self._rate_text(), note=self._note)
        elif self._show and time.monotonic() - self._spoke >= self.every:
            self._line()

    def say(self, text: str) -> None:
        """Print a line of text without breaking the bar."""
        if self._bar is not None:
            self._bar.console.print(text)
        elif self._show:
            print(visible(text), file=self.stream, flush=True)

    @property
    def _terminal(self) -> bool:
        return self._show and self.stream.isatty()

    def _start_bar(self) -> None:
        self._bar = _rich_bar(self.stream)
        self._task = self._bar.add_task(visible(self.title), total=self.total, completed=self.start, rate="", note="")
        self._bar.start()

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _rate(self) -> float:
        return (self.done - self.start) / max(self._elapsed(), 1e-9)

    def _rate_text(self) -> str:
        rate = self._rate()
        return f"{rate:.1f} {self.unit}s/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s/{self.unit}"

    def _line(self) -> None:
        self._spoke = time.monotonic()
        rate = self._rate()
        left = f", {clock((self.total - self.done) / rate)} left" if rate and self.done < self.total else ""
        note = f", {self._note}" if self._note else ""
        elapsed = clock(self._elapsed())
        counts = f"{self.done}/{self.total} {self.unit}s in {elapsed}{left}, {self._rate_text()}{note}"
        print(f"{visible(self.title)}: {counts}", file=self.stream, flush=True)


def progress_bar(title: str, unit: str = "image") -> ProgressBar:
    """A bar with this title over the results of `map_in_threads`, if they take long."""

    def show(results: Iterable[T], total: int) -> Iterator[T]:
        with Progress(title, total, unit=unit, patience=LONG) as bar:
            for done, result in enumerate(results, start=1):
                bar.update(done)
                yield result

    return show


def clock(seconds: float) -> str:
    """12:05 or 1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _rich_bar(stream: IO[str]) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=stream),
    )
