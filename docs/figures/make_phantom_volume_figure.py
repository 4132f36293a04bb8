"""Draw docs/figures/phantom_volumes.jpg, or print the numbers by which phantom and real tomosynthesis are compared.

    python -m docs.figures.make_phantom_volume_figure
    python -m docs.figures.make_phantom_volume_figure --real=DATA/bcs_dbt_slices

`--real` names a folder with `slices.json` (COCO) and `images/` of single slices of BCS-DBT (CC BY-NC 4.0; Buda et al.,
JAMA Netw Open 2021). Nothing of them is written, only statistics are printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from docs.figures.make_phantom_figure import (
    ROOT,
    as_grey,
    boxes_of,
    grey_statistics,
    lesion_statistics,
    spread,
    with_boxes,
)
from elk_jax.errors import UserError, run_main
from elk_jax.files import read_json, write_bytes
from elk_jax.synthesis.phantom_volume import PhantomVolume, VolumeConfig, sample

HEIGHT = 512
MASKED = 0.7  # contrast of a lesion in the mammogram, in standard deviations of the tissue around it


def row(volume: PhantomVolume) -> np.ndarray:
    """One breast: mammogram, synthetic mammogram, and slices before, at and behind its first lesion."""
    central, total = int(volume.central[0]), len(volume.slice_heights)
    away = round(0.35 * total)
    chosen = [max(central - away, 0), central, min(central + away, total - 1)]
    before, focus, behind = volume.slices(chosen)
    images = [volume.mammogram, volume.synthetic, before, focus, behind]
    boxes = [volume.boxes[:0]] * 3 + [volume.boxes[volume.central == central], volume.boxes[:0]]
    return np.hstack([with_boxes(as_grey(image), shown) for image, shown in zip(images, boxes)])


def real_slices(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(image, boxes), 512 px high."""
    content = read_json(folder / "slices.json")
    boxes = boxes_of(content)
    cases = []
    for image in content["images"]:
        grey = cv2.imread(str(folder / "images" / image["file_name"]), cv2.IMREAD_GRAYSCALE)
        if grey is None:
            raise UserError("an image cannot be read", where=image["file_name"], todo="fetch the folder again")
        scale = HEIGHT / len(grey)
        small = cv2.resize(grey, (round(grey.shape[1] * scale), HEIGHT), interpolation=cv2.INTER_AREA)
        cases.append((small, np.array(boxes[image["id"]]).reshape(-1, 4) * scale))
    return cases


def contrast_to_noise(image: np.ndarray, box: np.ndarray) -> tuple[float, float] | None:
    """Contrast of a lesion to the tissue around it, in standard deviations of that tissue: (of its pixels, of its means
    over the lesion's size). None where there is too little tissue."""
    rows, columns = np.indices(image.shape)
    x0, y0, x1, y1 = box
    radius = ((2 * columns - x0 - x1) / (x1 - x0)) ** 2 + ((2 * rows - y0 - y1) / (y1 - y0)) ** 2
    inside, around = radius < 0.49, (radius > 1.7) & (radius < 6) & (image > 0.03)
    if inside.sum() < 5 or around.sum() < 60:
        return None
    contrast = image[inside].mean() - image[around].mean()
    smooth = cv2.GaussianBlur(image, (0, 0), max(0.25 * np.sqrt((x1 - x0) * (y1 - y0)), 0.5))
    return float(contrast / image[around].std()), float(contrast / smooth[around].std())


def visibility(volumes: list[PhantomVolume]) -> dict[str, str]:
    """How far lesions stand out of the tissue, in the slice and in the two mammograms: medians."""
    found = []
    for volume in volumes:
        for box, focus in zip(volume.boxes, volume.slices(volume.central)):
            measured = [contrast_to_noise(image, box) for image in (focus, volume.mammogram, volume.synthetic)]
            if all(measured):
                found.append(measured)
    ratios = np.array(found)  # [lesions, slice mammogram synthetic, pixels means]
    masked = ratios[:, 1, 0] < MASKED

    def medians(chosen: np.ndarray, kind: int) -> str:
        return " / ".join(f"{value:.2f}" for value in np.median(ratios[chosen, :, kind], axis=0))

    every = np.ones(len(ratios), bool)
    return {
        f"contrast / sd in slice / mammogram / synthetic, {len(ratios)} lesions": medians(every, 0),
        f"the same, {masked.sum()} masked lesions": medians(masked, 0),
        "contrast / sd of means over the lesion's size": medians(every, 1),
        "the same, masked lesions": medians(masked, 1),
    }


def main(real: Path | None, output: Path, count: int) -> None:
    if real is None:
        config = VolumeConfig(healthy_fraction=0.0)
        sheet = np.vstack([row(sample(1, index, config)) for index in (4, 3, 10)])
        write_bytes(output, cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes())
        print(output)
        return
    cases = real_slices(real)
    volumes = [sample(1, index, VolumeConfig(size=HEIGHT, healthy_fraction=0.0)) for index in range(count)]
    drawn = []
    for volume in volumes:
        if len(volume.boxes):
            central = volume.central[0]
            drawn.append((as_grey(volume.slices([central])[0]), volume.boxes[volume.central == central]))
    rows = {}
    for name, found in (("real", cases), ("phantom", drawn)):
        sick = [case for case in found if len(case[1])]
        rows[name] = grey_statistics("slice", [case[0] for case in found]) | lesion_statistics(sick)
    rows["phantom"]["lesions per volume with any"] = spread([float(len(v.boxes)) for v in volumes if len(v.boxes)])
    for name, images in (
        ("mammogram", [as_grey(volume.mammogram) for volume in volumes]),
        ("synthetic", [as_grey(volume.synthetic) for volume in volumes]),
    ):
        rows["phantom"] |= grey_statistics(name, images)
    print(json.dumps(rows | {"visibility": visibility(volumes)}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder of real slices to compare the phantoms with")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "figures" / "phantom_volumes.jpg", help="JPG to write"
    )
    parser.add_argument("--count", type=int, default=60, help="phantoms to compute the numbers from")
    arguments = parser.parse_args()
    run_main(main, arguments.real, arguments.output, arguments.count)
