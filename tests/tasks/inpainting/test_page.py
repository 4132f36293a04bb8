"""Report sections of lesion synthesis, from hand-made data and in a browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape

import cv2
import numpy as np
import pytest

from elk_jax.reporting.pictures import Closeup, Strip
from elk_jax.reporting.report import build_report
from elk_jax.reporting.run import RunRecord, run_report
from elk_jax.reporting.training import Trainings
from elk_jax.tasks.inpainting.page import InpaintingRun, PaintedSet, Progress, Step, inpainting_part
from tests.pages import open_in_chromium

GREY = np.linspace(0, 1, 24 * 24, dtype=np.float32).reshape(24, 24)
BOX = np.array([4.0, 6, 14, 18])


@pytest.fixture(scope="module")
def run() -> InpaintingRun:
    painted = Strip([Closeup(GREY, BOX), Closeup(GREY, BOX)], "Synthetic 3", "in P2 <i>")
    row = np.full((16, 64), 90, np.uint8)
    lines = [{"step": s, "train/loss": 1 / s} for s in (1, 2)] + [{"step": 2, "eval/loss": 0.4}]
    return InpaintingRun(
        sets=[PaintedSet("lesions", 40, [painted], [Strip([Closeup(GREY, BOX)], "P5")])],
        progress=[Progress("inpainter", {"Real": row, "Covered": row}, [Step(10, row), Step(20, row)])],
        trainings=Trainings({"inpainter": lines}, {"inpainter": 2}),
    )


@pytest.fixture(scope="module")
def page(run) -> str:
    return build_report(run_report(RunRecord("inpaint_cem", "inpaint cem"), [inpainting_part(run)]))


def test_sections_and_facts(page):
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Painted lesions",
        "Progress of the inpainter",
        "Inpainter training",
    ]
    assert "Lesion synthesis · inpaint_cem" in page and "Lesion detection" not in page
    assert re.search(r"<dt>Synthetic lesions</dt><dd>40</dd>", page)
    assert "in P2 &lt;i&gt;" in page and "inpainter at step 2" in page


def test_several_sets_have_their_own_names(run):
    (painted,) = run.sets
    part = inpainting_part(replace(run, sets=[painted, replace(painted, stage="more")]))
    assert [section.title for section in part.sections][:2] == ["Painted lesions: lesions", "Painted lesions: more"]
    assert part.facts == {"Synthetic lesions": "40, 40"}
    assert inpainting_part(InpaintingRun()).sections == []


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


def test_in_a_browser_close_ups_are_side_by_side(tmp_path, page):
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", f"{PROBE}</body>")
    result = open_in_chromium(tmp_path, probed, "--dump-dom", f"--screenshot={tmp_path / 'shot.png'}")
    found = json.loads(unescape(re.search(r"<title>(.*?)</title>", result.stdout, re.S).group(1)))
    assert found["images"] == 7 and found["broken"] == 0
    assert not found["overflow"] and found["overlay"] < 1.0
    assert all(abs(left - right) <= 1 and left > 100 for left, right in found["pair"])
    assert "CONSOLE" not in result.stderr
    assert cv2.imread(str(tmp_path / "shot.png")).std() > 10
