"""The report of a run: the parts of its tasks, then the sections common to all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elk_jax.reporting import html
from elk_jax.reporting.report import Report, Section
from elk_jax.reporting.sections import config_section, data_section, environment_section


@dataclass(frozen=True)
class Part:
    """The part of one task in the report of a run."""

    what: str  # "Lesion detection"
    summary: str = ""  # the result in one or two sentences
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()


@dataclass(frozen=True)
class RunRecord:
    """The content common to the reports of all runs; empty parts are omitted."""

    name: str
    title: str = ""
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # counts by split
    skipped: Sequence[tuple[str, str]] = ()  # image, reason
    notes: Sequence[str] = ()  # on the whole run, one sentence each
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage


def run_report(run: RunRecord, parts: Sequence[Part]) -> Report:
    """Assemble the page: the sections of the tasks, then data, configuration and environment."""
    sections = [section for part in parts for section in part.sections]
    if run.data or run.skipped:
        sections.append(data_section(run.data, run.skipped))
    if run.config:
        sections.append(config_section(run.config))
    if run.versions or run.seconds:
        sections.append(environment_section(run.versions, run.seconds))
    what = ", ".join(part.what for part in parts) or "elk_jax report"
    return Report(
        title=run.title or run.name,
        kicker=f"{what} · {run.name}" if run.title else what,
        summary=" ".join([*(part.summary for part in parts if part.summary), *run.notes]),
        facts={name: value for part in parts for name, value in part.facts.items()} | _facts(run),
        sections=sections,
        footer=f"elk_jax {run.versions.get('elk_jax', '')}".strip(),
    )


def promised(promises: Mapping[str, str]) -> list[str]:
    """The promises of privately trained models as sentences; the models are named if there are several."""
    return [f"{name}: {said}" if len(promises) > 1 else said for name, said in promises.items()]


def _facts(run: RunRecord) -> dict[str, str]:
    facts: dict[str, str] = {}
    if run.seconds:
        facts["Time"] = html.duration(sum(run.seconds.values()))
    if "devices" in run.versions:
        facts["Hardware"] = str(run.versions["devices"])
    if run.skipped:
        facts["Skipped images"] = str(len(run.skipped))
    return facts
