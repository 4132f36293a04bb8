"""What an experiment says of stages that read images which another stage protects."""

from __future__ import annotations

import pytest

from configs import bridge_le_to_cem, cem_mixed, cem_real_dp, inpaint_cem, private_generator, private_head
from elk_jax.experiments.parse import parse
from elk_jax.tasks import private
from elk_jax.tasks.run import Run
from tests.refusals import refused


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
        (private_generator.get_config("tiny"), ["epsilon_10", "epsilon_1"], ["without_privacy", "real"]),
    ],
)
def test_a_stage_that_reads_protected_images_without_protection_is_named(config, protects, bare):
    found = said(config)
    for name, (withheld, note) in found.items():
        assert withheld == (name in [*protects, *bare])
        assert (name in note and protects[0] in note) if name in bare else note == ""


# ---- Before a private training ---------------------------------------------------------------------------------------


def check(config, stage: str) -> None:
    experiment = parse(config)
    run = Run(experiment, None, mesh=None)
    private.check_start(run, experiment.stages[stage], experiment.recipe_of(experiment.stages[stage]))


def detectors(mammo: str = "", public: tuple[str, ...] = ()):
    """A private detector that starts from one of `mammo`, with public images beside its own."""
    config = cem_real_dp.get_config("tiny")
    config.data.mammo.spec = mammo or config.data.mammo.spec
    config.stages.private.public = public
    return config


def painters(**changes):
    """An open inpainter of `real`, and a private one of `others` that learns from its lesions."""
    config = inpaint_cem.get_config("tiny")
    with config.unlocked():
        config.data.others = config.data.real.copy_and_resolve_references()
        config.data.others.spec = "phantom:size=128,count=24,seed=9"
        config.private = inpaint_cem.get_config("tiny,private").inpainter
        config.stages.private = config.stages.inpainter.copy_and_resolve_references()
    settings = {"recipe": "private", "train_on": ("others",), "validate_on": "others", "public": ("synthetic",)}
    config.stages.private.update(settings | changes)
    return config


def test_other_peoples_weights_and_images_may_help():
    check(detectors(public=("mammo",)), "private")
    check(painters(), "private")


SAME = "phantom:size=128,lesions=realistic,count=48,seed=1,modality=low_energy"
"""Low-energy images of the protected patients."""


@pytest.mark.parametrize(
    "config, where, words",
    [
        (detectors(SAME), "private.init_from", ["'public'", "'mammo'", "S1P0"]),
        (detectors(public=("real",)), "private.public", ["'real'", "training data"]),
        (painters(train_on=("real",)), "private.public", ["'synthetic'", "'real'"]),
        (painters(train_on=("synthetic",), public=()), "private.train_on", ["'synthetic'", "lesions"]),
    ],
)
def test_weights_and_images_behind_which_the_protected_patients_stand_are_refused(config, where, words):
    with refused(*words, where=f"config.stages.{where}"):
        check(config, "private")


def test_public_data_have_the_classes_of_the_training():
    stage = parse(detectors()).stages["private"]
    private.check_classes(stage, ("benign", "malignant"), ["benign", "malignant"])
    with refused("malignant, benign", where="config.stages.private.public"):
        private.check_classes(stage, ("benign", "malignant"), ("malignant", "benign"))
