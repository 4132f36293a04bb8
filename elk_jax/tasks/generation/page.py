"""Report sections and table of synthetic patches, from plain data: evaluation.json, metrics.jsonl, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from elk_jax.reporting import html
from elk_jax.reporting.pictures import wide_image
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part, promised
from elk_jax.reporting.tables import name_cell, named_table
from elk_jax.reporting.training import Progress, Trainings, progress_sections, training_section

Evaluation = Mapping[str, Any]
"""The content of evaluation.json (evaluate.py)."""

CURVES = (
    "train/loss",
    "train/discriminator_loss",
    "train/real_score",
    "train/made_score",
    "eval/distance",
    "eval/loss",
)
"""Keys of the charts that are not folded."""


@dataclass(frozen=True)
class Compared:
    """One comparison. grids: by class, a row of real patches above a row of synthetic ones [H, W] uint8."""

    evaluation: Evaluation
    grids: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationRun:
    """The content of a report on generation; empty parts are omitted. progress: a row of patches of every class."""

    compared: Sequence[Compared] = ()
    progress: Sequence[Progress] = ()
    trainings: Trainings = field(default_factory=Trainings)
    pools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # summaries of fit stages


def generation_part(run: GenerationRun) -> Part:
    """The report on generation: measures, patches, progress and training curves."""
    sections = [pools_section(run.pools)] if run.pools else []
    sections += [samples_section(one, len(run.compared) > 1) for one in run.compared]
    note = "One row per class, always from the same noise."
    sections += progress_sections(run.progress, "the generator", note)
    if run.trainings.have_curves:
        sections.append(training_section(run.trainings, "Generator training", CURVES))
    said = [*map(verdict, run.compared), *promised(run.trainings.promises)]
    return Part("Synthetic patches", " ".join(said), {}, sections)


def verdict(one: Compared) -> str:
    """The result in a sentence."""
    found = one.evaluation["classes"]["all"]
    if found["distance"] is None:
        return ""
    said = [
        f"distance {html.number(found['distance'], 2)} from real ones, {html.number(found['reference'], 2)} between "
        "real ones"
    ]
    for kind, of_kind in found.get("frd", {}).items():
        if of_kind["made"] is not None:
            said.append(
                f"{_FRD[kind]} {html.number(of_kind['made'], 2)}, {html.number(of_kind['real'], 2)} between real ones"
            )
    return f"Patches of {one.evaluation['synthetic']}: {'; '.join(said)}."


def rows_of(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Cells by class: counts, distance, its reference, shares of power of synthetic and real patches."""
    rows = []
    for name, found in evaluation["classes"].items():
        cells = [f"{found['made']}", f"{found['real']}"]
        cells += [html.number(found[key], 3) for key in ("distance", "reference")]
        cells += [_small(found[key]) for key in ("checkerboard", "real_checkerboard")]
        cells += [_small(found[key]) for key in ("fine_share", "real_fine_share")]
        rows.append((name, *cells))
    return rows


HEAD = ("Class", "Made", "Real", "Distance", "Real to real", "Checkerboard", "of real", "Fine waves", "of real")


_FRD = {"v0": "FRD v0", "v1": "FRD v1 (ln d²)"}
FRD_HEAD = ("Fréchet radiomics distance", "Class", "Made", "Real to real", "Images", "Features")
FRD_NOTE = (
    "Means over random halves of the real patches, split by patient. With fewer images than features a distance is too "
    "large; the distance between real sets of the same size shows by how much."
)


