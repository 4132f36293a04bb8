"""From lesions to an inpainter to a COCO folder of painted lesions, through the real stages at a tiny size."""

from __future__ import annotations

import shutil
from dataclasses import replace

import cv2
import jax
import numpy as np
import pytest

from configs import inpaint_cem
from elk_jax import files
from elk_jax.data.sources import coco
from elk_jax.data.sources import source as sources
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.diffusion import inpainter
from elk_jax.errors import UserError
from elk_jax.experiments import experiment
from elk_jax.tasks import trained
from elk_jax.tasks.detection import settings as detection
from elk_jax.tasks.inpainting import (
    model as inpainting_model,
)
from elk_jax.tasks.inpainting import (
    synthesize as inpainting_synthesize,
)
from elk_jax.tasks.inpainting import (
    train as inpainting_stages,
)
from elk_jax.tasks.run import SYNTHETIC, Run
from elk_jax.training.mesh import make_mesh
from elk_jax.training.writer import read_metrics

COUNT = 5


def tiny():
    config = inpaint_cem.get_config("tiny")
    config.stages.lesions.count = COUNT
    config.stages.lesions.batch_size = 2
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inpaint")
    experiment.run(tiny(), folder, stages=["inpainter", "lesions"])
    return folder


def test_training_leaves_curves_pictures_and_a_model(run):
    lines = read_metrics(run / "inpainter" / "metrics.jsonl")
    assert {"train/loss", "train/error_lesion", "eval/loss"} <= {key for line in lines for key in line}
    picture = cv2.imread(str(run / "inpainter" / "pictures" / "painted-000004.png"))
    assert picture.shape[0] == 3 * 32 and picture.shape[1] % 32 == 0
    parts, params, description = inpainting_model.load(run / "inpainter" / "model")
    assert parts.model.size == 32 and parts.noise.prediction == "x0"
    assert description["window"] == 48 and set(description["areas"]) == {"free", "medium"}
    assert description["areas"]["free"]["area"][0] < description["areas"]["medium"]["area"][0]
    assert set(params) == {"unet"}
    assert inpainting_model.find(run) == run / "inpainter" / "model"


def test_the_same_networks_learn_on_at_another_picture_size(run):
    config = tiny()
    config.inpainter.model.size = 48
    this = Run(config, run, make_mesh())
    start = inpainting_stages.starting_point(this, str(run / "inpainter" / "model"), config.inpainter, source=())
    parts, params, _ = inpainting_model.load(run / "inpainter" / "model")
    assert (start.parts.model.size, start.parts.model.unet.sample_size) == (48, 12)
    assert start.parts.model.std == parts.model.std
    fresh = jax.eval_shape(lambda rng: inpainter.init(start.parts.model, rng), jax.random.key(0))
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, params)


