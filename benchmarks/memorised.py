"""Which copies of training patches are found as such: planted copies, and patches of other patients.

    python benchmarks/memorised.py --data=folders:/data/patches "--patient_pattern=P_(\\d+)" [--synthetic=folders:DIR]

Copies of patches of the split train are changed in known ways, and searched as synthetic patches are. The patches of
the other splits, which are of other patients, are searched too: these are found by chance. The last line of the output
is one JSON object.

Shapes: N patches, S side of a patch in pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import measure  # noqa: E402
from elk_jax.data.sources.open import open_source  # noqa: E402
from elk_jax.data.sources.source import ImageSource  # noqa: E402
from elk_jax.data.sources.spec import SourceSpec  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.evaluation import memorised  # noqa: E402
from elk_jax.synthesis.closeups import box_patch  # noqa: E402

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""A patch [S, S], grey values from 0 to 1 -> its changed copy."""

WHOLE = 128
"""Side of the patches, in pixels, to which shifts and blurs refer."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="patches with a split train, and others of other patients")
    parser.add_argument("--patient_pattern", default="", help="the patient in a file name, if the data do not tell")
    parser.add_argument("--synthetic", default="", help="a set of synthetic patches to search as well")
    parser.add_argument(
        "--copies", type=measure.count, default=100, help="number of copies that are planted for each change"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    source = open_source(SourceSpec(options.data, patient_pattern=options.patient_pattern))
    synthetic = whole_patches(open_source(SourceSpec(options.synthetic))) if options.synthetic else None
    print(json.dumps(benchmark(source, synthetic, options.copies, options.seed), allow_nan=False))


def benchmark(source: ImageSource, synthetic: np.ndarray | None, copies: int, seed: int) -> dict[str, Any]:
    """Counts of found patches. `copies`: by change, those found, those whose original was named, and the least margin.

    synthetic: [K, WHOLE, WHOLE]. UserError without training patches of at least three patients, and if patients have
    patches in the split train and in another.
    """
    splits = np.array([info.split for info in source.infos])
    patients = np.array([info.patient_id for info in source.infos])
    known, fresh = splits == "train", splits != "train"
    if len(set(patients[known])) < 3:
        raise UserError(
            f"the split train has patches of {len(set(patients[known]))} patients; the search needs three",
            where=source.name,
            todo="give a set with splits, and say with --patient_pattern where file names have the patient",
        )
    shared = set(patients[known]) & set(patients[fresh])
    if shared:
        raise UserError(f"patient {min(shared)} has patches in the split train and in another", where=source.name)
    training, others = whole_patches(source)[known], whole_patches(source)[fresh]
    report = memorised.memorised_report(reduced(others), reduced(training), patients[known])
    found: dict[str, Any] = {
        "training": int(known.sum()),
        "patients": len(set(patients[known])),
        "threshold": report["threshold"],
        "rate": report["rate"],
        "fresh": {"patches": len(others), "found": len(report["memorised"])},
        "copies": {},
    }
    chosen = np.random.default_rng(seed).permutation(len(training))[:copies]
    for name, change in CHANGES.items():
        rng = np.random.default_rng([seed, 1])
        changed = np.array([np.clip(change(training[i], rng), 0, 1) for i in chosen], np.float32)
        nearest = memorised.nearest(reduced(changed), reduced(training), patients[known])
        found["copies"][name] = {
            "found": int((nearest.margin > report["threshold"]).sum()),
            "named": int((nearest.index == chosen).sum()),
            "of": len(chosen),
            "least_margin": float(nearest.margin.min()),
        }
        print(name, found["copies"][name], flush=True)
    if synthetic is not None:
        margins = memorised.nearest(reduced(synthetic), reduced(training), patients[known]).margin
        found["synthetic"] = {"patches": len(synthetic), "found": int((margins > report["threshold"]).sum())}
    return found


def whole_patches(source: ImageSource) -> np.ndarray:
    """[N, WHOLE, WHOLE] float32, grey values from 0 to 1."""
    patches = []
    for position, info in enumerate(source.infos):
        pixels = source[position].image[..., 0]
        patches.append(box_patch(pixels, np.array([0, 0, info.width, info.height]), WHOLE))
    return np.array(patches, np.float32)


def reduced(patches: np.ndarray) -> np.ndarray:
    """[N, memorised.SIDE, memorised.SIDE], as the stage that searches them reduces them."""
    return np.array([box_patch(patch, np.array([0, 0, WHOLE, WHOLE]), memorised.SIDE) for patch in patches])


def moved(patch: np.ndarray, angle: float = 0.0, zoom: float = 1.0, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """A patch that is rotated by degrees and scaled about its centre, then shifted by pixels; borders are mirrored."""
    side = patch.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), angle, zoom)
    matrix[:, 2] += np.array([x, y])
    return cv2.warpAffine(patch, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def noise(sigma: float) -> Change:
    return lambda patch, rng: np.clip(patch + rng.normal(0, sigma, patch.shape), 0, 1).astype(np.float32)


def shifted(pixels: float) -> Change:
    """By whole pixels, about `pixels` in any direction."""

    def change(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        angle = rng.uniform(0, 2 * np.pi)
        return moved(patch, x=float(np.round(pixels * np.cos(angle))), y=float(np.round(pixels * np.sin(angle))))

    return change


def rotated(degrees: float) -> Change:
    return lambda patch, rng: moved(patch, angle=degrees * float(rng.choice([-1, 1])))


def zoomed(factor: float) -> Change:
    return lambda patch, rng: moved(patch, zoom=factor)


def blurred(sigma: float) -> Change:
    return lambda patch, rng: cv2.GaussianBlur(patch, (0, 0), sigma)


def compressed(quality: int) -> Change:
    def change(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        grey = np.round(np.clip(patch, 0, 1) * 255).astype(np.uint8)
        packed = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return np.asarray(cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE), np.float32) / 255

    return change


def duller(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 0.8 * patch + 0.15


def darker(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(patch**1.5)


def turned(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the eight views of a square."""
    view = np.rot90(patch.T if rng.integers(2) else patch, int(rng.integers(4)))
    return np.ascontiguousarray(view)


def chain(*changes: Change) -> Change:
    def change(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for one in changes:
            patch = one(patch, rng)
        return patch

    return change


CHANGES: dict[str, Change] = {
    "none": lambda patch, rng: patch,
    **{f"noise {percent} %": noise(percent / 100) for percent in (2, 5, 10, 20)},
    **{f"shift {pixels} px": shifted(pixels) for pixels in (1, 2, 4, 8, 24)},
    **{f"rotation {degrees} deg": rotated(degrees) for degrees in (3, 10, 15, 25)},
    **{f"zoom {factor}": zoomed(factor) for factor in (0.8, 0.9, 1.1, 1.25)},
    "gain 0.8, offset 0.15": duller,
    "gamma 1.5": darker,
    **{f"blur {sigma} px": blurred(sigma) for sigma in (1, 3)},
    "JPEG 50": compressed(50),
    "shift 4 px, gain, noise 5 %": chain(shifted(4), duller, noise(0.05)),
    "rotation 3 deg, zoom 1.1, shift 2 px, noise 2 %": chain(rotated(3), zoomed(1.1), shifted(2), noise(0.02)),
    "view, rotation 10 deg, zoom 0.9, gain, JPEG 50": chain(turned, rotated(10), zoomed(0.9), duller, compressed(50)),
    "view, shift 8 px, blur 1 px, noise 10 %": chain(turned, shifted(8), blurred(1), noise(0.1)),
}


if __name__ == "__main__":
    run_main(main)
