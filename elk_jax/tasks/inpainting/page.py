"""What a report says of lesion synthesis, from plain data: evaluation.json, metrics.jsonl, pictures.

Shapes: S side of a square close-up in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from elk_jax.reporting import html
from elk_jax.reporting.figures import interval_bar
from elk_jax.reporting.pictures import Strip, data_uri, enlarged, strips
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part
from elk_jax.reporting.sections import training_section

Evaluation = Mapping[str, Any]
"""The content of evaluation.json of lesion synthesis (tasks/inpainting_evaluate.py)."""

STATISTICS = {  # name in evaluation.json -> (words, digits)
    "width": ("Width of the box, px", 1),
    "height": ("Height of the box, px", 1),
    "area": ("Area of the box, px²", 0),
    "ratio": ("Height / width", 2),
    "contrast": ("Contrast, in sd of the tissue around", 2),
    "brightness": ("Brightness over the tissue, share of white", 3),
    "roughness": ("Roughness, sd of lesion / sd of tissue", 2),
    "border_gradient": ("Steepness of the border", 3),
    "box_step": ("Step at the box's outline (1: no seam)", 2),
}

GOOD = (
    "Good: distances no larger than between real lesions, an AUC whose interval reaches down to 0.5, at most a lesion "
    "or two more like a training lesion than lesions of different patients are like each other, and gaps within chance."
)


@dataclass(frozen=True)
class Quality:
    """A painted set against real lesions."""

    on: str  # "train split of real"
    evaluation: Evaluation
    pairs: Sequence[Strip] = ()  # the synthetic lesions most like a training lesion, each beside it


@dataclass(frozen=True)
class PaintedSet:
    """What a synthesis stage painted."""

    stage: str
    count: int
    painted: Sequence[Strip] = ()  # a canvas before and after
    real: Sequence[Strip] = ()  # lesions of the training split


@dataclass(frozen=True)
class Step:
    """What an inpainter painted at one step of its training."""

    step: int
    image: np.ndarray  # [H, W] or [H, W, 3] uint8: close-ups in a row


@dataclass(frozen=True)
class Progress:
    """The same validation close-ups through a training."""

    model: str
    known: Mapping[str, np.ndarray]  # rows above, such as the real close-ups: name -> image
    steps: Sequence[Step]


@dataclass(frozen=True)
class InpaintingRun:
    """Everything that a report can show of lesion synthesis; what is empty is left out."""

    quality: Sequence[Quality] = ()
    sets: Sequence[PaintedSet] = ()
    progress: Sequence[Progress] = ()
    histories: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # lines of metrics.jsonl
    chosen_steps: Mapping[str, int] = field(default_factory=dict)  # by model: the step whose weights were kept


def inpainting_part(run: InpaintingRun) -> Part:
    """What a report says of lesion synthesis: how good it is, what it looks like, how it came about."""
    many = len(run.quality) > 1
    sections = [quality_section(one, one.on if many else "") for one in run.quality]
    sections += [painted_section(one, len(run.sets) > 1) for one in run.sets if one.painted or one.real]
    for one in run.quality:
        if one.pairs:
            sections.append(pairs_section(one, one.on if many else ""))
    sections += [progress_section(one, len(run.progress) > 1) for one in run.progress if one.steps]
    if any(run.histories.values()):
        colours = {name: index for index, name in enumerate(run.histories)}
        sections.append(training_section(run.histories, run.chosen_steps, colours, "Inpainter training"))
    said = [verdict(one.evaluation) for one in run.quality]
    if many:
        said = [f"{one.on}: {words}" for one, words in zip(run.quality, said)]
    facts = {"Synthetic lesions": ", ".join(str(one.count) for one in run.sets)} if run.sets else {}
    return Part("Lesion synthesis", " ".join(said), facts, sections)


# ---- How good it is ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A row of the table of measures, in words and written numbers."""

    name: str
    found: str
    yardstick: str
    good: str
    note: str = ""
    bounds: str = ""  # of the interval


@dataclass(frozen=True)
class Compared:
    """A statistic of real and synthetic lesions. chance: the gap that 1 in 20 pairs of equal distributions exceeds."""

    name: str
    digits: int
    real: float | None
    synthetic: float | None
    gap: float | None
    chance: float | None
    shift: float | None


