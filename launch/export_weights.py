"""Export a trained or imported model to other programs: a detector, Stable Diffusion, or a generator of patches.

  python launch/export_weights.py --model=runs/cem_mixed/mixed/model --output=exported
  python launch/export_weights.py --model=runs/faster_rcnn/real/model --output=exported --format=detectron2
  python launch/export_weights.py --model=runs/retinanet/real/model --output=exported --format=torchvision
  python launch/export_weights.py --model=runs/efficientdet/real/model --output=exported --format=effdet \\
      --name=tf_efficientdet_d0
  python launch/export_weights.py --model=runs/inpaint_cem/inpainter/model --output=exported
  python launch/export_weights.py --model=weights/sd --output=exported --dtype=float16
  python launch/export_weights.py --model=runs/mcgan/gan/model --output=exported --model_id=00101_MCGAN_MASSES

For JAX, a detector becomes one program per canvas of its input (StableHLO, for CPU, CUDA and TPU, any number of
images), which needs only jax and flatbuffers: jax.export.deserialize(file.read()).call(image, image_size).
detector.json describes inputs and outputs. For detectron2, torchvision and effdet it becomes a state dict,
detector.safetensors, and detector.json also has the settings to build the model from (docs/torch.md). An ensemble
becomes one such folder for each member, and a detector.json that says how their boxes are fused. To load the others:
  diffusers   StableDiffusionInpaintPipeline.from_pretrained("exported")
  medigan     Generators().generate(model_id="00101_MCGAN_MASSES", num_samples=10, condition="malignant"), in the folder
              `exported`; sampling from a generator needs only NumPy
"""

from __future__ import annotations

from pathlib import Path

import command_line
from absl import flags

from elk_jax.errors import UserError

MODEL = flags.DEFINE_string(
    "model", None, "Model folder: params.safetensors and model.json; for Stable Diffusion also the tokenizer."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; new or empty.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "float16"], "For Stable Diffusion: number format; float32 is exact."
)
FORMAT = flags.DEFINE_string(
    "format",
    None,
    "For a detector: a program for JAX (stablehlo, the default), or tensors under the names of detectron2, torchvision "
    "or effdet.",
)
NAME = flags.DEFINE_string(
    "name", None, "For --format=effdet: the detector's name in effdet, such as tf_efficientdet_d0."
)
MODEL_ID = flags.DEFINE_string("model_id", None, "For a generator: its id in medigan, such as 00101_MCGAN_MASSES.")


def main() -> None:
    model = command_line.required(MODEL, "weights/sd")
    output = command_line.required(OUTPUT, "exported")
    from elk_jax.tasks import TASKS
    from elk_jax.weights import model_folder, stable_diffusion

    architecture = model_folder.architecture_of(model)
    for task in TASKS.values():
        if task.export is not None and architecture in task.architectures:
            settings = command_line.settings(task.export.settings, (DTYPE, MODEL_ID, FORMAT, NAME), task.model)
            task.export.run(model=Path(model), output=Path(output), settings=settings)
            return
    for flag, kind in ((MODEL_ID, "a generator"), (FORMAT, "a detector"), (NAME, "a detector")):
        if flag.present:
            raise UserError(f"--{flag.name} applies only to {kind}", where=f"--{flag.name}", todo="leave it out")
    if architecture not in (stable_diffusion.ARCHITECTURE, *TASKS["inpainting"].architectures):
        todo = "give a detector, a generator of patches, Stable Diffusion, or an inpainter that started from it"
        raise UserError(f"cannot export a model of type {architecture}", where=model, todo=todo)
    stable_diffusion.export_folder(model, output, DTYPE.value)


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
