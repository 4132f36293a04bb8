"""Classify image files: the probability of the positive class, and the predicted class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from elk_jax import files
from elk_jax.data.sources import folder
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.fields import SHARE
from elk_jax.progress import progress_bar
from elk_jax.tasks.classification import model as classifier
from elk_jax.tasks.run import SKIPPED, new_console, report_skipped, write_skipped

PREDICTIONS, TABLE = "predictions.json", "predictions.csv"


@dataclass(frozen=True)
class PredictSettings:
    """The flags of launch/predict.py for classifiers.

    threshold: probability from which an image is called positive; None: the model's first operating point.
    """

    threshold: Annotated[float, SHARE] | None = None


def predict_files(
    *,
    model: Path,
    inputs: Sequence[str],
    decoding: SourceSpec,
    on_error: str,
    output: Path,
    settings: PredictSettings,
) -> list[dict[str, object]]:
    """Write predictions.json and predictions.csv into `output`: for every image its file, the probability of the
    positive class, and the predicted class. Returns the rows. See launch/predict.py."""
    paths, not_images = folder.find_images(inputs)
    files.check_writable(output)
    trained = classifier.load(model)
    description = trained.description
    threshold = classifier.points_of(trained)[0].threshold if settings.threshold is None else settings.threshold
    source = folder.open_files(paths, description.classes, decoding, on_error, progress=progress_bar("  decoding"))
    scores = trained.probabilities(source)[0]
    (other,) = set(description.classes) - {description.positive}
    rows: list[dict[str, object]] = [
        {
            "file": info.file_name,
            **({"frame": info.slice} if info.slice >= 0 else {}),
            "probability": round(float(score), 6),
            "called": description.positive if score >= threshold else other,
        }
        for info, score in zip(source.infos, scores)
    ]
    with files.new_results(output, PREDICTIONS, (PREDICTIONS, TABLE, SKIPPED), paths) as place:
        content = {"positive": description.positive, "threshold": threshold, "images": rows}
        files.write_json(place / PREDICTIONS, content)
        files.write_text(place / TABLE, _table(rows, description.positive))
        write_skipped(place, source.skipped)
    report_skipped(not_images, source.skipped)
    for note in classifier.unchosen(trained) if settings.threshold is None else ():
        new_console().print(f"note: {note}; choose another with --threshold")
    called = sum(row["called"] == description.positive for row in rows)
    new_console().print(
        f"{called} of {len(rows)} images called {description.positive} (probability of at least {threshold:.3f}): "
        f"{output / TABLE}"
    )
    return rows


def _table(rows: Sequence[dict[str, object]], positive: str) -> str:
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(["file", "frame", f"probability_of_{positive}", "called"])
    for row in rows:
        writer.writerow([row["file"], row.get("frame", ""), row["probability"], row["called"]])
    return output.getvalue()