def measures(evaluation: Evaluation) -> list[Measure]:
    """Distances, AUC and likeness to training lesions, each with its yardstick."""
    rows = [_distance("Radiomics, Fréchet distance", evaluation["radiomics"])]
    features = evaluation.get("detector_features")
    if features:
        rows.append(_distance("Detector features, Fréchet distance", features))
    rows.append(_auc("Told from real by radiomics, AUC", evaluation["real_or_synthetic"]))
    if features:
        rows.append(_auc("Told from real by detector features, AUC", features["real_or_synthetic"]))
    found = evaluation["memorised"]
    rows.append(
        Measure(
            "Likeness to the nearest training lesion",
            html.number(found["synthetic"], 2),
            html.number(found["real"], 2),
            "not above it",
            "median; 1: the same; the yardstick: training lesions of different patients",
        )
    )
    count, limit = len(found["similarity"]), found["threshold"]
    rows.append(
        Measure(
            "Too like a training lesion",
            f"{len(found['memorised'])} of {count}" if limit is not None else html.ABSENT,
            f"likeness over {html.number(limit, 2)}" if limit is not None else html.ABSENT,
            "none, or one by chance",
            "more than any two training lesions of different patients are like each other",
        )
    )
    return rows


def compared(evaluation: Evaluation) -> list[Compared]:
    """The statistics in the order to be shown."""
    rows = []
    for key, (name, digits) in STATISTICS.items():
        if key not in evaluation["statistics"]:
            continue
        entry = evaluation["statistics"][key]
        n, m = entry["real_count"], entry["synthetic_count"]
        chance = min(1.0, 1.358 * ((n + m) / (n * m)) ** 0.5) if n and m else None  # Kolmogorov-Smirnov at 5 %
        gap, shift = entry["kolmogorov_smirnov"], entry["wasserstein"]
        rows.append(Compared(name, digits, entry["real"], entry["synthetic"], gap, chance, shift))
    return rows


def verdict(evaluation: Evaluation) -> str:
    """The result in plain words."""
    distance, said = evaluation["radiomics"], []
    if distance["synthetic_to_real"] is not None:
        said.append(
            f"radiomics distance {_written(distance['synthetic_to_real'])} from real lesions, which lie "
            f"{_written(distance['real_to_real'])} from each other"
        )
    told = _estimate(evaluation["real_or_synthetic"])
    if told["value"] is not None:
        said.append(f"told from real ones with an AUC of {_with_interval(told)}")
    found = evaluation["memorised"]
    if found["threshold"] is not None:
        said.append(f"{len(found['memorised'])} of {len(found['similarity'])} too like a training lesion")
    return f"Synthetic lesions: {'; '.join(said)}." if said else ""


def quality_section(quality: Quality, where: str = "") -> Section:
    """Cards with the three main measures, the table of all, and the statistics of both kinds of lesions."""
    evaluation = quality.evaluation
    counts, distance, found = evaluation["counts"], evaluation["radiomics"], evaluation["memorised"]
    told = _estimate(evaluation["real_or_synthetic"])
    likeness = html.ABSENT if found["threshold"] is None else str(len(found["memorised"]))
    cards = [
        _card(
            0,
            "Told from real ones",
            html.number(told["value"], 2),
            interval_bar(told, 0),
            f"AUC, {html.interval(told, 2) or 'no interval'}; 0.5: cannot be told",
        ),
        _card(
            1,
            "Distance from real ones",
            _written(distance["synthetic_to_real"]),
            "",
            f"radiomics; real ones from each other: {_written(distance['real_to_real'])}",
        ),
        _card(
            2, "Too like a training lesion", likeness, "", f"of {len(found['similarity'])}; repetitions show here"
        ),
    ]
    rows = [
        html.row(
            [
                f"{html.text(one.name)}{_beneath(one.note)}",
                f'<b>{html.text(one.found)}</b>{_range(one.bounds)}',
                html.text(one.yardstick),
                html.text(one.good),
            ]
        )
        for one in measures(evaluation)
    ]
    parts = [f'<div class="cards">{"".join(cards)}</div>']
    parts.append(html.table(["Measure", "Synthetic", "Yardstick", "Good"], rows))
    parts.append(f"<h3>What the lesions are like</h3>{_statistics(evaluation)}")
    parts.append(html.paragraph(_how(distance), "soft small"))
    parts += [html.paragraph(f"Note: {note}.", "soft small") for note in evaluation.get("notes", ())]
    note = (
        f"{counts['synthetic']} synthetic lesions against {counts['real']} real ones of {counts['real_patients']} "
        f"patients, {quality.on}. {GOOD}"
    )
    return Section(_titled("Synthetic lesions", where), "".join(parts), note)


def _statistics(evaluation: Evaluation) -> str:
    head = ["Median of", "Real", "Synthetic", "Gap", "Chance", "Shift, sd"]
    rows = []
    for one in compared(evaluation):
        far = one.gap is not None and one.chance is not None and one.gap > one.chance
        gap = html.number(one.gap, 2)
        cells = [html.text(one.name), html.number(one.real, one.digits), html.number(one.synthetic, one.digits)]
        cells += [f'<b class="bad">{gap}</b>' if far else gap, html.number(one.chance, 2), html.number(one.shift, 2)]
        rows.append(html.row(cells))
    return html.table(head, rows)


