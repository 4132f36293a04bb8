"""Report sections and terminal table of the quality of painted lesions, from plain data: evaluation.json, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from elk_jax.reporting import html
from elk_jax.reporting.figures import interval_bar
from elk_jax.reporting.pictures import Strip, strips
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part
from elk_jax.reporting.tables import named_table

Evaluation = Mapping[str, Any]
"""The content of evaluation.json (evaluate.py)."""

STATISTICS = {  # name in evaluation.json -> (words, digits)
    "width": ("Width of the box, px", 1),
    "height": ("Height of the box, px", 1),
    "area": ("Area of the box, px²", 0),
    "ratio": ("Height / width", 2),
    "contrast": ("Contrast, in sd of the surrounding tissue", 2),
    "brightness": ("Brightness above the tissue, share of white", 3),
    "roughness": ("Roughness, sd of lesion / sd of tissue", 2),
    "border_gradient": ("Steepness of the border", 3),
    "box_step": ("Step at the outline of the box (1: no seam)", 2),
}

GOOD = (
    "Good results are: distances no larger than between real lesions, an AUC whose interval includes 0.5, no more "
    "lesions too similar to a training lesion than by chance, and gaps within chance."
)


@dataclass(frozen=True)
class Quality:
    """A comparison of a painted set with real lesions."""

    on: str  # "train split of real"
    evaluation: Evaluation
    pairs: Sequence[Strip] = ()  # the synthetic lesions most similar to a training lesion, beside it


def quality_part(quality: Sequence[Quality]) -> Part:
    """The report on the quality of painted lesions: measures and statistics, then the most similar pairs."""
    many = len(quality) > 1
    sections = [quality_section(one, one.on if many else "") for one in quality]
    sections += [pairs_section(one, one.on if many else "") for one in quality if one.pairs]
    verdicts = [verdict(one.evaluation) for one in quality]
    if many:
        verdicts = [f"{one.on}: {words}" for one, words in zip(quality, verdicts)]
    return Part("Quality of synthetic lesions", " ".join(verdicts), {}, sections)


@dataclass(frozen=True)
class Measure:
    """A row of the table of measures, as text."""

    name: str
    found: str
    reference: str
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
    """Distances, AUC and similarity to training lesions, each with its reference."""
    rows = [_distance("Radiomics, Fréchet distance", evaluation["radiomics"])]
    features = evaluation.get("detector_features")
    if features:
        rows.append(_distance("Detector features, Fréchet distance", features))
    rows.append(_auc("Real or synthetic, AUC by radiomics", evaluation["real_or_synthetic"]))
    if features:
        rows.append(_auc("Real or synthetic, AUC by detector features", features["real_or_synthetic"]))
    found = evaluation["memorised"]
    if found is None:
        return rows
    rows.append(
        Measure(
            "Similarity to the nearest training lesion",
            html.number(found["synthetic"], 2),
            html.number(found["real"], 2),
            "not above",
            "median; 1: identical; reference: training lesions of different patients",
        )
    )
    limit, known = _limit(found), html.ABSENT
    rows.append(
        Measure(
            "Too similar to a training lesion",
            f"{len(found['memorised'])} of {len(found['similarity'])}" if limit is not None else known,
            f"margin above {html.number(limit, 2)}" if limit is not None else known,
            f"about {html.number(found['expected'], 1)}, by chance" if limit is not None else known,
            "margin: similarity to the nearest training lesion minus that to the next ones, of other patients",
        )
    )
    return rows


def compared(evaluation: Evaluation) -> list[Compared]:
    """The statistics in display order."""
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
    """The result in a sentence."""
    distance, found = evaluation["radiomics"], []
    if distance["synthetic_to_real"] is not None:
        found.append(
            f"radiomics distance of {_written(distance['synthetic_to_real'])} from real lesions, "
            f"{_written(distance['real_to_real'])} between real lesions"
        )
    auc = _estimate(evaluation["real_or_synthetic"])
    if auc["value"] is not None:
        found.append(f"distinguished from real lesions with an AUC of {_with_interval(auc)}")
    memorised = evaluation["memorised"]
    if memorised is not None and _limit(memorised) is not None:
        similar, count = len(memorised["memorised"]), len(memorised["similarity"])
        chance = html.number(memorised["expected"], 1)
        found.append(f"{similar} of {count} too similar to a training lesion ({chance} expected by chance)")
    return f"Synthetic lesions: {'; '.join(found)}." if found else ""


def quality_section(quality: Quality, where: str = "") -> Section:
    """Cards with the three main measures, the table of all, and statistics of real and synthetic lesions."""
    evaluation = quality.evaluation
    counts, distance, found = evaluation["counts"], evaluation["radiomics"], evaluation["memorised"]
    auc = _estimate(evaluation["real_or_synthetic"])
    similar, compared = html.ABSENT, "not compared"
    if found is not None:
        compared = f"of {len(found['similarity'])}"
        if _limit(found) is not None:
            similar = str(len(found["memorised"]))
            compared += f"; by chance: {html.number(found['expected'], 1)}"
    cards = [
        _card(
            0,
            "Real or synthetic",
            html.number(auc["value"], 2),
            interval_bar(auc, 0),
            f"AUC, {html.interval(auc, 2) or 'no interval'}; 0.5: indistinguishable",
        ),
        _card(
            1,
            "Distance from real lesions",
            _written(distance["synthetic_to_real"]),
            "",
            f"radiomics; between real lesions: {_written(distance['real_to_real'])}",
        ),
        _card(2, "Too similar to a training lesion", similar, "", compared),
    ]
    rows = [
        html.row(
            [
                f"{html.text(one.name)}{_beneath(one.note)}",
                f"<b>{html.text(one.found)}</b>{_range(one.bounds)}",
                html.text(one.reference),
                html.text(one.good),
            ]
        )
        for one in measures(evaluation)
    ]
    parts = [f'<div class="cards">{"".join(cards)}</div>']
    parts.append(html.table(["Measure", "Synthetic", "Reference", "Good"], rows))
    parts.append(f"<h3>Statistics of the lesions</h3>{_statistics(evaluation)}")
    parts.append(html.paragraph(_how(distance), "soft small"))
    parts += [html.paragraph(f"Note: {note}.", "soft small") for note in evaluation.get("notes", ())]
    note = (
        f"{counts['synthetic']} synthetic lesions and {counts['real']} real lesions of {counts['real_patients']} "
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
        f"Distances: means over random halves of the patients, {distance['half']} real lesions compared with as many "
        "real or synthetic lesions. "
        if distance["synthetic_to_real"] is not None
        else ""
    )
    return (
        f"{how}Gap: largest difference between the two distribution functions, red if above chance, the value exceeded "
        "by 1 in 20 pairs of samples from one distribution. Shift: mean distance between the distributions. Painted "
        "sizes differ from real ones by design: they are drawn uniformly between the smallest and the largest training "
        "lesion."
    )


def pairs_section(quality: Quality, where: str = "") -> Section:
    """The synthetic lesions most similar to a training lesion."""
    found = quality.evaluation["memorised"]
    limit = _limit(found)
    note = "Synthetic lesions (left) and the most similar training lesion (right), each with its own contrast."
    if limit is not None:
        note += (
            " Margin: how much more similar it is than the next ones, of other patients. Of real lesions of other "
            f"patients, {html.number(100 * found['rate'], 1)} % have a margin above {html.number(limit, 2)}."
        )
    return Section(_titled("Most similar to a training lesion", where), strips(quality.pairs), note)


def quality_table(evaluation: Evaluation, title: str = "") -> Table:
    """For the terminal: measures of synthetic lesions with their references, and statistics of the lesions."""
    table = named_table(title, "measure")
    for name in ("synthetic", "real", "good is"):
        table.add_column(name, justify="left" if name == "good is" else "right")
    for measure in measures(evaluation):
        found = Text(measure.found).append(f"  {measure.bounds}" if measure.bounds else "", "dim")
        table.add_row(measure.name, found, measure.reference, Text(measure.good, "dim"))
    table.add_section()
    for one in compared(evaluation):
        gap = Text(f"gap {html.number(one.gap, 2)}, chance {html.number(one.chance, 2)}", "dim")
        table.add_row(one.name, html.number(one.synthetic, one.digits), html.number(one.real, one.digits), gap)
    return table


def _limit(found: Mapping[str, Any]) -> float | None:
    """The margin above which a lesion counts as a copy. None if it is unknown, as in evaluations of earlier versions,
    which compared similarities."""
    return found["threshold"] if "rate" in found else None


def _distance(name: str, found: Mapping[str, Any]) -> Measure:
    known = found["synthetic_to_real"] is not None
    return Measure(
        name,
        _written(found["synthetic_to_real"] if known else found["distance"]),
        f"{_written(found['real_to_real'])}",
        "not above",
        "reference: real from real" if known else "all lesions; no reference",
    )


def _auc(name: str, found: Mapping[str, float | None] | None) -> Measure:
    estimate = _estimate(found)
    bounds = html.interval(estimate, 2)
    return Measure(name, html.number(estimate["value"], 2), "0.50", "interval includes 0.50", bounds=bounds)


def _estimate(found: Mapping[str, float | None] | None) -> dict[str, float | None]:
    found = found or {}
    return {"value": found.get("auc"), "low": found.get("low"), "high": found.get("high")}


def _with_interval(estimate: Mapping[str, float | None]) -> str:
    bounds = html.interval(estimate, 2)
    return f"{html.number(estimate['value'], 2)}{f' ({bounds})' if bounds else ''}"


def _card(index: int, name: str, big: str, bar: str, what: str) -> str:
    return (
        f'<div class="card {html.colour(index)}"><div class="name">{html.text(name)}</div>'
        f'<div class="big">{html.text(big)}</div>{bar}<div class="what">{html.text(what)}</div></div>'
    )


def _written(distance: float | None) -> str:
    """A distance with three significant digits: 0.0123, 1.23, 123."""
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
