"""What a detector sees of a source, and its way back into the pixels of the whole images; findings in files."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from elk_jax.data import breast
from elk_jax.data.augment import Resize
from elk_jax.data.batches.detection import LoaderConfig, eval_batches
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.detection import faster_rcnn_config
from elk_jax.evaluation.detections import Detections, above, join
from elk_jax.evaluation.operating import ChosenOn, OperatingPoint
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.detection import predict
from elk_jax.tasks.detection.model import Ensemble, Input, Trained, at_scale
from elk_jax.tasks.detection.predict import PredictSettings
from elk_jax.tasks.run import MOST_LINES, SKIPPED
from tests.data.sources.dicom_files import make as dicom_file
from tests.refusals import refused

BREAST = np.array([30, 10, 60, 40])  # x0, y0, x1, y1 of the bright part of a 100 x 60 px image


def _paint(position: int) -> np.ndarray:
    image = np.zeros((60, 100, 1), np.float32)
    x0, y0, x1, y1 = BREAST
    image[y0:y1, x0:x1] = 0.5
    return image


@pytest.fixture
def source() -> ImageSource:
    """One image whose lesion reaches far out of the breast."""
    info = ImageInfo(
        image_id="1",
        patient_id="P",
        width=100,
        height=60,
        boxes=np.array([[50, 20, 95, 35]], np.float32),
        labels=np.zeros(1, np.int32),
        ignore=np.zeros(1, bool),
    )
    return ImageSource("painted", ("lesion",), (info,), partial(_paint))


def fused(view, flips=()):
    views = predict.detect_views(None, None, view, {1.0: LoaderConfig()}, None, flips=flips)
    return predict.together([*views.values()], 0.0)


def test_a_detector_sees_the_breast_and_answers_in_the_whole_image(source, monkeypatch):
    view = predict.view(source, crop_to_breast=True)
    (window,) = view.windows
    pad = 2  # 2 % of 100 px
    np.testing.assert_array_equal(window, BREAST + [-pad, -pad, pad, pad])  # not widened to x = 95
    (seen,) = view.source.infos
    assert (seen.width, seen.height, len(seen.boxes)) == (34, 34, 0)

    found = Detections(np.array([[1.0, 2.0, 11.0, 12.0]]), np.array([0.9]), np.array([0]))
    monkeypatch.setattr(predict, "detect", lambda *arguments: join(view.source.infos, {"1": found}))
    (result,) = fused(view)
    np.testing.assert_array_equal(result.boxes, [[29, 10, 39, 20]])
    np.testing.assert_array_equal(result.gt_boxes, source.infos[0].boxes)
    assert (result.width, result.height) == (100, 60)


def test_mirrored_views_are_brought_back_and_fused(source, monkeypatch):
    """A detector that knows the left half of what it sees alone: each view tells of another part of the image."""

    def detect_left(predictor, params, seen, *arguments):
        image = seen[0].image[..., 0]
        rows, columns = np.nonzero(image[:, : image.shape[1] // 2])
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return join(seen.infos, {"1": Detections(np.array([box], float), np.array([0.8]), np.array([0]))})

    monkeypatch.setattr(predict, "detect", detect_left)
    view = predict.view(source, crop_to_breast=False)
    (plain,) = fused(view)
    (mirrored,) = fused(view, ("horizontal",))
    (both,) = fused(view, ("horizontal", "vertical", "both"))
    x0, y0, x1, y1 = BREAST
    np.testing.assert_array_equal(plain.boxes, [[x0, y0, 50, y1]])
    assert mirrored.boxes[0].tolist() == [x0, y0, 50, y1] and mirrored.scores[0] == pytest.approx(0.4)
    assert both.boxes[0].tolist() == [x0, y0, 50, y1] and both.scores[0] == pytest.approx(0.4)
    assert {tuple(box) for box in both.boxes} == {(x0, y0, 50, y1), (50, y0, x1, y1)}


def test_every_scale_has_its_own_canvas_and_all_mirrored_views(source, monkeypatch):
    asked = []

    def found(predictor, params, seen, config, mesh, score_floor, title, pad):
        asked.append((config.buckets, pad, title.strip()))
        return join(seen.infos, {"1": Detections(np.array([BREAST], float), np.array([0.8]), np.array([0]))})

    monkeypatch.setattr(predict, "detect", found)
    entry = Input(False, Resize(jitter=(1.0, 1.0)), ((64, 128),), ("horizontal",), scales=(1.0, 1.1))
    inputs = {scale: predict.input_of(at_scale(entry, scale), source.infos) for scale in entry.scales}
    views = predict.detect_views(None, None, predict.view(source, False), inputs, None, flips=entry.flips)
    assert list(views) == predict.looks(entry.flips, entry.scales)
    assert [one[:2] for one in asked] == [(((64, 128),), False)] * 2 + [(((70, 141),), True)] * 2
    titles = [title for *_, title in asked]
    assert titles[0] == "detecting" and "horizontal" in titles[1] and "1.1" not in titles[1]
    assert "1.1" in titles[2] and "horizontal" not in titles[2] and "1.1" in titles[3] and "horizontal" in titles[3]


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.01, 1.25])
def test_images_have_exactly_the_scale_that_is_asked_for_within_a_padded_canvas(source, scale):
    config = replace(LoaderConfig(), resize=Resize(jitter=(1.0, 1.0)), buckets=((60, 100),), batch_size=1)
    (batch,) = eval_batches(source, at_scale(config, scale), pad=scale != 1)
    np.testing.assert_array_equal(batch["image_size"][0], np.round(np.array([60, 100]) * scale))
    assert batch["image"].shape[1:3] == {0.8: (64, 96), 1.0: (60, 100), 1.01: (64, 128), 1.25: (96, 128)}[scale]
    assert not batch["image"][0, round(60 * scale) :].any() and not batch["image"][0, :, round(100 * scale) :].any()


@pytest.mark.parametrize("flips, floors, scores", [(("horizontal",), [0.05], [0.5]), ((), [0.6, 0.02], [0.8])])
def test_fused_views_have_the_floor_of_the_model_and_not_of_who_asks(source, monkeypatch, flips, floors, scores):
    """A box that scores 0.8 and, mirrored, 0.2: 0.5 together, whoever asks for boxes above 0.45; not 0.4."""
    settings = faster_rcnn_config.detectron2(score_floor=0.05)
    detector = SimpleNamespace(config=settings, tested_images=1, init=None)
    description = SimpleNamespace(
        classes=("lesion",), input=Input(False, Resize(jitter=(1.0, 1.0)), ((64, 128),), flips)
    )
    asked: list[float] = []

    def found(predictor, params, seen, *arguments):
        score_floor = arguments[2]
        asked.append(score_floor)
        mirrored = bool(flips) and len(asked) % 2 == 0
        x0, y0, x1, y1 = BREAST
        box = np.array([[100 - x1, y0, 100 - x0, y1] if mirrored else BREAST], float)
        score = np.array([0.2 if mirrored else 0.8])
        return above(join(seen.infos, {"1": Detections(box, score, np.array([0]))}), score_floor)

    built = []
    monkeypatch.setattr(predict, "detect", found)
    monkeypatch.setattr(predict.detectors, "build", lambda config: built.append(config.score_floor))
    monkeypatch.setattr(predict, "trainable", lambda detector: None)
    monkeypatch.setattr(predict, "compile_predictor", lambda model, mesh: None)
    monkeypatch.setattr(predict.model_folder, "check_fits", lambda *arguments: None)
    monkeypatch.setattr(predict.model_folder, "shapes_of", lambda init: {})
    monkeypatch.setattr(predict.meshes, "place", lambda params, mesh: params)
    trained = Trained(detector, {}, description)
    (high,) = predict.detect_with(trained, source, None, 0.45 if flips else 0.6)
    np.testing.assert_allclose(high.scores, scores)
    (low,) = predict.detect_with(trained, source, None, 0.02)
    np.testing.assert_allclose(low.scores, scores)
    assert sorted(set(asked), reverse=True) == floors == sorted(set(built), reverse=True)


def test_a_whole_image_is_seen_as_it_is(source):
    view = predict.view(source, crop_to_breast=False)
    assert view.source is source and view.windows is None


def test_what_a_detector_sees_is_the_same_for_any_truth(source):
    other = replace(source, infos=(replace(source.infos[0], boxes=source.infos[0].boxes / 2),))
    assert predict.view(source, True).windows == predict.view(other, True).windows
    _, windows = breast.crop_to_breast(source)
    assert windows[0][2] >= 95, "in training the window is widened to hold the lesion"


def test_the_threshold_of_prediction_is_the_saved_one_of_one_false_positive_per_image():
    points = [
        OperatingPoint(0.5, 0.8),
        OperatingPoint(1.0, 0.3),
        OperatingPoint(2.0, 0.1),
    ]
    assert predict.chosen_threshold(points) == 0.3
    points[1] = OperatingPoint(1.0, 0.0)
    assert predict.chosen_threshold(points) == 0.0
    points[1] = OperatingPoint(1.0, None)
    assert predict.chosen_threshold(points) == 0.5
    assert predict.chosen_threshold([]) == 0.5


def test_what_findings_mean_less_than_they_seem_to_is_said():
    """A threshold of slices beside findings of volumes; a student that has learned maps, alone or as a member."""

    def trained(threshold=0.3, maps="", **point):
        points = (OperatingPoint(1.0, threshold, rate_low=0.8, rate_high=1.2, **point),)
        on = ChosenOn("validation", patients=90, images=90, lesions=90)
        return Trained(None, None, SimpleNamespace(operating_points=points, chosen_on=on, learned_maps=maps))

    images, volumes = PredictSettings(), PredictSettings(volumes=True)
    assert predict.notes(trained(), images) == [] == predict.notes(trained(), PredictSettings(0.2, volumes=True))
    (of_slices,) = predict.notes(trained(), volumes)
    assert "per slice" in of_slices and "--threshold" in of_slices
    for settings in (images, volumes):
        (unchosen,) = predict.notes(trained(None), settings)
        assert "no threshold" in unchosen and "--threshold" in unchosen
    for settings in (PredictSettings(score_floor=0.4), PredictSettings(0.2, score_floor=0.3)):
        (missing,) = predict.notes(trained(), settings)
        assert "--score_floor" in missing and "missing" in missing
    (maps,) = predict.notes(trained(maps="pyramid"), images)
    assert maps.startswith("the model was") and "maps of the pyramid" in maps
    (short,) = predict.notes(trained(rate=0.1), images)
    assert "0.10 false positives" in short and predict.notes(trained(rate=0.1), PredictSettings(0.2)) == []
    of_both = trained().description
    (member,) = predict.notes(Ensemble((trained(), trained(maps="backbone")), of_both), images)
    assert "a member of the model" in member and "maps of the backbone" in member


def test_images_that_fit_no_canvas_of_the_model_have_one_of_their_own(source):
    resize = Resize(jitter=(1.0, 1.0))
    found = predict.input_of(Input(False, resize, ((64, 64), (64, 128)), ()), source.infos)
    assert found.buckets == ((64, 64), (64, 128)) and found.lesion_share is None and found.resize == resize
    fixed = Input(False, Resize(short_sides=(60,)), ((32, 32),), ())
    assert predict.input_of(fixed, source.infos).buckets == ()


def test_a_batch_that_the_devices_do_not_divide_is_filled_up(source, monkeypatch):
    placed = []
    monkeypatch.setattr(predict.meshes, "put_batch", lambda batch, mesh: placed.append(len(batch["image"])) or batch)

    def predictor(params, batch):
        count = len(batch["image"])
        boxes, none = np.tile([0, 0, 10, 10.0], (count, 1, 1)), np.zeros((count, 1), int)
        scores = np.where(batch["valid"], 0.5, np.nan)[:, None]
        return {"batch": batch, "predictions": {"boxes": boxes, "scores": scores, "labels": none, "valid": none == 0}}

    for batch_size in (1, 4, 5):
        loader = LoaderConfig(batch_size=batch_size, buckets=((64, 128),))
        (found,) = predict.detect(predictor, None, source, loader, SimpleNamespace(size=4), title="")
        assert found.scores.tolist() == [0.5]
    assert placed == [4, 4, 8]


# ---- Over image files ----------------------------------------------------------------------------------------------


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Runs the prediction of a.png with a detector that finds the breast, and a corner with a lower score."""
    image = np.zeros((60, 100), np.uint8)
    image[10:40, 30:60] = 128
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), image)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    description = SimpleNamespace(
        classes=("lesion",), chosen_on=ChosenOn(), operating_points=(OperatingPoint(1.0, 0.5),), learned_maps=""
    )
    monkeypatch.setattr(predict, "load", lambda folder: Trained(None, None, description))

    def detect_with(trained, source, mesh, score_floor):
        boxes, scores = np.array([BREAST, [0, 0, 5, 5]], float), np.array([0.8, 0.2])
        kept = scores >= score_floor
        of_image = Detections(boxes[kept], scores[kept], np.zeros(kept.sum(), int))
        return join(source.infos, {source.infos[0].image_id: of_image})

    monkeypatch.setattr(predict, "detect_with", detect_with)

    def run(to="out", anew=True, of="in", on_error="stop", **settings) -> tuple[list, list]:
        output = tmp_path / to
        if anew:
            shutil.rmtree(output, ignore_errors=True)
        predict.predict_files(
            model=tmp_path, inputs=[str(tmp_path / of)], decoding=SourceSpec(), on_error=on_error, output=output,
            settings=predict.PredictSettings(**settings),
        )  # fmt: skip
        pictures = [cv2.imread(str(path)) for path in sorted(output.glob("pictures/*.png"))]
        lines = (output / "findings.csv").read_text().splitlines()
        entries = json.loads((output / "findings.json").read_text())
        assert len(lines) == 1 + len(entries)
        assert [line.rpartition(",")[2] == "1" for line in lines[1:]] == [entry["finding"] for entry in entries]
        return entries, pictures

    return run


