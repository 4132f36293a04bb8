"""Weighted boxes fusion: one list of detections from several views of an image or several models.

Shapes: V views or models, K boxes. Source: Solovyev et al. 2021, arXiv 1910.13302, with one difference: a view counts
once in the score of a cluster, with its best box, so that finding a lesion twice in one view does not raise the score.
Otherwise boxes and scores equal those of the authors' package `ensemble-boxes` (tests/golden/make_fusion.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from elk_jax.evaluation.detections import Detections, ImageResult
from elk_jax.images.boxes import iou

SAME = 0.5
"""Default IoU from which two boxes of one class belong to the same lesion."""


def fuse(
    views: Sequence[Sequence[ImageResult]], same: float = SAME, weights: Sequence[float] = ()
) -> list[ImageResult]:
    """One list of results from V lists for the same images in the same order, all in pixels of the source.

    same, weights: as in `fuse_boxes`.
    """
    fused = []
    for results in zip(*views, strict=True):
        if len({result.image_id for result in results}) != 1:
            raise ValueError(f"views of different images: {', '.join(result.image_id for result in results)}")
        found = fuse_boxes([Detections(r.boxes, r.scores, r.labels) for r in results], same, weights)
        fused.append(replace(results[0], boxes=found.boxes, scores=found.scores, labels=found.labels))
    return fused


def fuse_boxes(views: Sequence[Detections], same: float = SAME, weights: Sequence[float] = ()) -> Detections:
    """The fused boxes of one image, best first.

    Boxes are processed by descending score. Each joins the cluster of its class whose fused box it overlaps most, with
    an IoU of at least `same`, or starts a new cluster. The box of a cluster is the mean of its boxes weighted by score;
    its score is the mean, over all V views, of the best score of the view in the cluster (0 if it has none).
    weights: of the views, above 0, used in both means and in the order of processing; (): equal weights.
    """
    shares = np.asarray(weights or np.ones(len(views)), float)
    if len(shares) != len(views):
        raise ValueError(f"{len(shares)} weights for {len(views)} views")
    boxes = np.concatenate([np.asarray(view.boxes, float).reshape(-1, 4) for view in views])
    scores = np.concatenate([share * np.asarray(view.scores, float) for share, view in zip(shares, views)])
    labels = np.concatenate([np.asarray(view.labels, int) for view in views])
    origin = np.repeat(np.arange(len(views)), [len(view.scores) for view in views])
    centre = np.zeros((0, 4))  # fused box of every cluster
    classes = np.zeros(0, int)
    members: list[list[int]] = []
    for i in np.argsort(-scores, kind="stable"):
        overlap = np.where(classes == labels[i], iou(boxes[i : i + 1], centre)[0], -1.0)
        if len(overlap) and overlap.max() >= same:
            chosen = int(overlap.argmax())
            members[chosen].append(int(i))
            by_score = np.maximum(scores[members[chosen]], 1e-12)
            centre[chosen] = np.average(boxes[members[chosen]], axis=0, weights=by_score)
        else:
            members.append([int(i)])
            centre, classes = np.vstack([centre, boxes[i]]), np.append(classes, labels[i])
    best = np.zeros((len(members), len(views)))
    for cluster, inside in enumerate(members):
        np.maximum.at(best[cluster], origin[inside], scores[inside])
    fused = best.sum(axis=1) / shares.sum()
    order = np.argsort(-fused, kind="stable")
    return Detections(centre[order], fused[order], classes[order])
