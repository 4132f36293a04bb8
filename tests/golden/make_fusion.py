"""Makes fusion.npz: weighted boxes fusion by the package of its authors, `ensemble-boxes`.

    pip install ensemble-boxes==1.0.9
    python tests/golden/make_fusion.py

Views of 12 objects of two classes, some of which a view misses, and boxes of its own elsewhere; a view has no two boxes
of one cluster, since elk_jax counts only the better one. Coordinates are shares of the image, as the package takes
them. Cases are named by the IoU of one cluster and the weights of the views. The version is stored under `version`.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from ensemble_boxes import weighted_boxes_fusion

VIEWS = 3
CASES = ((0.5, (1, 1, 1)), (0.55, (2, 1, 0.5)), (0.3, (1, 3, 1)), (0.7, (1, 1, 1)))


def view(random, objects, labels):
    """Boxes [K, 4], scores [K] and labels [K] of one view."""
    seen = random.random(len(objects)) < 0.75
    boxes = objects[seen] + random.normal(0, 0.006, (seen.sum(), 4))
    rest = np.setdiff1d(np.arange(16), np.arange(len(objects)))
    corner = np.stack([rest % 4, rest // 4], 1) / 4 + random.uniform(0.0, 0.1, (len(rest), 2))
    extra = np.concatenate([corner, corner + random.uniform(0.05, 0.14, (len(rest), 2))], 1)
    found = np.concatenate([labels[seen], random.integers(0, 2, len(rest))])
    return np.clip(np.concatenate([boxes, extra]), 0, 1), random.uniform(0.05, 0.95, len(found)), found


if __name__ == "__main__":
    random = np.random.default_rng(2021)
    place = np.stack([np.arange(12) % 4, np.arange(12) // 4], 1) / 4
    low = place + random.uniform(0.01, 0.05, (12, 2))
    objects = np.concatenate([low, low + random.uniform(0.06, 0.18, (12, 2))], 1)
    labels = random.integers(0, 2, 12)
    views = [view(random, objects, labels) for _ in range(VIEWS)]
    out = {"version": np.array(version("ensemble-boxes"))}
    for number, (boxes, scores, found) in enumerate(views):
        out |= {f"view{number}/boxes": boxes, f"view{number}/scores": scores, f"view{number}/labels": found}
    for same, weights in CASES:
        boxes, scores, found = weighted_boxes_fusion(*zip(*views), weights=weights, iou_thr=same, skip_box_thr=0.0)
        name = f"{same}_{'_'.join(map(str, weights))}"
        out |= {f"{name}/boxes": boxes, f"{name}/scores": scores, f"{name}/labels": found}
    np.savez_compressed(Path(__file__).with_name("fusion.npz"), **out)