def test_findings_of_files_are_written_and_drawn(found, capsys):
    entries, (picture,) = found()
    assert [(e["class"], e["box_xyxy"], e["score"], e["finding"]) for e in entries] == [
        ("lesion", [30, 10, 60, 40], 0.8, True),
        ("lesion", [0, 0, 5, 5], 0.2, False),
    ]
    assert tuple(picture[10, 45]) == predict.COLOUR and tuple(picture[5, 3]) == (0, 0, 0)
    printed = capsys.readouterr().out
    assert "1 findings at or above 0.500 in 1 images" in printed and "notes.txt" in printed


def test_skipped_files_are_listed_beside_the_findings(found, tmp_path, capsys):
    many = [tmp_path / "in" / f"bad{number:02d}.png" for number in range(MOST_LINES + 5)]
    for path in many:
        path.write_bytes(b"no image")
    found(on_error="skip")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped")]
    assert len(printed) == 1 + MOST_LINES + 1 and printed[-1] == f"skipped 5 others, see {SKIPPED}"
    with open(tmp_path / "out" / SKIPPED, newline="") as table:
        head, *rows = csv.reader(table)
    assert head == ["file", "reason"] and [file for file, _ in rows] == [str(path) for path in many]
    for path in many:
        path.unlink()
    found(anew=False, on_error="skip")
    assert not (tmp_path / "out" / SKIPPED).exists()


