"""What an experiment says of stages that read images which another stage protects."""

from __future__ import annotations

import pytest

from configs import bridge_le_to_cem, cem_mixed, cem_real_dp, private_head
from elk_jax.experiments.parse import parse
from elk_jax.tasks import private


def said(config) -> dict[str, tuple[bool, str]]:
    experiment = parse(config)
    stages = experiment.stages.items()
    return {name: (private.is_withheld(experiment, one), private.unprotected(experiment, one)) for name, one in stages}


def test_without_a_private_stage_nothing_is_withheld():
    assert set(said(cem_mixed.get_config("tiny")).values()) == {(False, "")}


@pytest.mark.parametrize(
    "config, protects, bare",
    [
        (bridge_le_to_cem.get_config("tiny,private"), ["translator"], []),
        (cem_real_dp.get_config("tiny"), ["private"], ["same_layers", "open"]),
        (private_head.get_config("tiny"), ["epsilon_60", "epsilon_6", "epsilon_1"], ["without_privacy"]),
    ],
)
def test_a_stage_that_reads_protected_images_without_protection_is_named(config, protects, bare):
    found = said(config)
    for name, (withheld, note) in found.items():
        assert withheld == (name in [*protects, *bare])
        assert (name in note and protects[0] in note) if name in bare else note == ""
