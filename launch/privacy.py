"""How private is a training, or how much noise does it need? Answered before it is trained, without data.

  python launch/privacy.py --examples=1104 --batch_size=122.67 --epochs=300 --epsilon=6 --delta=1e-4
  python launch/privacy.py --examples=1104 --batch_size=122.67 --epochs=300 --noise_multiplier=4.34 --delta=1e-4
  python launch/privacy.py --examples=578 --batch_size=578 --steps=50 --epsilon=6 --delta=1e-4 --unit=patient
  python launch/privacy.py --examples=578 --batch_size=64 --epochs=100 --epsilon=8 --delta=1e-4 --unit=patient --curve

A step clips the gradient of every example, adds up those of a batch that is drawn at random (each example with
probability batch_size / examples), and adds Gaussian noise. What is printed: the noise multiplier (deviation of the
noise over the clip norm) and (epsilon, delta), by privacy loss distributions (PLD, tight; exact for full batches) and
by Renyi divergences (RDP, what most published figures use).

With --unit=patient all images of a patient are clipped and drawn as a whole: count patients in --examples and
--batch_size. With --unit=image a patient who has several images is protected less than epsilon says.
"""

from __future__ import annotations

from pathlib import Path

import command_line
from absl import flags

EXAMPLES = flags.DEFINE_integer("examples", None, "How many training images there are, or patients: see --unit.")
BATCH_SIZE = flags.DEFINE_float("batch_size", None, "Expected size of a batch, in the unit of --examples.")
EPOCHS = flags.DEFINE_float("epochs", None, "Length of a run in epochs, or give --steps.")
STEPS = flags.DEFINE_integer("steps", None, "Length of a run in steps.")
EPSILON = flags.DEFINE_float("epsilon", None, "The budget: which noise does it need? Or give --noise_multiplier.")
NOISE_MULTIPLIER = flags.DEFINE_float("noise_multiplier", None, "The noise: which epsilon does it have?")
DELTA = flags.DEFINE_float("delta", None, "Delta, well below 1 / --examples.")
UNIT = flags.DEFINE_enum("unit", "image", ["image", "patient"], "What is protected as a whole.")
ACCOUNTANT = flags.DEFINE_enum("accountant", "pld", ["pld", "rdp"], "Whose noise or epsilon is the answer.")
RUNS = flags.DEFINE_integer("runs", 1, "Runs on the same data (seeds, tuning); they share the budget.")
CURVE = flags.DEFINE_bool("curve", False, "Draw epsilon over steps and over noise.")
OUTPUT = flags.DEFINE_string("output", "privacy.svg", "File of the picture.")

OWN = (EXAMPLES, BATCH_SIZE, EPOCHS, STEPS, EPSILON, NOISE_MULTIPLIER, DELTA, UNIT, ACCOUNTANT, RUNS)


def main() -> None:
    from elk_jax import fields, files
    from elk_jax.output import Console
    from elk_jax.planning import privacy

    question = command_line.of_flags(lambda: fields.build(privacy.Question, command_line.given(OWN)))
    output = Path(OUTPUT.value)
    if CURVE.value:
        if output.suffix != ".svg":
            raise command_line.UserError(
                f"'{output}' is not the name of an SVG file", where="--output", todo="end it in .svg"
            )
        files.check_writable(output.parent)
    found = command_line.of_flags(lambda: privacy.answer(question))
    console = Console(soft_wrap=True)
    privacy.print_answer(found, console)
    if CURVE.value:
        files.make_folder(output.parent)
        files.write_text(output, privacy.curve(found))
        console.print(f"picture: {output}")


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
