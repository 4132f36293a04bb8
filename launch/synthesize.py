"""Paint synthetic lesions into healthy breasts with a trained inpainter: a COCO folder with boxes and masks.

  python launch/synthesize.py --workdir=runs/inpaint_cem --canvases=coco:/data/cem/cem.json --count=312 --output=painted
  python launch/synthesize.py --workdir=runs/inpaint_cem --canvases=coco:/data/normal.json --lesion_free --count=624 \\
      --area=medium --seed=1 --output=painted_medium

Writes synthetic.json, images/, masks/ and provenance/ (of every image: canvas, window, box, painted region, seed, ...).
Sizes of the lesions are those of the training split (--area=medium: its middle half). Interrupted, the same command
goes on where it stopped. Canvases are images of the split `train`: others would carry test patients into training.
Then: python launch/train.py --config=configs/cem_mixed.py --config.data.synthetic.spec=coco:painted/synthetic.json \\
          --stages=real,synthetic,mixed,evaluate
"""

from __future__ import annotations

from pathlib import Path

import command_line
from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of launch/train.py, or a model folder.")
STAGE = flags.DEFINE_string("stage", None, "Which trained inpainter of the run. Default: the last one.")
CANVASES = flags.DEFINE_string("canvases", None, "Images to paint on: coco:FILE.json, tfds:DIR, phantom:...")
SPLIT = flags.DEFINE_string("split", "train", "Which split of them; empty for all images.")
SPLIT_SHARES = flags.DEFINE_list(
    "split_shares", [], "As in the training (config.data.NAME.split_shares), where images name no split: 0.7,0.15,0.15"
)
BIT_DEPTH = flags.DEFINE_integer("bit_depth", 0, "Bits of 16-bit files that hold fewer: 12. As in the training.", 0, 16)
WHERE = flags.DEFINE_string("where", "", "Only images whose fields have these values: view=MLO")
CLEAN = flags.DEFINE_bool("clean_boxes", False, "Drop boxes inside others and doubles first. As in the training.")
IGNORE_OVER = flags.DEFINE_float(
    "ignore_over", 0.0, "Boxes of more than this share of the image become ignore boxes. As in the training.", 0, 1
)
COUNT = flags.DEFINE_integer("count", 0, "How many lesions to paint, one an image.", lower_bound=0)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
AREA = flags.DEFINE_enum("area", "free", ["free", "medium"], "Sizes of the lesions: all, or the middle half.")
SEED = flags.DEFINE_integer("seed", 0, "Another seed, another set.", lower_bound=0)
BATCH = flags.DEFINE_integer("batch_size", 8, "Lesions painted at once.", lower_bound=1)
LESION_FREE = flags.DEFINE_bool("lesion_free", False, "Only canvases without lesions; else windows clear of them.")
WHOLE_WINDOW = flags.DEFINE_bool("whole_window", False, "Paste the whole window, not the lesion with a soft border.")
GRAIN = flags.DEFINE_bool("grain", True, "Give lesions that are smoother than the tissue around them its grain.")
ON_ERROR = flags.DEFINE_enum("on_error", "stop", ["stop", "skip"], "What an unreadable image does.")


def main() -> None:
    workdir = Path(command_line.required(WORKDIR, "runs/inpaint_cem"))
    canvases = command_line.required(CANVASES, "coco:FILE.json")
    count, output = command_line.required(COUNT, "312"), Path(command_line.required(OUTPUT, "synthetic"))
    from elk_jax.tasks.inpainting import model as inpainting_model
    from elk_jax.tasks.inpainting import synthesize as inpainting_synthesize

    inpainting_synthesize.synthesize_source(
        model=inpainting_model.find(workdir, STAGE.value),
        canvases=canvases,
        split=SPLIT.value,
        split_shares=command_line.numbers(SPLIT_SHARES),
        bit_depth=BIT_DEPTH.value,
        where=WHERE.value,
        clean_boxes=CLEAN.value,
        ignore_over=IGNORE_OVER.value,
        on_error=ON_ERROR.value,
        count=count,
        output=output,
        area=AREA.value,
        seed=SEED.value,
        batch_size=BATCH.value,
        lesion_free=LESION_FREE.value,
        whole_window=WHOLE_WINDOW.value,
        grain=GRAIN.value,
    )


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
