"""Translate low-energy mammograms into subtracted (contrast-enhanced) images with a trained translator.

  python launch/translate.py --workdir=runs/bridge_le_to_cem --input=/data/mammograms --output=translated
  python launch/translate.py --workdir=runs/bridge_le_to_cem --input=a.dcm --input=b.png --output=translated --seed=1

Writes NAME.png for every image, in its original size and depth, blended from overlapping tiles. The images should have
the resolution of the images that the training tiles were cut from. The result is one plausible image, not a
measurement: another --seed draws another one, and a mammogram does not show what only the contrast agent reveals.
Skipped files are listed in skipped.csv.
"""

from __future__ import annotations

from pathlib import Path

import command_line
import source_flags
from absl import flags

from elk_jax import output_folders
from elk_jax.randomness import WORD

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of launch/train.py, or a model folder.")
STAGE = flags.DEFINE_string("stage", None, "The trained translator of the run. Default: the last one.")
INPUT = flags.DEFINE_multi_string("input", None, "An image file or a folder of images; can be given several times.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.")
SEED = flags.DEFINE_integer("seed", 0, "Each seed gives another result.", lower_bound=0, upper_bound=WORD - 1)
BATCH = flags.DEFINE_integer("batch_size", 8, "Number of tiles translated at once.", lower_bound=1)
DECODING = source_flags.define_decoding()
ON_ERROR = source_flags.define_on_error()


def main() -> None:
    workdir = Path(command_line.required(WORKDIR, "runs/bridge_le_to_cem"))
    inputs = command_line.required(INPUT, "FOLDER")
    output = output_folders.for_results(command_line.required(OUTPUT, "FOLDER"), output_folders.PREDICTION)
    from elk_jax.tasks import TASKS, find_model
    from elk_jax.tasks.translation.predict import TranslateSettings, translate_files

    model, _ = find_model(workdir, STAGE.value, lambda task: task is TASKS["translation"])
    translate_files(
        model=model,
        inputs=inputs,
        decoding=DECODING.read(),
        on_error=ON_ERROR.value,
        output=output,
        settings=command_line.settings(TranslateSettings, (SEED, BATCH), "translator"),
    )


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
