"""Painted lesions against real ones: what counts as painted, what is compared, what is refused."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from elk_jax import files
from elk_jax.backbones import resnet
from elk_jax.data.sources.source import ImageSource
from elk_jax.detection import closeups as detection_closeups
from elk_jax.detection import faster_rcnn, faster_rcnn_config
from elk_jax.evaluation import memorised
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.lesion_quality import evaluate as quality
from elk_jax.tasks.lesion_quality.evaluate import compare, describe, synthetic_places
from elk_jax.tasks.lesion_quality.recipe import LesionQualityStage
from elk_jax.tasks.run import Experiment, MeshSettings, Run
from tests.models import save_imported
from tests.refusals import refused

SIDE = 64


def breast(rng: np.random.Generator, *lesions: tuple[int, int, int], contrast: float = 0.3) -> np.ndarray:
    """Grey noise with bright discs (x, y, radius), as decoded from 8 bits."""
    image = 0.35 + 0.03 * rng.standard_normal((SIDE, SIDE))
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    for x, y, radius in lesions:
        image += contrast * np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1)
    return (np.round(image.clip(0, 1) * 255) / 255).astype(np.float32)[..., None]


def box(x: int, y: int, radius: int) -> list[int]:
    return [x - radius, y - radius, x + radius, y + radius]


def source(name: str, images: list[np.ndarray], boxes: list, patients: list[str], metas=None) -> ImageSource:
    infos = tuple(
        ImageInfo(
            image_id=f"{name}{i}",
            patient_id=patients[i],
            width=SIDE,
            height=SIDE,
            boxes=np.array(boxes[i], np.float32).reshape(-1, 4),
            labels=np.zeros(len(boxes[i]), np.int32),
            ignore=np.zeros(len(boxes[i]), bool),
            split="train",
            meta={} if metas is None else metas[i],
        )
        for i in range(len(images))
    )
    return ImageSource(name, ("lesion",), infos, lambda i: images[i])


def real_source(count: int = 8, seed: int = 0) -> ImageSource:
    rng = np.random.default_rng(seed)
    discs = [(int(rng.integers(20, 44)), int(rng.integers(20, 44)), int(rng.integers(6, 11))) for _ in range(count)]
    images = [breast(rng, disc) for disc in discs]
    return source("real", images, [[box(*disc)] for disc in discs], [f"P{i // 2}" for i in range(count)])


def painted_source(count: int = 6, contrast: float = 0.3, seed: int = 1) -> ImageSource:
    """A painted disc at the left of each canvas, which has a lesion of its own at the right."""
    rng = np.random.default_rng(seed)
    images, boxes, metas = [], [], []
    for _ in range(count):
        own, radius = (50, 40, 8), int(rng.integers(6, 11))
        place = (int(rng.integers(14, 20)), int(rng.integers(14, 40)), radius)
        image = np.maximum(breast(rng, place, contrast=contrast), breast(rng, own))
        images.append(image)
        boxes.append([box(*place), box(*own)])
        metas.append({"box": box(*place), "window": [0, 8, 40, 48], "canvas": "real0"})
    return source("synthetic", images, boxes, [f"P{i % 3}" for i in range(count)], metas)


# ---- What is painted -----------------------------------------------------------------------------------------------


def test_only_the_painted_box_of_an_image_is_synthetic():
    painted = painted_source()
    places, window = synthetic_places(painted)
    assert places == [(i, 0) for i in range(6)] and window == 40
    lesions = describe(painted, places)
    assert [one["width"] for one in lesions.statistics] == [float(i.boxes[0, 2] - i.boxes[0, 0]) for i in painted.infos]
    assert lesions.patches.shape == (6, memorised.SIDE, memorised.SIDE)
    assert lesions.closeups.shape == (6, quality.CLOSEUP, quality.CLOSEUP)


def test_a_lesion_is_described_without_its_neighbours():
    """The canvas's own bright lesion must not count as tissue around the painted one."""
    painted = painted_source(count=1)
    alone = dataclasses.replace(
        painted, infos=(dataclasses.replace(painted.infos[0], boxes=painted.infos[0].boxes[:1]),)
    )
    (one,), (other,) = describe(painted, [(0, 0)]).statistics, describe(alone, [(0, 0)]).statistics
    assert one["width"] == other["width"] and one["contrast"] >= other["contrast"]
    assert one["contrast"] > 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"meta": {}}, "the field 'box' or 'window' is missing"),
        ({"meta": {"box": [1, 2, 3], "window": [0, 0, 8, 8]}}, "the field 'box' or 'window' is missing"),
        ({"meta": {"box": [1, 2, 9, 9], "window": [0, 0, 40, 40]}}, "first box"),
        ({"boxes": np.zeros((0, 4), np.float32)}, "first box"),
    ],
)
def test_a_set_that_does_not_say_what_was_painted_is_refused(change, words):
    painted = painted_source()
    infos = (*painted.infos[:3], dataclasses.replace(painted.infos[3], **change), *painted.infos[4:])
    with refused("synthetic3", words, where="synthetic"):
        synthetic_places(dataclasses.replace(painted, infos=infos))


