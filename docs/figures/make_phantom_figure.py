"""Draw docs/figures/phantom.png, or a side-by-side with real images and the numbers behind it.

    python -m docs.figures.make_phantom_figure
    python -m docs.figures.make_phantom_figure --real=DATA/cdd_cesm_512 --output=/tmp/side_by_side.png

`--real` names a folder with `subtracted.json` (COCO, one class) and `images/` of CDD-CESM (CC BY 4.0; Khaled
et al., Scientific Data 2022). Real images stay out of the repository: with `--real`, give `--output`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from elk_jax.errors import UserError, run_main
from elk_jax.files import read_json, write_bytes
from elk_jax.synthesis.phantom import PhantomConfig, sample

ROOT = Path(__file__).resolve().parents[2]
YELLOW = (0, 220, 255)


def as_grey(image: np.ndarray) -> np.ndarray:
    return (image * 255 + 0.5).astype(np.uint8)


def with_boxes(grey: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Grey [H, W] uint8 and xyxy boxes to colour [H, W, 3]."""
    colour = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    for x0, y0, x1, y1 in np.round(boxes).astype(int).tolist():
        cv2.rectangle(colour, (x0, y0), (x1, y1), YELLOW, 1)
    return colour


def column(subtracted: np.ndarray, low_energy: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """One case: subtracted with its lesions' boxes above low energy, cut to the middle 3/4 of the width."""
    both = np.vstack([with_boxes(subtracted, boxes), cv2.cvtColor(low_energy, cv2.COLOR_GRAY2BGR)])
    margin = both.shape[1] // 8
    return both[:, margin:-margin]


def phantom_column(seed: int, index: int) -> np.ndarray:
    phantom = sample(seed, index, PhantomConfig())
    return column(as_grey(phantom.subtracted), as_grey(phantom.low_energy), phantom.boxes)


def boxes_of(content: dict) -> dict[int, list[list[float]]]:
    """Image id -> xyxy boxes of a COCO file."""
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        boxes[annotation["image_id"]].append([x, y, x + width, y + height])
    return boxes


def real_cases(folder: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(subtracted, low energy, boxes) of all paired images with ELK's mass filter."""
    content = read_json(folder / "subtracted.json")
    boxes = boxes_of(content)
    cases = []
    for image in content["images"]:
        partner = folder / "images" / image["file_name"].replace("_CM_", "_DM_")
        if image["is_mass"] and partner.exists():
            subtracted = cv2.imread(str(folder / "images" / image["file_name"]), cv2.IMREAD_GRAYSCALE)
            low_energy = cv2.imread(str(partner), cv2.IMREAD_GRAYSCALE)
            if subtracted is None or low_energy is None:
                raise UserError("an image cannot be read", where=partner, todo="fetch the folder again")
            cases.append((subtracted, low_energy, np.array(boxes[image["id"]]).reshape(-1, 4)))
    return cases


def breast_interior(grey: np.ndarray) -> np.ndarray:
    """The largest bright component without 12 pixels of its rim, bool [H, W]; one rule for all."""
    bright = (cv2.GaussianBlur(grey, (0, 0), 3) > 18).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(bright)
    largest = (labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])).astype(np.uint8)
    return cv2.erode(largest, np.ones((25, 25), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


def spectrum_slope(grey: np.ndarray, inside: np.ndarray) -> float:
    """Slope b of the radial power spectrum ~ f^-b, 3 to 30 cycles in a 128 px window in the thickest part."""
    distance = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_C, 3)
    middle = np.unravel_index(np.argmax(distance), distance.shape)
    y, x = (min(max(int(i), 64), side - 64) for i, side in zip(middle, grey.shape))
    window = grey[y - 64 : y + 64, x - 64 : x + 64].astype(np.float64)
    window = (window - window.mean()) * np.outer(np.hanning(128), np.hanning(128))
    power = np.abs(np.fft.fft2(window)) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(128) * 128] * 2)).round().astype(int)
    radial = np.bincount(frequency.ravel(), power.ravel()) / np.bincount(frequency.ravel())
    fit = np.arange(3, 30)
    return float(-np.polyfit(np.log(fit), np.log(radial[fit]), 1)[0])


