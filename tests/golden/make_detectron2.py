"""Runs detectron2's R-101-FPN on seeded weights and images and stores what it says. Needs torch, torchvision and a
checkout of detectron2's source (nothing of it has to be compiled):

    PYTHONPATH=path/to/detectron2 python tests/golden/make_detectron2.py

Made with detectron2 at 02b5c4e295e990042a714712c21dc79b731e8833, torch 1.13.0, torchvision 0.14.1, on a CPU. So many
anchors and regions are sampled that all are, as in make_torchvision.py. detectron2 divides the RPN's losses by the
number of samples asked for, even where there are not so many; the stored ones are divided by the number there is.
"""

import json
from pathlib import Path

import detectron2
import numpy as np
import seeded
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

FOLDER = Path(__file__).parent
YAML = Path(detectron2.__file__).parent.parent / "configs" / "COCO-Detection" / "faster_rcnn_R_101_FPN_3x.yaml"
PROPOSALS = 62
DETECTIONS = 40
RPN_SAMPLES = 40000
GAINS = [
    (r"stem\.conv1\.weight", 0.015, False),  # the input is in 0..255
    (r"conv3\.norm\.weight", 0.15, False),
    (r"fpn_", 0.5, True),
    (r"objectness_logits", 0.6, True),
    (r"anchor_deltas", 0.1, True),
    (r"cls_score", 0.8, True),
    (r"box_predictor.bbox_pred", 0.4, True),
]
ADDED = {"roi_heads.box_predictor.cls_score.bias": [1.0, 0.0, 0.0]}  # so that both classes are found


def configure():
    cfg = get_cfg()
    cfg.merge_from_file(str(YAML))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 400
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = PROPOSALS
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = RPN_SAMPLES
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 600
    cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.5
    cfg.TEST.DETECTIONS_PER_IMAGE = DETECTIONS
    return cfg


def inputs():
    canvas = np.repeat(seeded.images(), 3, axis=-1).transpose(0, 3, 1, 2) * np.float32(255)
    batch = [{"image": torch.tensor(canvas[i, :, :h, :w])} for i, (h, w) in enumerate(seeded.SIZES)]
    truth = []
    for size, boxes, labels in zip(seeded.SIZES, seeded.BOXES, seeded.LABELS):
        truth.append(Instances(size, gt_boxes=Boxes(torch.tensor(boxes)), gt_classes=torch.tensor(labels)))
    return batch, truth


def run(model, noise=0.0):
    """Everything the fixture stores, as arrays. The images are changed by the share `noise`."""
    model.eval()
    batch, truth = inputs()
    for item in batch:
        image = item["image"]
        item["image"] = image * (1 + noise * torch.sin(torch.arange(image.numel())).reshape(image.shape))
    images = model.preprocess_image(batch)
    assert tuple(images.tensor.shape[-2:]) == seeded.CANVAS
    nhwc = lambda x: x.permute(0, 2, 3, 1).numpy()
    stages = model.backbone.bottom_up(images.tensor)
    features = model.backbone(images.tensor)
    out = {"c5": seeded.project(nhwc(stages["res5"]))}
    for level in range(2, 7):
        out[f"p{level}"] = seeded.project(nhwc(features[f"p{level}"]))
    rpn, heads = model.proposal_generator, model.roi_heads
    logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
    out["objectness"] = np.concatenate([nhwc(x).reshape(len(x), -1) for x in logits], 1)
    flat = np.concatenate([nhwc(x).reshape(len(x), -1, 4) for x in deltas], 1)
    out["deltas"] = flat[:, :: seeded.STRIDE_OF_DELTAS]
    proposals, _ = rpn(images, features)
    boxes = [p.proposal_boxes for p in proposals]
    counts = [len(b) for b in boxes]
    out["proposals"] = seeded.padded([b.tensor for b in boxes], PROPOSALS)
    pooled = heads.box_pooler([features[name] for name in heads.box_in_features], boxes)
    raw = heads.box_predictor(heads.box_head(pooled))
    out["class_logits"], out["box_deltas"] = (seeded.padded(x.split(counts), PROPOSALS) for x in raw)
    found, _ = heads.box_predictor.inference(raw, proposals)
    for key, field in (("boxes", "pred_boxes"), ("scores", "scores"), ("labels", "pred_classes")):
        rows = [getattr(f, field) for f in found]
        out[f"detected_{key}"] = seeded.padded([r.tensor if key == "boxes" else r for r in rows], DETECTIONS)
    out["counts"] = np.array([counts, [len(f) for f in found]])
    model.train()
    with EventStorage():
        for name, lesion_free in (("losses", None), ("losses_lesion_free", 1)):
            chosen = [t[:0] if i == lesion_free else t for i, t in enumerate(truth)]
            proposals, losses = rpn(images, features, chosen)
            anchors = rpn.anchor_generator([features[n] for n in rpn.in_features])
            labels, _ = rpn.label_and_sample_anchors(anchors, chosen)
            share = RPN_SAMPLES * len(images) / sum(int((image_labels >= 0).sum()) for image_labels in labels)
            losses.update(heads(images, features, proposals, chosen)[1])
            rescaled = {k: float(v) * (share if k.startswith("loss_rpn") else 1) for k, v in losses.items()}
            out[name] = np.array([rescaled[key] for key in LOSSES])
    return out


LOSSES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")


def main():
    cfg = configure()
    published = sum(p.numel() for p in build_model(cfg).parameters())
    buffers = sum(b.numel() for n, b in build_model(cfg).named_buffers() if ".norm." in n)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = seeded.NUM_CLASSES
    model = build_model(cfg)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = seeded.state_dict(shapes, GAINS, ADDED)
    model.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    exact = run(model)
    for key in ("c5", "p2", "p3", "p4", "p5", "p6", "objectness", "deltas", "class_logits", "box_deltas"):
        print(key, "mean", exact[key].mean(), "std", exact[key].std())
    print("class logits", exact["class_logits"].mean((0, 1)))
    print(exact["counts"], exact["losses"], exact["losses_lesion_free"])
    print(np.sort(exact["detected_scores"])[:, ::-6])
    print(exact["detected_boxes"][0, ::5].round(1), exact["detected_labels"][0])
    sides = exact["proposals"][..., 2:] - exact["proposals"][..., :2]
    print("proposal sizes", np.quantile(np.sqrt(sides.prod(-1)), [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]))
    seeded.check_stability("R-101", exact, run(model, 3e-6))
    facts = {
        "made_with": {"torch": torch.__version__, "torchvision": torchvision.__version__, "detectron2": "02b5c4e29"},
        "gains": GAINS,
        "added": ADDED,
        "shapes": shapes,
        "parameters_with_80_classes": published,
        "buffers_with_80_classes": buffers,
    }
    (FOLDER / "detectron2_r101.json").write_text(json.dumps(facts) + "\n")
    np.savez_compressed(FOLDER / "detectron2_r101.npz", **{k: v.astype("f4") for k, v in exact.items()})


if __name__ == "__main__":
    with torch.no_grad():
        main()
