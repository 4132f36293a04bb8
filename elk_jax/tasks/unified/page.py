"""Report sections of fused detectors: their parts, their input, and the curves of their training.

Their detections are evaluated and shown by the sections of detection, and what the second trunk learned by those of
distillation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elk_jax.reporting import html
from elk_jax.reporting.detections import MAIN, metric_label
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part
from elk_jax.reporting.training import FIRST_CURVES, Trainings, training_section

CURVES = (*FIRST_CURVES, f"eval/{MAIN}")
"""Keys of metrics.jsonl whose curves are shown first."""


@dataclass(frozen=True)
class Fused:
    """A fused detector. members: setting -> model of each trunk. shares: of the second trunk in the layers that join
    the maps. on: what `step` was chosen on (`validated_on`). best: metrics there. history: lines of metrics.jsonl."""

    second: str
    drop: float
    members: Mapping[str, str]
    shares: Mapping[str, float]
    step: int
    on: str
    best: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]

    @property
    def reads(self) -> str:
        """Its input in training and in prediction."""
        if self.second == "own":
            return "one image"
        return "one image, trained with its partner" if self.drop else "the image and its partner"

    @property
    def trunks(self) -> str:
        """The origin of its trunks."""
        return " and ".join(self.members.values()) or "trained together"


def unified_part(fused: Mapping[str, Fused]) -> Part:
    """The report on fused detectors."""
    trainings = Trainings({n: one.history for n, one in fused.items()}, {n: one.step for n, one in fused.items()})
    curves = training_section(trainings, "Training of fused detectors", CURVES, metric_label)
    summary = ". ".join(f"{name}: {one.trunks}, reads {one.reads}" for name, one in fused.items())
    return Part("Unified representations", f"{summary}." if summary else "", {}, [made_section(fused), curves])


def made_section(fused: Mapping[str, Fused]) -> Section:
    """Trunks, input, the share of the second trunk at every level, and the validation."""
    head = ["", *(html.named(i, name) for i, name in enumerate(fused))]
    rows = [
        html.row(["Trunks", *(html.text(one.trunks) for one in fused.values())]),
        html.row(["Reads", *(html.text(one.reads) for one in fused.values())]),
    ]
    for level in dict.fromkeys(level for one in fused.values() for level in one.shares):
        shares = [one.shares.get(level) for one in fused.values()]
        cells = [html.ABSENT if share is None else html.number(share) for share in shares]
        rows.append(html.row([f"Share of the second trunk at {html.text(level)}", *cells]))
    best = [html.number(one.best.get(MAIN)) for one in fused.values()]
    on = ", ".join(dict.fromkeys(one.on for one in fused.values()))
    rows.append(html.row([f"{metric_label(MAIN)}, {on}", *best], style="main"))
    note = (
        "The share is that of the weights in the layer that joins both maps of a level. At 0, the initial value, only "
        "the first trunk is used; at 0.5 both count equally. Two trunks can be better than one without any new "
        "knowledge: compare with two trunks that were trained alike."
    )
    return Section("Fused trunks", html.table(head, rows), note)
