"""What a report says of lesion synthesis, from hand-made data; and as a browser sees it."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from rich.console import Console

from elk_jax.reporting.pictures import Closeup, Strip, enlarged, strips
from elk_jax.reporting.report import build_report
from elk_jax.reporting.run import RunRecord, run_report
from elk_jax.reporting.tables import quality_table
from elk_jax.tasks.inpainting.page import (
    InpaintingRun,
    PaintedSet,
    Progress,
    Quality,
    Step,
    compared,
    inpainting_part,
    measures,
    verdict,
)

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
        "threshold": 0.91, "memorised": [3], "share": 0.025, "synthetic": 0.6, "real": 0.7, "nearest": [0] * 40,
        "similarity": [0.5] * 40, "pairs": [],
    },
    "statistics": {
        "width": statistic(20.0, 22.0, 0.2),
        "contrast": statistic(2.5, 1.0, 0.6),
        "box_step": statistic(None, 1.0, None, real_count=0),
    },
    "notes": ["2 real lesions are left out <b>"],
}  # fmt: skip

GREY = np.linspace(0, 1, 24 * 24, dtype=np.float32).reshape(24, 24)
BOX = np.array([4.0, 6, 14, 18])


@pytest.fixture(scope="module")
def run() -> InpaintingRun:
    pair = Strip([Closeup(GREY), Closeup(GREY)], "Synthetic 7", "and lesion 1 of P1; likeness 0.88")
    painted = Strip([Closeup(GREY, BOX), Closeup(GREY, BOX)], "Synthetic 3", "in P2 <i>")
    row = np.full((16, 64), 90, np.uint8)
    return InpaintingRun(
        quality=[Quality("train split of real", EVALUATION, [pair])],
        sets=[PaintedSet("lesions", 40, [painted], [Strip([Closeup(GREY, BOX)], "P5")])],
        progress=[Progress("inpainter", {"Real": row, "Covered": row}, [Step(10, row), Step(20, row)])],
        histories={"inpainter": [{"step": s, "train/loss": 1 / s} for s in (1, 2)] + [{"step": 2, "eval/loss": 0.4}]},
        chosen_steps={"inpainter": 2},
    )


@pytest.fixture(scope="module")
def page(run) -> str:
    return build_report(run_report(RunRecord("inpaint_cem", "inpaint cem"), [inpainting_part(run)]))


def plain(page: str) -> str:
    """The text of a page, spaces made one."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_data = found.append  # type: ignore[method-assign]
    parser.feed(page)
    return " ".join(" ".join(found).split())


def test_sections_and_what_the_page_is(page):
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Synthetic lesions",
        "Painted lesions",
        "Most like a training lesion",
        "Progress of the inpainter",
        "Inpainter training",
    ]
    assert "Lesion synthesis · inpaint_cem" in page and "Lesion detection" not in page
    assert re.search(r"<dt>Synthetic lesions</dt><dd>40</dd>", page)


def test_every_measure_has_its_yardstick(page):
    rows = {row.name: row for row in measures(EVALUATION)}
    distance = rows["Radiomics, Fréchet distance"]
    assert (distance.found, distance.yardstick) == ("12.5", "10.2")
    assert rows["Detector features, Fréchet distance"].found == "0.0123"
    told = rows["Told from real by radiomics, AUC"]
    assert (told.found, told.bounds, told.yardstick) == ("0.62", "0.50 – 0.75", "0.50")
    assert rows["Too like a training lesion"].found == "1 of 40"
    assert rows["Too like a training lesion"].yardstick == "likeness over 0.91"
    text = plain(page)
    for row in rows.values():
        assert f"{row.name} {row.note} {row.found}".replace("  ", " ") in text
    for said in ("Good: distances", "train split of real", "in P2 <i>", "left out <b>", "inpainter at step 2"):
        assert said in text, said


def test_a_gap_over_chance_is_marked(page):
    rows = compared(EVALUATION)
    assert [row.name.split()[0] for row in rows] == ["Width", "Contrast,", "Step"]
    assert rows[0].chance == pytest.approx(1.358 * np.sqrt(2 / 50))
    assert rows[2].chance is None and rows[2].gap is None
    assert re.findall(r'<b class="bad">(.*?)</b>', page) == ["0.60"]


