"""Evaluate a trained detector, or predictions made elsewhere, on a split of a data source.

  python launch/evaluate.py --workdir=runs/cem_mixed --data=coco:/data/cem/cem.json --split=test
  python launch/evaluate.py --workdir=runs/cem_mixed --stage=real --data=tfds:/data/cem_tfds --split=test
  python launch/evaluate.py --predictions=theirs.json --data=coco:/data/cem/cem.json --split=test --output=theirs
  python launch/evaluate.py --workdir=runs/b --against=runs/a --data=coco:/data/cem/cem.json --split=test

Writes evaluation.json (FROC sensitivities, AUFROC, AP, each with its 95 % interval over patients; operating points;
false positives on lesion-free images), predictions.json (COCO results) and report.html, and prints the table. With
--against also the differences from another run on the same images, by a paired bootstrap: comparisons.json.
"""

from __future__ import annotations

from pathlib import Path

import command_line
from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of launch/train.py, or a model folder.")
STAGE = flags.DEFINE_string("stage", None, "Which trained stage of the run. Default: the last one.")
DATA = flags.DEFINE_string("data", None, "coco:FILE.json, tfds:DIR or phantom:key=value,...")
SPLIT = flags.DEFINE_string("split", "test", "Which split of it; empty for all images.")
SPLIT_SHARES = flags.DEFINE_list(
    "split_shares", [], "As in the training (config.data.NAME.split_shares), where images name no split: 0.7,0.15,0.15"
)
BIT_DEPTH = flags.DEFINE_integer("bit_depth", 0, "Bits of 16-bit files that hold fewer: 12. As in the training.", 0, 16)
WHERE = flags.DEFINE_string("where", "", "Only images whose fields have these values: is_mass=true,view=MLO")
CLEAN = flags.DEFINE_bool("clean_boxes", False, "Drop boxes inside others and doubles first, as ELK does.")
IGNORE_OVER = flags.DEFINE_float(
    "ignore_over", 0.0, "Boxes of more than this share of the image become ignore boxes. As in the training.", 0, 1
)
PREDICTIONS = flags.DEFINE_string("predictions", None, "COCO results to evaluate instead of a model.")
AGAINST = flags.DEFINE_string("against", None, "Compare with this: COCO results, a run folder or a model folder.")
CRITERION = flags.DEFINE_string(
    "criterion", "iou:0.3", "A hit: iou:T, centre_in_box or centre_distance:PIXELS:DIAGONALS."
)
FLOOR = flags.DEFINE_float(
    "score_floor", 0.01, "Predictions that score less are dropped.", lower_bound=0, upper_bound=1
)
ALL_IMAGES = flags.DEFINE_bool("all_images", False, "Count false positives of lesion-free images in FROC too.")
BOOTSTRAP = flags.DEFINE_integer(
    "bootstrap", 2000, "Resamples of patients for the intervals, 0 for none.", lower_bound=0
)
FLIPS = flags.DEFINE_list(
    "flips", None, "Detect in mirrored views too and fuse: horizontal, vertical, both. Default: as trained."
)
ON_ERROR = flags.DEFINE_enum("on_error", "stop", ["stop", "skip"], "What an unreadable image does.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for the results. Default: WORKDIR/evaluation-SPLIT.")


def main() -> None:
    data = command_line.required(DATA, "coco:FILE.json")
    workdir = Path(command_line.required(WORKDIR, "runs/cem_mixed")) if not PREDICTIONS.value else None
    output = OUTPUT.value or (WORKDIR.value and f"{WORKDIR.value}/evaluation-{SPLIT.value or 'all'}")
    if not output:
        raise command_line.UserError("no --output given", todo="say where the results go")
    from elk_jax.tasks.detection import evaluate as detection_evaluate
    from elk_jax.tasks.detection import model as detection_model

    detection_evaluate.evaluate_source(
        data=data,
        split=SPLIT.value,
        split_shares=command_line.numbers(SPLIT_SHARES),
        bit_depth=BIT_DEPTH.value,
        where=WHERE.value,
        clean_boxes=CLEAN.value,
        ignore_over=IGNORE_OVER.value,
        on_error=ON_ERROR.value,
        model=detection_model.find(workdir, STAGE.value) if workdir else None,
        predictions=PREDICTIONS.value,
        criterion=CRITERION.value,
        score_floor=FLOOR.value,
        froc_images="all" if ALL_IMAGES.value else "with_lesions",
        resamples=BOOTSTRAP.value,
        flips=FLIPS.value,
        output=Path(output),
        against=Path(AGAINST.value) if AGAINST.value else None,
    )


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
