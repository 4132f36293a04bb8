"""A comparison of two sets as a folder: comparison.json and report.html."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from elk_jax import files
from elk_jax.distances.compare import Comparison
from elk_jax.distances.page import page
from elk_jax.distances.sets import ImageSet
from elk_jax.reporting.report import write_report

COMPARISON = "comparison.json"


def write_comparison(found: Comparison, folder: Path) -> None:
    """Write comparison.json and report.html."""
    with files.new_results(folder, COMPARISON, ()) as place:
        files.write_json(place / COMPARISON, as_json(found))
        write_report(place / "report.html", page(found))


def as_json(found: Comparison) -> dict[str, Any]:
    """A comparison as JSON-able data, without images."""
    return {
        "real": _set_json(found.real),
        "synthetic": _set_json(found.synthetic),
        "settings": asdict(found.settings),
        "measures": [asdict(one) for one in found.measures],
        "classes": {name: [asdict(one) for one in measures] for name, measures in found.of_classes.items()},
        "told_apart": found.told_apart,
        "most_different_features": [asdict(one) for one in found.different],
        "notes": list(found.notes),
    }


def _set_json(one: ImageSet) -> dict[str, Any]:
    return {
        "source": one.name,
        "images": len(one),
        "patients": len(set(one.patients)),
        "sizes": [list(size) for size in one.sizes()],
        "skipped": [list(entry) for entry in one.skipped],
    }
