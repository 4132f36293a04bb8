"""The prediction of detectors over volumes: findings, their file and their pictures."""

from __future__ import annotations

import json
import shutil
from threading import Lock

import cv2
import numpy as np
import pytest

from elk_jax.data import half_precision
from elk_jax.data.slice_greys import slices_in
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.data.sources.volumes import volumes_of
from elk_jax.evaluation import submission
from elk_jax.evaluation.volumes import evaluate_volumes
from elk_jax.tasks.detection import predict, volumes
from elk_jax.training.mesh import make_mesh
from tests.data.sources import dbt_files
from tests.data.sources.dicom_files import make
from tests.refusals import refused


def test_whole_volumes_are_seen_in_the_greys_that_the_model_folder_names(folder, trained, tmp_path):
    """As they are seen where the slices themselves are changed; images of a source of slices are not."""
    mesh, own = make_mesh(), trained("own")
    source = predict.without_truth(open_source(SourceSpec(f"bcs_dbt:{folder}", slices="all"), "train"))
    changed = slices_in(source, "own")
    found, expected, plain = (
        volumes.detect_volumes(one, volumes_of(of), mesh, volumes.RULES["comoto"])
        for one, of in ((own, source), (trained("window"), changed), (trained("window"), source))
    )
    scores = [np.concatenate([one.scores for one in by_slice]) for _, by_slice in (found, expected, plain)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert len(scores[0]) and scores[0].tolist() != scores[2].tolist()
    for one, other in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
    images = predict.detect_with(own, source, mesh)
    members = predict.members_views([own, trained("window")], (1.0,), source, mesh, whole_volumes=True)
    (of_own,), (of_other,) = members
    assert [one.scores.tolist() for one in of_other] == [one.scores.tolist() for one in images]
    assert [one.scores.tolist() for one in of_own] != [one.scores.tolist() for one in images]


def test_slices_have_eight_bits_also_where_the_files_of_the_training_had_sixteen(folder, trained, caplog, monkeypatch):
    """In which white would be infinite."""
    monkeypatch.setattr(half_precision, "_WARNED", Lock())
    source = open_source(SourceSpec(f"bcs_dbt:{folder}", slices="all"), "train")
    one = volumes_of(source)[:1]
    found, _ = volumes.detect_volumes(trained("own", 65535), one, make_mesh(), volumes.RULES["comoto"])
    assert not caplog.text and np.isfinite(found[0].scores).all() and len(found[0].scores)


def test_findings_in_files_are_written_with_their_pages(folder, model, tmp_path):
    stack = tmp_path / "stack"
    stack.mkdir()
    for k in range(5):
        image = np.zeros((40, 60), np.uint8)
        image[10:20, 30:45] = 255 if k in (2, 3) else 0
        cv2.imwrite(str(stack / f"{k}.png"), image)
    settings = predict.PredictSettings(volumes=True)
    how = {"model": model, "decoding": SourceSpec(), "output": tmp_path / "out", "settings": settings}
    volumes.predict_inputs(inputs=[str(stack), str(folder)], on_error="stop", **how)
    entries = json.loads((tmp_path / "out" / "findings.json").read_text())
    of_stack = [entry for entry in entries if entry["volume"] == str(stack)]
    assert [(e["slice"], e["slices"], e["box_xyxy"], e["finding"]) for e in of_stack] == [
        (2, [2, 3], [30, 10, 45, 20], True)
    ]
    rows = (tmp_path / "out" / "findings.csv").read_text().splitlines()
    assert rows[0] == ",".join((*submission.KEY, *submission.NUMBERS)) and len(rows) == 1 + len(entries) == 8
    assert rows[1].rpartition(",")[0] == f"{stack},{stack},,30,15,10,10,2,1"
    assert float(rows[1].rpartition(",")[2]) == pytest.approx(0.9)
    assert (tmp_path / "out" / "report.html").read_text().count("<figure>") == 2 * 7
    with refused("skip", where="--on_error"):
        volumes.predict_inputs(inputs=[str(stack)], on_error="skip", **how)
    with refused("an image", "folder", where=stack / "0.png"):
        volumes.predict_inputs(inputs=[str(stack / "0.png")], on_error="stop", **how)
    how["settings"] = predict.PredictSettings()
    with refused("tables", "--volumes", where=f"bcs_dbt:{folder}"):
        volumes.predict_inputs(inputs=[f"bcs_dbt:{folder}"], on_error="stop", **how)


def test_a_rule_for_volumes_is_refused_where_the_inputs_are_images():
    with refused("--volumes", where="volume_rule"):
        predict.PredictSettings(volume_rule="comoto")
    assert predict.PredictSettings(volume_rule="comoto", volumes=True).volume_rule == "comoto"


def test_a_collection_without_labels_gives_the_file_that_the_challenge_takes(folder, model, tmp_path):
    """Its volumes hang as their views say, and its rows have the names of the tables: judged beside the boxes, all
    lesions are found."""
    blind = tmp_path / "blind"
    shutil.copytree(folder, blind, ignore=shutil.ignore_patterns("*labels*", "*boxes*"))
    how = {"model": model, "decoding": SourceSpec(), "settings": predict.PredictSettings(volumes=True)}
    volumes.predict_volumes(inputs=[f"bcs_dbt:{blind}"], output=tmp_path / "out", **how)
    truths = [volumes.truth_of(one) for one in volumes_of(open_source(SourceSpec(f"bcs_dbt:{folder}", slices="all")))]
    found = submission.read(tmp_path / "out" / "findings.csv", truths)
    assert sum(len(one.found.scores) for one in found) == len(dbt_files.BOXES)
    assert "DBT-P3,DBT-S3,rmlo,30,10,8,12,6,0," in (tmp_path / "out" / "findings.csv").read_text()
    assert evaluate_volumes(found, resamples=0)["metrics"]["mean_sensitivity_positive"]["value"] == 1
    with refused("two files", str(blind), str(folder)):  # of other folders, by the same names
        volumes.predict_volumes(inputs=[f"bcs_dbt:{folder}", f"bcs_dbt:{blind}"], output=tmp_path / "again", **how)
    next(blind.rglob("*.dcm")).unlink()
    with refused("1 of 6 volumes have no file", where=f"bcs_dbt:{blind}"):
        volumes.predict_volumes(inputs=[f"bcs_dbt:{blind}"], output=tmp_path / "again", **how)
    with refused("no such folder", where=f"bcs_dbt:{tmp_path / 'none'}"):
        volumes.predict_volumes(inputs=[f"bcs_dbt:{tmp_path / 'none'}"], output=tmp_path / "again", **how)
    assert not (tmp_path / "again").exists()


def test_two_files_of_one_volume_are_refused_and_two_volumes_of_one_view_are_named(tmp_path, model, capsys):
    of = {"StudyInstanceUID": "1.2.3", "ImageLaterality": "L", "ViewPosition": "CC"}
    dark = np.zeros((3, 64, 48), np.uint16)
    data = [make(dark, bits=16, SharedFunctionalGroupsSequence=dbt_files.GROUPS, **of) for _ in range(2)]
    for name, one in (("a", data[0]), ("b", data[1]), ("c", data[0])):
        (tmp_path / f"{name}.dcm").write_bytes(one)
    how = {
        "model": model,
        "decoding": SourceSpec(),
        "output": tmp_path / "out",
        "settings": predict.PredictSettings(volumes=True),
    }
    with refused("two files", "a.dcm", "c.dcm"):
        volumes.predict_volumes(inputs=[str(tmp_path / "a.dcm"), str(tmp_path / "c.dcm")], **how)
    assert not (tmp_path / "out").exists()
    volumes.predict_volumes(inputs=[str(tmp_path / "a.dcm"), str(tmp_path / "b.dcm")], **how)
    printed = " ".join(capsys.readouterr().out.split())
    assert "two volumes of the study 1.2.3 and the view 'lcc'" in printed


def test_pictures_of_an_earlier_prediction_are_removed(tmp_path, model):
    volume = make(np.zeros((3, 64, 48), np.uint16), bits=16, SharedFunctionalGroupsSequence=dbt_files.GROUPS)
    (tmp_path / "a.dcm").write_bytes(volume)
    out = tmp_path / "out"
    (out / "pictures").mkdir(parents=True)
    for name in ("findings.json", "pictures/0000_b.png", "pictures/mine.png"):
        (out / name).write_text("[]")
    settings = predict.PredictSettings(volumes=True)
    volumes.predict_volumes(
        model=model, inputs=[str(tmp_path / "a.dcm")], decoding=SourceSpec(), output=out, settings=settings
    )
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["mine.png"]
    assert (out / "report.html").is_file() and (out / "findings.csv").is_file()


def test_a_volume_that_is_given_twice_counts_once(tmp_path, model):
    volume = make(np.zeros((3, 64, 48), np.uint16), bits=16, SharedFunctionalGroupsSequence=dbt_files.GROUPS)
    (tmp_path / "a.dcm").write_bytes(volume)
    slices = tmp_path / "slices"
    slices.mkdir()
    for k in range(2):
        cv2.imwrite(str(slices / f"{k}.png"), np.full((64, 48), 10 * k, np.uint8))
    twice = [tmp_path / "a.dcm", slices / ".." / "a.dcm", slices, tmp_path / "." / "slices" / ".." / "slices"]
    how = {"model": model, "decoding": SourceSpec(), "settings": predict.PredictSettings(volumes=True)}
    results = volumes.predict_volumes(inputs=[*map(str, twice)], output=tmp_path / "out", **how)
    assert [result.truth.slices for result in results] == [3, 2]
    linked = tmp_path / "linked"
    linked.mkdir()
    for k in range(3):
        (linked / f"{k}.png").symlink_to(slices / f"{k % 2}.png")
    ordered = [str(place) for place in (slices, tmp_path / "a.dcm", slices, linked)]
    results = volumes.predict_volumes(inputs=ordered, output=tmp_path / "again", **how)
    assert [result.truth.slices for result in results] == [2, 3, 3], "a folder that links to slices is another volume"
