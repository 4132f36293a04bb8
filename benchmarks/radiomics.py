"""Features of the Frechet radiomics distance: ours compared with PyRadiomics, on the same images in one run.

    python benchmarks/radiomics.py [--version=v1|v0] [--size=128] [--images=48] [--rounds=5] [--pyradiomics_python=PATH]

--pyradiomics_python is a Python with PyRadiomics and frd-score (tests/golden/make_radiomics.py describes its set-up).
Both sides are timed in turn, A B A B: PyRadiomics in one process on --reference images, ours on all, in threads. The
last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "golden")]

import textures  # noqa: E402

from benchmarks import measure  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.evaluation import radiomics_table  # noqa: E402

THEIRS = """
import json, sys, time, radiomics
from frd_score import frd
radiomics.setVerbosity(60)
extractor = frd.get_feature_extractor(frd_version=sys.argv[1])
for line in sys.stdin:
    paths = json.loads(line)
    wall, cpu = time.perf_counter(), time.process_time()
    settings = {"feature_extractor": extractor, "frd_version": sys.argv[1]}
    found = [frd.process_image_mask_pair((path, None), **settings) for path in paths]
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps([*seconds, found[0][1]]), flush=True)
"""


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", choices=["v0", "v1"], default="v1")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--reference", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default="", help="Folder of the images, *.png; default: generated images.")
    parser.add_argument("--pyradiomics_python", default="")
    arguments = parser.parse_args(given)
    for name in ("size", "images", "reference", "rounds"):
        if (value := getattr(arguments, name)) < 1:
            raise UserError(f"{value}", where=f"--{name}", todo="give 1 or more")
    kind = radiomics_table.FEATURE_SETS[arguments.version]
    with tempfile.TemporaryDirectory() as place:
        paths = _paths(arguments, Path(place))
        images = [np.asarray(cv2.imread(path, cv2.IMREAD_GRAYSCALE), np.float64) for path in paths]
        found = radiomics_table.table(images[: arguments.reference], kind)
        rounds: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        theirs = _their_process(arguments)
        differences: list[float] = []
        for turn in range(arguments.rounds + 1):  # the first is a warm-up
            wall, cpu = time.perf_counter(), time.process_time()
            radiomics_table.table(images, kind)
            ours = (time.perf_counter() - wall, time.process_time() - cpu)
            if turn:
                rounds["ours"].append((ours[0] / len(images), ours[1] / len(images)))
            if theirs is not None:
                seconds, cpu, features = _ask(theirs, paths[: arguments.reference])
                differences = _differences(found, features)
                if turn:
                    rounds["theirs"].append((seconds / arguments.reference, cpu / arguments.reference))
        if theirs is not None:
            theirs.stdin.close()  # type: ignore[union-attr]
            theirs.wait()
    print(json.dumps(_report(arguments, rounds, found, differences)))


def _paths(arguments: argparse.Namespace, place: Path) -> list[str]:
    if arguments.folder:
        return [str(path) for path in sorted(Path(arguments.folder).rglob("*.png"))[: arguments.images]]
    paths = []
    for number in range(arguments.images):
        path = str(place / f"{number}.png")
        cv2.imwrite(path, textures.image("smooth", arguments.size, arguments.size, number))
        paths.append(path)
    return paths


def _their_process(arguments: argparse.Namespace) -> subprocess.Popen | None:
    if not arguments.pyradiomics_python:
        return None
    command = [arguments.pyradiomics_python, "-W", "ignore", "-c", THEIRS, arguments.version]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: Any, paths: list[str]) -> tuple[float, float, dict[str, float]]:
    process.stdin.write(json.dumps(paths) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def _differences(found: radiomics_table.Table, theirs: dict[str, float]) -> list[float]:
    """Relative differences of the features of the first image, largest last."""
    return sorted(
        abs(value - theirs[name]) / max(abs(theirs[name]), 1e-9) for name, value in zip(found.names, found.values[0])
    )


def _report(arguments: argparse.Namespace, rounds: Any, found: radiomics_table.Table, differences: list[float]) -> Any:
    report = {**measure.surroundings(), "settings": vars(arguments), "features": len(found.names)}
    clocks = ("wall", "cpu")
    for side, times in rounds.items():
        if times:
            spreads = {clock: measure.spread([one[k] for one in times]) for k, clock in enumerate(clocks)}
            report[side] = {"seconds_per_image": spreads, "repetitions": len(times)}
            report[side]["images_per_second"] = 1 / spreads["wall"]["median"]
    if rounds["theirs"]:
        report["largest_difference"] = differences[-1]
        report["ratio"] = {
            clock: measure.ratios([one[k] for one in rounds["theirs"]], [one[k] for one in rounds["ours"]])
            for k, clock in enumerate(clocks)
        }
    return report


if __name__ == "__main__":
    run_main(main)
