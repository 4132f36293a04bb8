"""What an experiment says of stages that read images which another stage protects."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs import (
    bridge_le_to_cem,
    cem_mixed,
    cem_real_dp,
    inpaint_cem,
    mcgan,
    patch_denoiser,
    private_generator,
    private_head,
    private_swin,
)
from elk_jax.data.sources import coco, patients
from elk_jax.experiments.parse import parse
from elk_jax.privacy.accounting import Ledger, Phase
from elk_jax.privacy.mechanism import Statement
from elk_jax.tasks import origins, private
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
        (patch_denoiser.get_config("tiny,private"), ["denoiser"], ["classifier"]),
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


# ---- The chain: a generator, a network on its patches, private training ----------------------------------------------


def chain(variant: str, exposed: bool = False, **places: str):
    config = private_swin.get_config(variant)
    for stage in config.stages.values():
        if "exposed" in stage:
            stage.exposed = exposed
    for source, place in places.items():
        config.data[source].spec = place
    return config


def exposure(config, stage: str = "epsilon_6", folder=None) -> str:
    experiment = parse(config)
    one = experiment.stages[stage]
    return private.exposure(Run(experiment, folder, mesh=None), one, experiment.recipe_of(one))


@pytest.mark.parametrize("variant", ["tiny", "tiny,published", "tiny,real", "tiny,mixed", "tiny,mixed,published"])
def test_a_chain_that_learned_from_the_protected_patients_is_refused_unless_it_says_so(variant):
    with refused("'first'", "'patches', the training data", "exposed=True", where="stages.epsilon_6.init_from"):
        check(chain(variant), "epsilon_6")
    config = chain(variant, exposed=True)
    check(config, "epsilon_6")
    assert exposure(config) == "the weights of 'first' go back to 'patches', the training data"


def test_public_weights_alone_expose_nobody():
    check(chain("tiny,nothing"), "epsilon_6")
    assert exposure(chain("tiny,nothing")) == ""


@pytest.mark.parametrize(
    "variant, what", [("beside", "made by stage samples"), ("beside,published", "'published' go back to 'patches'")]
)
def test_made_images_among_the_protected_ones_do_not_pass_unsaid(variant, what):
    with refused(what, where="stages.epsilon_6.train_on"):
        check(chain(f"tiny,nothing,{variant}"), "epsilon_6")
    assert what in exposure(chain(f"tiny,nothing,{variant}", exposed=True))


@pytest.mark.parametrize("named", [True, False])
def test_noise_on_made_images_does_not_protect_whom_they_are_made_of(tmp_path, named):
    """Whether the configuration says so, or their file; nor where no image of these is beside them."""
    config = private_swin.get_config("tiny,nothing,alone,published")
    found = Run(parse(config), None, mesh=None).list("patches", "train")
    made = [replace(info, image_id=f"m{n}", patient_id="") for n, info in enumerate(found.infos)]
    seen = [] if named else [patients.patient_hash(found.infos[0].patient_id)]
    coco.write_coco(tmp_path / "made.json", made, found.classes, "made", seen_patients=seen)
    config.data.published.spec = f"coco:{tmp_path / 'made.json'}"
    config.data.published.made_from = ("patches",) if named else ()
    what = "'published' are made of " + ("'patches'" if named else "those of patients whom their file names")
    assert exposure(config) == f"the images {what}"
    config.stages.epsilon_6.exposed = False
    with refused(what, where="stages.epsilon_6.train_on"):
        check(config, "epsilon_6")


def test_images_of_a_program_that_has_seen_others_expose_nobody():
    config = chain("tiny,published")
    config.data.published.made_from = ()
    check(config, "epsilon_6")


def test_what_a_private_training_has_learned_is_composed_and_not_refused():
    config = chain("tiny,nothing")
    with config.unlocked():
        config.stages.again = config.stages.epsilon_6.copy_and_resolve_references()
        config.stages.again.init_from = "epsilon_6"
    check(config, "again")
    config.stages.again.init_from = "without_privacy"
    with refused("'without_privacy'", where="again.init_from"):
        check(config, "again")


def test_a_generator_that_protects_the_patients_exposes_nobody():
    check(private_swin.get_config("tiny,protected"), "epsilon_6")
    check(behind_private_gan("tiny"), "epsilon_6")
    with refused("'patches', the training data", where="init_from"):  # what a network has seen beside its patches
        check(behind_private_gan("tiny,mixed"), "epsilon_6")


def behind_private_gan(variant: str):
    config = chain(variant)
    config.gan = mcgan.get_config("tiny,private").gan
    return config


@pytest.mark.parametrize(
    "variant, stage, behind",
    [
        ("tiny", "first", ["gan"]),
        ("tiny,denoiser", "first", ["denoiser"]),
        ("tiny,protected", "first", ["pool"]),
        ("tiny,beside", "epsilon_6", ["first"]),  # `first` learned from patches of `gan`, and accounts for it
        ("tiny,nothing,beside", "epsilon_6", ["gan"]),
        ("cpu", "epsilon_6", ["first"]),
    ],
)
def test_the_promise_of_a_generator_counts_once(variant, stage, behind):
    experiment = parse(chain(variant))
    assert origins.models_behind(experiment, experiment.stages[stage]) == behind


@pytest.mark.parametrize("name", ["epsilon_1", "epsilon_1_head"])
def test_public_images_bring_their_promise(name):
    """A pool shows them, and a head is whitened by them."""
    config = private_generator.get_config("tiny")
    config.stages[name].public = ("epsilon_10_samples",)
    experiment = parse(config)
    assert "epsilon_10" in origins.models_behind(experiment, experiment.stages[name])


def test_a_pool_of_patches_that_the_protected_patients_are_behind_is_refused():
    """Of images without patients, too."""
    config = private_generator.get_config("tiny")
    config.data.patches.patient_pattern = ""
    config.stages.epsilon_1.update({"unit": "image", "public": ("public", "epsilon_10_samples")})
    check(config, "epsilon_1")
    config.stages.epsilon_1.public = ("public", "without_privacy_samples")
    with refused("'without_privacy_samples'", "'patches', the training data", where="stages.epsilon_1.public"):
        check(config, "epsilon_1")


def test_a_set_that_says_whom_its_painter_saw_is_compared_with_the_protected_patients(tmp_path):
    config = cem_real_dp.get_config("tiny")
    found = Run(parse(config), None, mesh=None).list("real", "train")
    for patient, known in (("another", False), (found.infos[0].patient_id, True)):
        place = tmp_path / f"{known}.json"
        made = (made_image(found.infos[0]),)
        coco.write_coco(place, made, found.classes, "made", seen_patients=[patients.patient_hash(patient)])
        config.data.mammo.spec = f"coco:{place}"
        config.stages.private.public = ("mammo",)
        if not known:
            check(config, "private")
            continue
        with refused("'mammo'", patient, where="private.init_from"):
            check(config, "private")


def test_the_ledger_of_canvases_goes_through_what_is_painted_in_them(tmp_path):
    """Also where the painting stage of the run has not run yet; each training behind the canvases counts once."""
    config = cem_mixed.get_config("tiny")
    found = Run(parse(config), None, mesh=None).list("real", "train")
    promises = [Statement(True, 2.0, 1e-5, "pld", Ledger((Phase(1.0, 3.0, 1),), "patient")).named() for _ in range(2)]
    coco.write_coco(tmp_path / "made.json", [made_image(found.infos[0])], found.classes, promises=promises)
    config.data.canvases.spec, config.stages.lesions.canvases = f"coco:{tmp_path / 'made.json'}", "canvases"
    run = Run(parse(config), tmp_path, mesh=None)
    behind = lambda name: private.promises_before(run, run.experiment.stages[name])
    assert behind("synthetic") == behind("mixed") == tuple(promises) and behind("real") == ()


def made_image(info):
    return replace(info, image_id="made", patient_id="made", file_name="made.png", split="train", meta={})


def test_a_source_may_not_be_made_from_what_is_not_there():
    config = private_swin.get_config("tiny,published")
    for names in (("nobody",), ("published",)):
        config.data.published.made_from = names
        with refused(names[0], where="config.data.published.made_from"):
            parse(config)


def test_pairs_of_two_patients_are_not_trained_on_privately():
    """Also where the chain is exposed: the image of one patient is in the unit of another."""
    experiment = parse(cem_real_dp.get_config("tiny"))
    name = next(key for key, one in experiment.stages.items() if getattr(experiment.recipe_of(one), "privacy", None))
    stage = experiment.stages[name]
    source = stage.train_on[0]
    pairs = replace(experiment.data[source], partner="low_energy", shuffled_partners=True)
    changed = replace(experiment, data={**experiment.data, source: pairs})
    with refused("another patient", where=f"config.data.{source}.shuffled_partners"):
        private.check_start(Run(changed, None, mesh=None), stage, changed.recipe_of(stage))
