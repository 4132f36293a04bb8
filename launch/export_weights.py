"""Write a trained or imported model for other programs: a detector for JAX (StableHLO), torchvision or effdet, Stable
Diffusion for diffusers, a generator for medigan.

  python launch/export_weights.py --model=runs/cem_mixed/mixed/model --output=exported
  python launch/export_weights.py --model=runs/retinanet/real/model --output=exported --format=torchvision
  python launch/export_weights.py --model=runs/efficientdet/real/model --output=exported --format=effdet \\
      --name=tf_efficientdet_d0
  python launch/export_weights.py --model=runs/inpaint_cem/inpainter/model --output=exported
  python launch/export_weights.py --model=weights/sd --output=exported --dtype=float16
  python launch/export_weights.py --model=runs/mcgan/gan/model --output=exported --model_id=00101_MCGAN_MASSES

A detector becomes a program for each canvas of its input (StableHLO, for CPU, CUDA and TPU, any number of images),
which needs jax and flatbuffers alone: jax.export.deserialize(file.read()).call(image, image_size); detector.json says
what goes in and comes out. For torchvision and effdet it is a state dict, detector.safetensors, and detector.json also
says what the model is built from: docs/torch.md. With diffusers:
StableDiffusionInpaintPipeline.from_pretrained("exported"). With medigan, in the folder `exported`:
Generators().generate(model_id="00101_MCGAN_MASSES", num_samples=10, condition="malignant"); a generator is drawn from
with NumPy alone.
"""

from __future__ import annotations

from pathlib import Path

import command_line
from absl import flags

from elk_jax.errors import UserError

MODEL = flags.DEFINE_string(
    "model", None, "Model folder: params.safetensors and model.json; of Stable Diffusion also the tokenizer."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; new or empty.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "float16"], "Of Stable Diffusion: type of the numbers; float32 keeps them exact."
)
FORMAT = flags.DEFINE_string(
    "format",
    None,
    "Of a detector: a program for JAX (stablehlo, the default), or tensors in the names of torchvision or effdet.",
)
NAME = flags.DEFINE_string("name", None, "Of --format=effdet: what it calls the detector, such as tf_efficientdet_d0.")
MODEL_ID = flags.DEFINE_string("model_id", None, "Of a generator: its id in medigan, such as 00101_MCGAN_MASSES.")


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
            raise UserError(f"only {kind} is exported with --{flag.name}", where=f"--{flag.name}", todo="leave it out")
    if architecture not in (stable_diffusion.ARCHITECTURE, *TASKS["inpainting"].architectures):
        todo = "give a detector, a generator of patches, Stable Diffusion, or an inpainter that started from it"
        raise UserError(f"a model of type {architecture} has no export", where=model, todo=todo)
    stable_diffusion.export_folder(model, output, DTYPE.value)


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
