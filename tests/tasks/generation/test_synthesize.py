"""Patches drawn by a trained generator: what each follows from, and how they lie on disk."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest

from configs import mcgan
from elk_jax import files
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.experiments.experiment import run_experiment
from elk_jax.tasks.generation import export, synthesize
from elk_jax.tasks.generation import model as generators
from elk_jax.tasks.generation.recipe import SampleSettings
from elk_jax.training import mesh as meshes
from elk_jax.weights import model_folder
from tests.refusals import refused
from tests.tasks.generation.test_train import write


def draw(run, output, count, seed=42, model="model", **settings):
    return synthesize.sample(run / "gan" / model, count, output, SampleSettings(**settings), seed, meshes.make_mesh())


def pixels(folder, name):
    return cv2.imread(str(folder / "images" / name), cv2.IMREAD_UNCHANGED)


def test_a_stage_leaves_coco_and_folders_of_the_same_patches(run):
    output = run / "samples"
    by_coco = open_source(SourceSpec(f"coco:{output / 'synthetic.json'}"))
    by_folder = open_source(SourceSpec(f"folders:{output / 'images'}"))
    assert len(by_coco) == len(by_folder) == 12
    assert by_coco.classes == by_folder.classes == ("benign", "malignant")
    for one, other in zip(by_coco.infos, by_folder.infos):
        assert (one.file_name, one.labels.tolist()) == (other.file_name, other.labels.tolist())
        assert one.boxes.tolist() == [[0, 0, 16, 16]] and one.split == "train"
    info = by_coco.infos[7]
    assert {"synthetic": True, "class": "malignant", "seed": 42, "number": 1}.items() <= info.meta.items()
    image = by_coco[7].image
    assert image.shape == (16, 16, 1) and 0 <= image.min() < image.max() <= 1


def test_the_set_says_who_drew_it_and_whom_that_has_seen(run):
    said = files.read_object(run / "samples" / "synthesis.json")
    assert said["model"] == files.fingerprint(run / "gan" / "model") and said["classes"] == ["benign", "malignant"]
    assert said["trained"]["step"] == 6 and "patients" not in said["trained"]
    seen = open_source(SourceSpec(f"coco:{run / 'samples' / 'synthetic.json'}")).seen_patients
    assert seen == set(model_folder.seen_patients(run / "gan" / "model")) and len(seen) == 9


def test_a_patch_follows_from_seed_class_and_number(run, tmp_path):
    """Whatever is drawn with it, however many at once."""
    draw(run, tmp_path / "some", 2, classes=("malignant",), batch_size=1)
    for number in range(2):
        name = f"malignant/{number:06d}.png"
        np.testing.assert_allclose(pixels(tmp_path / "some", name), pixels(run / "samples", name), atol=1)
    assert not (tmp_path / "some" / "images" / "benign").exists()
    draw(run, tmp_path / "other", 1, seed=1)
    assert (pixels(tmp_path / "other", "benign/000000.png") != pixels(run / "samples", "benign/000000.png")).any()
    assert (pixels(run / "samples", "benign/000000.png") != pixels(run / "samples", "benign/000001.png")).any()


def test_a_generator_without_steps_takes_no_settings_of_them(run, tmp_path):
    with refused("guidance and sampler_steps", "denoise", where=run / "gan" / "model"):
        draw(run, tmp_path / "out", 1, guidance=2.0, sampler_steps=5)


def test_settings_of_a_denoiser_are_refused_before_another_generator_is_trained(tmp_path):
    config = mcgan.get_config("tiny")
    config.stages.samples.guidance = 2.0
    with refused("guidance", "denoise", where="config.stages.samples"):
        run_experiment(config, tmp_path / "run", stages=["gan", "samples"])
    assert not (tmp_path / "run" / "gan").exists()


def test_an_interrupted_set_is_resumed_and_a_set_grows(run, tmp_path, monkeypatch):
    output = shutil.copytree(run / "samples", tmp_path / "samples")
    lost = output / "images" / "benign" / "000002.png"
    kept = output / "images" / "malignant" / "000003.png"
    before, untouched = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    (output / "synthetic.json").unlink()
    asked = []
    drawn = synthesize.drawn
    monkeypatch.setattr(synthesize, "drawn", lambda s, p, labels, numbers, *rest: asked.extend(
        zip(labels.tolist(), numbers.tolist())) or drawn(s, p, labels, numbers, *rest))  # fmt: skip
    draw(run, output, 7)
    assert asked == [(0, 2 * 2), (0, 6 * 2), (1, 6 * 2 + 1)]
    difference = cv2.imdecode(np.frombuffer(before, np.uint8), 0).astype(int) - pixels(output, "benign/000002.png")
    assert np.abs(difference).max() <= 1 and kept.stat().st_mtime_ns == untouched
    assert len(open_source(SourceSpec(f"coco:{output / 'synthetic.json'}"))) == 14


def test_a_set_does_not_shrink(run, tmp_path):
    """Its folders of classes would hold more than its COCO file."""
    output = shutil.copytree(run / "samples", tmp_path / "samples")
    before = (output / "synthetic.json").read_bytes()
    with refused("benign/000005.png", where=output / "images"):
        draw(run, output, 5)
    assert (output / "synthetic.json").read_bytes() == before and len(list(output.glob("images/*/*.png"))) == 12


def test_images_of_another_program_are_not_taken_for_drawn_ones(run, tmp_path):
    shutil.copytree(run / "samples" / "images", tmp_path / "images")
    with refused("unknown origin", where=tmp_path):
        draw(run, tmp_path, 6)
    assert not (tmp_path / "synthetic.json").exists()


@pytest.mark.parametrize("again", [False, True])
def test_a_stage_is_refused_a_class_before_anything_is_trained(run, tmp_path, again):
    """By the classes of the data; of a trained generator by its own."""
    config = mcgan.get_config("tiny")
    config.data.patches.spec = f"folders:{write(tmp_path / 'data')}"
    config.stages.samples.classes = ("normal",)
    if again:
        config.stages.samples.model = str(run / "gan" / "model")
    with refused("'normal'", "benign, malignant", where="config.stages.samples.classes"):
        run_experiment(config, tmp_path / "run", stages=["samples"] if again else ["gan", "samples"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "../../a"])
def test_a_class_that_cannot_be_a_folder_is_refused(name):
    with refused(repr(name), "slashes", where="data"):
        generators.check_names(("benign", name), "data")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"seed": 1}, ["seed", 42, 1]), ({"classes": ("benign",)}, ["classes", "benign"])],
)
def test_a_set_is_not_resumed_with_other_settings(run, tmp_path, change, words):
    output = shutil.copytree(run / "samples", tmp_path / "samples")
    with refused(*words, where=output):
        draw(run, output, 6, **change)


def test_a_class_that_the_generator_does_not_know_is_refused(run, tmp_path):
    with refused("'normal'", "benign, malignant", where="classes"):
        draw(run, tmp_path / "out", 1, classes=("normal",))
    with refused(0, where="count"):
        draw(run, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_model_is_refused(run, tmp_path):
    model_folder.save_params(tmp_path / "gan" / "model", {"a": np.zeros(1)}, {"architecture": "inpainter"})
    with refused("'inpainter'", "generator", where=tmp_path / "gan" / "model"):
        draw(tmp_path, tmp_path / "out", 1)


def test_an_exported_generator_says_whom_it_has_seen(run, tmp_path, capsys):
    export.export_folder(run / "gan" / "model", tmp_path / "out", export.ExportSettings("00101_MCGAN_TEST"))
    assert "00101_MCGAN_TEST" in capsys.readouterr().out
    (entry,) = files.read_object(tmp_path / "out" / "config" / "global.json").values()
    assert set(entry["description"]["seen_patients"]) == model_folder.seen_patients(run / "gan" / "model")
    assert "Not private" in entry["selection"]["privacy"]
