"""The report of classification, read from the files of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elk_jax import files
from elk_jax.data.sources.source import ImageSource
from elk_jax.reporting.classification import error_picture
from elk_jax.reporting.pictures import Picture, enlarged
from elk_jax.reporting.run import Part
from elk_jax.tasks import training
from elk_jax.tasks.classification.page import ClassificationRun, Evaluated, classification_part
from elk_jax.tasks.run import Run


def part(run: Run, summaries: Mapping[str, Any]) -> Part:
    """The part of the finished stages of classification. summaries: by stage."""
    fitted = {name: s for name, s in summaries.items() if s["kind"] == "fit"}
    trained = {name: s for name, s in summaries.items() if s["kind"] == "train"}
    combined = {name: s for name, s in summaries.items() if s["kind"] == "combine"}
    evaluated = [_evaluated(run, name, s) for name, s in summaries.items() if s["kind"] == "evaluate"]
    return classification_part(
        ClassificationRun(
            evaluated,
            fitted,
            trained,
            combined,
            trainings=training.recorded(run, summaries),
        )
    )


def _evaluated(run: Run, name: str, summary: Mapping[str, Any]) -> Evaluated:
    """The results of a finished evaluation stage. Only the images of the gallery are decoded."""
    folder = run.folder / name
    source = run.list(summary["on"], summary["split"])
    gallery = files.read_object(folder / "gallery.json")
    stage = run.experiment.stages[name]
    return Evaluated(
        title=f"{summary['split']} split of {summary['on']}" if summary["split"] else summary["on"],
        evaluations={model: files.read_object(folder / model / "evaluation.json") for model in summary["models"]},
        comparisons=files.read_object(folder / "comparisons.json"),
        errors={model: error_pictures(gallery[model], source) for model in summary["models"]},
        draws=files.read_object(folder / "draws.json"),
        published=getattr(stage, "published", ()),
        unnamed=summary["unnamed"],
    )


def error_pictures(errors: Sequence[Mapping[str, Any]], source: ImageSource) -> list[Picture]:
    """The images of `classification.confident_errors`; those that are gone, or cannot be read, are left out."""
    place = {info.image_id: position for position, info in enumerate(source.infos)}
    found = []
    for error in errors:
        position = place.get(error["image_id"])
        if position is not None:
            image = enlarged(source[position].image[..., 0])
            found.append(error_picture(error, image, source.infos[position].title))
    return found
