"""The privacy of a training, before it is run: its noise or its epsilon, as a table and a plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from rich.table import Table

from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, AtLeast, Checked
from elk_jax.output import Console
from elk_jax.privacy.accounting import (
    ACCOUNTANTS,
    DELTA,
    NOISE,
    Accountant,
    Ledger,
    Phase,
    Unit,
    epsilon_of,
    noise_for,
)
from elk_jax.reporting.figures import Series, line_chart, picture
from elk_jax.reporting.tables import named_table

POINTS = 12
"""Of a curve."""
CHART = (520, 320)
"""Width and height of one chart."""


@dataclass(frozen=True)
class Question(Checked):
    """A private training whose noise (from `epsilon`) or epsilon (from `noise_multiplier`) is to be found.

    examples, batch_size: in units, so patients if a patient is the unit. runs: trainings on the same data.
    """

    examples: Annotated[int, AtLeast(1)]
    batch_size: Annotated[float, ABOVE_ZERO]
    delta: Annotated[float, DELTA]
    steps: Annotated[int, AtLeast(1)] | None = None
    epochs: Annotated[float, ABOVE_ZERO] | None = None
    epsilon: Annotated[float, ABOVE_ZERO] | None = None
    noise_multiplier: Annotated[float, AtLeast(0)] | None = None
    unit: Unit = "image"
    accountant: Accountant = "pld"
    runs: Annotated[int, AtLeast(1)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_multiplier is not None and self.noise_multiplier < NOISE.low:
            what = f"a noise multiplier of {self.noise_multiplier:g} protects nobody, whatever epsilon is claimed"
            raise UserError(what, where="noise_multiplier", todo=f"give a number {NOISE}")
        self._one_of("epochs", "steps")
        self._one_of("epsilon", "noise_multiplier")
        if self.batch_size > self.examples:
            what = f"a batch of {self.batch_size:g} is larger than the total of {self.examples:,} {self.unit}s"
            todo = f"give at most {self.examples}, which is a full batch"
            raise UserError(what, where="batch_size", todo=todo)

    def _one_of(self, one: str, other: str) -> None:
        given = [name for name in (one, other) if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"both {one} and {other} are given" if given else f"neither {one} nor {other} is given"
            raise UserError(what, where=other, todo="give one of them; the other follows")

    @property
    def sampling_rate(self) -> float:
        return self.batch_size / self.examples

    @property
    def steps_of_a_run(self) -> int:
        return self.steps or max(1, round((self.epochs or 0) / self.sampling_rate))

    def ledger(self, noise_multiplier: float) -> Ledger:
        """The ledger of everything that the runs release."""
        phase = Phase(self.sampling_rate, noise_multiplier, self.steps_of_a_run * self.runs)
        return Ledger((phase,), self.unit)

    def epsilon_at(self, noise_multiplier: float, accountant: Accountant) -> float:
        return epsilon_of(self.ledger(noise_multiplier).phases, self.delta, accountant)

    def noise(self, accountant: Accountant) -> float:
        """The noise multiplier: the given one, or the one that `epsilon` needs with this accountant, rounded up to 5
        digits."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.epsilon is not None
        least = noise_for(self.epsilon, self.delta, self.sampling_rate, self.steps_of_a_run, accountant, self.runs)
        unit = 10.0 ** (math.floor(math.log10(least)) - 4)
        return float(f"{math.ceil(least / unit) * unit:.5g}")


@dataclass(frozen=True)
class Row:
    """The result of one accountant. noise: for the requested epsilon; None if the noise is given."""

    accountant: Accountant
    noise: float | None
    epsilon: float


@dataclass(frozen=True)
class Answer:
    """noise, epsilon: from the accountant of the question; rows: from each accountant, for this noise."""

    question: Question
    noise: float
    epsilon: float
    rows: tuple[Row, ...]


def answer(question: Question) -> Answer:
    """UserError if no noise gives this epsilon."""
    noise = question.noise(question.accountant)
    wanted = question.noise_multiplier is None
    rows = tuple(
        Row(name, question.noise(name) if wanted else None, question.epsilon_at(noise, name)) for name in ACCOUNTANTS
    )
    epsilon = next(row.epsilon for row in rows if row.accountant == question.accountant)
    return Answer(question, noise, epsilon, rows)


