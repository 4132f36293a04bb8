"""The report of fused detectors, read from the files of their stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elk_jax.reporting.folds import validated_on
from elk_jax.reporting.run import Part
from elk_jax.tasks.run import Run
from elk_jax.tasks.unified.page import Fused, unified_part
from elk_jax.training.writer import read_metrics


def part(run: Run, summaries: Mapping[str, Any]) -> Part:
    """The part of the finished fused detectors. summaries: by stage."""
    return unified_part(
        {
            name: Fused(
                second=s["second"],
                drop=s["drop"],
                members=s["members"],
                shares=s["shares_of_other"],
                step=s["best_step"],
                on=validated_on(s),
                best=s["best"],
                history=read_metrics(run.folder / name / "metrics.jsonl"),
            )
            for name, s in summaries.items()
        }
    )
