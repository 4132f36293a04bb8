"""The report of denoisers, read from the files of their stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from elk_jax.reporting.run import Part
from elk_jax.tasks.generation import report
from elk_jax.tasks.run import Run


def part(run: Run, summaries: Mapping[str, Any]) -> Part:
    """The part of the finished denoisers: their progress and curves. summaries: by stage."""
    return replace(report.part(run, summaries), what="Denoisers of patches")
