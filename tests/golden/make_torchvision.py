"""Runs torchvision's Faster R-CNN on seeded weights and images and stores what it says. Needs torch and torchvision:

    python tests/golden/make_torchvision.py

Made with torch 1.13.0 and torchvision 0.14.1 on a CPU. The sampling of anchors and regions is random, and so that
losses can be compared all the same, so many are sampled that all are: 2 * 20000 anchors and 2 * 300 regions of an
image (half of them positive at most, which is more than there are). That an image changed by 3e-6 gives the same
proposals and detections proves that no decision hangs on rounding.
"""

import json
from pathlib import Path

import numpy as np
import seeded
import torch
import torchvision
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2

FOLDER = Path(__file__).parent
PROPOSALS = 62
DETECTIONS = 40
SETTINGS = {
    "rpn_pre_nms_top_n_train": 400,
    "rpn_pre_nms_top_n_test": 400,
    "rpn_post_nms_top_n_train": PROPOSALS,
    "rpn_post_nms_top_n_test": PROPOSALS,
    "rpn_batch_size_per_image": 40000,
    "box_batch_size_per_image": 600,
    "box_positive_fraction": 0.5,
    "box_detections_per_img": DETECTIONS,
}
GAINS = [
    (r"bn3\.weight", 0.25, False),
    (r"inner_blocks|layer_blocks", 0.7, True),
    (r"rpn.*cls_logits", 0.7, True),
    (r"rpn.*bbox_pred", 0.1, True),
    (r"cls_score", 0.4, True),
    (r"box_predictor.bbox_pred", 0.4, True),
]
BIAS = "roi_heads.box_predictor.cls_score.bias"
ADDED = {"v1": {BIAS: [0.0, 4.0, -0.7]}, "v2": {BIAS: [1.0, 1.7, 0.0]}}  # so that both classes are found


def images_and_targets():
    canvas = np.repeat(seeded.images(), 3, axis=-1).transpose(0, 3, 1, 2)
    pictures = [torch.tensor(canvas[i, :, :h, :w]) for i, (h, w) in enumerate(seeded.SIZES)]
    targets = [
        {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels) + 1}  # 0 is the background
        for boxes, labels in zip(seeded.BOXES, seeded.LABELS)
    ]
    return pictures, targets


def build(make, name):
    model = make(weights=None, weights_backbone=None, num_classes=seeded.NUM_CLASSES + 1, **SETTINGS)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = seeded.state_dict(shapes, GAINS, ADDED[name])
    model.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    model.transform.resize = lambda image, target: (image, target)  # the images have their sizes
    return model, shapes


def run(model, noise=0.0):
    """Everything the fixture stores, as arrays. The images are changed by the share `noise`."""
    model.eval()
    pictures, targets = images_and_targets()
    pictures = [p * (1 + noise * torch.sin(torch.arange(p.numel())).reshape(p.shape)) for p in pictures]
    batch, _ = model.transform(pictures)
    assert tuple(batch.tensors.shape[-2:]) == seeded.CANVAS
    nhwc = lambda x: x.permute(0, 2, 3, 1).numpy()
    stages = model.backbone.body(batch.tensors)
    features = model.backbone.fpn(stages)
    out = {"c5": seeded.project(nhwc(stages["3"]))}
    for level, x in enumerate(features.values(), start=2):
        out[f"p{level}"] = seeded.project(nhwc(x))
    logits, deltas = model.rpn.head(list(features.values()))
    out["objectness"] = np.concatenate([nhwc(x).reshape(len(x), -1) for x in logits], 1)
    flat = np.concatenate([nhwc(x).reshape(len(x), -1, 4) for x in deltas], 1)
    out["deltas"] = flat[:, :: seeded.STRIDE_OF_DELTAS]
    proposals, _ = model.rpn(batch, features)
    out["proposals"] = seeded.padded(proposals, PROPOSALS)
    heads = model.roi_heads
    raw = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, batch.image_sizes)))
    counts = [len(p) for p in proposals]
    out["class_logits"], out["box_deltas"] = (seeded.padded(x.split(counts), PROPOSALS) for x in raw)
    found = heads.postprocess_detections(*raw, proposals, batch.image_sizes)
    detected = dict(zip(("boxes", "scores", "labels"), found))
    for key, rows in detected.items():
        out[f"detected_{key}"] = seeded.padded(rows, DETECTIONS)
    out["counts"] = np.array([counts, [len(rows) for rows in detected["boxes"]]])
    model.rpn.train(), heads.train()
    for name, lesion_free in (("losses", None), ("losses_lesion_free", 1)):
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()  # constant statistics
        chosen = [{k: v[:0] for k, v in t.items()} if i == lesion_free else t for i, t in enumerate(targets)]
        proposals, losses = model.rpn(batch, features, chosen)
        losses.update(heads(features, proposals, batch.image_sizes, chosen)[1])
        out[name] = np.array([float(losses[k]) for k in LOSSES])
    return out


LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")


def main():
    for name, make in (("v1", fasterrcnn_resnet50_fpn), ("v2", fasterrcnn_resnet50_fpn_v2)):
        model, shapes = build(make, name)
        exact = run(model)
        for key in ("c5", "p2", "p3", "p4", "p5", "p6", "objectness", "deltas", "class_logits", "box_deltas"):
            print(name, key, "mean", exact[key].mean(), "std", exact[key].std())
        print("class logits", exact["class_logits"].mean((0, 1)))
        print(exact["counts"], exact["losses"], exact["losses_lesion_free"])
        print(np.sort(exact["detected_scores"])[:, ::-6])
        print(exact["detected_boxes"][0, ::5].round(1), exact["detected_labels"][0])
        sides = exact["proposals"][..., 2:] - exact["proposals"][..., :2]
        print("proposal sizes", np.quantile(np.sqrt(sides.prod(-1)), [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]))
        seeded.check_stability(name, exact, run(model, 3e-6))
        published = make(weights=None, weights_backbone=None)
        facts = {
            "made_with": {"torch": torch.__version__, "torchvision": torchvision.__version__},
            "settings": SETTINGS,
            "gains": GAINS,
            "added": ADDED[name],
            "shapes": shapes,
            "parameters_with_91_classes": sum(p.numel() for p in published.parameters()),
            "buffers_with_91_classes": sum(b.numel() for n, b in published.named_buffers() if "num_batches" not in n),
        }
        (FOLDER / f"torchvision_{name}.json").write_text(json.dumps(facts) + "\n")
        np.savez_compressed(FOLDER / f"torchvision_{name}.npz", **{k: v.astype("f4") for k, v in exact.items()})


if __name__ == "__main__":
    with torch.no_grad():
        main()
