"""Makes resize.npz: images as torchvision's detectors see them, after a first resize that does not keep their aspect.

Runs under a Python that has torch and torchvision:

    python tests/golden/make_resize.py

The first resize is the bilinear one of `torch.nn.functional.interpolate`, which MONAI's `Resize` calls; the second that
of torchvision's GeneralizedRCNNTransform, with the mean and spread of ImageNet on grey values of 0..255. The versions
are stored in the file under `versions`.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.models.detection.transform import GeneralizedRCNNTransform

OUTPUT = Path(__file__).with_name("resize.npz")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
STRETCH, SHORT, LONG = (64, 32), 25, 41
SIZES = ((100, 70), (40, 90), (64, 32), (30, 20))
"""(height, width) of images."""
random = np.random.default_rng(20)


def main() -> None:
    found, transform = {}, GeneralizedRCNNTransform(SHORT, LONG, MEAN, STD)
    for number, (height, width) in enumerate(SIZES):
        image = random.integers(0, 256, (height, width), dtype=np.uint8)
        box = np.array([[width * 0.2, height * 0.3, width * 0.6, height * 0.9]], np.float32)
        whole = torch.from_numpy(image).float()[None, None]
        stretched = torch.nn.functional.interpolate(whole, size=STRETCH, mode="bilinear", align_corners=False)
        scaled = torch.from_numpy(box * np.tile([STRETCH[1] / width, STRETCH[0] / height], 2).astype(np.float32))
        images, targets = transform([stretched[0]], [{"boxes": scaled}])
        found |= {
            f"image{number}": image,
            f"box{number}": box,
            f"input{number}": images.tensors[0].permute(1, 2, 0).numpy(),
            f"size{number}": np.array(images.image_sizes[0]),
            f"resized_box{number}": targets[0]["boxes"].numpy(),
        }
    # sizes alone, by the published limits
    full, sides = GeneralizedRCNNTransform(800, 1333, MEAN, STD), random.integers(100, 3000, (40, 2))
    sides[0] = 2048, 1024
    sizes = [full.resize(torch.zeros(1, *map(int, one)))[0].shape[1:] for one in sides]
    versions = json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__})
    np.savez_compressed(OUTPUT, sides=sides, sizes=np.array(sizes), versions=np.array(versions), **found)


if __name__ == "__main__":
    main()