def test_a_model_without_a_threshold_is_said_to_have_none(found, monkeypatch, capsys):
    found()
    assert "no threshold" not in capsys.readouterr().out
    description = SimpleNamespace(
        classes=("lesion",), chosen_on=ChosenOn(), operating_points=(OperatingPoint(1.0, None),), learned_maps=""
    )
    monkeypatch.setattr(predict, "load", lambda folder: Trained(None, None, description))
    found()
    assert "no threshold" in (printed := capsys.readouterr().out) and "0.5" in printed
    found(threshold=0.3)
    assert "no threshold" not in capsys.readouterr().out


def test_pictures_of_an_earlier_prediction_are_replaced(found, tmp_path):
    found()
    kept = [tmp_path / "out" / "pictures" / name for name in ("mine.png", "0000_mine.jpg")]
    for path in kept:
        path.write_text("")
    (tmp_path / "in" / "a.png").rename(tmp_path / "in" / "b.png")
    found(anew=False)
    assert sorted(path.name for path in kept[0].parent.iterdir()) == ["0000_b.png", *sorted(one.name for one in kept)]
    found(anew=False, pictures=False)
    assert sorted(kept[0].parent.iterdir()) == sorted(kept)


@pytest.mark.parametrize("count, last", [(1, "0000_a.png"), (10_000, "9999_a.png"), (10_001, "10000_a.png")])
def test_names_of_pictures_sort_in_the_order_of_the_images(count, last):
    names = predict._picture_names([SimpleNamespace(file_name="in/a.dcm", volume="")] * count)
    assert names == sorted(names) and len(set(names)) == count and names[-1] == last


