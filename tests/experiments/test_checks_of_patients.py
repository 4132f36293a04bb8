"""No model is judged on patients that it learned from, here or before; nothing is trained here."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from configs import cem_mixed, cem_real
from elk_jax import files
from elk_jax.data.sources.patients import patient_hash
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.experiments.patients import Listed, check_apart
from elk_jax.synthesis import phantom
from elk_jax.tasks.origins import foreign_models, training_sources
from tests.experiments.checks import PATIENTS, assert_refused, on_files
from tests.models import EARLIER, save_earlier
from tests.refusals import refused


def test_a_patient_of_the_test_is_not_trained_on_in_another_file(ran, coco, tmp_path):
    swapped = {"train": PATIENTS["test"], "test": PATIENTS["train"], "val": PATIENTS["val"]}
    config = on_files(real=coco("real"), synthetic=coco("painted", swapped))
    words = "patient D", "'synthetic'", "'test'", "'real'", "patient_id"
    assert_refused(config, tmp_path / "run", *words, where="stage evaluate")
    config.stages.evaluate.split = "train"  # to look at training images is no mistake
    run_experiment(config, tmp_path / "run")
    config.stages.evaluate.split = ""  # but not among all images
    config.data.synthetic.spec = coco("painted", {"train": ("A", "E")})
    assert_refused(config, tmp_path / "all", "patient A", "'train' split", where="stage evaluate")
    assert ran == ["synthetic", "evaluate"]


def test_a_patient_of_the_validation_is_not_trained_on(ran, coco, tmp_path):
    config = on_files(real=coco("real"), synthetic=coco("painted", {"train": ("E", "C")}))
    assert_refused(config, tmp_path / "run", "patient C", "'val'", "'real'", where="stage synthetic")
    config.data.synthetic.spec = coco("painted", {"train": ("E", "A")})  # of the training patients, as painted ones are
    run_experiment(config, tmp_path / "run")
    assert ran == ["synthetic", "evaluate"]


def test_a_patient_is_one_however_another_file_writes_it():
    experiment = parse(on_files(real="coco:a.json", synthetic="coco:b.json"))
    listed = lambda split, *ids: Listed(("mass",), frozenset((i, split) for i in ids), frozenset(ids), 1)
    evaluated = {("real", "test"): listed("test", "P3", "P8")}
    for training, word in ((("3.0", "7"), "(as 3.0)"), (("P8", "3"), "1 more"), (("P33", "7"), "")):
        look = evaluated | {("synthetic", "train"): listed("train", *training)}
        with refused("patient P3", word, "'real'") if word else nullcontext():
            check_apart(experiment, experiment.stages["evaluate"], lambda *place, look=look: look[place])


def test_images_without_patients_count_by_their_ids(coco, tmp_path):
    unnamed = dict.fromkeys(PATIENTS, ("",))
    config = on_files(real=coco("real", unnamed), synthetic=coco("painted", {"train": ("", "")}))
    assert_refused(config, tmp_path / "run", "patient 2", "'val'")


def test_what_a_model_was_trained_on_before_counts(ran, coco, tmp_path):
    """Weights of an earlier stage, and canvases that lesions are painted into."""
    config = on_files(cem_mixed, real=coco("real"), synthetic=coco("painted", {"train": ("D", "E")}))
    config.stages.mixed.train_on = ("real",)
    config.stages.mixed.init_from = "synthetic"
    config.stages.evaluate.models = ("mixed",)
    assert training_sources(parse(config), "mixed") == ["real", "synthetic"]
    assert_refused(config, tmp_path / "run", "patient D", "'synthetic'", "mixed", where="stage evaluate")

    config = cem_mixed.get_config("tiny")
    assert training_sources(parse(config), "synthetic") == training_sources(parse(config), "lesions") == ["real"]
    config.data.canvases = dict(config.data.real.to_dict(), spec=coco("canvases", {"train": ("C",)}))
    config.data.real.spec = coco("real")
    config.stages.lesions.canvases = "canvases"
    assert training_sources(parse(config), "synthetic") == ["canvases", "real"]
    assert_refused(config, tmp_path / "run", "patient C", "'canvases'", where="stage synthetic")


def test_what_a_model_from_elsewhere_was_trained_on_counts(ran, coco, tmp_path):
    model = tmp_path / "theirs"

    def trained_on(*patients: str) -> None:
        save_earlier(model, {}, EARLIER | {"trained": {"patients": [patient_hash(name) for name in patients]}})

    config = on_files(cem_real, real=coco("real"))
    config.stages.real.init_from = str(model)
    for patient, split in (("C", "val"), ("D", "test")):
        trained_on("A", patient, "X")
        assert_refused(config, tmp_path / "run", f"patient {patient}", model, f"'{split}'", "'real'")
    trained_on("A", "X")
    run_experiment(config, tmp_path / "run")
    assert ran == ["real", "evaluate"]

    config = cem_mixed.get_config("tiny")
    config.data.real.spec = coco("real")
    config.stages.inpainter.init_from = str(model)
    assert foreign_models(parse(config), "mixed") == foreign_models(parse(config), "lesions") == [str(model)]
    trained_on("D")
    assert_refused(config, tmp_path / "mixed", "patient D", "mixed", where="stage evaluate")

    unnamed = on_files(cem_real, real=coco("unnamed", dict.fromkeys(PATIENTS, ("",))))
    unnamed.stages.real.init_from = str(model)
    trained_on("2", "3")  # as the images of many files are numbered
    run_experiment(unnamed, tmp_path / "unnamed")


def test_what_the_painter_of_a_given_set_was_trained_on_counts(ran, coco, tmp_path):
    painted = coco("painted")
    path = Path(painted.removeprefix("coco:"))
    content = files.read_json(path)
    files.write_json(path, content | {"info": {"seen_patients": [patient_hash("D"), patient_hash("A")]}})
    config = on_files(real=coco("real"), synthetic=painted)
    assert_refused(config, tmp_path / "run", "patient D", "painter", "'synthetic'", "'test'", "'real'")
    files.write_json(path, content | {"info": {"seen_patients": [patient_hash("A")]}})
    run_experiment(config, tmp_path / "run")
    assert ran == ["synthetic", "evaluate"]


def test_a_finished_training_is_judged_without_its_data(ran, coco, tmp_path):
    config = on_files(real=coco("real"), synthetic=coco("painted", {"train": ("E",)}))
    run_experiment(config, tmp_path / "run")
    (tmp_path / "painted.json").unlink()
    run_experiment(config, tmp_path / "run")
    run_experiment(config, tmp_path / "run", ["evaluate"])
    assert ran == ["synthetic", "evaluate", "evaluate"]


def test_phantoms_of_other_seeds_are_other_patients():
    small = phantom.PhantomConfig(size=64)
    assert phantom.sample(1, 5, small).patient_id == phantom.patient_id(1, 5) == phantom.patient_id(1, 4)
    assert len({phantom.patient_id(seed, index) for seed in (1, 2) for index in (0, 4)}) == 4
