"""Runs torchvision's RetinaNet on seeded weights and images and stores what it says. Needs torch and torchvision:

    python tests/golden/make_retinanet.py

Made with torch 2.13.0 and torchvision 0.29.1 on a CPU. That an image changed by 3e-6 gives the same detections proves
that no decision hangs on rounding.
"""

import json
from pathlib import Path

import numpy as np
import seeded
import torch
import torchvision
from make_torchvision import images_and_targets
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2

FOLDER = Path(__file__).parent
DETECTIONS, CANDIDATES = 40, 100
GAINS = [
    (r"bn3\.weight", 0.25, False),
    (r"inner_blocks|layer_blocks|extra_blocks", 0.7, True),
    (r"head\.conv\.\d\.1\.weight", 0.3, False),
    (r"cls_logits\.weight", 0.5, True),
    (r"bbox_reg", 0.1, True),
]
BACKGROUND = [-20.0, -1.0, -1.0] * 9  # of every anchor: an unused class, which is never found, and two classes
ADDED = {"head.classification_head.cls_logits.bias": BACKGROUND}


def build(make):
    settings = {"topk_candidates": CANDIDATES, "detections_per_img": DETECTIONS}
    model = make(weights=None, weights_backbone=None, num_classes=seeded.NUM_CLASSES + 1, **settings)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = seeded.state_dict(shapes, GAINS, ADDED)
    model.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    model.transform.resize = lambda image, target: (image, target)  # the images have their sizes
    return model.eval(), shapes


def run(model, noise=0.0):
    """Everything the fixture stores, as arrays. The images are changed by the share `noise`."""
    pictures, targets = images_and_targets()
    pictures = [p * (1 + noise * torch.sin(torch.arange(p.numel())).reshape(p.shape)) for p in pictures]
    batch, _ = model.transform(pictures)
    assert tuple(batch.tensors.shape[-2:]) == seeded.CANVAS
    nhwc = lambda x: x.permute(0, 2, 3, 1).numpy()
    stages = model.backbone.body(batch.tensors)
    levels = list(model.backbone.fpn(stages).values())
    out = {"c5": seeded.project(nhwc(list(stages.values())[-1]))}
    for level, x in enumerate(levels, start=3):
        out[f"p{level}"] = seeded.project(nhwc(x))
    found = model.head(levels)
    logits, deltas = found["cls_logits"], found["bbox_regression"]
    anchors = model.anchor_generator(batch, levels)
    out["logits"], out["deltas"] = (x.numpy()[:, :: seeded.STRIDE_OF_DELTAS] for x in (logits, deltas))
    out["anchors"] = anchors[0].numpy()[:: seeded.STRIDE_OF_DELTAS]
    for name, lesion_free in (("losses", None), ("losses_lesion_free", 1)):
        chosen = [{k: v[:0] for k, v in t.items()} if i == lesion_free else t for i, t in enumerate(targets)]
        losses = model.compute_loss(chosen, found, anchors)
        out[name] = np.array([float(losses[k]) for k in ("classification", "bbox_regression")])
    counts = [x.shape[2] * x.shape[3] * 9 for x in levels]
    split = {name: list(x.split(counts, dim=1)) for name, x in found.items()}
    results = model.postprocess_detections(split, [list(a.split(counts)) for a in anchors], batch.image_sizes)
    for key in ("boxes", "scores", "labels"):
        out[f"detected_{key}"] = seeded.padded([r[key] for r in results], DETECTIONS)
    out["counts"] = np.array([[len(r["boxes"]) for r in results]])
    return out


def main():
    for name, make in (("v1", retinanet_resnet50_fpn), ("v2", retinanet_resnet50_fpn_v2)):
        model, shapes = build(make)
        exact = run(model)
        for key in ("c5", "p3", "p4", "p5", "p6", "p7", "logits", "deltas"):
            print(name, key, "mean", exact[key].mean(), "std", exact[key].std())
        print(exact["counts"], exact["losses"], exact["losses_lesion_free"])
        print(np.sort(exact["detected_scores"])[:, ::-6], exact["detected_labels"].mean())
        seeded.check_stability(f"retinanet_{name}", exact, run(model, 3e-6))
        published = make(weights=None, weights_backbone=None)
        facts = {
            "made_with": {"torch": torch.__version__, "torchvision": torchvision.__version__},
            "candidates": CANDIDATES,
            "detections": DETECTIONS,
            "gains": GAINS,
            "added": ADDED,
            "shapes": shapes,
            "parameters_with_91_classes": sum(p.numel() for p in published.parameters()),
            "buffers_with_91_classes": sum(b.numel() for n, b in published.named_buffers() if "num_batches" not in n),
        }
        (FOLDER / f"retinanet_{name}.json").write_text(json.dumps(facts) + "\n")
        np.savez_compressed(FOLDER / f"retinanet_{name}.npz", **{k: v.astype("f4") for k, v in exact.items()})


if __name__ == "__main__":
    with torch.no_grad():
        main()