def test_of_a_set_that_nothing_was_painted_in_all_boxes_are_synthetic():
    painted = painted_source()
    infos = tuple(dataclasses.replace(info, meta={"synthetic": True}) for info in painted.infos)
    whole = dataclasses.replace(infos[0], ignore=np.ones(len(infos[0].boxes), bool))
    places, window = synthetic_places(dataclasses.replace(painted, infos=(whole, *infos[1:])))
    assert window is None
    assert places == [(i, box) for i, info in enumerate(infos) for box in range(len(info.boxes)) if i > 0]


def test_a_set_without_images_is_refused():
    with refused("synthetic lesion", where="synthetic"):
        synthetic_places(dataclasses.replace(painted_source(), infos=()))


# ---- What is compared ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    whole = real_source()
    return describe(whole, [(i, 0) for i in range(len(whole))])


def test_faint_lesions_and_repeated_ones_are_seen(real):
    faint = describe(painted_source(contrast=0.02), [(i, 0) for i in range(6)])
    found = compare(real, faint, real)
    json.dumps(found, allow_nan=False)
    assert found["statistics"]["contrast"]["kolmogorov_smirnov"] == 1.0
    assert found["counts"] == {"real": 8, "real_patients": 4, "synthetic": 6, "synthetic_patients": 3}
    assert found["radiomics"]["half"] == 4 and found["radiomics"]["real_to_real"] > 0
    assert found["radiomics"]["distance"] == pytest.approx(found["frechet_radiomics"]["robust_distance"])
    assert found["radiomics"]["synthetic_to_real"] > found["radiomics"]["real_to_real"]
    assert found["real_or_synthetic"]["auc"] > 0.9
    assert found["detector_features"] is None

    copied = dataclasses.replace(faint, patches=faint.patches.copy())
    copied.patches[2] = real.patches[5][:, ::-1]
    repeated = compare(real, copied, real)["memorised"]
    first = repeated["pairs"][0]
    assert first["synthetic"] == "synthetic2" and first["training"] == "real5" and first["lesion"] == 0
    assert first["similarity"] == pytest.approx(1, abs=1e-4) and repeated["nearest"][2] == 5
    assert [pair["margin"] for pair in repeated["pairs"]] == sorted(repeated["margin"], reverse=True)


def test_real_lesions_that_are_all_alike_are_refused(real):
    one = np.full((SIDE, SIDE, 1), 0.4, np.float32)
    uniform = describe(
        source("flat", [one] * 4, [[box(30, 30, 8)]] * 4, ["A", "A", "B", "B"]), [(i, 0) for i in range(4)]
    )
    with refused("uniform"):
        compare(uniform, real, None)


def test_the_pair_says_how_the_training_lesion_must_be_turned(real):
    wedge = np.linspace(0, 1, memorised.SIDE, dtype=np.float32)[None] * np.linspace(0.2, 1, memorised.SIDE)[:, None]
    training = dataclasses.replace(real, patches=np.stack([wedge] + [np.eye(memorised.SIDE)] * 7).astype(np.float32))
    views = ((wedge[:, ::-1], ("horizontal", False)), (np.rot90(wedge, -1), ("horizontal", True)))
    for view, (flip, transposed) in views:  # the training lesion is transposed first, flipped then
        synthetic = dataclasses.replace(real, patches=np.stack([view] * 8).astype(np.float32))
        report = memorised.memorised_report(synthetic.patches, training.patches, training.patients)
        (pair,) = quality.most_alike(synthetic, training, report, 1)
        assert (pair["training"], pair["flip"], pair["transposed"]) == ("real0", flip, transposed)


