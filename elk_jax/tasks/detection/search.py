"""The search over mirrored views and scales of a detector, and over the IoU from which their boxes are fused."""

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
from elk_jax.tasks.detection.model import in_words
from elk_jax.tasks.detection.predict import Look, looks
from elk_jax.tasks.detection.recipe import DetectionRecipe
from elk_jax.tasks.run import Run
from elk_jax.tasks.task import Summary

K = TypeVar("K")
Views = Mapping[Look, list[ImageResult]]
MOST_SAID = 8
"""More ways than this are not all printed; the report has them."""


class Way(NamedTuple):
    """The mirrored views of a detector, the IoU from which their boxes count as the same lesion, and the scales of the
    input at which it detects in them."""

    flips: tuple[Flip, ...]
    same: float
    scales: tuple[float, ...] = (1.0,)

    def together(self, views: Views, score_floor: float) -> list[ImageResult]:
        """The fused detections of its views; `views` may have more mirrored views and scales."""
        return predict.together([views[look] for look in looks(self.flips, self.scales)], score_floor, self.same)


def whole_way(recipe: DetectionRecipe) -> Way:
    """All views of a recipe, with its first IoU."""
    return Way(tuple(dict.fromkeys(recipe.test_flips)), recipe.test_same[0], tuple(dict.fromkeys(recipe.test_scales)))


def ways_to_look(everything: Way, same: Sequence[float], fewer: bool) -> dict[str, Way]:
    """The combinations of views to try, by name. everything: all views. same: the IoUs to try. fewer: also those with
    only the first of the mirrored views and scales."""
    found, flips, scales = {}, everything.flips, everything.scales
    for sizes in range(1 if fewer else len(scales), len(scales) + 1):
        for count in range(0 if fewer else len(flips), len(flips) + 1):
            name = "+".join(("as they are", *flips[:count])) + in_words(scales[:sizes])
            several = count or sizes > 1
            for one in dict.fromkeys(same if several else same[:1]):
                among = f", one lesion from IoU {one:g}" if several and len(same) > 1 else ""
                found[name + among] = Way(flips[:count], one, scales[:sizes])
    return found


def choose_way(ways: Mapping[str, Way], views: Views, recipe: DetectionRecipe) -> tuple[str, dict[str, float | None]]:
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
    """Print the value of each way; of many, those of the best ones. on: the data used, in words."""
    said = dict(values)
    if len(values) > MOST_SAID:
        best = sorted(values, key=lambda name: -round(values[name] or 0.0, 9))[:MOST_SAID]
        said = {name: values[name] for name in best}
    for name, value in said.items():
        run.say(f"  views {name}: {comparing(recipe)} {measured(value)} on {on}")
    if len(values) > len(said):
        run.say(f"  {len(values) - len(said)} other ways to look find no more")


def measured(value: float | None) -> str:
    """In words."""
    return "not measured" if value is None else f"{value:.3f}"


def views_chosen(recipe: DetectionRecipe, chosen: str, values: Mapping[str, float | None], on: str) -> Summary:
    """The entries of a summary on the views of the detector; {} if there was no choice."""
    return {"views": values, "way": chosen, "metric": comparing(recipe), "chosen_on": on} if values else {}


def write_views(folder: Path, views: Views) -> None:
    """Keep the detections of each view."""
    for look, results in views.items():
        detections.write_results(folder / _file_of(look), results)


def read_views(
    folders: Sequence[Path], infos: Sequence[ImageInfo], way: Way, classes: int, score_floor: float
) -> dict[Look, list[ImageResult]]:
    """The detections of each view of `way` in all folders together, joined with the truth.

    classes: how many the detector knows, of which `infos` may lack some. score_floor: as in testing, of the boxes of
    each view.
    """
    categories, found = range(1, classes + 1), {}
    for look in looks(way.flips, way.scales):
        parts = [detections.read_results(folder / _file_of(look), infos, categories) for folder in folders]
        joined = detections.join(infos, {image: one for part in parts for image, one in part.items()})
        found[look] = detections.above(joined, score_floor)
    return found


def _file_of(look: Look) -> str:
    return f"view_{look.mirrored}{'' if look.scale == 1 else f'_at_{look.scale!r}'}.json"


def comparing(recipe: DetectionRecipe) -> str:
    """The metric that compares detections: that of checkpoints, unless these are chosen by something else, such as
    their similarity to a teacher."""
    return recipe.best_metric if recipe.best_metric in metrics.METRIC_NAMES else metrics.METRIC_NAMES[0]


def score_of(results: Sequence[ImageResult], recipe: DetectionRecipe) -> float | None:
    """The metric that compares detections; None without lesions."""
    scores = metrics.scalars(metrics.evaluate_detections(results, score_floor=recipe.score_floor, resamples=0))
    return scores.get(comparing(recipe), 0.0 if any(result.has_lesions for result in results) else None)