def _how(distance: Mapping[str, Any]) -> str:
    how = (
        f"Distances: means over random halves of the patients, {distance['half']} real lesions against as many real or "
        "synthetic ones. "
        if distance["synthetic_to_real"] is not None
        else ""
    )
    return (
        f"{how}Gap: largest difference of the two distribution functions, red where it is over chance, which 1 in 20 "
        "pairs of samples of one distribution exceeds. Shift: how far one distribution must be moved to become the "
        "other. Painted sizes are drawn evenly between the smallest and the largest of training, and differ by that."
    )


# ---- What it looks like ---------------------------------------------------------------------------------------------


def painted_section(painted: PaintedSet, named: bool = False) -> Section:
    """Canvases before and after, and real lesions to compare."""
    parts = [strips(painted.painted)] if painted.painted else []
    if painted.real:
        parts.append(f"<h3>Real lesions, at the same scale</h3>{strips(painted.real)}")
    title = _titled("Painted lesions", painted.stage if named else "")
    note = (
        f"Some of {painted.count}, at native resolution: the canvas with the place, and with the lesion. "
        "Marked corners are those of the box; a click enlarges."
    )
    return Section(title, "".join(parts), note)


def pairs_section(quality: Quality, where: str = "") -> Section:
    """The synthetic lesions most like a training lesion."""
    limit = quality.evaluation["memorised"]["threshold"]
    note = "The synthetic lesions most like a training lesion (left) and that lesion (right), each in its own contrast."
    if limit is not None:
        note += f" Lesions of different patients reach a likeness of {html.number(limit, 2)}."
    return Section(_titled("Most like a training lesion", where), strips(quality.pairs), note)


def progress_section(progress: Progress, named: bool = False) -> Section:
    """Validation close-ups, what the inpainter sees of them, and what it painted there, early and late."""
    rows = {**progress.known, **{f"Painted, step {one.step}": one.image for one in progress.steps}}
    cells = "".join(
        f'<div>{html.text(name)}</div><img alt="{html.text(name)}" src="{data_uri(enlarged(image, 900), 1200)}">'
        for name, image in rows.items()
    )
    title = _titled("Progress of the inpainter", progress.model if named else "")
    note = "Lesions of the validation split, painted from the same noise every time."
    return Section(title, f'<div class="steps">{cells}</div>', note)


# ---- Parts ----------------------------------------------------------------------------------------------------------


def _distance(name: str, found: Mapping[str, Any]) -> Measure:
    known = found["synthetic_to_real"] is not None
    return Measure(
        name,
        _written(found["synthetic_to_real"] if known else found["distance"]),
        f"{_written(found['real_to_real'])}",
        "not above it",
        "the yardstick: real from real" if known else "all lesions; no yardstick",
    )


def _auc(name: str, told: Mapping[str, float | None] | None) -> Measure:
    estimate = _estimate(told)
    bounds = html.interval(estimate, 2)
    return Measure(name, html.number(estimate["value"], 2), "0.50", "0.50 or less in it", bounds=bounds)


def _estimate(told: Mapping[str, float | None] | None) -> dict[str, float | None]:
    told = told or {}
    return {"value": told.get("auc"), "low": told.get("low"), "high": told.get("high")}


def _with_interval(estimate: Mapping[str, float | None]) -> str:
    bounds = html.interval(estimate, 2)
    return f"{html.number(estimate['value'], 2)}{f' ({bounds})' if bounds else ''}"


def _card(index: int, name: str, big: str, bar: str, what: str) -> str:
    return (
        f'<div class="card {html.colour(index)}"><div class="name">{html.text(name)}</div>'
        f'<div class="big">{html.text(big)}</div>{bar}<div class="what">{html.text(what)}</div></div>'
    )


def _written(distance: float | None) -> str:
    """A distance with three digits that count: 0.0123, 1.23, 123."""
    if distance is None:
        return html.ABSENT
    if distance == 0 or not np.isfinite(distance):
        return html.number(distance, 0)
    return html.number(distance, max(0, 2 - int(np.floor(np.log10(abs(distance))))))


def _range(bounds: str) -> str:
    return f'<br><span class="range">{html.text(bounds)}</span>' if bounds else ""


def _beneath(note: str) -> str:
    return f'<br><span class="soft small">{html.text(note)}</span>' if note else ""


def _titled(title: str, name: str) -> str:
    return f"{title}: {name}" if name else title