def test_verdict_in_words():
    assert verdict(EVALUATION) == (
        "Synthetic lesions: radiomics distance 12.5 from real lesions, which lie 10.2 from each other; told from real "
        "ones with an AUC of 0.62 (0.50 – 0.75); 1 of 40 too like a training lesion."
    )


def test_what_is_not_defined_is_a_dash():
    unknown = {
        **EVALUATION,
        "radiomics": {**DISTANCE, "real_to_real": None, "synthetic_to_real": None},
        "detector_features": None,
        "real_or_synthetic": None,
        "memorised": {**EVALUATION["memorised"], "threshold": None, "real": None, "memorised": []},
    }
    assert verdict(unknown) == ""
    found = {row.name: row for row in measures(unknown)}
    assert found["Radiomics, Fréchet distance"].found == "3.00"
    assert found["Radiomics, Fréchet distance"].note == "all lesions; no yardstick"
    assert found["Too like a training lesion"].found == "–"
    part = inpainting_part(InpaintingRun(quality=[Quality("here", unknown)]))
    page = build_report(run_report(RunRecord("x"), [part]))
    assert "None" not in page and "nan" not in page
    assert [section.title for section in part.sections] == ["Synthetic lesions"]


def test_several_sets_and_evaluations_have_their_own_names(run):
    (quality,), (painted,) = run.quality, run.sets
    second = replace(quality, on="test split of real")
    part = inpainting_part(replace(run, quality=[quality, second], sets=[painted, replace(painted, stage="more")]))
    titles = [section.title for section in part.sections]
    assert titles[:4] == [
        "Synthetic lesions: train split of real",
        "Synthetic lesions: test split of real",
        "Painted lesions: lesions",
        "Painted lesions: more",
    ]
    assert "test split of real: Synthetic lesions: radiomics" in part.summary
    assert part.facts == {"Synthetic lesions": "40, 40"}
    assert inpainting_part(InpaintingRun()).sections == []


def test_only_the_corners_of_a_box_are_drawn():
    shown = strips([Strip([Closeup(GREY, BOX), Closeup(GREY)], "t")])
    (path,) = re.findall(r'class="corner" d="(.*?)"', shown)
    assert path == "M4.0 8.4V6.0H6.0M14.0 8.4V6.0H12.0M14.0 15.6V18.0H12.0M4.0 15.6V18.0H6.0"
    assert shown.count("<img") == 2 and 'class="strips wide2"' in shown


def test_small_close_ups_are_enlarged_and_large_ones_left():
    assert enlarged(GREY, 100).shape == (100, 100)
    assert enlarged(np.zeros((10, 40), np.uint8), 80).shape == (20, 80)
    assert enlarged(GREY, 24) is GREY


def test_the_table_of_the_terminal():
    console = Console(file=io.StringIO(), width=140)
    console.print(quality_table(EVALUATION, "against the train split"))
    said = console.file.getvalue()
    for expected in ("against the train split", "0.62  0.50 – 0.75", "1 of 40", "gap 0.60, chance 0.27", "12.5"):
        assert expected in said, expected


PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images], box = e => e.getBoundingClientRect();
  document.title = JSON.stringify({
    broken: images.filter(i => !i.complete || i.naturalWidth === 0).length,
    images: images.length,
    overflow: document.documentElement.scrollWidth > innerWidth,
    overlay: Math.max(...[...document.querySelectorAll(".strip .picture")].map(
      e => Math.abs(box(e.querySelector("img")).width - box(e.querySelector("svg")).width))),
    pair: [...document.querySelectorAll(".wide2 .strip")].map(
      e => [...e.querySelectorAll("img")].map(i => Math.round(box(i).width))),
  });
});
</script>"""


def test_in_a_browser_close_ups_lie_side_by_side(tmp_path, page, chromium):
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", f"{PROBE}</body>")
    result = chromium(tmp_path, probed, "--dump-dom", f"--screenshot={tmp_path / 'shot.png'}")
    found = json.loads(unescape(re.search(r"<title>(.*?)</title>", result.stdout, re.S).group(1)))
    assert found["images"] == 9 and found["broken"] == 0
    assert not found["overflow"] and found["overlay"] < 1.0
    assert all(abs(left - right) <= 1 and left > 100 for left, right in found["pair"])
    assert "CONSOLE" not in result.stderr
    assert cv2.imread(str(tmp_path / "shot.png")).std() > 10
