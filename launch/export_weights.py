"""Write a Stable Diffusion model, imported or trained here, as a folder that diffusers loads.

  python launch/export_weights.py --model=runs/inpaint_cem/inpainter/model --output=exported
  python launch/export_weights.py --model=weights/sd --output=exported --dtype=float16

Then, with diffusers: StableDiffusionInpaintPipeline.from_pretrained("exported").
"""

from __future__ import annotations

import command_line
from absl import flags

MODEL = flags.DEFINE_string("model", None, "Model folder: params.safetensors, model.json, vocab.json, merges.txt.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; new or empty.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Type of the numbers; float32 keeps them exact.")


def main() -> None:
    model = command_line.required(MODEL, "weights/sd")
    output = command_line.required(OUTPUT, "exported")
    from elk_jax.weights import stable_diffusion

    stable_diffusion.export_folder(model, output, DTYPE.value)


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
