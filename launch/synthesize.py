"""Make synthetic images: lesions painted into healthy breasts by an inpainter, or patches drawn by a generator.

  python launch/synthesize.py --workdir=runs/inpaint_cem --canvases=coco:/data/cem/cem.json --count=312 --output=painted
  python launch/synthesize.py --workdir=runs/inpaint_cem --canvases=coco:/data/normal.json --lesion_free --count=624 \\
      --area=medium --seed=1 --output=painted_medium

An inpainter writes synthetic.json (COCO), images/, masks/ and provenance/ (for every image: canvas, window, box,
painted region, seed, ...). Lesions have the class and the sizes of the training lesions (--area=medium: the middle half
of the sizes). Rerun the same command to resume an interrupted set. Canvases must be images of the split `train`; others
would bring test patients into training. Then: python launch/train.py --config=configs/cem_mixed.py \\
    --config.data.synthetic.spec=coco:painted/synthetic.json --stages=real,synthetic,mixed,evaluate

  python launch/synthesize.py --workdir=runs/mcgan --count=1500 --seed=1 --output=drawn
  python launch/synthesize.py --workdir=runs/mcgan --count=1500 --classes=malignant --output=drawn_malignant

A generator writes --count patches of every class: synthetic.json (COCO), and images/CLASS/NUMBER.png, which can be read
as the source folders:drawn/images. synthesis.json names the weights that drew them. A denoiser samples with the
settings of its training unless --guidance or --sampler_steps is given, for example --guidance=2 --sampler_steps=100.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import command_line
import source_flags
from absl import flags

from elk_jax import output_folders
from elk_jax.randomness import WORD

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of launch/train.py, or a model folder.")
STAGE = flags.DEFINE_string("stage", None, "The trained inpainter or generator of the run. Default: the last one.")
CANVASES = source_flags.define("canvases", "Images to paint on")
SPLIT = flags.DEFINE_string("split", "train", "Split of the canvases; empty for all images.")
COUNT = flags.DEFINE_integer(
    "count", 0, "Number of lesions to paint, one per image; or of patches per class.", lower_bound=0
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
AREA = flags.DEFINE_enum(
    "area", "free", ["free", "medium"], "Sizes of the lesions: free for all, medium for the middle half."
)
SEED = flags.DEFINE_integer("seed", 0, "Each seed gives another set.", lower_bound=0, upper_bound=WORD - 1)
BATCH = flags.DEFINE_integer("batch_size", 8, "Number of images made at once.", lower_bound=1)
LESION_FREE = flags.DEFINE_bool(
    "lesion_free", False, "Use only canvases without lesions; else windows that avoid them."
)
WHOLE_WINDOW = flags.DEFINE_bool(
    "whole_window", False, "Paste the whole window, not just the lesion with a soft border."
)
GUIDANCE = flags.DEFINE_float(
    "guidance", None, "For a denoiser: strength of classifier-free guidance; 1 for none.", lower_bound=0
)
STEPS = flags.DEFINE_integer("sampler_steps", None, "For a denoiser: number of sampling steps.", lower_bound=1)
CLASSES = flags.DEFINE_list("classes", None, "Draw only these classes.")
GRAIN = flags.DEFINE_bool("grain", True, "Add the grain of the surrounding tissue to lesions smoother than it.")
ON_ERROR = source_flags.define_on_error()


OWN = (AREA, BATCH, LESION_FREE, WHOLE_WINDOW, GRAIN, CLASSES, GUIDANCE, STEPS)
"""Flags that apply to one of the tasks only."""


def main() -> None:
    workdir = Path(command_line.required(WORKDIR, "runs/inpaint_cem"))
    count = command_line.required(COUNT, "312")
    output = output_folders.for_results(command_line.required(OUTPUT, "synthetic"), output_folders.SYNTHESIS)
    from elk_jax.tasks import find_model

    model, task = find_model(workdir, STAGE.value, lambda task: task.synthesize)
    action = task.synthesize
    assert action is not None
    images: dict[str, Any] = {}
    flags_of_images = [*CANVASES.by_field.values(), SPLIT, ON_ERROR]
    if action.on_images:
        images = {"canvases": CANVASES.read(), "split": SPLIT.value, "on_error": ON_ERROR.value}
        flags_of_images = []
    settings = command_line.settings(action.settings, [*OWN, *flags_of_images], task.model)
    action.run(model=model, count=count, output=output, seed=SEED.value, settings=settings, **images)


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
