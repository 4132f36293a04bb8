"""The evaluation of a tiny translator beside what knows nothing of tissue."""

from __future__ import annotations

import numpy as np
import pytest

from configs import bridge_le_to_cem
from elk_jax import files
from elk_jax.experiments.parse import parse
from elk_jax.images.breast import breast_mask
from elk_jax.tasks.run import Run
from elk_jax.tasks.translation.model import load
from elk_jax.tasks.translation.train import open_pairs


def test_the_evaluation_counts_every_tile_once(run):
    experiment = parse(bridge_le_to_cem.get_config("tiny"))
    pairs = experiment.recipes["bridge"].pairs
    held_out = open_pairs(Run(experiment, run, mesh=None), ("pairs",), "test", pairs, 32)
    evaluation = files.read_json(run / "evaluate" / "evaluation.json")
    counts = evaluation["counts"]
    assert counts["tiles"] == len(held_out) and counts["patients"] == len({i.patient_id for i in held_out.infos})
    assert list(evaluation["measures"]) == ["translator", "low energy, matched", "mean grey", "real images"]
    for name, found in evaluation["measures"].items():
        for key, estimate in found.items():
            assert estimate["low"] <= estimate["value"] <= estimate["high"], (name, key)
    # the mean everywhere has no lesions, and its error is what the greys of the training say
    mean, real = evaluation["measures"]["mean grey"], evaluation["measures"]["real images"]
    assert mean["lesion_contrast"]["value"] == 0 and real["lesion_contrast"]["value"] > 0
    level = load(run / "translator" / "model").parts.greys.subtracted_mean
    errors = [
        np.abs(contrast[mask] - np.float32(level)).mean()
        for low, contrast in (held_out[i] for i in range(len(held_out)))
        for mask in [breast_mask(low)]
    ]
    assert mean["mae"]["value"] == pytest.approx(np.mean(errors), abs=1e-6)
    difference = evaluation["differences"]["translator"]["mean grey"]["mae"]
    values = [evaluation["measures"][name]["mae"]["value"] for name in ("translator", "mean grey")]
    assert difference["difference"] == pytest.approx(values[0] - values[1], abs=1e-9)
