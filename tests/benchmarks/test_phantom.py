"""The phantom's benchmark: one line of JSON that says what was drawn."""

from __future__ import annotations

import json

import pytest

from elk_jax.synthesis.phantom import PhantomConfig, sample
from tests.refusals import refused


def test_one_line_of_json(capsys):
    from benchmarks import phantom

    phantom.main(["--size=96", "--images=2", "--repetitions=3"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    rate, seconds = found["images_per_second_per_core"], found["seconds_per_image"]
    assert rate["max"] == pytest.approx(1 / seconds["min"]) and rate["min"] == pytest.approx(1 / seconds["max"])
    assert found["lesions"] == sum(len(sample(0, index, PhantomConfig(size=96)).boxes) for index in range(2))
    assert found["hardware"]["cores"] >= 1 and "numpy" in found["versions"]
    with refused(0, where="--images"):
        phantom.main(["--images=0"])
