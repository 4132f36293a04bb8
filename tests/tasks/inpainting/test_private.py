"""An inpainter is trained privately, and paints into images that need no protection."""

from __future__ import annotations

import pytest

from configs import inpaint_cem
from elk_jax import files
from elk_jax.data.batches import crops
from elk_jax.data.sources import phantom
from elk_jax.data.sources.patients import patient_hash
from elk_jax.experiments.experiment import run_experiment
from elk_jax.tasks.inpainting import model as inpainters
from elk_jax.training.writer import read_metrics
from tests.refusals import refused


def config_with(**settings):
    config = inpaint_cem.get_config("tiny,private")
    config.inpainter.privacy.update({"epsilon": None, "noise_multiplier": 1.0, "accountant": "rdp", **settings})
    config.inpainter.steps = 2
    return config


@pytest.fixture(scope="module")
def private_run(tmp_path_factory):
    """Two steps, with public close-ups beside the private ones."""
    folder, config = tmp_path_factory.mktemp("private"), config_with(public_weight=0.5)
    config.stages.inpainter.public = ("canvases",)
    return folder, run_experiment(config, folder)


def test_the_model_keeps_its_promise_and_nothing_of_its_patients(private_run):
    folder, summaries = private_run
    _, _, description = inpainters.load(folder / "inpainter" / "model")
    promise, counts = description.trained.privacy, summaries["inpainter"]["data"]
    assert promise.private and promise.ledger.unit == "patient" and promise.ledger.phases[0].steps == 2
    protected = set(map(patient_hash, phantom.patients(config_with().data.real.spec.partition(":")[2], "train")))
    assert not protected & set(description.trained.patients) and list(counts["train"]) == ["units"]
    assert counts["public"]["lesions"] > 0
    keys = {key for line in read_metrics(folder / "inpainter" / "metrics.jsonl") for key in line}
    assert not {"train/loss", "train/error_lesion"} & keys and {"eval/loss", "train/public_loss"} <= keys
    page, quality = (folder / "report.html").read_text(), (folder / "lesion_quality" / "evaluation.json").read_text()
    known = phantom.patients(config_with().data.real.spec.partition(":")[2], "train")
    assert known and not any(patient in text for patient in known for text in (page, quality))
    assert promise.sentence() in page and "is not private" not in page


def test_sizes_and_contrast_are_those_of_the_validation_lesions(private_run, monkeypatch, tmp_path):
    """What the folder says beside the weights does not change with the training images."""
    folder, _ = private_run
    opened = []
    monkeypatch.setattr(crops, "lesion_sizes", lambda source, *a: opened.append({i.split for i in source.infos}))
    with pytest.raises(TypeError):  # sizes are None now
        run_experiment(config_with(), tmp_path, stages=["inpainter"])
    assert opened == [{"val"}]
    assert inpainters.load(folder / "inpainter" / "model").description.areas["free"].area[0] > 0


def test_lesions_are_painted_into_canvases_that_need_no_protection(private_run):
    folder, _ = private_run
    records = [files.read_object(path) for path in (folder / "lesions" / "provenance").iterdir()]
    assert records and all(record["trained"]["privacy"]["private"] for record in records)
    assert "patients" not in records[0]["trained"]
    info = files.read_object(folder / "lesions" / "synthetic.json")["info"]
    assert info["promise"] and "the canvases themselves are not protected" in info["description"]


def test_windows_are_not_cached_in_a_private_training(tmp_path):
    config = config_with()
    config.inpainter.cached_windows = 2
    with refused("private", where="config.inpainter.cached_windows"):
        run_experiment(config, tmp_path, stages=["inpainter"])
