"""The search over mirrored views of a detector and over the IoU from which their boxes are fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from elk_jax.data.flips import Flip
from elk_jax.evaluation import detections
from elk_jax.evaluation import evaluate as metrics
from elk_jax.evaluation.detections import ImageResult
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.detection import predict
from elk_jax.tasks.detection.recipe import DetectionRecipe
from elk_jax.tasks.run import Run
from elk_jax.tasks.task import Summary

K = TypeVar("K")


class Way(NamedTuple):
    """The mirrored views of a detector, and the IoU from which their boxes count as the same lesion."""

    flips: tuple[Flip, ...]
    same: float

    def together(self, views: Sequence[list[ImageResult]], score_floor: float) -> list[ImageResult]:
        """The detections of the first of `views`: those of the original images, then of the mirrored ones in order."""
        return predict.together(views[: len(self.flips) + 1], score_floor, self.same)


def ways_to_look(flips: tuple[Flip, ...], same: Sequence[float], fewer: bool) -> dict[str, Way]:
    """The combinations of views to try, by name. fewer: also those with only some of the mirrored views, or none."""
    found = {}
    for count in range(0 if fewer else len(flips), len(flips) + 1):
        name = "+".join(("as they are", *flips[:count]))
        for one in dict.fromkeys(same if count else same[:1]):
            among = f", one lesion from IoU {one:g}" if count and len(same) > 1 else ""
            found[name + among] = Way(flips[:count], one)
    return found


def choose_way(
    ways: Mapping[str, Way], views: Sequence[list[ImageResult]], recipe: DetectionRecipe
) -> tuple[str, dict[str, float | None]]:
    """(the best way by the metric that compares detections, the first of equal ones; the value of each, {} for a single
    one)."""
    if len(ways) == 1:
        return next(iter(ways)), {}
    values = {name: score_of(way.together(views, recipe.score_floor), recipe) for name, way in ways.items()}
    return best_of(values), values


def best_of(values: Mapping[K, float | None]) -> K:
    """The key of the largest value; the first one if values are equal up to rounding or if nothing was measured."""
    return max(values, key=lambda key: round(values[key] or 0.0, 9))


def say_views(run: Run, recipe: DetectionRecipe, values: Mapping[str, float | None], on: str) -> None:
    """Print the value of each way. on: the data used, in words."""
    for name, value in values.items():
        run.say(f"  views {name}: {comparing(recipe)} {measured(value)} on {on}")


def measured(value: float | None) -> str:
    """In words."""
    return "not measured" if value is None else f"{value:.3f}"


def views_chosen(recipe: DetectionRecipe, chosen: str, values: Mapping[str, float | None], on: str) -> Summary:
    """The entries of a summary on the views of the detector; {} if there was no choice."""
    return {"views": values, "way": chosen, "metric": comparing(recipe), "chosen_on": on} if values else {}


def write_views(folder: Path, views: Sequence[Sequence[ImageResult]]) -> None:
    """Keep the detections of each view."""
    for number, results in enumerate(views):
        detections.write_results(folder / f"view_{number}.json", results)


def read_views(
    folders: Sequence[Path], infos: Sequence[ImageInfo], views: int, classes: int, score_floor: float
) -> list[list[ImageResult]]:
    """The detections of each view in all folders together, joined with the truth.

    classes: how many the detector knows, of which `infos` may lack some. score_floor: as in testing, of the boxes of
    each view.
    """
    categories, found = range(1, classes + 1), []
    for number in range(views):
        parts = [detections.read_results(folder / f"view_{number}.json", infos, categories) for folder in folders]
        joined = detections.join(infos, {image: one for part in parts for image, one in part.items()})
        found.append(detections.above(joined, score_floor))
    return found


def comparing(recipe: DetectionRecipe) -> str:
    """The metric that compares detections: that of checkpoints, unless these are chosen by something else, such as
    their similarity to a teacher."""
    return recipe.best_metric if recipe.best_metric in metrics.METRIC_NAMES else metrics.METRIC_NAMES[0]


def score_of(results: Sequence[ImageResult], recipe: DetectionRecipe) -> float | None:
    """The metric that compares detections; None without lesions."""
    scores = metrics.scalars(metrics.evaluate_detections(results, score_floor=recipe.score_floor, resamples=0))
    return scores.get(comparing(recipe), 0.0 if any(result.has_lesions for result in results) else None)
