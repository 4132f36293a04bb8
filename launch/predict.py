"""Find lesions in image files: PNG, JPEG, TIFF or DICOM (under any name), 8 or 16 bit.

  python launch/predict.py --workdir=runs/cem_mixed --input=/data/new --output=found
  python launch/predict.py --workdir=runs/cem_mixed --stage=real --input=a.dcm --input=b.png --output=found
  python launch/predict.py --workdir=runs/cem_mixed --input=/data/new --output=found --threshold=0.4
  python launch/predict.py --workdir=runs/comoto --input=/data/dbt --output=found --volumes

The model is a detector, or an ensemble of several (configs/cem_ensemble.py). Writes findings.json (boxes in each
file's own pixels, with scores), findings.csv, and one picture per image with the boxes that reach the threshold. Every
frame of a multi-frame DICOM file (tomosynthesis) is an image, and the findings name the frame. With --volumes the file
is one volume, and so is a folder of slices; --input=bcs_dbt:DIR reads the volumes listed in the tables of paths in DIR.
findings.csv then has the columns of the DBTex challenge, and report.html shows the best findings in their best slices
and along z. Skipped files are listed in skipped.csv; docs/dicom.md describes how files are read.

Without --threshold the pictures use the operating point of one false positive per image that was chosen in training, on
the validation split or by folds. With a translator the script does what launch/translate.py does. With a classifier it
writes predictions.json and predictions.csv: the probability of the positive class for every image.
"""

from __future__ import annotations

from pathlib import Path

import command_line
import source_flags
from absl import flags

from elk_jax import output_folders

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of launch/train.py, or a model folder.")
STAGE = flags.DEFINE_string("stage", None, "The trained stage of the run. Default: the last one.")
INPUT = flags.DEFINE_multi_string("input", None, "An image file or a folder of images; can be given several times.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.")
THRESHOLD = flags.DEFINE_float(
    "threshold", None, "Lowest score of a box that is drawn, and marked in the CSV.", lower_bound=0, upper_bound=1
)
FLOOR = flags.DEFINE_float(
    "score_floor",
    0.01,
    "Do not write predictions with a lower score; for several views or members, the score after fusion.",
    lower_bound=0,
    upper_bound=1,
)
DECODING = source_flags.define_decoding()
PICTURES = flags.DEFINE_bool("pictures", True, "Write the pictures.")
VOLUMES = flags.DEFINE_bool(
    "volumes", False, "The inputs are tomosynthesis volumes: DICOM files, folders of slices, or bcs_dbt:DIR."
)
VOLUME_RULE = flags.DEFINE_enum(
    "volume_rule", "group", ["group", "comoto"], "How detections of slices become findings of a volume."
)
ON_ERROR = source_flags.define_on_error()


OF_DETECTORS = (THRESHOLD, FLOOR, PICTURES, VOLUMES, VOLUME_RULE)


def main() -> None:
    workdir = Path(command_line.required(WORKDIR, "runs/cem_mixed"))
    inputs = command_line.required(INPUT, "FOLDER")
    output = output_folders.for_results(command_line.required(OUTPUT, "FOLDER"), output_folders.PREDICTION)
    from elk_jax.tasks import find_model
    from elk_jax.tasks.run import new_console
    from elk_jax.weights import model_folder

    model, task = find_model(workdir, STAGE.value, lambda task: task.predict)
    assert task.predict is not None
    task.predict.run(
        model=model,
        inputs=inputs,
        decoding=DECODING.read(),
        on_error=ON_ERROR.value,
        output=output,
        settings=command_line.settings(task.predict.settings, OF_DETECTORS, task.model),
    )
    if said := model_folder.promise(model):
        new_console().print(said)


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
