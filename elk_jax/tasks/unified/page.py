"""Report sections of fused detectors: what each is made of, what it reads, and the curves of its training.

Their detections are evaluated and shown by the sections of detection, and what the second trunk learned by those of
distillation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elk_jax.reporting import html
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part
from elk_jax.reporting.sections import FIRST_CURVES, training_section
from elk_jax.tasks.detection.page import MAIN, metric_label

CURVES = (*FIRST_CURVES, f"eval/{MAIN}")
"""Keys of metrics.jsonl whose curves are shown first."""


@dataclass(frozen=True)
class Fused:
    """A fused detector. members: setting -> model of each trunk. shares: of the second trunk in what joins the maps.
    best: metrics of the validation split at `step`. history: lines of metrics.jsonl."""

    second: str
    drop: float
    members: Mapping[str, str]
    shares: Mapping[str, float]
    step: int
    best: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]

    @property
    def reads(self) -> str:
        """What it is trained on, and shown."""
        if self.second == "own":
            return "one image"
        return "one image, trained with its partner" if self.drop else "the image and its partner"

    @property
    def trunks(self) -> str:
        """Where its trunks come from."""
        return " and ".join(self.members.values()) or "trained together"


def unified_part(fused: Mapping[str, Fused]) -> Part:
    """The report on fused detectors."""
    colours = {name: index for index, name in enumerate(fused)}
    curves = training_section(
        {name: one.history for name, one in fused.items()},
        {name: one.step for name, one in fused.items()},
        colours,
        "Training of fused detectors",
        CURVES,
        metric_label,
    )
    summary = ". ".join(f"{name}: {one.trunks}, reads {one.reads}" for name, one in fused.items())
    return Part("Unified representations", f"{summary}." if summary else "", {}, [made_section(fused), curves])


def made_section(fused: Mapping[str, Fused]) -> Section:
    """Trunks, input, how much the second trunk counts at every level, and the validation."""
    head = ["", *(f"{html.swatch(i)}{html.text(name)}" for i, name in enumerate(fused))]
    rows = [
        html.row(["Trunks", *(html.text(one.trunks) for one in fused.values())]),
        html.row(["Reads", *(html.text(one.reads) for one in fused.values())]),
    ]
    for level in dict.fromkeys(level for one in fused.values() for level in one.shares):
        shares = [one.shares.get(level) for one in fused.values()]
        cells = [html.ABSENT if share is None else html.number(share) for share in shares]
        rows.append(html.row([f"Share of the second trunk, {html.text(level)}", *cells]))
    best = [html.number(one.best.get(MAIN)) for one in fused.values()]
    rows.append(html.row([f"{metric_label(MAIN)}, validation", *best], style="main"))
    note = (
        "The share is that of the weights in the layer that joins both maps of a level: at 0 the detector is its first "
        "trunk alone, as it starts; at 0.5 both count alike. Two trunks can beat one without any new knowledge: "
        "compare with two that were trained alike."
    )
    return Section("What is fused", html.table(head, rows), note)
