"""Makes detection_ops.npz: what torchvision's own operators say about small random inputs.

Runs under a Python that has torch and torchvision with working C++ operators (Debian: python3-torchvision):

    /usr/bin/python3 tests/golden/make_detection_ops.py

The versions are stored in the file under `versions`.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_iou, nms, roi_align

OUTPUT = Path(__file__).with_name("detection_ops.npz")
random = np.random.default_rng(20240)


def boxes(num: int, size: float, low: float = 4, high: float = 60) -> torch.Tensor:
    """Random xyxy boxes, some of them partly outside of [0, size]."""
    centre = random.uniform(0, size, (num, 2))
    half = random.uniform(low, high, (num, 2)) / 2
    return torch.tensor(np.concatenate([centre - half, centre + half], 1), dtype=torch.float32)


def make() -> dict[str, np.ndarray]:
    out: dict[str, object] = {"versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}"}

    candidates, scores = boxes(300, 100), torch.tensor(random.uniform(size=300), dtype=torch.float32)
    groups = torch.tensor(random.integers(0, 3, 300))
    out |= {"nms_boxes": candidates, "nms_scores": scores, "nms_groups": groups}
    for threshold in (0.05, 0.1, 0.3, 0.5, 0.7):
        out[f"nms_{threshold}"] = nms(candidates, scores, threshold)
        out[f"batched_nms_{threshold}"] = batched_nms(candidates, scores, groups, threshold)

    features = torch.tensor(random.normal(size=(1, 3, 13, 17)), dtype=torch.float32)
    rois = boxes(40, 64, 1, 48)  # at stride 4 the map covers 52 x 68 pixels, a bin at most 4 x 3
    odd = [[0.0, 0, 0, 0], [8, 8, 8, 30], [-90, -90, -70, -60], [0, 0, 64, 48]]
    rois = torch.cat([rois, torch.tensor(odd)])
    out |= {"roi_features": features[0].permute(1, 2, 0), "roi_boxes": rois}
    for aligned in (False, True):
        for ratio in (1, 2, 3, -1):
            inputs = features.clone().requires_grad_()
            pooled = roi_align(inputs, [rois], (3, 4), 0.25, ratio, aligned)
            name = f"roi_{'aligned' if aligned else 'plain'}_{max(ratio, 0)}"
            out[name] = pooled.permute(0, 2, 3, 1)
            if ratio in (2, -1):
                weights = torch.arange(pooled.numel(), dtype=torch.float32).reshape(pooled.shape).sin()
                (pooled * weights).sum().backward()
                out[name + "_grad"] = inputs.grad[0].permute(1, 2, 0)

    # A pyramid for images of 256 x 192 at strides 4 to 32, boxes on and near the borders between levels too.
    pyramid = {
        str(i): torch.tensor(random.normal(size=(1, 2, 256 // s, 192 // s)), dtype=torch.float32)
        for i, s in enumerate((4, 8, 16, 32))
    }
    rois = torch.cat([boxes(20, 190, 5, 190), boxes(6, 190, 200, 600)])
    sides = torch.tensor([56.0, 111.9, 112, 112.1, 223.9, 224, 224.1, 447.9, 448, 448.1, 896])
    rois = torch.cat([rois, torch.stack([0 * sides, 0 * sides, sides, sides], 1)])
    pooler = MultiScaleRoIAlign(list(pyramid), 2, 2)
    out["pyramid_boxes"] = rois
    out["pyramid_pooled"] = pooler(pyramid, [rois], [(256, 192)]).permute(0, 2, 3, 1)
    out["pyramid_levels"] = pooler.map_levels([rois])
    for level, values in pyramid.items():
        out[f"pyramid_{level}"] = values[0].permute(1, 2, 0)

    generator = AnchorGenerator(((32,), (64,), (100,)), ((0.5, 1.0, 2.0),) * 3)
    grids = [torch.zeros(1, 1, *grid) for grid in ((7, 9), (4, 5), (2, 3))]
    images = ImageList(torch.zeros(1, 1, 104, 136), [(104, 136)])  # 16 does not divide it: 104 / 7 -> 14
    out["anchors"] = generator(images, grids)[0]
    generator = AnchorGenerator(((16, 20, 25), (30, 37, 47)), ((0.5, 1.0, 2.0),) * 2)
    grids = [torch.zeros(1, 1, *grid) for grid in ((3, 2), (2, 1))]
    out["anchors_many_sizes"] = generator(ImageList(torch.zeros(1, 1, 24, 16), [(24, 16)]), grids)[0]

    targets, proposals = boxes(30, 100), boxes(30, 100)
    deltas = torch.tensor(random.normal(size=(30, 4)) * [2, 2, 8, 8], dtype=torch.float32)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    out |= {"coder_boxes": targets, "coder_anchors": proposals, "coder_deltas": deltas}
    out["coder_encoded"] = coder.encode_single(targets, proposals)
    out["coder_decoded"] = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas, proposals)

    gt, anchors = boxes(5, 100, 10, 50), boxes(400, 100, 8, 50)
    anchors[:20] = gt.repeat(4, 1) + torch.tensor(random.normal(size=(20, 4)), dtype=torch.float32)
    overlap = box_iou(gt, anchors)
    out |= {"match_gt": gt, "match_anchors": anchors, "match_iou": overlap.T}
    for low_quality in (False, True):
        out[f"match_{low_quality}"] = Matcher(0.7, 0.3, low_quality)(overlap)
    return {name: np.asarray(v.detach() if isinstance(v, torch.Tensor) else v) for name, v in out.items()}


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As np.savez_compressed, with fixed dates: the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(zipfile.ZipInfo(name + ".npy"), content.getvalue(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    arrays = make()
    write(OUTPUT, arrays)
    print(f"{OUTPUT}: {len(arrays)} arrays, {OUTPUT.stat().st_size} bytes, {arrays['versions']}")