def lesion_contrasts(grey: np.ndarray, boxes: np.ndarray) -> list[float]:
    """Mean in the middle ellipse of every box minus the median of free tissue around it, grey levels."""
    rows, columns = np.indices(grey.shape)
    free = grey > 10
    for x0, y0, x1, y1 in boxes:
        free[max(int(y0) - 2, 0) : int(y1) + 3, max(int(x0) - 2, 0) : int(x1) + 3] = False
    contrasts = []
    for x0, y0, x1, y1 in boxes:
        radius = ((2 * columns - x0 - x1) / (x1 - x0)) ** 2 + ((2 * rows - y0 - y1) / (y1 - y0)) ** 2
        inside, around = radius < 0.49, (radius < 4) & free
        if inside.any() and around.sum() > 30:
            contrasts.append(float(grey[inside].mean() - np.median(grey[around])))
    return contrasts


def spread(values: list[float]) -> str:
    """10th / 50th / 90th percentile."""
    return " / ".join(f"{v:.4g}" for v in np.percentile(values, [10, 50, 90]))


def grey_statistics(name: str, images: list[np.ndarray]) -> dict[str, str]:
    """Grey values and structure inside the breast, of images 512 px high."""
    interiors = [(grey, breast_interior(grey)) for grey in images]
    levels = np.array([np.percentile(grey[inside], [5, 25, 50, 75, 95]) for grey, inside in interiors])
    return {
        f"{name}: mean": spread([grey[inside].mean() for grey, inside in interiors]),
        f"{name}: sd": spread([grey[inside].std() for grey, inside in interiors]),
        f"{name}: mean 5, 25, 50, 75, 95 %": " ".join(f"{v:.0f}" for v in levels.mean(0)),
        f"{name}: spectrum slope": spread([spectrum_slope(*case) for case in interiors]),
    }


def lesion_statistics(cases: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, str]:
    """Of (image, boxes)."""
    boxes = np.concatenate([boxes for _, boxes in cases])
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)) / len(cases[0][0])
    return {
        "lesion side / image": spread(list(sides)),
        "lesion contrast": spread([c for case in cases for c in lesion_contrasts(*case)]),
        "lesions per image with any": f"{np.mean([len(boxes) for _, boxes in cases if len(boxes)]):.2f}",
    }


def statistics(cases: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, str]:
    """The numbers by which phantom and real images are compared, as text."""
    rows = grey_statistics("subtracted", [case[0] for case in cases])
    rows |= grey_statistics("low energy", [case[1] for case in cases])
    return rows | lesion_statistics([(case[0], case[2]) for case in cases])


def main(real: Path | None, output: Path | None, count: int) -> None:
    if real is None:
        picked = [(0, 4), (0, 8), (0, 10), (0, 7), (0, 13), (0, 0)]
        sheet = np.hstack([phantom_column(seed, index) for seed, index in picked])
        sheet = cv2.resize(sheet, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
        output = output or ROOT / "docs" / "figures" / "phantom.png"
    else:
        if output is None or ROOT in output.resolve().parents:
            raise UserError("real images stay out of the repository", todo="give --output=FILE outside of it")
        cases = real_cases(real)
        order = np.random.default_rng(0).permutation(len(cases))
        pairs = [[column(*cases[k]), phantom_column(1, i)] for i, k in enumerate(order[:3].tolist())]
        sheet = np.hstack([picture for pair in pairs for picture in pair])
        config = PhantomConfig(healthy_fraction=0.0)
        phantoms = [sample(1, index, config) for index in range(count)]
        drawn = [(as_grey(p.subtracted), as_grey(p.low_energy), p.boxes) for p in phantoms]
        print(json.dumps({"real": statistics(cases), "phantom": statistics(drawn)}, indent=1))
    write_bytes(output, cv2.imencode(".png", sheet, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes())
    print(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder of real images to set beside the phantoms")
    parser.add_argument("--output", type=Path, help="PNG to write (default: docs/figures/phantom.png)")
    parser.add_argument("--count", type=int, default=120, help="phantoms to compute the numbers from")
    arguments = parser.parse_args()
    run_main(main, arguments.real, arguments.output, arguments.count)