def test_the_page_of_an_earlier_prediction_of_volumes_is_removed(found, tmp_path):
    found()
    (tmp_path / "out" / "report.html").write_text("")
    found(anew=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["findings.csv", "findings.json", "pictures"]


def test_images_in_the_folder_of_the_pictures_stay(found, tmp_path):
    """They were removed, being called like pictures of an earlier prediction."""
    own = tmp_path / "out" / "pictures" / "2020_mine.png"
    own.parent.mkdir(parents=True)
    (tmp_path / "in" / "a.png").rename(own)
    with refused("input", where="out/pictures"):
        found(anew=False, of="out/pictures")
    for _ in range(2):
        found(anew=False, of="out/pictures", pictures=False)
    assert sorted(own.parent.iterdir()) == [own]
    found(anew=False, of="out/pictures/2020_mine.png")
    assert sorted(own.parent.iterdir()) == [own.with_name("0000_2020_mine.png"), own]


def test_pictures_are_not_written_where_the_next_run_would_read_them(found, tmp_path):
    with refused("input", where="in/found/pictures"):
        found("in/found")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with refused("input", where="link/found/pictures"):
        found("link/found")
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a.png", "notes.txt"]
    assert len(found("in/.found")[1]) == 1, "images of hidden folders are not read"
    assert len(found("in/found", pictures=False)[0]) == 2


def test_findings_name_the_frame_of_a_volume(found, tmp_path):
    (tmp_path / "in" / "a.png").unlink()
    (tmp_path / "in" / "volume.dcm").write_bytes(dicom_file(np.stack([np.full((60, 100), 9, np.uint16)] * 2)))
    entries, pictures = found()
    assert [(e["file"], e["frame"]) for e in entries] == [(str(tmp_path / "in" / "volume.dcm"), 0)] * 2 and len(
        pictures
    ) == 2
    assert (tmp_path / "out" / "findings.csv").read_text().startswith("file,frame,class,")


def test_the_settings_of_a_prediction(found):
    entries, (picture,) = found(threshold=0.1)
    assert [entry["finding"] for entry in entries] == [True, True] and tuple(picture[5, 3]) == predict.COLOUR
    entries, pictures = found(score_floor=0.5, pictures=False)
    assert [entry["score"] for entry in entries] == [0.8] and not pictures
