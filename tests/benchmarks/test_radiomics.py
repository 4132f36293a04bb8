"""The benchmark of radiomics: one line of JSON; the reference is a program that answers as PyRadiomics does."""

from __future__ import annotations

import json
import sys

import pytest

from tests.refusals import refused

TINY = ["--size=16", "--images=3", "--reference=2", "--rounds=2"]


def test_one_line_of_json(capsys):
    from benchmarks import radiomics

    radiomics.main(TINY)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["features"] == 398 and found["ours"]["repetitions"] == 2 and "ratio" not in found
    assert found["ours"]["images_per_second"] == pytest.approx(1 / found["ours"]["seconds_per_image"]["wall"]["median"])
    with refused(0, where="--images"):
        radiomics.main(["--images=0"])


def test_the_other_side_is_timed_in_turn(capsys, monkeypatch):
    from benchmarks import radiomics
    from elk_jax.evaluation.radiomics_table import V0, table
    from tests.golden import textures

    values = table([textures.image("smooth", 16, 16, 0)], V0)
    features = dict(zip(values.names, values.values[0].tolist()))
    features["glcm_Id"] *= 1.5
    answer = f"import sys\nfor line in sys.stdin:\n    print({json.dumps([8.0, 4.0, features])!r}, flush=True)\n"
    monkeypatch.setattr(radiomics, "THEIRS", answer)
    radiomics.main([*TINY, "--version=v0", f"--pyradiomics_python={sys.executable}"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["theirs"]["seconds_per_image"]["wall"]["median"] == 4
    assert found["largest_difference"] == pytest.approx(1 / 3)
    ours = found["ours"]["seconds_per_image"]["cpu"]
    assert found["ratio"]["cpu"]["max"] == pytest.approx(2 / ours["min"])
