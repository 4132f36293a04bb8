"""Report sections of teachers and students: what was learned across modalities, and the curves of training.

Their detections are evaluated and shown by the sections of detection.
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

CURVES = (
    *FIRST_CURVES,
    *("train/loss_distillation", "train/kl_identity", "train/distinct_cells", "eval/similarity", "eval/similarity_gap"),
    f"eval/{MAIN}",
)
"""Keys of metrics.jsonl whose curves are shown first."""
TERMS = {
    "train/loss_distillation": "Distillation loss",
    "train/kl_identity": "without its learned map",
    "train/correlation": "Correlation of the maps of a batch",
    "train/align_pull": "Dissimilarity of lesions",
    "train/align_push": "Similarity of lesions and tissue",
    "train/distinct_cells": "Share of a lesion's points in distinct cells",
    "eval/similarity": "Similarity of the maps, validation",
    "eval/similarity_shuffled": "of mismatched pairs",
    "eval/similarity_gap": "Difference of the two, which is what was learned",
    "eval/cosine": "Cosine of the channels of a cell",
    "eval/spread": "Spread of the student's maps relative to the teacher's",
    "eval/effective_rank": "Effective rank of the student's channels",
    "eval/effective_rank_teacher": "Effective rank of the teacher's channels",
}
"""Metric of a training -> its row."""


@dataclass(frozen=True)
class Trained:
    """A teacher or student. on: what `step` was chosen on (`validated_on`). best, before: metrics there, and before
    training if known. history: lines of metrics.jsonl."""

    role: str
    mode: str
    intra_align: bool
    step: int
    on: str
    best: Mapping[str, float]
    before: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]

    @property
    def words(self) -> str:
        """How it was trained."""
        if self.role == "teacher":
            return f"teacher, {'with' if self.intra_align else 'without'} point alignment"
        return f"student, {self.mode}"

    def ends(self, term: str) -> tuple[float, float] | None:
        """The first value of a metric (that before training, if known) and the last; None if it has none."""
        values = [line[term] for line in self.history if line.get(term) is not None]
        first = self.before.get(term.removeprefix("eval/"))
        return (values[0] if first is None else first, values[-1]) if values else None


def distillation_part(trained: Mapping[str, Trained]) -> Part:
    """The report on teachers and students."""
    trainings = Trainings({n: one.history for n, one in trained.items()}, {n: one.step for n, one in trained.items()})
    curves = training_section(trainings, "Training of teacher and student", CURVES, metric_label)
    summary = ". ".join(f"{name}: {one.words}" for name, one in trained.items())
    return Part("Distillation", f"{summary}." if summary else "", {}, [learned_section(trained), curves])


def learned_section(trained: Mapping[str, Trained]) -> Section:
    """Every term of the loss at the beginning and the end of training, and the validation."""
    head = ["", *(html.named(i, name) for i, name in enumerate(trained))]
    rows = [html.row(["Trained as", *(html.text(one.words) for one in trained.values())])]
    for term, label in TERMS.items():
        ends = [one.ends(term) for one in trained.values()]
        if any(ends):
            cells = [f"{html.number(e[0])} → {html.number(e[1])}" if e else html.ABSENT for e in ends]
            rows.append(html.row([label, *cells]))
    best = [html.number(one.best.get(MAIN)) for one in trained.values()]
    on = ", ".join(dict.fromkeys(one.on for one in trained.values()))
    rows.append(html.row([f"{metric_label(MAIN)}, {on}", *best], style="main"))
    note = (
        "Values before the training (or at its first log line) and at the last log line. If a distillation loss falls "
        "but the same loss without its learned map does not, the map has learned, not the student. If the points of a "
        "lesion fall into a few cells, there is little to compare between them. A finer level (stride) separates "
        "them, but aligning the teacher there can cost much of its sensitivity. Maps of different breasts resemble "
        "each other too; what a student has learned from the partners is the difference."
    )
    return Section("What the student learned from the teacher", html.table(head, rows), note)
