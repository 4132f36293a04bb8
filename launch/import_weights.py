"""Turn weights of detectron2 or torchvision into a model folder that training can start from.

  python launch/import_weights.py --format=detectron2 --input=model_final.pkl --output=weights/coco
  python launch/import_weights.py --format=torchvision --input=fasterrcnn_resnet50_fpn_coco.pth --norm_eps=0 \\
      --output=weights/coco
  python launch/import_weights.py --format=torchvision --input=resnet50.pth --output=weights/imagenet
  python launch/train.py --config=configs/cem_real.py:paper --config.stages.real.init_from=weights/coco

Reads .pkl, .pth and .safetensors of a Faster R-CNN with a ResNet-FPN or of a ResNet alone. Pickles are read, never
run, and PyTorch is not needed. Depth, norms, heads and classes are inferred from the file. Every tensor is listed with
its new name; one that is left over, missing or of another shape stops the import, and nothing is written.
"""

from __future__ import annotations

import json
from typing import Any

import command_line
from absl import flags

FORMAT = flags.DEFINE_enum("format", None, ["detectron2", "torchvision"], "Whose names the tensors have.")
INPUT = flags.DEFINE_string("input", None, "The weights file.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write: params.safetensors and model.json.")
DEPTH = flags.DEFINE_integer("depth", None, "Layers of the ResNet: 18, 34, 50, 101. Default: inferred; else checked.")
CLASSES = flags.DEFINE_list("classes", [], "Names of the file's classes, without background: mass,calcification")
DROP = flags.DEFINE_multi_string(
    "drop", [], "Leave out our parameters that this regular expression finds, to start afresh: box_head/class_logits"
)
IGNORE = flags.DEFINE_multi_string(
    "ignore", [], "Leave out tensors of the file that this regular expression finds: ^roi_heads.mask_head"
)
SET = flags.DEFINE_multi_string(
    "set", [], "A setting of the model that shapes cannot tell, as name=JSON: stride_in_1x1=false, pixel_std=[57,57,58]"
)
NORM_EPS = flags.DEFINE_float(
    "norm_eps", None, "Epsilon of the file's batch norms: 0 for torchvision's published COCO_V1 detector, else 1e-5."
)


def settings(pairs: list[str]) -> dict[str, Any]:
    """['name=JSON', ...] as a dict; text that is no JSON stays text."""
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise command_line.UserError(f"--set={pair} has no value", todo="write --set=name=value")
        try:
            changes[name] = json.loads(text)
        except ValueError:
            changes[name] = text
    return changes


def main() -> None:
    file_format = command_line.required(FORMAT, "detectron2")
    path = command_line.required(INPUT, "model_final.pkl")
    output = command_line.required(OUTPUT, "weights/coco")
    changes = settings(SET.value)
    if DEPTH.value is not None:
        changes["depth"] = DEPTH.value
    from elk_jax.tasks import foreign_weights

    foreign_weights.import_file(
        path,
        file_format,
        output,
        changes=changes,
        classes=CLASSES.value,
        drop=DROP.value,
        ignore=IGNORE.value,
        norm_eps=NORM_EPS.value,
    )


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
