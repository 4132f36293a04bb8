"""The report on the quality of painted lesions, read from the files of the stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elk_jax import files
from elk_jax.data.sources.source import ImageSource
from elk_jax.reporting.pictures import Closeup, Strip
from elk_jax.reporting.run import Part
from elk_jax.synthesis.closeups import box_patch
from elk_jax.tasks.lesion_quality.page import Quality, quality_part
from elk_jax.tasks.run import Run

PATCH = 192
"""Side of the picture of a lesion in a pair, in pixels."""

TURNS = {"": lambda p: p, "horizontal": np.fliplr, "vertical": np.flipud, "both": lambda p: np.flipud(np.fliplr(p))}


WORDS = {
    ("horizontal", False): "mirrored horizontally",
    ("vertical", False): "mirrored vertically",
    ("both", False): "mirrored both ways",
    ("", True): "mirrored at the diagonal",
    ("horizontal", True): "turned right",
    ("vertical", True): "turned left",
    ("both", True): "mirrored at the other diagonal",
}
"""Descriptions of how a training lesion is shown: (flip, whether it is transposed first)."""


def part(run: Run, summaries: Mapping[str, Any]) -> Part:
    """The part of the finished comparisons. summaries: by stage."""
    return quality_part([_quality(run, name, summary) for name, summary in summaries.items()])


def _quality(run: Run, name: str, summary: Mapping[str, Any]) -> Quality:
    evaluation = files.read_object(run.folder / name / "evaluation.json")
    pairs: list[Strip] = []
    if evaluation["memorised"] is not None:
        painted = run.list(summary["synthetic"], summary.get("synthetic_split", "train"))
        training = run.list(summary["on"], "train")
        pairs = pair_strips(evaluation["memorised"]["pairs"], painted, training)
    return Quality(f"{summary['split']} split of {summary['on']}", evaluation, pairs)


def pair_strips(pairs: Sequence[Mapping[str, Any]], painted: ImageSource, training: ImageSource) -> list[Strip]:
    """Each synthetic lesion next to its training lesion, which is oriented like the synthetic one.

    Pairs whose images are no longer in the sources are left out: the set was painted anew and not yet compared again.
    """
    at = {info.image_id: i for i, info in enumerate(painted.infos)}
    known = {info.image_id: i for i, info in enumerate(training.infos)}
    strips = []
    for pair in pairs:
        if pair["synthetic"] not in at or pair["training"] not in known:
            continue
        left = _patch(painted, at[pair["synthetic"]], 0)
        position = known[pair["training"]]
        right = _patch(training, position, pair["lesion"])
        view = pair["flip"], pair.get("transposed", False)  # earlier versions used four views
        right = TURNS[view[0]](right.T if view[1] else right)
        turned = f", {WORDS[view]}" if view in WORDS else ""
        lesion = f"lesion {pair['lesion'] + 1} of {training.infos[position].title}"
        margin = f", margin {pair['margin']:.2f}" if pair.get("margin") is not None else ""  # new in later versions
        caption = f"and {lesion}{turned}; similarity {pair['similarity']:.2f}{margin}"
        strips.append(Strip([Closeup(left), Closeup(right)], f"Synthetic {pair['synthetic']}", caption))
    return strips


def _patch(source: ImageSource, position: int, lesion: int) -> np.ndarray:
    """A lesion scaled from its darkest to its brightest grey, as similarity ignores contrast too."""
    patch = box_patch(source[position].image[..., 0], source.infos[position].boxes[lesion], PATCH)
    low, high = np.percentile(patch, [1, 99])
    return np.clip((patch - low) / max(high - low, 1e-6), 0, 1)