def print_answer(found: Answer, console: Console) -> None:
    """Print the training, the unit of protection, the results of each accountant, and what they do not include."""
    question = found.question
    for sentence in sentences(found):
        console.print(sentence)
    if question.delta * question.examples >= 1:
        console.print(
            f"warning: delta {question.delta:g} is not below 1/{question.examples:,} = {1 / question.examples:.2g}: "
            f"publishing the data of one random {question.unit} would count as private"
        )
    console.print(_table(found))


def sentences(found: Answer) -> list[str]:
    """The question and its answer in words."""
    question, rate = found.question, found.question.sampling_rate
    units = f"{question.unit}s"
    if rate == 1:
        batches = f"full batches of {question.examples:,} {units}"
    else:
        spread = math.sqrt(question.batch_size * (1 - rate))
        drawn = f"each {question.unit} is drawn with probability {rate:.4g}"
        batches = f"batches of {question.batch_size:.4g} ± {spread:.2g} of {question.examples:,} {units} ({drawn})"
    runs = f"{question.runs} runs of " if question.runs > 1 else ""
    epochs = question.steps_of_a_run * rate
    return [
        f"training: {runs}{question.steps_of_a_run:,} steps ({epochs:.4g} epochs), {batches}",
        f"protected: one {question.unit} ({question.ledger(found.noise).adjacency} adjacency: its gradients, or none; "
        f"the number of {units} is public)"
        + ("; a patient with several images is less protected (--unit=patient)" if question.unit == "image" else ""),
        f"noise multiplier {found.noise:.5g} (deviation of the noise over the clip norm), which is "
        f"{found.noise / question.batch_size:.2g} clip norms in each parameter of the mean gradient",
        f"epsilon {found.epsilon:.4g} at delta {question.delta:g}"
        + (f", all {question.runs} runs together" if question.runs > 1 else "")
        + f". Not included: {'' if question.runs > 1 else 'other runs on the same data (--runs), '}choices made by "
        "looking at private data",
    ]


def _name(accountant: Accountant, question: Question) -> str:
    exact = "exact" if question.sampling_rate == 1 else "tight"
    return {"pld": f"PLD ({exact})", "rdp": "RDP (a looser bound)"}[accountant]


def _table(found: Answer) -> Table:
    question = found.question
    table = named_table("", "accountant")
    if question.noise_multiplier is None:
        table.add_column(f"noise for epsilon {question.epsilon:g}", justify="right")
    table.add_column(f"epsilon with noise {found.noise:.5g}", justify="right")
    for row in found.rows:
        noise = [] if row.noise is None else [f"{row.noise:.5g}"]
        table.add_row(_name(row.accountant, question), *noise, f"{row.epsilon:.4g}")
    return table


def curve(found: Answer) -> str:
    """Epsilon over steps and over noise, from each accountant, as an SVG file."""
    question, noise = found.question, found.noise
    half = POINTS // 2  # both curves have a point at the settings of the question
    steps = sorted({max(1, round(question.steps_of_a_run * point / half)) for point in range(1, POINTS + 1)})
    noises = np.geomspace(max(noise / 2, NOISE.low), 2 * noise, POINTS - 1).tolist()

    names = [_name(name, question) for name in ACCOUNTANTS]

    def of_steps(number: float, accountant: Accountant) -> float:
        return replace(question, steps=int(number), epochs=None).epsilon_at(noise, accountant)

    runs = f" of each of {question.runs} runs" if question.runs > 1 else ""
    number = question.steps_of_a_run
    charts = [
        _chart(names, steps, of_steps, f"steps{runs}", number, f"Noise multiplier {noise:.5g}"),
        _chart(names, noises, question.epsilon_at, "noise multiplier", noise, f"{number:,} steps{runs}"),
    ]
    title = (
        f"{question.examples:,} {question.unit}s, batches of {question.batch_size:.4g}, delta {question.delta:g}; "
        f"one {question.unit} is protected; dashed: epsilon {found.epsilon:.4g}"
    )
    return picture(charts, names, title=title, size=CHART)


def _chart(
    names: Sequence[str],
    xs: Sequence[float],
    epsilon: Callable[[float, Accountant], float],
    label: str,
    mark: float,
    title: str,
) -> str:
    series = [
        Series(names[index], xs, [epsilon(x, name) for x in xs], index, mark=None if index else mark)
        for index, name in enumerate(ACCOUNTANTS)
    ]
    return line_chart(series, title=title, x_label=label, y_label="epsilon", size=CHART)
