"""Pages of detectors on tomosynthesis volumes: the metric, and every finding in its best slice and along z."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elk_jax.data.sources.volumes import Volume
from elk_jax.evaluation.volumes import PRIMARY, VolumeDetections, VolumeResult, hits
from elk_jax.reporting import html
from elk_jax.reporting.comparison import difference_html
from elk_jax.reporting.pictures import Closeup, Picture, Strip, boxes_key, gallery, strips
from elk_jax.reporting.report import Report, Section

SHOWN = 24
"""Number of findings with pictures on a page: those with the highest scores."""
STRIP = 5
"""Number of slices in a strip along z."""


def findings_page(volumes: Sequence[Volume], found: Sequence[VolumeDetections], threshold: float) -> Report:
    """The findings at or above a threshold in volumes without truth."""
    count = sum(int((one.scores >= threshold).sum()) for one in found)
    return Report(
        title=f"Findings in {len(volumes)} volumes",
        kicker="Lesion detection in tomosynthesis",
        summary=f"{count} findings have a score of at least {threshold:.3f}.",
        sections=findings_sections(volumes, found, threshold),
    )


def evaluation_page(
    name: str,
    place: str,
    evaluation: Mapping[str, Any],
    results: Sequence[VolumeResult],
    volumes: Sequence[Volume],
) -> Report:
    """The DBTex metric, and the findings with the highest scores if the volumes are available."""
    metrics = evaluation["metrics"]
    rows = [html.row([key.replace("_", " "), html.estimate_cell(entry)]) for key, entry in metrics.items()]
    sections = [
        Section("DBTex metric", html.table(["Metric", "Value (95 % interval)"], rows), "Intervals over patients.")
    ]
    counts = {key.replace("_", " "): str(evaluation[key]) for key in ("volumes", "lesions", "patients")}
    if volumes:
        truths = [result.truth for result in results]
        marks = [np.where(hits(truth, one.found) >= 0, "hit", "no hit") for truth, one in zip(truths, results)]
        sections += findings_sections(volumes, [result.found for result in results], 0.0, marks)
    value = html.number(metrics[PRIMARY]["value"])
    return Report(
        title=f"{name} on {place}",
        kicker="Lesion detection in tomosynthesis",
        summary=f"Mean sensitivity at 1 to 4 false positives per volume with lesions: {value}.",
        facts=counts,
        sections=sections,
        footer=" ".join(evaluation["notes"]),
    )


def metric_section(
    on: str,
    evaluations: Mapping[str, Mapping[str, Any]],
    comparisons: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> Section:
    """The DBTex metric of several models by name, with the differences from the first."""
    first = next(iter(evaluations))
    head = [
        "Metric",
        *map(html.text, evaluations),
        *(f"{html.text(name)} − {html.text(first)}" for name in comparisons),
    ]
    rows = []
    for key in evaluations[first]["metrics"]:
        cells = [html.estimate_cell(evaluation["metrics"][key]) for evaluation in evaluations.values()]
        cells += [difference_html(comparison[key]) for comparison in comparisons.values()]
        rows.append(html.row([key.replace("_", " "), *cells], style="main" if key == PRIMARY else ""))
    notes = dict.fromkeys(note for evaluation in evaluations.values() for note in evaluation["notes"])
    counts = (f"{evaluations[first][key]} {key}" for key in ("volumes", "lesions", "patients"))
    remarks = "".join(html.paragraph(f"Note: {note}.", "soft small") for note in notes)
    said = f"{', '.join(counts)}. Intervals: 95 %, over patients."
    return Section(f"DBTex metric: {on}", html.table(head, rows) + remarks, said)


def findings_sections(
    volumes: Sequence[Volume],
    found: Sequence[VolumeDetections],
    threshold: float,
    marks: Sequence[np.ndarray] | None = None,
) -> list[Section]:
    """Best slices and strips of the findings with the highest scores. marks: a word for each finding of each volume."""
    places = [(number, int(k)) for number, one in enumerate(found) for k in np.flatnonzero(one.scores >= threshold)]
    places = sorted(places, key=lambda place: -found[place[0]].scores[place[1]])[:SHOWN]
    if not places:
        return [Section("Findings", html.paragraph("No finding reaches the threshold."))]
    slices, along = [], []
    for number, k in places:
        volume, one = volumes[number], found[number]
        title, said = volume.name, f", {marks[number][k]}" if marks is not None else ""
        first, last = int(one.first[k]), int(one.first[k] + one.depth[k])
        caption = (
            f"slice {one.best[k]} of {volume.slices}, visible in {first} to {last}, score {one.scores[k]:.2f}{said}"
        )
        lesions = np.zeros((0, 4)) if marks is None else _lesions_in(volume, int(one.best[k]))
        image = volume.read(int(one.best[k]))
        slices.append(Picture(image, title, caption, lesions, boxes=one.boxes[k : k + 1], scores=one.scores[k : k + 1]))
        along.append(Strip(_along(volume, one, k), title, f"slices {', '.join(map(str, _positions(volume, one, k)))}"))
    note = f"The {len(places)} findings with the highest scores." if len(places) == SHOWN else ""
    return [
        Section("Findings in their best slices", boxes_key() + gallery(slices), note),
        Section("Findings along z", strips(along), "The same findings in slices around the best one."),
    ]


def _lesions_in(volume: Volume, position: int) -> np.ndarray:
    boxes, at = volume.lesions()
    return boxes[np.abs(at - position) <= volume.slices / 4]


def _positions(volume: Volume, found: VolumeDetections, k: int) -> list[int]:
    """Slices around the best one, including at least the first to the last of the finding."""
    first, last, best = int(found.first[k]), int(found.first[k] + found.depth[k]), int(found.best[k])
    reach = max(STRIP // 2, best - first, last - best)
    around = np.rint(np.linspace(best - reach, best + reach, STRIP)).astype(int)
    return np.unique(np.clip(around, 0, volume.slices - 1)).tolist()


def _along(volume: Volume, found: VolumeDetections, k: int) -> list[Closeup]:
    """Close-ups of a finding, with margins as wide as the finding."""
    x0, y0, x1, y1 = found.boxes[k]
    half = max(x1 - x0, y1 - y0, 16)
    centre, height, width = np.array([x0 + x1, y0 + y1]) / 2, volume.infos[0].height, volume.infos[0].width
    left, top = np.clip(np.floor(centre - half), 0, None).astype(int)
    right, bottom = np.minimum(np.ceil(centre + half), [width, height]).astype(int)
    box = found.boxes[k] - [left, top, left, top]
    return [
        Closeup(np.ascontiguousarray(volume.read(at)[top:bottom, left:right, 0]), box)
        for at in _positions(volume, found, k)
    ]
