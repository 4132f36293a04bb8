"""Questions about the privacy of a training, without starting a script; full batches, which cost nothing."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET

import pytest

from elk_jax.output import Console
from elk_jax.planning.privacy import Question, answer, curve, print_answer
from elk_jax.privacy.accounting import gaussian_epsilon, gaussian_noise_multiplier
from tests.refusals import refused

FULL = {"examples": 578, "batch_size": 578, "steps": 50, "delta": 1e-4, "unit": "patient"}


def printed(question: Question) -> str:
    console = Console(width=200, file=io.StringIO())
    print_answer(answer(question), console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("length", "steps"),
    [({"epochs": 300}, 2700), ({"steps": 41}, 41), ({"epochs": 0.01}, 1)],
)
def test_epochs_become_steps(length, steps):
    question = Question(examples=1104, batch_size=122.67, delta=1e-4, epsilon=6, **length)
    assert question.steps_of_a_run == steps
    assert question.sampling_rate == pytest.approx(1 / 9, rel=1e-4)


def test_noise_is_rounded_to_what_still_suffices():
    found = answer(Question(**FULL, epsilon=6))
    least = gaussian_noise_multiplier(6, 1e-4, 50)
    assert least <= found.noise < least * 1.0002 and found.epsilon <= 6
    assert float(f"{found.noise:.5g}") == found.noise
    assert {row.accountant: row.noise > least for row in found.rows}["rdp"]


def test_runs_share_the_budget():
    one, three = (answer(Question(**FULL, noise_multiplier=5, runs=runs)) for runs in (1, 3))
    assert one.epsilon == gaussian_epsilon(5, 1e-4, 50) and three.epsilon == gaussian_epsilon(5, 1e-4, 150)
    assert all(row.noise is None for row in one.rows)


def test_the_promise_is_printed():
    text = printed(Question(**FULL, noise_multiplier=5, runs=3))
    for words in ("one patient", "zero-out", "578 patients", "50 steps", "3 runs", "0.0001", "exact", "RDP"):
        assert words in text
    assert "warning" not in text
    image = {**FULL, "unit": "image", "delta": 1 / 500}
    assert "1/578" in printed(Question(**image, noise_multiplier=5))
    assert "--unit=patient" in printed(Question(**image, noise_multiplier=5))


def test_the_picture_shows_what_was_asked():
    question = Question(**FULL, noise_multiplier=5.0)
    drawing = ET.fromstring(curve(answer(question)))
    texts = ["".join(node.itertext()) for node in drawing.iter("{http://www.w3.org/2000/svg}title")]
    epsilon = gaussian_epsilon(5, 1e-4, 50)
    assert f"PLD (exact): 50, {epsilon:.4g}" in texts and f"PLD (exact): 5, {epsilon:.4g}" in texts
    assert f"PLD (exact): 100, {gaussian_epsilon(5, 1e-4, 100):.4g}" in texts
    assert "var(" not in ET.tostring(drawing, encoding="unicode")


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        ({"examples": 0}, "examples", []),
        ({"batch_size": 579}, "batch_size", [578]),
        ({"batch_size": 0}, "batch_size", []),
        ({"delta": 0}, "delta", []),
        ({"delta": 1.0}, "delta", []),
        ({"epochs": 3.0}, "steps", ["both"]),
        ({"steps": None}, "steps", ["neither"]),
        ({"noise_multiplier": 1.0}, "noise_multiplier", ["both"]),
        ({"epsilon": None}, "noise_multiplier", ["neither"]),
        ({"noise_multiplier": 0.0}, "noise_multiplier", ["protects"]),
        ({"epsilon": None, "noise_multiplier": 0.0}, "noise_multiplier", ["protects"]),
        ({"epsilon": 0.0}, "epsilon", []),
        ({"epsilon": math.nan}, "epsilon", []),
        ({"runs": 0}, "runs", []),
        ({"unit": "breast"}, "unit", ["patient"]),
        ({"accountant": "prv"}, "accountant", ["pld"]),
    ],
)
def test_impossible_questions_are_refused(change, where, words):
    with refused(*words, where=where):
        Question(**{**FULL, "epsilon": 6.0, **change})
