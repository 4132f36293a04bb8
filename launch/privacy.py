"""How private is a training run, or how much noise does it need? Answered before training, without data.

  python launch/privacy.py --examples=1104 --batch_size=122.67 --epochs=300 --epsilon=6 --delta=1e-4
  python launch/privacy.py --examples=1104 --batch_size=122.67 --epochs=300 --noise_multiplier=4.34 --delta=1e-4
  python launch/privacy.py --examples=578 --batch_size=578 --steps=50 --epsilon=6 --delta=1e-4 --unit=patient
  python launch/privacy.py --examples=578 --batch_size=64 --epochs=100 --epsilon=8 --delta=1e-4 --unit=patient --curve

A step clips the gradient of every example, sums the gradients of a randomly drawn batch (each example with probability
batch_size / examples), and adds Gaussian noise. Prints the noise multiplier (standard deviation of the noise over the
clip norm) and (epsilon, delta), from privacy loss distributions (PLD, tight; exact for full batches) and from Renyi
divergences (RDP, used for most published figures).

With --unit=patient all images of a patient are drawn and clipped together: count patients in --examples and
--batch_size. With --unit=image epsilon understates the privacy loss of a patient who has several images.
"""

from __future__ import annotations

from pathlib import Path

import command_line
from absl import flags

EXAMPLES = flags.DEFINE_integer("examples", None, "Number of training images, or of patients: see --unit.")
BATCH_SIZE = flags.DEFINE_float("batch_size", None, "Expected size of a batch, in the unit of --examples.")
EPOCHS = flags.DEFINE_float("epochs", None, "Length of a run in epochs; or give --steps.")
STEPS = flags.DEFINE_integer("steps", None, "Length of a run in steps.")
EPSILON = flags.DEFINE_float(
    "epsilon", None, "The budget, to find the noise that it needs; or give --noise_multiplier."
)
NOISE_MULTIPLIER = flags.DEFINE_float("noise_multiplier", None, "The noise, to find its epsilon.")
DELTA = flags.DEFINE_float("delta", None, "Delta, well below 1 / --examples.")
UNIT = flags.DEFINE_enum("unit", "image", ["image", "patient"], "The unit of protection.")
ACCOUNTANT = flags.DEFINE_enum("accountant", "pld", ["pld", "rdp"], "The accountant that gives the answer.")
RUNS = flags.DEFINE_integer("runs", 1, "Runs on the same data (seeds, tuning); they share the budget.")
CURVE = flags.DEFINE_bool("curve", False, "Plot epsilon over steps and over noise.")
OUTPUT = flags.DEFINE_string("output", "privacy.svg", "File of the plot of --curve.")

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
    elif OUTPUT.present:
        raise command_line.UserError("--output names the file of a plot", where="--output", todo="add --curve")
    found = command_line.of_flags(lambda: privacy.answer(question))
    console = Console(soft_wrap=True)
    privacy.print_answer(found, console)
    if CURVE.value:
        files.make_folder(output.parent)
        files.write_text(output, privacy.curve(found))
        console.print(f"picture: {output}")


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
