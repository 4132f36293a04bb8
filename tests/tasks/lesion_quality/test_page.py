"""Report sections and terminal table of the quality of painted lesions, from hand-made data."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from elk_jax.reporting.pictures import Closeup, Strip
from elk_jax.reporting.report import build_report
from elk_jax.reporting.run import RunRecord, run_report
from elk_jax.tasks.lesion_quality.page import Quality, compared, measures, quality_part, quality_table, verdict

DISTANCE = {"distance": 3.0, "kernel_distance": 0.1, "real_to_real": 10.25, "synthetic_to_real": 12.5, "half": 40}


def statistic(real, synthetic, gap, real_count=50, synthetic_count=50):
    return {
        "real": real,
        "synthetic": synthetic,
        "kolmogorov_smirnov": gap,
        "wasserstein": None if gap is None else 0.5,
        "real_count": real_count,
        "synthetic_count": synthetic_count,
    }


EVALUATION = {
    "counts": {"real": 50, "real_patients": 12, "synthetic": 40, "synthetic_patients": 9},
    "radiomics": DISTANCE,
    "frechet_radiomics": {"features": 74},
    "detector_features": {
        **DISTANCE, "synthetic_to_real": 0.0123, "real_or_synthetic": {"auc": 0.9, "low": 0.8, "high": 1},
    },
    "real_or_synthetic": {"auc": 0.625, "low": 0.5, "high": 0.75},
    "memorised": {
        "threshold": 0.21, "rate": 0.005, "expected": 0.2, "memorised": [3], "share": 0.025, "synthetic": 0.6,
        "real": 0.7, "nearest": [0] * 40, "similarity": [0.5] * 40, "margin": [0.1] * 40, "pairs": [],
    },
    "statistics": {
        "width": statistic(20.0, 22.0, 0.2),
        "contrast": statistic(2.5, 1.0, 0.6),
        "box_step": statistic(None, 1.0, None, real_count=0),
    },
    "notes": ["2 real lesions are left out <b>"],
}  # fmt: skip

GREY = np.linspace(0, 1, 24 * 24, dtype=np.float32).reshape(24, 24)
PAIR = Strip([Closeup(GREY), Closeup(GREY)], "Synthetic 7", "and lesion 1 of P1")
QUALITY = Quality("train split of real", EVALUATION, [PAIR])


@pytest.fixture(scope="module")
def page() -> str:
    return build_report(run_report(RunRecord("inpaint_cem", "inpaint cem"), [quality_part([QUALITY])]))


def plain(page: str) -> str:
    """The text of a page with single spaces."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_data = found.append  # type: ignore[method-assign]
    parser.feed(page)
    return " ".join(" ".join(found).split())


def test_sections(page):
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Synthetic lesions", "Most similar to a training lesion"]


def test_every_measure_has_its_reference(page):
    rows = {row.name: row for row in measures(EVALUATION)}
    distance = rows["Radiomics, Fréchet distance"]
    assert (distance.found, distance.reference) == ("12.5", "10.2")
    assert rows["Detector features, Fréchet distance"].found == "0.0123"
    auc = rows["Real or synthetic, AUC by radiomics"]
    assert (auc.found, auc.bounds, auc.reference) == ("0.62", "0.50 – 0.75", "0.50")
    assert rows["Too similar to a training lesion"].found == "1 of 40"
    assert rows["Too similar to a training lesion"].reference == "margin above 0.21"
    assert "0.2" in rows["Too similar to a training lesion"].good
    text = plain(page)
    for row in rows.values():
        assert f"{row.name} {row.note} {row.found}".replace("  ", " ") in text
    for words in ("Good results are: distances", "train split of real", "left out <b>"):
        assert words in text, words


def test_a_gap_above_chance_is_marked(page):
    rows = compared(EVALUATION)
    assert [row.name.split()[0] for row in rows] == ["Width", "Contrast,", "Step"]
    assert rows[0].chance == pytest.approx(1.358 * np.sqrt(2 / 50))
    assert rows[2].chance is None and rows[2].gap is None
    assert re.findall(r'<b class="bad">(.*?)</b>', page) == ["0.60"]


def test_verdict_in_words():
    assert verdict(EVALUATION) == (
        "Synthetic lesions: radiomics distance of 12.5 from real lesions, 10.2 between real lesions; distinguished "
        "from real lesions with an AUC of 0.62 (0.50 – 0.75); 1 of 40 too similar to a training lesion (0.2 expected "
        "by chance)."
    )


def test_a_similarity_of_an_earlier_version_is_no_margin():
    earlier = {k: v for k, v in EVALUATION["memorised"].items() if k not in ("rate", "expected", "margin")}
    older = {**EVALUATION, "memorised": {**earlier, "threshold": 0.91}}
    (row,) = [row for row in measures(older) if row.name == "Too similar to a training lesion"]
    assert (row.found, row.reference, row.good) == ("–", "–", "–")
    assert "too similar" not in verdict(older)
    assert "0.91" not in build_report(run_report(RunRecord("x"), [quality_part([Quality("here", older, [PAIR])])]))


def test_what_is_not_defined_is_a_dash():
    unknown = {
        **EVALUATION,
        "radiomics": {**DISTANCE, "real_to_real": None, "synthetic_to_real": None},
        "detector_features": None,
        "real_or_synthetic": None,
        "memorised": {
            **EVALUATION["memorised"],
            "threshold": None,
            "rate": None,
            "expected": None,
            "real": None,
            "memorised": [],
        },
    }
    assert verdict(unknown) == ""
    found = {row.name: row for row in measures(unknown)}
    assert found["Radiomics, Fréchet distance"].found == "3.00"
    assert found["Radiomics, Fréchet distance"].note == "all lesions; no reference"
    assert found["Too similar to a training lesion"].found == "–"
    part = quality_part([Quality("here", unknown)])
    page = build_report(run_report(RunRecord("x"), [part]))
    assert "None" not in page and "nan" not in page
    assert [section.title for section in part.sections] == ["Synthetic lesions"]


def test_several_evaluations_have_their_own_names():
    part = quality_part([QUALITY, replace(QUALITY, on="test split of real")])
    titles = [section.title for section in part.sections]
    assert titles[:2] == ["Synthetic lesions: train split of real", "Synthetic lesions: test split of real"]
    assert "test split of real: Synthetic lesions: radiomics" in part.summary
    assert quality_part([]).sections == [] and quality_part([]).summary == ""


def test_the_table_of_the_terminal():
    console = Console(file=io.StringIO(), width=140)
    console.print(quality_table(EVALUATION, "against the train split"))
    text = console.file.getvalue()
    for expected in ("against the train split", "0.62  0.50 – 0.75", "1 of 40", "gap 0.60, chance 0.27", "12.5"):
        assert expected in text, expected