def frd_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Cells by version and class: radiomics distance of synthetic patches, its reference, images per set, features."""
    rows = []
    for name, found in evaluation["classes"].items():
        for kind, one in found.get("frd", {}).items():
            cells = [html.number(one[key], 2) for key in ("made", "real")]
            rows.append((_FRD[kind], name, *cells, f"{one['images']}", f"{one['features']}"))
    return sorted(rows, key=lambda row: row[0])


def notes_of(evaluation: Evaluation) -> list[str]:
    """A reservation about the halves, and the reasons for missing radiomics distances. Comparisons of earlier versions
    have no notes."""
    found = evaluation["classes"].values()
    missing = [kind.get("note") for one in found for kind in one.get("frd", {}).values()]
    return [note for note in (evaluation.get("doubt"), *missing) if note]


def samples_section(one: Compared, named: bool = False) -> Section:
    """The table of all measures, and patches of every class."""
    evaluation = one.evaluation
    parts = [html.table(HEAD, [html.row([html.text(cell) for cell in cells]) for cells in rows_of(evaluation)])]
    if radiomics := frd_rows(evaluation):
        cells = [html.row([*map(html.text, row)], numeric_from=2) for row in radiomics]
        parts.append(f"<h3>Radiomics</h3>{html.table(FRD_HEAD, cells, numeric_from=2)}{html.paragraph(FRD_NOTE)}")
    parts += [html.paragraph(f"Note: {note}.", "soft small") for note in notes_of(evaluation)]
    for name, grid in one.grids.items():
        parts.append(f"<h3>{html.text(name)}</h3>{wide_image(name, grid)}")
    note = (
        f"Patches of {evaluation['size']} px against the {evaluation['split']} split of {evaluation['on']}. Distance: "
        "Fréchet distance of coarse images and of power by octave, in standard deviations of the real patches; means "
        "over random halves of these by patient, against as many made ones or the other half. Checkerboard: share of "
        "power in the wave of two pixels along both axes. Fine waves: shorter than four pixels. Rows of images: real, "
        "made."
    )
    title = f"Synthetic patches: {evaluation['synthetic']}" if named else "Synthetic patches"
    return Section(title, "".join(parts), note)


def pools_section(pools: Mapping[str, Mapping[str, Any]]) -> Section:
    """The basis of the weights of public patches, their effective number, and their privacy promise."""
    rows = []
    for name, summary in pools.items():
        even = ", ".join(f"{value:.0f} {kind}" for kind, value in summary["effective"].items())
        cells = [name, summary["protection"], summary["release"], f"{summary['pool']}", even]
        rows.append(html.row([*map(html.text, cells), html.number(summary["auroc"])], numeric_from=5))
    head = ["Generator", "Protection", "Released", "Public patches", "Effective number", "Validation AUROC"]
    said = "".join(
        html.paragraph(f"{name}: {summary['promise']}") for name, summary in pools.items() if summary["promise"]
    )
    said += "".join(
        html.paragraph(f"Note on {name}: {note}.", "soft small")
        for name, summary in pools.items()
        for note in summary.get("notes", ())  # missing in earlier versions
    )
    note = (
        "Patches are drawn from public ones, with weights computed from one release of statistics of the private ones. "
        "Effective number: of patches with equal weights that would give a mean the same variance. AUROC: of "
        "validation images along the difference between the weighted means of both classes."
    )
    return Section("Weighted public patches", html.table(head, rows, numeric_from=5) + said, note)


def samples_tables(evaluation: Evaluation) -> list[Table]:
    """For the terminal: the measures by class, and the radiomics distances, if there are any."""
    table = named_table(f"{evaluation['synthetic']} against the {evaluation['split']} split of {evaluation['on']}", "")
    for words in HEAD[1:]:
        table.add_column(words, justify="right")
    for name, *cells in rows_of(evaluation):
        table.add_row(name_cell(name), *cells)
    if not (rows := frd_rows(evaluation)):
        return [table]
    radiomics = named_table("", FRD_HEAD[0])
    for words in FRD_HEAD[1:]:
        radiomics.add_column(words, justify="left" if words == "Class" else "right")
    for kind, name, *cells in rows:
        radiomics.add_row(kind, name_cell(name), *cells)
    return [table, radiomics]


def _small(share: float | None) -> str:
    return html.ABSENT if share is None else f"{share:.1e}"
