"""Paint synthetic lesions into healthy breasts with a trained inpainter: a COCO folder with boxes and masks.

  python launch/synthesize.py --workdir=runs/inpaint_cem --canvases=coco:/data/cem/cem.json --count=312 --output=painted
  python launch/synthesize.py --workdir=runs/inpaint_cem --canvases=coco:/data/normal.json --lesion_free --count=624 \\
      --area=medium --seed=1 --output=painted_medium

Writes synthetic.json, images/, masks/ and provenance/ (of every image: canvas, window, box, painted region, seed, ...).
The lesions have the sizes of the training split (--area=medium: its middle half). Rerun the same command to resume an
interrupted set. Canvases are images of the split `train`: others would bring test patients into the training.
Then: python launch/train.py --config=configs/cem_mixed.py --config.data.synthetic.spec=coco:painted/synthetic.json \\
          --stages=real,synthetic,mixed,evaluate
"""

from __future__ import annotations

from pathlib import Path

import command_line
import source_flags
from absl import flags

from elk_jax.randomness import WORD

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of launch/train.py, or a model folder.")
STAGE = flags.DEFINE_string("stage", None, "Which trained inpainter of the run. Default: the last one.")
CANVASES = source_flags.define("canvases", "Images to paint on")
SPLIT = flags.DEFINE_string("split", "train", "Which split of them; empty for all images.")
COUNT = flags.DEFINE_integer("count", 0, "How many lesions to paint, one per image.", lower_bound=0)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
AREA = flags.DEFINE_enum("area", "free", ["free", "medium"], "Sizes of the lesions: all, or the middle half.")
SEED = flags.DEFINE_integer("seed", 0, "Another seed, another set.", lower_bound=0, upper_bound=WORD - 1)
BATCH = flags.DEFINE_integer("batch_size", 8, "Lesions painted at once.", lower_bound=1)
LESION_FREE = flags.DEFINE_bool("lesion_free", False, "Only canvases without lesions; else windows clear of them.")
WHOLE_WINDOW = flags.DEFINE_bool("whole_window", False, "Paste the whole window, not the lesion with a soft border.")
GRAIN = flags.DEFINE_bool("grain", True, "Give lesions that are smoother than the tissue around them its grain.")
ON_ERROR = source_flags.define_on_error()


def main() -> None:
    workdir = Path(command_line.required(WORKDIR, "runs/inpaint_cem"))
    canvases = CANVASES.read()
    count, output = command_line.required(COUNT, "312"), Path(command_line.required(OUTPUT, "synthetic"))
    from elk_jax.tasks import TASKS, find_model
    from elk_jax.tasks.inpainting.recipe import PaintSettings
    from elk_jax.tasks.inpainting.synthesize import synthesize_source

    model, _ = find_model(workdir, STAGE.value, lambda task: task is TASKS["inpainting"])
    of_painting = (AREA, BATCH, LESION_FREE, WHOLE_WINDOW, GRAIN)
    synthesize_source(
        model=model,
        canvases=canvases,
        split=SPLIT.value,
        on_error=ON_ERROR.value,
        count=count,
        output=output,
        seed=SEED.value,
        settings=command_line.settings(PaintSettings, of_painting, "inpainter"),
    )


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