def test_one_patient_leaves_measures_undefined_and_one_lesion_is_refused(real):
    alone = dataclasses.replace(real, patients=("P0",) * len(real))
    found = compare(alone, alone, alone)
    assert found["real_or_synthetic"] is None and found["radiomics"]["real_to_real"] is None
    assert found["memorised"]["threshold"] is None and found["memorised"]["pairs"]
    with refused(1, "synthetic lesion"):
        compare(real, describe(painted_source(1), [(0, 0)]), real)


# ---- A detector's features -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    config = faster_rcnn_config.detectron2(
        backbone=resnet.detectron2(
            depth=18, width=8, norm="gn", norm_groups=8, stride_in_1x1=False, pixel_mean=(60.0,), pixel_std=(60.0,)
        ),
        fpn_channels=16, box_fc_width=8,
    )  # fmt: skip
    shapes = jax.eval_shape(faster_rcnn.detector(config).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    folder = tmp_path_factory.mktemp("detector")
    save_imported(folder, params, config)
    return folder


def test_a_detector_sees_close_ups_one_by_one(detector, real, monkeypatch):
    monkeypatch.setattr(detection_closeups, "BATCH", 3)
    closeups = real.closeups[:4, :64, :64]
    features = quality._detector_features(detector)
    found = features(closeups)
    assert found.shape == (4, 4 * 16) and np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 1e-3
    alone = features(closeups[3:])
    np.testing.assert_allclose(alone[0], found[3], atol=1e-5)


# ---- The stage -----------------------------------------------------------------------------------------------------


def test_the_stage_writes_its_evaluation_and_says_what_it_is(monkeypatch, tmp_path, capsys):
    opened = {"real": real_source(), "synthetic": painted_source()}
    large = dataclasses.replace(opened["real"].infos[0], boxes=np.array([[2, 2, 60, 60]], np.float32))
    opened["real"] = dataclasses.replace(opened["real"], infos=(large, *opened["real"].infos[1:]))
    asked = []

    def open_source(run, source, split):
        asked.append((source, split))
        return opened[source]

    monkeypatch.setattr(Run, "open", open_source)
    stage = LesionQualityStage(name="quality", on="real", split="test", synthetic="synthetic", features="detector")
    run = Run(Experiment("e", 3, MeshSettings(), "stop", {}, {}, {"quality": stage}), tmp_path, mesh=None)
    files.make_folder(tmp_path / "quality")
    see = lambda folder: lambda closeups: closeups.reshape(len(closeups), -1)[:, : len(folder.name)]
    monkeypatch.setattr(quality, "_detector_features", see)
    summary = quality.evaluate(run, stage, None)
    assert (summary["kind"], summary["on"], summary["split"]) == ("evaluate", "real", "test")
    assert summary["synthetic"] == "synthetic" and summary["data"]["lesions"] == 8
    assert asked == [("real", "test"), ("synthetic", "train"), ("real", "train")], "repetitions are of training lesions"
    found = files.read_json(tmp_path / "quality" / "evaluation.json")
    assert found["counts"]["left_out"] == 1 and found["counts"]["window"] == 40 and found["counts"]["real"] == 7
    assert "1 real lesion is left out" in found["notes"][0]
    assert not any("name no patient" in note for note in found["notes"])
    nameless = (dataclasses.replace(info, patient_id=info.image_id) for info in opened["real"].infos)
    opened["real"] = dataclasses.replace(opened["real"], infos=tuple(nameless))
    quality.evaluate(run, stage, None)
    again = files.read_json(tmp_path / "quality" / "evaluation.json")
    assert any("8 real images name no patient" in note for note in again["notes"])
    seen = found["detector_features"]
    assert seen["model"] == "detector" and seen["distance"] > 0 and 0 <= seen["real_or_synthetic"]["auc"] <= 1
    printed = capsys.readouterr().out
    assert "synthetic against the test split of real" in printed and "Contrast" in printed
