"""Drawn patches against real ones: the stage, its measures, its report, and sets that cannot be compared."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from configs import mcgan
from elk_jax import files
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.distances.compare import Settings, compare
from elk_jax.distances.sets import ImageSet
from elk_jax.errors import UserError
from elk_jax.evaluation import appearance, frechet
from elk_jax.experiments import report
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.output import Console
from elk_jax.tasks.generation import evaluate
from elk_jax.tasks.generation.page import (
    Compared,
    frd_rows,
    notes_of,
    rows_of,
    samples_section,
    samples_tables,
    verdict,
)
from elk_jax.tasks.generation.report import compared
from elk_jax.tasks.run import Run
from tests.refusals import refused
from tests.tasks.generation.test_train import write


def test_the_stage_leaves_measures_and_pictures(run):
    found = files.read_object(run / "looks" / "evaluation.json")
    assert list(found["classes"]) == ["all", "benign", "malignant"] and found["size"] == 16
    counts = {name: (one["real"], one["made"]) for name, one in found["classes"].items()}
    assert counts["all"] == tuple(a + b for a, b in zip(counts["benign"], counts["malignant"]))
    assert counts["benign"][1] == 6
    for name in ("benign", "malignant"):
        picture = cv2.imread(str(run / "looks" / "pictures" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        assert picture.shape == (2 * 16, 6 * 16)


def test_the_quality_of_lesions_is_measured_of_whole_patches(run):
    found = files.read_object(run / "quality" / "evaluation.json")
    assert found["counts"]["synthetic"] == 12 and found["counts"]["left_out"] == 0
    assert len(found["memorised"]["similarity"]) == 12


def test_the_report_shows_curves_progress_and_patches(run):
    one = Run(parse(mcgan.get_config("tiny")), run, mesh=None)
    summaries = {name: files.read_object(run / name / "finished.json")["summary"]
                 for name in ("gan", "samples", "looks", "quality")}  # fmt: skip
    page = report.write(one, summaries).read_text()
    for title in ("Synthetic patches", "Progress of the generator", "Generator training", "Synthetic lesions"):
        assert f"<h2>{title}</h2>" in page
    (run / "looks" / "pictures" / "another.png").write_bytes((run / "looks/pictures/benign.png").read_bytes())
    shown = compared(run / "looks")  # the picture of a class that the data no longer has is left out
    assert set(shown.grids) == {"benign", "malignant"}
    assert verdict(shown).startswith("Patches of samples: distance")
    assert [row[:3] for row in rows_of(shown.evaluation)][1][:2] == ("benign", "6")


def test_a_set_of_another_program_is_measured_by_the_same_stages(tmp_path):
    """Folders of classes, without splits."""
    config = mcgan.get_config("tiny")
    made = write(tmp_path / "made", splits=("",), seed=1)
    config.data.patches.spec, config.data.samples.spec = f"folders:{write(tmp_path / 'real')}", f"folders:{made}"
    found = run_experiment(config, tmp_path / "run", stages=["looks", "quality"])
    assert found["looks"]["synthetic"] == found["quality"]["synthetic"] == "samples"
    quality = files.read_object(tmp_path / "run" / "quality" / "evaluation.json")
    assert quality["counts"]["synthetic"] == quality["counts"]["real"] == 6
    assert "Synthetic lesions" in (tmp_path / "run" / "report.html").read_text()


def noise(count, seed, size=16):
    return np.random.default_rng(seed).uniform(0, 1, (count, size, size))


def test_equal_sets_are_as_far_apart_as_halves_and_others_further():
    names = np.array(["a", "b"]).repeat(40)
    found = evaluate.compare(noise(80, 0), names, noise(80, 1), names)
    other = evaluate.compare(noise(80, 0), names, 0.5 * noise(80, 1), names)
    for name in ("all", "a", "b"):
        assert found[name]["distance"] == pytest.approx(found[name]["reference"], rel=0.3)
        assert other[name]["distance"] > 3 * other[name]["reference"]
    assert found["a"]["real"] == 40


def test_images_of_a_patient_are_in_one_half():
    """Of four alike images of every patient the other half has none: real ones are as far apart as patients are."""
    patients = [str(number) for number in range(12) for _ in range(4)]
    lights = np.random.default_rng(0).uniform(0, 0.8, 12).repeat(4)
    real = 0.2 * noise(48, 1) + lights[:, None, None]
    names, made = np.array(["a"] * 48), 0.2 * noise(48, 2) + 0.4
    by_image, by_patient = (evaluate.compare(real, names, made, names, 0, (), of)["a"] for of in (None, patients))
    assert by_patient["reference"] > 2 * by_image["reference"]
    halves = frechet.draws(patients, 48, 0)
    expected = np.mean([appearance.distance(real[one.one], made[one.synthetic]) for one in halves])
    assert by_patient["distance"] == pytest.approx(expected, rel=1e-9)


def image_set(which, pictures, patients=()) -> ImageSet:
    titles = tuple(f"{which} {number}" for number in range(len(pictures)))
    return ImageSet(which, tuple(pictures), titles, tuple(patients) or titles, titles)


@pytest.mark.parametrize("kind, title", [("v0", "FRD v0"), ("v1", "FRD v1 (ln d²)")])
def test_radiomics_are_those_of_the_comparison_of_sets(kind, title):
    """The same halves by patient; the comparison of sets is held against frd-score by its own tests."""
    names, patients = np.array(["a", "b"]).repeat(8), [str(i // 2) for i in range(16)]
    real, made = noise(16, 0).astype(np.float32), 0.7 * noise(14, 1).astype(np.float32)
    found = evaluate.compare(real, names, made, names[1:-1], 3, (kind,), patients)
    for name, ours, theirs in (("all", 16, 14), ("a", 8, 7)):
        sets = image_set("real", real[:ours], patients[:ours]), image_set("made", made[:theirs])
        expected, one = compare(*sets, Settings(frd=(kind,), seed=3)).measures[0], found[name]["frd"][kind]
        assert one["made"] == pytest.approx(expected.synthetic.mean, rel=1e-6)
        assert one["real"] == pytest.approx(expected.real.mean, rel=1e-6)
        assert (one["images"], one["features"]) == (expected.images, expected.features)
    assert frd_rows({"classes": found})[0][:2] == (title, "all")


def test_the_terminal_shows_every_number_whole():
    """In its width where there is none, with long names of classes."""
    names = np.array(["benign_without_callback", "malignant"]).repeat(8)
    classes = evaluate.compare(noise(16, 0), names, 0.1 * noise(16, 1), names, 0, ("v0", "v1"))
    found = {"classes": classes, "synthetic": "epsilon_10_samples", "split": "val", "on": "patches"}
    console = Console(width=120, file=io.StringIO())
    for table in samples_tables(found):
        console.print(table)
    printed = console.file.getvalue().split()
    for row in (*rows_of(found), *frd_rows(found)):
        assert set(row[1:]) - set(names) <= set(printed) and "…" not in printed


def test_constant_patches_have_no_radiomics():
    found = evaluate.compare(
        noise(4, 0), np.array(["a"] * 4), np.full((4, 16, 16), 0.5), np.array(["a"] * 4), 0, ("v1",)
    )
    assert found["all"]["frd"]["v1"] == {"made": None, "real": None, "images": 0, "features": 0, "note": ""}
    assert frd_rows({"classes": found})[0][2:4] == ("–", "–")


def test_halves_of_copies_cost_their_own_distance_alone():
    """A class of three patches that are copies, and one other: a half of copies has features that do not vary."""
    names = np.array(["a", "b"]).repeat([12, 4])
    real = noise(16, 0)
    real[12:15] = real[12]
    found = evaluate.compare(real, names, noise(16, 1), names, 0, ("v0", "v1"))
    one = found["b"]["frd"]["v1"]
    assert one["made"] is None and one["real"] is None
    assert "class b" in one["note"] and "v1" in one["note"]
    assert found["b"]["distance"] > 0 and found["b"]["frd"]["v0"]["made"] > 0
    for name in ("a", "all"):
        assert found[name]["frd"]["v1"]["made"] is not None and not found[name]["frd"]["v1"]["note"]
    assert notes_of({"classes": found}) == [one["note"]]
    assert notes_of({"classes": found, "doubt": "no patients"}) == ["no patients", one["note"]]
    assert notes_of({"classes": found, "doubt": ""}) == [one["note"]]
    section = samples_section(Compared({"classes": found, "size": 16, "split": "val", "on": "x", "synthetic": "y"}))
    assert one["note"] in section.html


def test_a_fault_of_the_tables_is_no_missing_distance(monkeypatch):
    def other_features(*_):
        raise UserError("features of two kinds", where="features")

    monkeypatch.setattr(evaluate.frd, "distance", other_features)
    names = np.array(["a"] * 8)
    with refused("two kinds", where="features"):
        evaluate.compare(noise(8, 0), names, noise(8, 1), names, 0, ("v0",))


def test_sets_that_share_a_patch_are_refused(tmp_path):
    """Under whatever name; the same is refused by the comparison of sets."""
    config = mcgan.get_config("tiny")
    real, made = write(tmp_path / "real"), write(tmp_path / "made", splits=("",), seed=1)
    shutil.copy(real / "train" / "benign" / "1.png", made / "malignant" / "copy.png")
    config.data.patches.spec, config.data.samples.spec = f"folders:{real}", f"folders:{made}"
    with refused("1 image is in both", "copy", where="samples"):
        run_experiment(config, tmp_path / "run", stages=["looks"])


def test_a_class_of_one_set_alone_has_no_row():
    found = evaluate.compare(noise(4, 0), np.array(["a", "a", "b", "b"]), noise(4, 1), np.array(["a"] * 4))
    assert set(found) == {"all", "a"}


def test_few_images_have_no_distance():
    found = evaluate.compare(noise(3, 0), np.array(["a"] * 3), noise(3, 1), np.array(["a"] * 3))["a"]
    assert found["distance"] is None and found["reference"] is None and found["checkerboard"] > 0


def test_uniform_patches_have_no_spectrum():
    uniform = np.full((4, 16, 16), 0.5)
    found = evaluate.compare(noise(4, 0), np.array(["a"] * 4), uniform, np.array(["a"] * 4))["a"]
    assert found["checkerboard"] is None and found["real_checkerboard"] > 0 and np.isfinite(found["distance"])
    (_, (name, *cells)) = rows_of({"classes": {"all": found, "a": found}})
    assert name == "a" and "–" in cells


def test_a_checkerboard_is_measured_in_patches_of_any_side(tmp_path):
    """Patches are not scaled where both sets have one size: a checkerboard would not survive that."""
    config = mcgan.get_config("tiny")
    config.data.patches.spec = f"folders:{write(tmp_path / 'real', sizes=((20, 20),))}"
    made = write(tmp_path / "made", sizes=((20, 20),))
    for number, path in enumerate(sorted(made.glob("*/*/*.png"))):
        board = 100 + number + 50 * (np.indices((20, 20)).sum(0) % 2)
        cv2.imwrite(str(path), board.astype(np.uint8))
    config.data.samples.spec = f"folders:{made}"
    run_experiment(config, tmp_path / "run", stages=["looks"])
    found = files.read_object(tmp_path / "run" / "looks" / "evaluation.json")
    assert found["size"] == 20 and found["classes"]["all"]["checkerboard"] == pytest.approx(1)
    assert "name no patient" in found["doubt"]  # halves by patient would need their names


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"sizes": ((16, 16), (24, 24))}, ["24 x 24 px"]),
        ({"sizes": ((4, 4),)}, ["4 px", "8 px or more"]),
        ({"classes": ("benign", "normal")}, ["'normal'", "benign, malignant"]),
    ],
)
def test_sets_that_cannot_be_compared_are_refused_before_the_first_stage(tmp_path, layout, words):
    config = mcgan.get_config("tiny")
    config.data.patches.spec = f"folders:{write(tmp_path / 'real')}"
    config.data.samples.spec = f"folders:{write(tmp_path / 'made', **layout)}"
    with refused(*words) as raised:
        run_experiment(config, tmp_path / "run", stages=["looks"])
    assert "--" not in raised.value.todo  # no setting scales them
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["all", "mass/benign"])
def test_classes_whose_measures_could_not_be_written_under_their_name_are_refused(tmp_path, name):
    source = open_source(SourceSpec(f"folders:{write(tmp_path / 'made')}"))
    with refused(repr(name), where=source.name):
        evaluate.check_source(replace(source, classes=("benign", name)))


def test_a_class_of_one_image_is_refused(tmp_path):
    folder = write(tmp_path / "made")
    for number in (1, 2):
        for split in ("train", "val"):
            (folder / split / "benign" / f"{number}.png").unlink()
    (folder / "val" / "benign" / "0.png").unlink()
    with refused("benign", 2):
        evaluate.check_source(open_source(SourceSpec(f"folders:{folder}")))
