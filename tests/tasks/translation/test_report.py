"""From what a tiny translator left behind to the page."""

from __future__ import annotations

import cv2

from elk_jax import files
from elk_jax.tasks.translation import report


def test_the_report_shows_measures_gallery_and_progress(run):
    page = (run / "report.html").read_text()
    for text in ("Translated images", "low energy, matched", "Progress of the translator", "Translator training"):
        assert text in page
    pictures = files.read_json(run / "evaluate" / "evaluation.json")["pictures"]
    assert 0 < len(pictures) <= 12
    assert cv2.imread(str(run / "evaluate" / "pictures" / pictures[0]["file"]), 0).shape == (32, 3 * 32)


def test_a_picture_that_is_gone_is_left_out(run):
    found = report.evaluated(run / "evaluate")
    pictures = files.read_json(run / "evaluate" / "evaluation.json")["pictures"]
    assert len(found.gallery) == len(pictures) and len(found.gallery[0].closeups) == 3
    path = run / "evaluate" / "pictures" / pictures[0]["file"]
    kept = path.read_bytes()
    path.unlink()
    try:
        assert len(report.evaluated(run / "evaluate").gallery) == len(pictures) - 1
    finally:
        path.write_bytes(kept)
