"""Compare settings of a detector by cross-validation over two halves of the patients, without the test split.

    python benchmarks/halves.py divide --data=subtracted.json --where=is_mass=true --output=FOLDER
    python benchmarks/halves.py compare base=RUN_A,RUN_B larger=RUN_A2,RUN_B2

`divide` writes first.json and second.json with the images of the training and validation splits: one half of the
patients is for training and the other becomes the split `val`, and vice versa. Put `images` next to them. Train each
setting on both, with --config.stages.evaluate.split=val and a single evaluation at the end of the training, so that
nothing is chosen on the evaluated patients. `compare` joins the evaluations of both runs, whose patients differ, and
compares each setting with the first one, paired over patients. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from elk_jax.data.sources import coco  # noqa: E402
from elk_jax.data.sources.folds import deal  # noqa: E402
from elk_jax.data.sources.open import list_source  # noqa: E402
from elk_jax.data.sources.spec import SourceSpec  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.evaluation import evaluate  # noqa: E402
from elk_jax.evaluation.detections import ImageResult  # noqa: E402
from elk_jax.evaluation.truth import read_measured  # noqa: E402
from elk_jax.tasks.detection.evaluate import TRUTH  # noqa: E402

HALVES = ("first", "second")
SHOWN = ("mean_sensitivity", "ap50")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("divide", help="write the two COCO files")
    one.add_argument("--data", required=True, help="COCO file whose images name split and patient_id")
    one.add_argument("--where", default="", help="only images whose fields have these values")
    one.add_argument("--output", required=True, help="folder of first.json and second.json")
    one.add_argument("--seed", type=int, default=0)
    other = commands.add_parser("compare", help="compare the settings")
    other.add_argument("settings", nargs="+", metavar="NAME=RUN,RUN", help="run folders of both halves")
    other.add_argument("--model", default="real", help="the model of the evaluations to compare")
    other.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args(arguments)
    if options.command == "divide":
        divide(Path(options.data), options.where, Path(options.output), options.seed)
        return
    runs = dict(read_setting(text, options.model) for text in options.settings)
    if len(runs) < len(options.settings):
        raise UserError("two settings have the same name", todo="give each setting its own name")
    print(json.dumps(compare(runs, options.resamples), allow_nan=False))


def divide(data: Path, where: str, output: Path, seed: int) -> None:
    """Write both files, with patients balanced by their numbers of lesions. UserError for existing files."""
    source = list_source(SourceSpec(f"coco:{data}", where=where))
    infos = [info for info in source.infos if info.split in ("train", "val")]
    paths = [output / f"{name}.json" for name in HALVES]
    for path in filter(Path.exists, paths):
        raise UserError("the file already exists", where=path, todo="remove it, or name another folder")
    for path, trains in zip(paths, deal(infos, len(HALVES), seed, data), strict=True):
        half = [replace(info, split="train" if info.patient_id in trains else "val") for info in infos]
        output.mkdir(parents=True, exist_ok=True)
        seen, promises = source.seen_patients, source.promises
        coco.write_coco(path, half, source.classes, seen_patients=seen, promises=promises)
        print(f"{path}: {len(trains)} of {len({info.patient_id for info in infos})} patients train")


def read_setting(text: str, model: str) -> tuple[str, list[ImageResult]]:
    """`NAME=RUN,RUN` -> the name, and the results of all runs. UserError for runs that share a patient."""
    name, _, runs = text.partition("=")
    if not name or not runs:
        raise UserError(f"'{text}' is not NAME=RUN,RUN", todo="name the setting and its run folders")
    results: list[ImageResult] = []
    for run in runs.split(","):
        folder = Path(run) / "evaluate"
        found = read_measured(folder / TRUTH, folder / model / "predictions.json")
        if shared := {one.patient_id for one in found} & {one.patient_id for one in results}:
            todo = "name runs that were evaluated on different patients"
            raise UserError(f"patient {min(shared)} is in two runs of '{name}'", where=run, todo=todo)
        results += found
    return name, results


def compare(runs: Mapping[str, Sequence[ImageResult]], resamples: int) -> dict[str, dict[str, Any]]:
    """For every setting: SHOWN, the number of lesions of each size found at one false positive per image, and paired
    differences from the first setting. UserError for settings that were not evaluated on the same images."""
    first = next(iter(runs.values()))
    found: dict[str, dict[str, Any]] = {}
    for name, results in runs.items():
        measured = evaluate.evaluate_detections(results, resamples=0)
        found[name] = {metric: measured[metric]["value"] for metric in SHOWN}
        found[name]["by_size"] = measured["mistakes"].get("by_size", [])
        if results is not first:
            compared = evaluate.compare_detections(first, results, resamples=resamples)
            found[name]["differences"] = {metric: compared[metric] for metric in SHOWN}
    return found


if __name__ == "__main__":
    run_main(main)
