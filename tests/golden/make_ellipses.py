"""Makes ellipses.npz: images and boxes as CoMoTo's transforms leave them, up to its first resize.

Runs under a Python that has torch and MONAI 1.3.0:

    python tests/golden/make_ellipses.py

Images are float16 and in the order (x, y), as MONAI loads them; a box is drawn as an ellipse, resized by the nearest
pixels and taken back, as the published code asks MONAI for. Boxes that were lost are rows of -1. The versions are
stored in the file under `versions`.
"""

import json
from pathlib import Path

import monai
import numpy as np
import torch
from monai.apps.detection.transforms.dictionary import BoxToMaskd, MaskToBoxd
from monai.transforms import Compose, EnsureTyped, Resized

OUTPUT = Path(__file__).with_name("ellipses.npz")
STRETCH = (64, 32)
"""(height, width)."""
SIZES = ((100, 70), (40, 90), (64, 32), (30, 20), (640, 300))
"""(height, width) of images."""
BRIGHTEST = (255, 4095, 255, 65504, 65519)
random = np.random.default_rng(21)

TRANSFORM = Compose(
    [
        EnsureTyped(keys=["image"], dtype=torch.float16),
        BoxToMaskd(
            box_keys=["boxes"],
            label_keys=["labels"],
            box_mask_keys=["mask"],
            box_ref_image_keys="image",
            min_fg_label=0,
            ellipse_mask=True,
        ),
        Resized(keys=["image", "mask"], spatial_size=STRETCH[::-1], mode=("bilinear", "nearest")),
        MaskToBoxd(box_keys=["boxes"], label_keys=["labels"], box_mask_keys=["mask"], min_fg_label=0),
    ]
)


def boxes_in(height: int, width: int) -> np.ndarray:
    """[N, 4] xyxy: the whole image, thin and tiny ones, and others."""
    corners = random.integers(0, [width, height], (40, 2))
    sizes = random.integers(1, [max(2, width // 2), max(2, height // 2)], (40, 2))
    sizes[:6] = [[1, 1], [1, 7], [7, 1], [2, 2], [2, 9], [3, 1]]
    boxes = np.concatenate([corners, np.minimum(corners + sizes, [width, height])], axis=1)
    return np.concatenate([[[0, 0, width, height]], boxes])


def transformed(image: torch.Tensor, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the image [height, width], the box [4] or -1)."""
    labels = torch.ones(1, dtype=torch.long)
    found = TRANSFORM({"image": image, "boxes": torch.tensor(box)[None], "labels": labels})
    kept = found["boxes"].numpy().astype(np.int32)
    return found["image"][0].numpy().T, kept[0] if len(kept) else np.full(4, -1, np.int32)


def main() -> None:
    found = {}
    for number, ((height, width), brightest) in enumerate(zip(SIZES, BRIGHTEST)):
        darkest = brightest if number == len(SIZES) - 1 else 0  # the largest image is of one grey, and a small file
        pixels = random.integers(darkest, brightest + 1, (height, width))
        boxes = boxes_in(height, width)
        image = torch.from_numpy(pixels.T.astype(np.float32))[None]

        each = [transformed(image, box) for box in boxes]
        found |= {
            f"pixels{number}": pixels.astype(np.uint16),
            f"boxes{number}": boxes,
            f"stretched{number}": each[0][0],
            f"redrawn{number}": np.stack([box for _, box in each]),
        }
    versions = json.dumps({"torch": torch.__version__, "monai": monai.__version__})
    np.savez_compressed(OUTPUT, versions=np.array(versions), **found)


if __name__ == "__main__":
    main()
