"""The outcome of a detector per image at one threshold, and the images with the best and worst outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elk_jax.evaluation import froc
from elk_jax.evaluation.detections import ImageResult
from elk_jax.evaluation.hits import ELK_RULE, Criterion

Outcome = Mapping[str, Any]


def image_outcomes(
    results: Sequence[ImageResult], criterion: Criterion = ELK_RULE, threshold: float = 0.0
) -> list[dict[str, Any]]:
    """Outcome of each image at one threshold: {"image_id", "lesions", "found", "missed", "false_positives"}."""
    outcomes = []
    for result in results:
        scores = froc.image_scores(result, criterion)
        found = int((scores.lesions >= threshold).sum())
        outcomes.append(
            {
                "image_id": result.image_id,
                "lesions": len(scores.lesions),
                "found": found,
                "missed": len(scores.lesions) - found,
                "false_positives": int((scores.false_positives >= threshold).sum()),
            }
        )
    return outcomes


def best_and_worst(outcomes: Sequence[Outcome], number: int) -> tuple[list[Outcome], list[Outcome]]:
    """The `number` images with the best outcome, best first, and those with the worst, worst first.

    Worst: most missed lesions, then most false positives; only images with either. Best: fewest missed lesions, then
    most found, then fewest false positives; only images with a found lesion. No image is in both lists.
    """
    by_fault = sorted(outcomes, key=lambda o: (-o["missed"], -o["false_positives"], o["image_id"]))
    worst = [o for o in by_fault if o["missed"] or o["false_positives"]][:number]
    taken = {o["image_id"] for o in worst}
    by_merit = sorted(outcomes, key=lambda o: (o["missed"], -o["found"], o["false_positives"], o["image_id"]))
    best = [o for o in by_merit if o["found"] and o["image_id"] not in taken][:number]
    return best, worst


def describe_outcome(outcome: Mapping[str, Any]) -> str:
    """'2 of 3 lesions found, 1 false positive'. `gt_ignore`, if given: which boxes of the image are ignored."""
    wrong = outcome["false_positives"]
    found = f"{outcome['found']} of {outcome['lesions']} lesion{'s' * (outcome['lesions'] != 1)} found"
    none = "no lesion to find" if any(outcome.get("gt_ignore", ())) else "lesion-free"
    return f"{found if outcome['lesions'] else none}, {wrong or 'no'} false positive{'s' * (wrong != 1)}"
