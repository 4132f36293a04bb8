"""Evaluate a trained detector or classifier, or the detections of another program, on a split of a data source.

  python launch/evaluate.py --workdir=runs/cem_mixed --data=coco:/data/cem/cem.json --split=test
  python launch/evaluate.py --workdir=runs/cem_mixed --stage=real --data=tfds:/data/cem_tfds --split=test
  python launch/evaluate.py --predictions=theirs.json --data=coco:/data/cem/cem.json --split=test --output=theirs
  python launch/evaluate.py --workdir=runs/b --against=runs/a --data=coco:/data/cem/cem.json --split=test
  python launch/evaluate.py --workdir=runs/comoto --metric=dbtex --data=bcs_dbt:/data/dbt --split=test
  python launch/evaluate.py --predictions=a.csv --metric=dbtex --data=bcs_dbt:/data/dbt --split=test --output=theirs

Prints the table and writes evaluation.json (FROC sensitivities, AUFROC and AP, each with a 95 % interval over patients;
FROC by several criteria; the kinds of false positives and misses at one false positive per image; operating points;
false positives on lesion-free images; with several classes, also the metrics of each alone and which are confused),
predictions.json (COCO results), report.html, and skipped.csv if images were skipped. --against adds comparisons.json,
the differences from another run on the same images by a paired bootstrap.
For a classifier: AUROC, average precision of both classes, operating points, calibration, and predictions.csv; each
image has one class. With --metric=dbtex the findings of whole volumes are evaluated as in the DBTex challenge; with
--by_slice predictions.json then contains the detections of slices.
The flags of the data source have the meaning of config.data.NAME.FLAG in training: give the same values.
"""

from __future__ import annotations

from pathlib import Path

import command_line
import source_flags
from absl import flags

from elk_jax import output_folders

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of launch/train.py, or a model folder.")
STAGE = flags.DEFINE_string("stage", None, "The trained stage of the run. Default: the last one.")
DATA = source_flags.define("data", "The images")
SPLIT = flags.DEFINE_string("split", "test", "Split of the images; empty for all.")
PREDICTIONS = flags.DEFINE_string("predictions", None, "COCO results to evaluate instead of a model.")
AGAINST = flags.DEFINE_string("against", None, "Compare with this: COCO results, a run folder or a model folder.")
CRITERION = flags.DEFINE_string(
    "criterion",
    "iou:0.3",
    "Criterion for a hit: iou:T, centre_in_box, regions:T or centre_distance:PIXELS:DIAGONALS.",
)
FLOOR = flags.DEFINE_float(
    "score_floor",
    0.01,
    "Drop predictions with a lower score; for several views or members, the score after fusion.",
    lower_bound=0,
    upper_bound=1,
)
ALL_IMAGES = flags.DEFINE_bool("all_images", False, "Count the false positives of lesion-free images in FROC too.")
BOOTSTRAP = flags.DEFINE_integer(
    "bootstrap", 2000, "Resamples of patients for the intervals, 0 for none.", lower_bound=0, upper_bound=100_000
)
FLIPS = flags.DEFINE_list(
    "flips", None, "Also detect in mirrored views and fuse: horizontal, vertical, both. Default: as trained."
)
SCALES = command_line.define_numbers(
    "scales", None, "Detect at these factors on the size of the input and fuse: 1,0.8,1.25. Default: as trained."
)
METRIC = flags.DEFINE_enum("metric", "froc", ["froc", "dbtex"], "froc for images, dbtex for tomosynthesis volumes.")
VOLUME_RULE = flags.DEFINE_enum(
    "volume_rule", "group", ["group", "comoto"], "How detections of slices become findings of a volume."
)
BY_SLICE = flags.DEFINE_bool("by_slice", False, "For volumes: also write the detections of slices, as COCO results.")
ON_ERROR = source_flags.define_on_error()
OUTPUT = flags.DEFINE_string("output", None, "Folder for the results. Default: WORKDIR/evaluation-SPLIT.")


OF_DETECTORS = (
    PREDICTIONS, AGAINST, CRITERION, FLOOR, ALL_IMAGES, BOOTSTRAP, FLIPS, SCALES, METRIC, VOLUME_RULE, BY_SLICE
)  # fmt: skip


def main() -> None:
    data = DATA.read()
    if PREDICTIONS.value and STAGE.value:
        what = f"the stage '{STAGE.value}' of a run is given, and predictions to evaluate instead of its model"
        raise command_line.UserError(what, where="--stage", todo="leave --stage or --predictions out")
    workdir = command_line.required(WORKDIR, "runs/cem_mixed") if not PREDICTIONS.value else None
    output = OUTPUT.value or (WORKDIR.value and f"{WORKDIR.value}/evaluation-{SPLIT.value or 'all'}")
    if not output:
        raise command_line.UserError("no --output given", todo="give a folder for the results")
    folder = output_folders.for_results(output, output_folders.EVALUATION)
    from elk_jax.tasks import TASKS, find_model

    model, task = None, TASKS["detection"]
    if workdir is not None:
        model, task = find_model(Path(workdir), STAGE.value, lambda task: task.evaluate)
    assert task.evaluate is not None
    task.evaluate.run(
        model=model,
        data=data,
        split=SPLIT.value,
        on_error=ON_ERROR.value,
        output=folder,
        settings=command_line.settings(task.evaluate.settings, OF_DETECTORS, task.model),
    )


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
