"""Plain data of a small but complete detection run, and a browser to open pages in."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from elk_jax.reporting.pictures import Picture
from elk_jax.reporting.report import Report, Section
from elk_jax.reporting.run import Part, RunRecord, run_report
from elk_jax.reporting.training import Trainings
from elk_jax.tasks.detection.page import DetectionRun, Evaluated, Pictures, detection_part


def estimate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def evaluation(value: float) -> dict:
    """The content of evaluation.json."""
    found = estimate(value, value - 0.1, value + 0.1)
    rates = ("0.5", "1", "2", "3")
    return {
        "mean_sensitivity": found,
        "sensitivity_at": dict.fromkeys(rates, found),
        "false_positives_per_lesion_free_image": {rate: estimate(None) for rate in rates},
        "aufroc_1": found,
        "aufroc_3": found,
        "ap": found,
        "ap50": found,
        "ap10": found,
        "ap30": found,
        "operating_points": [
            {
                "rate": float(rate),
                "threshold": 0.5 if rate != "0.5" else None,
                "sensitivity": found,
                "false_positives_per_image": estimate(0.4, 0.2, 0.6),
                "false_positives_per_lesion_free_image": estimate(None),
            }
            for rate in rates
        ],
        "curve": {
            "false_positives_per_image": [0.0, 0.0, 1.0, 4.0],
            "sensitivity": [0.0, value / 2, value, value],
            "band_at": [0.0, 2.0, 4.0],
            "low": [0.0, 0.4, 0.5],
            "high": [0.5, 0.8, 0.9],
        },
        "counts": {"patients": 12, "images": 31, "lesions": 57},
        "criterion": "IoU >= 0.3",
        "froc_images": "with_lesions",
        "bootstrap": {"resamples": 2000},
        "notes": ["no lesion-free image: false positives on lesion-free images are not defined"],
    }


def difference(value, low, high, p):
    return {"first": 0.6, "second": 0.6 + value, "difference": value, "low": low, "high": high, "p_value": p}


def picture(title: str, caption: str = "") -> Picture:
    return Picture(
        image=np.linspace(0, 1, 40 * 30, dtype=np.float32).reshape(40, 30, 1),
        title=title,
        caption=caption,
        gt_boxes=np.array([[3.0, 4, 20, 25], [1, 1, 5, 5]]),
        gt_ignore=np.array([False, True]),
        boxes=np.array([[4.0, 5, 21, 24]]),
        scores=np.array([0.875]),
    )


def detection_run() -> DetectionRun:
    lines = [{"step": s, "train/loss": 2 / s, "train/rpn_box": 1 / s, "time/step": 0.1} for s in range(1, 60)]
    lines += [{"step": s, "eval/mean_sensitivity": s / 100, "eval/ap": None} for s in (20, 40)]
    return DetectionRun(
        evaluated=[
            Evaluated(
                on="phantom, test split",
                evaluations={"real": evaluation(0.6), "mixed": evaluation(0.7), "synthetic": evaluation(0.5)},
                comparisons={
                    "mixed": {"mean_sensitivity": difference(0.1, -0.02, 0.2, 0.12)},
                    "synthetic": {"mean_sensitivity": difference(-0.1, -0.2, -0.01, 0.03)},
                },
                pictures=[Pictures("mixed", [picture("P1", "1 of 2")], [picture("P2")], threshold=0.5)],
            )
        ],
        trainings=Trainings({"real": lines, "mixed": lines[:30]}, {"real": 40}),
    )


def run_record() -> RunRecord:
    return RunRecord(
        name="cem_mixed",
        title="Real & <synthetic>",
        data={"train": {"images": 150, "lesions": 312}, "test": {"images": 56}},
        skipped=[("P012_L_CM_CC", "truncated <script>alert(1)</script>")],
        config={"seed": 42, "detector": {"optimizer": {"kind": "sgd"}, "empty": {}}},
        versions={"jax": "0.10.2", "devices": "1 x cpu", "elk_jax": "0.1.0"},
        seconds={"real": 812.2, "evaluate": 65.2},
    )


def whole_report() -> Report:
    """Detection, and a part of another task."""
    other = Part("Lesion synthesis", "Painted well.", {"Lesions": "5"}, [Section("Synthesis", "<p>Close-ups</p>")])
    return run_report(run_record(), [detection_part(detection_run()), other])


def open_in_chromium(folder, page: str, *options: str) -> subprocess.CompletedProcess:
    """Open `page` with its files in `folder`; skips the test on a machine without Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine to open the report in")
    file = folder / "page.html"
    file.write_text(page)
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr --window-size=1200,900"
    )
    command = [program, *flags.split(), f"--user-data-dir={folder / 'profile'}", *options, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
