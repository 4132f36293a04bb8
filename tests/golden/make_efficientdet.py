"""Runs effdet's EfficientDet on seeded weights and images and stores what it says. Needs torch, timm and effdet:

    python tests/golden/make_efficientdet.py

Made with effdet 0.4.1 and timm 1.0.31 on a CPU, and with the torch that each file names.
"""

import json
from importlib.metadata import version
from pathlib import Path

import effdet
import numpy as np
import seeded
import timm
import torch
from effdet.anchors import AnchorLabeler, Anchors, clip_boxes_xyxy, decode_box_outputs
from effdet.bench import _batch_detection, _post_process
from effdet.loss import loss_fn

FOLDER = Path(__file__).parent
SQUARE = (256, 256)  # the canvas in multiples of 128, without which its strides are fractions
NAMES = ("tf_efficientdet_d0", "efficientdet_lite0", "efficientdet_d0", "tf_efficientdet_lite0")
CELLS, CONVS = 2, 2  # fewer than published: the first cell, those behind it, and the heads are all here
CANDIDATES, DETECTIONS = 3000, 20
GAINS = [
    (r"conv_dw\.weight", 1.0, False),
    (r"class_net\.predict\.conv_pw\.weight", 0.2, True),
    (r"box_net\.predict\.conv_pw\.weight", 0.1, True),
]


def build(name):
    config = effdet.get_efficientdet_config(name)
    config.image_size, config.num_classes, config.aspect_ratios = SQUARE, seeded.NUM_CLASSES, [1.0, 2.0, 0.5]
    config.fpn_cell_repeats, config.box_class_repeats = CELLS, CONVS
    model = effdet.EfficientDet(config, pretrained_backbone=False)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    tensors = seeded.state_dict(shapes, GAINS, {})
    model.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    return model.eval(), shapes


def run(model):
    """Everything the fixture stores, as arrays. The images are those of the canvas, 0 outside, not normalised."""
    config = model.config
    canvas = [(0, 0), *((0, whole - part) for whole, part in zip(SQUARE, seeded.CANVAS)), (0, 0)]
    images = torch.tensor(np.repeat(np.pad(seeded.images(), canvas), 3, axis=-1).transpose(0, 3, 1, 2))
    nhwc = lambda x: x.permute(0, 2, 3, 1).numpy()
    levels = model.fpn(model.backbone(images))
    out = {f"p{level}": seeded.project(nhwc(x)) for level, x in enumerate(levels, start=3)}
    classes, boxes = model.class_net(levels), model.box_net(levels)
    flat = lambda maps, size: np.concatenate([nhwc(x).reshape(len(x), -1, size) for x in maps], 1)
    out["logits"] = flat(classes, config.num_classes)[:, :: seeded.STRIDE_OF_DELTAS]
    out["deltas"] = flat(boxes, 4)[:, :: seeded.STRIDE_OF_DELTAS]
    anchors = Anchors.from_config(config)
    out["anchors"] = anchors.boxes.numpy()[:: seeded.STRIDE_OF_DELTAS]
    labeler = AnchorLabeler(anchors, config.num_classes, match_threshold=0.5)
    truth = [torch.tensor(np.asarray(b, "f4")[:, [1, 0, 3, 2]]) for b in seeded.BOXES]
    labels = [torch.tensor(np.asarray(one)) + 1 for one in seeded.LABELS]  # 0 is the background
    targets = labeler.batch_label_anchors(truth, labels)
    _, of_classes, of_boxes = loss_fn(
        classes, boxes, *targets, num_classes=config.num_classes, alpha=0.25, gamma=1.5, delta=0.1, box_loss_weight=50.0
    )
    positives = float(targets[2].sum())
    out["losses"] = np.array([float(of_classes), 50 * float(of_boxes)]) * (positives + 1) / positives
    out["positives"] = np.array([positives])
    best = _post_process(classes, boxes, config.num_levels, config.num_classes, CANDIDATES)
    sizes = torch.tensor([(width, height) for height, width in seeded.SIZES], dtype=torch.float32)
    scores, offsets, places, _ = best
    for score, offset, place, size in zip(scores, offsets, places, sizes):  # effdet keeps boxes outside the image
        decoded = clip_boxes_xyxy(decode_box_outputs(offset, anchors.boxes[place], output_xyxy=True), size)
        score[(decoded[:, 2:] <= decoded[:, :2]).any(1)] = -torch.inf
    for kind in ("hard", "soft"):
        rows = _batch_detection(len(images), *best[:2], anchors.boxes, *best[2:], torch.ones(len(images)), sizes,
                                DETECTIONS, kind == "soft").numpy()  # fmt: skip
        out |= {f"{kind}_boxes": rows[..., :4], f"{kind}_scores": rows[..., 4], f"{kind}_labels": rows[..., 5] - 1}
    return out


def main():
    for name in NAMES:
        model, shapes = build(name)
        exact = run(model)
        for key, value in exact.items():
            print(name, key, value.shape, "mean", value.mean(), "std", value.std())
        facts = {
            "made_with": {"torch": torch.__version__, "timm": timm.__version__, "effdet": version("effdet")},
            "gains": GAINS,
            "added": {},
            "settings": {"cells": CELLS, "head_convs": CONVS, "detections": DETECTIONS},
            "candidates": CANDIDATES,
            "canvas": SQUARE,
            "shapes": shapes,
        }
        (FOLDER / f"{name}.json").write_text(json.dumps(facts) + "\n")
        np.savez_compressed(FOLDER / f"{name}.npz", **{k: v.astype("f4") for k, v in exact.items()})


if __name__ == "__main__":
    with torch.no_grad():
        main()