def test_what_was_painted_is_a_data_source(run):
    source = open_source(SourceSpec(f"coco:{run / 'lesions' / SYNTHETIC}"), "train")
    assert source.seen_patients == trained.patient_marks(run / "inpainter" / "model") != frozenset()
    canvases = open_source(SourceSpec(inpaint_cem.get_config("tiny").data.real.spec), "train")
    by_id = {info.image_id: i for i, info in enumerate(canvases.infos)}
    assert len(source) == COUNT
    wider = 0  # how many reach beyond the box: a lesion at the border of its window may not
    for i, info in enumerate(source.infos):
        record = files.read_json(run / "lesions" / "provenance" / f"{i:06d}.json")
        canvas = canvases[by_id[record["canvas"]]]
        assert info.patient_id == canvas.info.patient_id and info.split == "train"
        # the painted lesion first, then what the canvas has of its own
        np.testing.assert_array_equal(info.boxes[0], record["box"])
        np.testing.assert_allclose(info.boxes[1:], canvas.info.boxes, atol=1e-3)
        assert record["seed"] == 42 and record["index"] == i and record["checkpoint"]
        x0, y0, x1, y1 = record["box"]
        stored = cv2.imread(str(run / "lesions" / "images" / info.file_name), cv2.IMREAD_UNCHANGED)
        assert stored.dtype == np.uint8  # phantoms have 8 bits, and so has what is painted on them
        changed = np.abs(source[i].image - canvas.image)[..., 0] > 1e-6
        assert changed[y0:y1, x0:x1].any()
        left, top, right, bottom = record["region"]
        assert left <= x0 < x1 <= right and top <= y0 < y1 <= bottom
        wider += (right - left) * (bottom - top) > (x1 - x0) * (y1 - y0)
        changed[top:bottom, left:right] = False
        assert not changed.any()  # outside the painted region every pixel is the canvas's own
        mask = cv2.imread(str(run / "lesions" / "masks" / f"{i:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert (mask > 0).sum() == (right - left) * (bottom - top) and (mask[top:bottom, left:right] > 0).all()
    assert wider >= COUNT // 2


def test_on_other_canvases_as_many_lesions_are_painted_as_are_real(tmp_path, monkeypatch):
    config = inpaint_cem.get_config("tiny")
    config.data.canvases.spec = "phantom:size=128,count=12,seed=9"
    config.stages.lesions.canvases = "canvases"
    seen = {}
    monkeypatch.setattr(inpainting_synthesize, "synthesize", lambda run, **given: seen.update(given) or given["count"])
    inpainting_stages.synthesize(Run(config, tmp_path, make_mesh()), "lesions")
    real = open_source(SourceSpec(config.data.real.spec), "train")
    assert seen["canvases"].name == "canvases"
    assert seen["count"] == sources.summary(real.infos)["lesions"] > sources.summary(seen["canvases"].infos)["lesions"]


def test_an_interrupted_synthesis_goes_on_where_it_stopped(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    lesions = copy / "lesions"
    whole = {path.name: path.read_bytes() for path in (lesions / "images").iterdir()}
    for name in ("000001", "000004"):  # as after a crash: the record is written last
        (lesions / "provenance" / f"{name}.json").unlink()
        (lesions / "images" / f"{name}.png").write_bytes(b"half")
    (lesions / SYNTHETIC).unlink()
    (lesions / "finished.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (lesions / "provenance").iterdir()}
    experiment.run(tiny(), copy, stages=["inpainter", "lesions"])
    assert {path.name: path.read_bytes() for path in (lesions / "images").iterdir()} == whole
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(coco.read_coco(lesions / SYNTHETIC)[0]) == COUNT


def test_a_training_does_not_go_on_with_another_validation_split(run, tmp_path, monkeypatch):
    copy, open_data = shutil.copytree(run, tmp_path / "run"), detection.open_data
    (copy / "inpainter" / "finished.json").unlink()

    def others(data, names, split, seed):
        found = open_data(data, names, split, seed)
        infos = (replace(found.infos[0], patient_id="P"), *found.infos[1:])
        return replace(found, infos=infos) if split == "val" else found

    monkeypatch.setattr(detection, "open_data", others)
    with pytest.raises(UserError, match="made with another validation split"):
        experiment.run(tiny(), copy, stages=["inpainter"])


def paint(run, output, **changes):
    spec = SourceSpec(inpaint_cem.get_config("tiny").data.real.spec)
    settings = {
        "model": run / "inpainter" / "model", "canvases": spec, "split": "train", "on_error": "stop",
        "count": 2, "output": output, "batch_size": 2,
    }  # fmt: skip
    inpainting_synthesize.synthesize_source(**(settings | changes))


def test_another_seed_another_set_and_other_settings_are_refused(run, tmp_path):
    for seed in (0, 1):
        paint(run, tmp_path / str(seed), seed=seed)
    one, other = (files.read_json(tmp_path / s / "provenance" / "000000.json") for s in "01")
    assert (one["box"], one["canvas"]) != (other["box"], other["canvas"])
    with pytest.raises(UserError, match=r"begun here with seed 0, and is 1 now"):
        paint(run, tmp_path / "0", seed=1)
    paint(run, tmp_path / "0", seed=0, count=3)  # more of the same goes on
    assert len(coco.read_coco(tmp_path / "0" / SYNTHETIC)[0]) == 3


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Canvases of 16 bits, a COCO folder with one training patient."""
    folder = tmp_path_factory.mktemp("deep")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    pixels = np.zeros((90, 80), np.uint16)
    pixels[5:85, 5:75] = rng.integers(15000, 25000, (80, 70))
    cv2.imwrite(str(folder / "images" / "a.png"), pixels)
    entry = {"id": 1, "file_name": "a.png", "width": 80, "height": 90, "patient_id": "P", "split": "train"}
    files.write_json(
        folder / "a.json", {"images": [entry], "annotations": [], "categories": [{"id": 1, "name": "mass"}]}
    )
    return folder


def test_sixteen_bits_stay_sixteen_bits(run, deep, tmp_path):
    paint(run, tmp_path / "out", canvases=SourceSpec(f"coco:{deep / 'a.json'}"), count=1, whole_window=True)
    canvas = cv2.imread(str(deep / "images" / "a.png"), cv2.IMREAD_UNCHANGED)
    image = cv2.imread(str(tmp_path / "out" / "images" / "000000.png"), cv2.IMREAD_UNCHANGED)
    x0, y0, x1, y1 = files.read_json(tmp_path / "out" / "provenance" / "000000.json")["window"]
    assert image.dtype == np.uint16 and (image != canvas)[y0:y1, x0:x1].any()
    outside = np.ones_like(canvas, bool)
    outside[y0:y1, x0:x1] = False
    np.testing.assert_array_equal(image[outside], canvas[outside])


def test_canvases_are_annotated_as_the_training_images_are(run, deep, tmp_path):
    content = files.read_json(deep / "a.json")
    content["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate([[10, 62, 60, 20], [20, 70, 6, 6], [21, 71, 4, 4]], start=1)
    ]  # a region of the breast, a lesion in it, and that lesion once more
    content["info"] = {"seen_patients": ["of the painter before"]}  # that had painted on these canvases
    files.write_json(deep / "doubles.json", content)
    for output, settings in (("as_they_are", {}), ("cleaned", {"clean_boxes": True, "ignore_over": 0.1})):
        paint(run, tmp_path / output, canvases=SourceSpec(f"coco:{deep / 'doubles.json'}", **settings), count=1)
    (whole,), (cleaned,) = (coco.read_coco(tmp_path / o / SYNTHETIC)[0] for o in ("as_they_are", "cleaned"))
    assert len(whole.boxes) == 4 and not whole.ignore.any()
    marks = trained.patient_marks(run / "inpainter" / "model")
    assert coco.read_coco(tmp_path / "cleaned" / SYNTHETIC).seen_patients == {"of the painter before"} | marks
    np.testing.assert_array_equal(cleaned.boxes[1:], [[10, 62, 70, 82], [20, 70, 26, 76]])
    assert cleaned.ignore.tolist() == [False, True, False]
    with pytest.raises(UserError, match=r"begun here with images"):
        paint(run, tmp_path / "cleaned", canvases=SourceSpec(f"coco:{deep / 'doubles.json'}"), count=1)


def test_what_cannot_be_painted_is_said_and_leaves_nothing(run, deep, tmp_path):
    small = files.read_json(deep / "a.json")
    small["images"][0] |= {"width": 40, "height": 40}
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((40, 40), 90, np.uint8))
    files.write_json(tmp_path / "a.json", small)
    with pytest.raises(UserError, match=r"every canvas is smaller than the window of 48 px"):
        paint(run, tmp_path / "out", canvases=SourceSpec(f"coco:{tmp_path / 'a.json'}"))
    with pytest.raises(UserError, match=r"no split 'nowhere'"):
        paint(run, tmp_path / "out", split="nowhere")
    with pytest.raises(UserError, match=r"canvases of the split 'test'"):
        paint(run, tmp_path / "out", split="test")
    with pytest.raises(UserError, match=r"0 lesions to paint"):
        paint(run, tmp_path / "out", count=0)
    with pytest.raises(UserError, match=r"no lesion area 'huge'"):
        paint(run, tmp_path / "out", area="huge")
    with pytest.raises(UserError, match=r"no model here"):
        paint(run, tmp_path / "out", model=tmp_path)
    assert not (tmp_path / "out").exists()


def test_synthetic_data_come_from_an_earlier_stage():
    config = inpaint_cem.get_config("tiny")
    config.data.painted = dict(config.data.real, spec="stage:elsewhere")
    config.stages.lesions.canvases = "painted"
    with pytest.raises(UserError, match=r"'elsewhere' is no synthesis stage before 'lesions'"):
        experiment.check(config)
    config = inpaint_cem.get_config("tiny")
    config.stages.lesions.model = "lesions"
    with pytest.raises(UserError, match=r"'lesions' is no train stage before 'lesions'.*model"):
        experiment.check(config)
