"""The report of a run: what each task has to say of it, then what every run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elk_jax.reporting import html
from elk_jax.reporting.report import Report, Section
from elk_jax.reporting.sections import config_section, data_section, environment_section


@dataclass(frozen=True)
class Part:
    """What one task has to say of a run."""

    what: str  # "Lesion detection"
    summary: str = ""  # the result in a sentence or two
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()


@dataclass(frozen=True)
class RunRecord:
    """What a report shows of any run; what is empty is left out."""

    name: str
    title: str = ""
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # counts by split
    skipped: Sequence[tuple[str, str]] = ()  # image, reason
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage


def run_report(run: RunRecord, parts: Sequence[Part]) -> Report:
    """Put the page together: the tasks' sections in order, then data, configuration and environment."""
    sections = [section for part in parts for section in part.sections]
    if run.data or run.skipped:
        sections.append(data_section(run.data, run.skipped))
    if run.config:
        sections.append(config_section(run.config))
    if run.versions or run.seconds:
        sections.append(environment_section(run.versions, run.seconds))
    return Report(
        title=run.title or run.name,
        kicker=_kicker(run, parts),
        summary=" ".join(part.summary for part in parts if part.summary),
        facts={name: value for part in parts for name, value in part.facts.items()} | _facts(run),
        sections=sections,
        footer=f"elk_jax {run.versions.get('elk_jax', '')}".strip(),
    )


def _kicker(run: RunRecord, parts: Sequence[Part]) -> str:
    said = " and ".join(part.what for part in parts) or "elk_jax report"
    return f"{said} · {run.name}" if run.title else said


def _facts(run: RunRecord) -> dict[str, str]:
    facts: dict[str, str] = {}
    if run.seconds:
        facts["Time"] = html.duration(sum(run.seconds.values()))
    if "devices" in run.versions:
        facts["Hardware"] = str(run.versions["devices"])
    if run.skipped:
        facts["Skipped images"] = str(len(run.skipped))
    return facts
