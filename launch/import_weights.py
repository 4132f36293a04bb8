"""Convert weights of other libraries into a model folder that training can start from.

  python launch/import_weights.py --format=detectron2 --input=model_final.pkl --output=weights/coco
  python launch/import_weights.py --format=torchvision --input=fasterrcnn_resnet50_fpn_coco.pth --norm_eps=0 \\
      --output=weights/coco
  python launch/import_weights.py --format=torchvision --input=resnet50.pth --output=weights/imagenet
  python launch/train.py --config=configs/cem_real.py:paper --config.stages.real.init_from=weights/coco
  python launch/import_weights.py --format=torchvision --input=retinanet_resnet50_fpn_v2.pth --output=weights/retinanet
  python launch/train.py --config=configs/cem_real.py:paper,retinanet --config.stages.real.init_from=weights/retinanet

  python launch/import_weights.py --format=effdet --model=tf_efficientdet_d0 --output=weights/d0 \\
      --input=tf_efficientdet_d0_34-f153e0cf.pth

  python launch/import_weights.py --format=efficientnet_pytorch --model=efficientnet-lite0 \\
      --input=efficientnet-lite0-57934424.pth --output=weights/lite0
  python launch/train.py --config=configs/cem_real.py:small,lite0 --config.stages.real.init_from=weights/lite0
  python launch/import_weights.py --format=torchvision --model=efficientnet_b0 --input=efficientnet_b0.pth \\
      --output=weights/b0
  python launch/import_weights.py --format=timm --model=tf_efficientnet_b0.ns_jft_in1k --input=model.safetensors \\
      --output=weights/b0
  python launch/import_weights.py --format=torchvision --model=swin_t --input=swin_t.pth --output=weights/swin_t

  python launch/import_weights.py --format=diffusers --input=stable-diffusion-inpainting --output=weights/sd
  python launch/import_weights.py --format=diffusers --input=stable-diffusion-v1-5 --inpainting --output=weights/sd

Reads .pkl, .pth and .safetensors files of a Faster R-CNN or RetinaNet with a ResNet-FPN, or of a ResNet only; depth,
norms, heads and classes are inferred from the file. Reads Stable Diffusion 1.x and 2.x, text-to-image or inpainting,
from folders written by diffusers. Reads ResNets, EfficientNets, Swin transformers and EfficientDets by their name in
their library (--model), because tensors do not reveal all conventions. A detector can start from any of these networks,
which becomes its backbone. Pickles are parsed, never executed, and PyTorch is not needed. Everything else in a
checkpoint is ignored; of plain and averaged weights (state_dict_ema, model_ema, ema) the averaged ones are read.
Prefixes of data-parallel, compiled and averaged models are removed; --ignore takes tensors without the prefix, such as
those of a loss. A detector's settings that no tensor shows (normalisation, anchors) are printed: compare them with the
training. If a tensor is left over, missing or of another shape, the import stops and writes nothing; --names lists all
tensors with their new names.
data_prep/public_weights.py downloads and imports small public networks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import command_line
from absl import flags

from elk_jax import output_folders

FORMAT = flags.DEFINE_enum(
    "format",
    None,
    ["detectron2", "torchvision", "diffusers", "timm", "transformers", "efficientnet_pytorch", "effdet"],
    "The library whose names the tensors have.",
)
INPUT = flags.DEFINE_string("input", None, "The weights file; for diffusers, the folder with model_index.json.")
MODEL = flags.DEFINE_string(
    "model",
    None,
    "For a classifier (ResNet, EfficientNet, Swin) and for effdet: its name in the library, for timm with the tag of "
    "the weights: resnet50, resnet50.a1_in1k, tf_efficientnet_b0.ns_jft_in1k, swin_t, tf_efficientdet_d0",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write: params.safetensors and model.json.")
CLASSES = flags.DEFINE_list("classes", [], "Names of the file's classes, without background: mass,calcification")
DROP = flags.DEFINE_multi_string(
    "drop", [], "Do not import parameters that match this regular expression; they start afresh: box_head/class_logits"
)
IGNORE = flags.DEFINE_multi_string(
    "ignore", [], "Ignore tensors of the file that match this regular expression: ^roi_heads.mask_head"
)
SET = flags.DEFINE_multi_string(
    "set",
    [],
    "A setting of the model that shapes do not reveal, as name=JSON: stride_in_1x1=false, pixel_std=[57,57,58]; for "
    "the backbone of a detector: backbone.stride_in_1x1=false",
)
NORM_EPS = flags.DEFINE_float(
    "norm_eps", None, "Epsilon of the file's batch norms: 0 for torchvision's published COCO_V1 detector; else 1e-5."
)
INPAINTING = flags.DEFINE_bool(
    "inpainting",
    False,
    "For diffusers: turn a text-to-image model into an inpainter; its new input channels start at zero.",
)
VARIANT = flags.DEFINE_string(
    "variant",
    None,
    "For diffusers: read the files with this word in their names, such as fp16, and the plain files of parts without "
    "such a file. Default: the plain files, else fp16.",
)
NAMES = flags.DEFINE_bool("names", False, "List every tensor of the file with its new name.")
_OF_DETECTORS = (CLASSES, DROP, NORM_EPS)
_OF_DIFFUSERS = (INPAINTING, VARIANT)
CLASSIFIERS_ONLY = ("timm", "transformers", "efficientnet_pytorch")


def refuse(given: Sequence[flags.FlagHolder], kind: str) -> None:
    """Raise an error if a flag for another kind of weights is set, as it would have no effect."""
    for flag in given:
        if flag.value != flag.default:
            raise command_line.UserError(f"--{flag.name} does not apply to {kind}", todo="leave it out")


def settings(pairs: list[str]) -> dict[str, Any]:
    """['name=JSON', 'section.name=JSON', ...] as nested dicts; text that is not JSON stays text."""
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise command_line.UserError(f"--set={pair} has no value", todo="write --set=name=value")
        *sections, name = name.split(".")
        place = changes
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise command_line.UserError(f"--set={section} has a value", todo="give a section or a value, not both")
        try:
            place[name] = json.loads(text)
        except (ValueError, RecursionError):
            place[name] = text
    return changes


def main() -> None:
    file_format = command_line.required(FORMAT, "detectron2")
    path = command_line.required(INPUT, "model_final.pkl")
    output = output_folders.for_import(command_line.required(OUTPUT, "weights/coco"))
    if file_format == "diffusers":
        refuse((*_OF_DETECTORS, SET, MODEL), f"--format={file_format}")
        from elk_jax.weights import stable_diffusion

        stable_diffusion.import_folder(
            path, output, inpainting=INPAINTING.value, variant=VARIANT.value, ignore=IGNORE.value, names=NAMES.value
        )
        return
    refuse(_OF_DIFFUSERS, f"--format={file_format}")
    changes = settings(SET.value)
    if file_format == "effdet":
        name = command_line.required(MODEL, "tf_efficientdet_d0")
        refuse((NORM_EPS,), "--format=effdet")
        from elk_jax.weights import detectors

        detectors.import_effdet(
            path,
            name,
            output,
            changes=changes,
            classes=CLASSES.value,
            drop=DROP.value,
            ignore=IGNORE.value,
            names=NAMES.value,
        )
        return
    if MODEL.value is not None or file_format in CLASSIFIERS_ONLY:
        name = command_line.required(MODEL, "tf_efficientnet_b0.ns_jft_in1k")
        refuse(_OF_DETECTORS, "classifiers (--model)")
        from elk_jax.weights import classifiers

        classifiers.import_file(
            path, file_format, name, output, changes=changes, ignore=IGNORE.value, names=NAMES.value
        )
        return
    from elk_jax.weights import detectors

    detectors.import_file(
        path,
        file_format,
        output,
        changes=changes,
        classes=CLASSES.value,
        drop=DROP.value,
        ignore=IGNORE.value,
        norm_eps=NORM_EPS.value,
        names=NAMES.value,
    )


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
