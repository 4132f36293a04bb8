"""Write a trained or imported model for other programs: a detector as a program of its own, Stable Diffusion for
diffusers, a generator for medigan.

  python launch/export_weights.py --model=runs/cem_mixed/mixed/model --output=exported
  python launch/export_weights.py --model=runs/inpaint_cem/inpainter/model --output=exported
  python launch/export_weights.py --model=weights/sd --output=exported --dtype=float16
  python launch/export_weights.py --model=runs/mcgan/gan/model --output=exported --model_id=00101_MCGAN_MASSES

A detector becomes a program for each canvas of its input (StableHLO, for CPU, CUDA and TPU, any number of images),
which JAX runs without elk_jax: jax.export.deserialize(file.read()).call(image, image_size); detector.json says what
goes in and comes out. With diffusers: StableDiffusionInpaintPipeline.from_pretrained("exported"); or, in the folder
`exported` with medigan: Generators().generate(model_id="00101_MCGAN_MASSES", num_samples=10, condition="malignant"). A
generator is drawn from with NumPy alone.
"""

from __future__ import annotations

from pathlib import Path

import command_line
from absl import flags

from elk_jax.errors import UserError

MODEL = flags.DEFINE_string("model", None, "Model folder: params.safetensors, model.json; vocab.json, merges.txt.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; new or empty.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "float16"], "Of Stable Diffusion: type of the numbers; float32 keeps them exact."
)
MODEL_ID = flags.DEFINE_string("model_id", None, "Of a generator in medigan, such as 00101_MCGAN_MASSES.")


def main() -> None:
    model = command_line.required(MODEL, "weights/sd")
    output = command_line.required(OUTPUT, "exported")
    from elk_jax.tasks import TASKS
    from elk_jax.weights import model_folder, stable_diffusion

    architecture = model_folder.architecture_of(model)
    kinds = (name for name in ("generation", "detection") if architecture in TASKS[name].architectures)
    kind = next(kinds, "diffusers")
    if DTYPE.present and kind != "diffusers":
        raise UserError(f"of a {TASKS[kind].model}, numbers keep their type", where="--dtype", todo="leave it out")
    if kind == "generation":
        export_generator(Path(model), Path(output), command_line.required(MODEL_ID, "00101_MCGAN_MASSES"))
        return
    if MODEL_ID.present:
        raise UserError("only a generator has an id in medigan", where="--model_id", todo="leave it out")
    if kind == "detection":
        from elk_jax.tasks.detection import export

        export.export_folder(model, output)
        return
    stable_diffusion.export_folder(model, output, DTYPE.value)


def export_generator(model: Path, output: Path, model_id: str) -> None:
    """Write a generator's package for medigan."""
    from elk_jax.tasks.generation.model import Description, load
    from elk_jax.weights import medigan, model_folder

    params, description = load(model)
    if not isinstance(description, Description):
        todo = "name the model folder of a generator that was trained against a discriminator"
        raise UserError(
            f"a model of '{description.architecture}', for which medigan has no package", where=model, todo=todo
        )
    promise = model_folder.promise(model)
    medigan.export_folder(params, description.model, description.classes, output, model_id, promise)


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
