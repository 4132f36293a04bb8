"""The report of distillation, read from the files of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elk_jax.reporting.folds import validated_on
from elk_jax.reporting.run import Part
from elk_jax.tasks.distillation.page import Trained, distillation_part
from elk_jax.tasks.run import Run
from elk_jax.training.writer import read_metrics


def part(run: Run, summaries: Mapping[str, Any]) -> Part:
    """The part of the finished teachers and students. summaries: by stage."""
    return distillation_part(
        {
            name: Trained(
                role=s["role"],
                mode=s["mode"],
                intra_align=s["intra_align"],
                step=s["best_step"],
                on=validated_on(s),
                best=s["best"],
                before=s.get("before", {}),
                history=read_metrics(run.folder / name / "metrics.jsonl"),
            )
            for name, s in summaries.items()
        }
    )
