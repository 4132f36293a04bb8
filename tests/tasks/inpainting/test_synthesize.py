"""From an inpainter to a COCO folder of painted lesions: as a stage, and into a user's own images."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace

import cv2
import jax
import numpy as np
import pytest

from configs import inpaint_cem
from elk_jax import files
from elk_jax.data.batches import crops
from elk_jax.data.batches.crops import CloseupConfig
from elk_jax.data.sources import coco
from elk_jax.data.sources import source as sources
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.diffusion import inpainter
from elk_jax.diffusion.inpainter import InpainterConfig, Words
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import make_schedule
from elk_jax.diffusion.unet import WITHOUT, UNetConfig
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.privacy.accounting import Ledger, Phase
from elk_jax.privacy.mechanism import Statement
from elk_jax.synthesis.placement import AreaRule
from elk_jax.tasks.inpainting import model as inpainters
from elk_jax.tasks.inpainting import synthesize
from elk_jax.tasks.inpainting.model import Inpainter
from elk_jax.tasks.inpainting.recipe import PaintSettings
from elk_jax.tasks.run import Run
from elk_jax.training.mesh import make_mesh
from elk_jax.weights import model_folder
from tests.refusals import refused
from tests.tasks.inpainting.conftest import COUNT, tiny

WINDOW = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of an inpainter of random numbers."""
    unet = UNetConfig(
        in_channels=65, out_channels=16, cross_attention_dim=None, down_block_types=(WITHOUT,),
        block_out_channels=(8,), layers_per_block=1, attention_head_dim=1, norm_num_groups=4,
    )  # fmt: skip
    noise, sampler = make_schedule("cosine", steps=20, prediction="x0"), SamplerConfig(steps=2)
    parts = Inpainter(InpainterConfig(unet, size=16, patch=4), noise, sampler, 1.0, Words())
    rules = {"free": AreaRule((36, 100), (0.8, 1.2))}
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: inpainter.init(parts.model, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    folder = tmp_path_factory.mktemp("model")
    description = inpainters.describe(parts, {}, CloseupConfig(window=WINDOW, margin=0.0), rules, ("mass",))
    model_folder.save_params(folder, params, description)
    return folder


def write_source(folder, images, boxes=None):
    """A COCO folder of images [H, W] by file name, each of its own training patient; `boxes`: xywh, by file name."""
    (folder / "images").mkdir(parents=True)
    entries, annotations = [], []
    for number, (name, pixels) in enumerate(images.items(), start=1):
        cv2.imwrite(str(folder / "images" / name), pixels)
        height, width = pixels.shape
        entries.append({"id": number, "file_name": name, "width": width, "height": height,
                        "patient_id": f"P{number}", "split": "train"})  # fmt: skip
        for box in (boxes or {}).get(name, []):
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box,
                                "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
    content = {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "mass"}]}
    files.write_json(folder / "images.json", content)
    return f"coco:{folder / 'images.json'}"


def paint(model, canvases, output, count=1, split="train", seed=0, **settings):
    synthesize.synthesize_source(
        model=model, canvases=canvases if isinstance(canvases, SourceSpec) else SourceSpec(canvases), split=split,
        on_error="stop", count=count, output=output, seed=seed, settings=PaintSettings(batch_size=2, **settings),
    )  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One breast twice in a folder: in 8 bits, and in 16."""
    rng = np.random.default_rng(0)
    breast = rng.integers(60, 120, (60, 60)).astype(np.uint8)
    deep = breast.astype(np.uint16) * 257 + rng.integers(-100, 101, breast.shape).astype(np.int16)
    images = {"eight.png": breast, "sixteen.png": deep.astype(np.uint16)}
    box = [20, 20, 12, 10]
    folder = tmp_path_factory.mktemp("mixed")
    return folder, write_source(folder, images, {name: [box] for name in images}), write_source(folder / "x", images)


def test_images_of_mixed_depths_have_one_scale_of_grey(mixed):
    _, spec, _ = mixed
    source = open_source(SourceSpec(spec), "train")
    np.testing.assert_allclose(source[0].image, source[1].image, atol=0.5 / 255)
    config = CloseupConfig(window=WINDOW, batch_size=2, horizontal_flip=0.0)
    (batch,) = crops.eval_closeups(source, config, WINDOW, seed=0)
    assert batch["index"].tolist() == [0, 1] and 59 / 255 < batch["image"].min() < batch["image"].max() < 121 / 255


def test_what_is_painted_has_the_depth_of_its_canvas(model, mixed, tmp_path):
    folder, _, spec = mixed
    paint(model, spec, tmp_path / "out", count=4)
    names = {1: "eight.png", 2: "sixteen.png"}
    seen = []
    for info in coco.read_coco(tmp_path / "out" / coco.SYNTHETIC)[0]:
        canvas = cv2.imread(str(folder / "images" / names[int(info.meta["canvas"])]), cv2.IMREAD_UNCHANGED)
        painted = cv2.imread(str(tmp_path / "out" / "images" / info.file_name), cv2.IMREAD_UNCHANGED)
        seen.append(painted.dtype)
        assert painted.dtype == canvas.dtype
        x0, y0, x1, y1 = info.meta["box"]
        changed = painted != canvas
        assert changed[y0:y1, x0:x1].any()
        changed[y0:y1, x0:x1] = False
        assert not changed.any()
    assert sorted(map(str, seen)) == ["uint16", "uint16", "uint8", "uint8"]


@pytest.mark.parametrize(
    "pixels, boxes, words",
    [
        (np.zeros((60, 60), np.uint8), [], ["healthy window", 32]),
        (np.full((60, 60), 90, np.uint8), [[25, 25, 10, 10]], ["healthy window", 32]),
        (np.full((60, 31), 90, np.uint8), [], ["smaller than the window", 32, "31 x 60 px"]),
    ],
)
def test_canvases_that_cannot_be_painted_on_leave_no_folder(model, tmp_path, pixels, boxes, words):
    spec = write_source(tmp_path, {"a.png": pixels}, {"a.png": boxes})
    with refused(*words):
        paint(model, spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_painted_lesions_have_the_class_of_the_models_lesions(model, tmp_path):
    """A file of Roboflow has a category without annotations before the first real one."""
    paint(model, of_classes(tmp_path, "breast", "mass"), tmp_path / "out")
    painted = files.read_json(tmp_path / "out" / coco.SYNTHETIC)
    named = {one["id"]: one["name"] for one in painted["categories"]}
    found = [named[one["category_id"]] for one in painted["annotations"]]
    assert found == ["mass", "mass"]  # painted, and the canvas's
    paint(model, of_classes(tmp_path / "one", "lesion"), tmp_path / "one" / "out")  # one of each count as the same
    other = of_classes(tmp_path / "other", "breast", "cyst")
    with refused("mass", "breast, cyst"):
        paint(model, other, tmp_path / "other" / "out")
    assert not (tmp_path / "other" / "out").exists()
    with refused("breast, cyst", "train it again"):  # a folder of an earlier version
        synthesize._label(("breast", "cyst"), open_source(SourceSpec(other)))


def of_classes(folder, *names):
    """A source of one breast with a lesion of the last of these classes."""
    spec = write_source(folder, {"a.png": np.full((90, 90), 90, np.uint8)}, {"a.png": [[60, 60, 10, 10]]})
    place = folder / "images.json"
    content = files.read_json(place)
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    content["annotations"][0]["category_id"] = len(names) - 1
    files.write_json(place, content)
    return spec


# ---- With a trained inpainter --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(run):
    """The model folder."""
    return run / "inpainter" / "model"


def test_what_was_painted_is_a_data_source(run, trained):
    source = open_source(SourceSpec(f"coco:{run / 'lesions' / coco.SYNTHETIC}"), "train")
    assert source.seen_patients == model_folder.seen_patients(trained) != frozenset()
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
    config.stages.lesions.area = "medium"
    seen = []
    monkeypatch.setattr(synthesize, "paint_lesions", lambda *given: seen.append(given))
    run = Run(parse(config), tmp_path, make_mesh())
    summary = synthesize.synthesize(run, run.experiment.stages["lesions"], None)
    ((model, canvases, count, output, settings, seed, mesh),) = seen
    real = open_source(SourceSpec(config.data.real.spec), "train")
    assert canvases.name == "canvases" and (model, output) == (tmp_path / "inpainter" / "model", tmp_path / "lesions")
    assert summary["count"] == count == sources.summary(real.infos)["lesions"]
    assert count > sources.summary(canvases.infos)["lesions"]
    assert (settings, seed, mesh) == (PaintSettings(area="medium"), 42, run.mesh)


@pytest.mark.parametrize(("variant", "skipped"), [("tiny", [["broken", "no pixels"]]), ("tiny,private", [])])
def test_skipped_canvases_of_protected_patients_are_not_listed(variant, skipped, tmp_path, monkeypatch):
    config = inpaint_cem.get_config(variant)
    config.stages.lesions.canvases = "real"
    opened = Run.open
    broken = lambda *place: replace(opened(*place), skipped=(("broken", "no pixels"),))
    monkeypatch.setattr(Run, "open", broken)
    monkeypatch.setattr(synthesize, "paint_lesions", lambda *given: None)
    run = Run(parse(config), tmp_path, make_mesh())
    assert synthesize.synthesize(run, run.experiment.stages["lesions"], None)["skipped"] == skipped


def test_an_interrupted_synthesis_is_resumed(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    lesions = copy / "lesions"
    whole = {path.name: path.read_bytes() for path in (lesions / "images").iterdir()}
    for name in ("000001", "000004"):  # as after a crash: the record is written last
        (lesions / "provenance" / f"{name}.json").unlink()
        (lesions / "images" / f"{name}.png").write_bytes(b"half")
    (lesions / coco.SYNTHETIC).unlink()
    (lesions / "finished.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (lesions / "provenance").iterdir()}
    run_experiment(tiny(), copy, stages=["inpainter", "lesions"])
    assert {path.name: path.read_bytes() for path in (lesions / "images").iterdir()} == whole
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(coco.read_coco(lesions / coco.SYNTHETIC)[0]) == COUNT


@pytest.fixture(scope="module")
def phantoms():
    return SourceSpec(inpaint_cem.get_config("tiny").data.real.spec)


def test_another_seed_another_set_and_other_settings_are_refused(trained, phantoms, tmp_path):
    for seed in (0, 1):
        paint(trained, phantoms, tmp_path / str(seed), count=2, seed=seed)
    one, other = (files.read_json(tmp_path / s / "provenance" / "000000.json") for s in "01")
    assert (one["box"], one["canvas"]) != (other["box"], other["canvas"])
    with refused("seed", 0, 1, where=tmp_path / "0"):
        paint(trained, phantoms, tmp_path / "0", count=2, seed=1)
    with refused("grain", "True", "False", where=tmp_path / "0"):
        paint(trained, phantoms, tmp_path / "0", count=2, grain=False)
    paint(trained, phantoms, tmp_path / "0", count=3)  # more of the same set
    assert len(coco.read_coco(tmp_path / "0" / coco.SYNTHETIC)[0]) == 3
    with refused("000002.png", where=tmp_path / "0" / "images"):  # which would stay in the folder
        paint(trained, phantoms, tmp_path / "0", count=2)
    assert len(coco.read_coco(tmp_path / "0" / coco.SYNTHETIC)[0]) == 3


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


def test_sixteen_bits_stay_sixteen_bits(trained, deep, tmp_path):
    paint(trained, f"coco:{deep / 'a.json'}", tmp_path / "out", whole_window=True)
    canvas = cv2.imread(str(deep / "images" / "a.png"), cv2.IMREAD_UNCHANGED)
    image = cv2.imread(str(tmp_path / "out" / "images" / "000000.png"), cv2.IMREAD_UNCHANGED)
    x0, y0, x1, y1 = files.read_json(tmp_path / "out" / "provenance" / "000000.json")["window"]
    assert image.dtype == np.uint16 and (image != canvas)[y0:y1, x0:x1].any()
    outside = np.ones_like(canvas, bool)
    outside[y0:y1, x0:x1] = False
    np.testing.assert_array_equal(image[outside], canvas[outside])


def test_canvases_are_annotated_as_the_training_images_are(trained, deep, tmp_path):
    content = files.read_json(deep / "a.json")
    content["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate([[10, 62, 60, 20], [20, 70, 6, 6], [21, 71, 4, 4]], start=1)
    ]  # a region of the breast, a lesion in it, and that lesion once more
    before = Statement(True, 2.0, 1e-5, "pld", Ledger((Phase(1.0, 3.0, 1),), "patient")).named()
    # of the painter that had painted on these canvases
    content["info"] = {"seen_patients": ["of the painter before"], "promises": [asdict(before)]}
    files.write_json(deep / "doubles.json", content)
    for output, settings in (("as_they_are", {}), ("cleaned", {"clean_boxes": True, "ignore_over": 0.1})):
        paint(trained, SourceSpec(f"coco:{deep / 'doubles.json'}", **settings), tmp_path / output)
    (whole,), (cleaned,) = (coco.read_coco(tmp_path / o / coco.SYNTHETIC)[0] for o in ("as_they_are", "cleaned"))
    assert len(whole.boxes) == 4 and not whole.ignore.any()
    seen = {"of the painter before"} | model_folder.seen_patients(trained)
    painted = coco.read_coco(tmp_path / "cleaned" / coco.SYNTHETIC)
    assert painted.seen_patients == seen and painted.promises == (before,)
    np.testing.assert_array_equal(cleaned.boxes[1:], [[10, 62, 70, 82], [20, 70, 26, 76]])
    assert cleaned.ignore.tolist() == [False, True, False]
    with refused("images", where=tmp_path / "cleaned"):
        paint(trained, f"coco:{deep / 'doubles.json'}", tmp_path / "cleaned")


def test_what_cannot_be_painted_leaves_nothing(trained, phantoms, deep, tmp_path):
    small = files.read_json(deep / "a.json")
    small["images"][0] |= {"width": 40, "height": 40}
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((40, 40), 90, np.uint8))
    files.write_json(tmp_path / "a.json", small)
    with refused("smaller than the window", 48):
        paint(trained, f"coco:{tmp_path / 'a.json'}", tmp_path / "out")
    with refused("'nowhere'"):
        paint(trained, phantoms, tmp_path / "out", split="nowhere")
    with refused("'test'", "train", where=phantoms.place):
        paint(trained, phantoms, tmp_path / "out", split="test")
    with refused(0, where="count"):
        paint(trained, phantoms, tmp_path / "out", count=0)
    with refused("'huge'", "free, medium", where="area"):
        paint(trained, phantoms, tmp_path / "out", area="huge")
    with refused("model", where=tmp_path):
        paint(tmp_path, phantoms, tmp_path / "out")
    assert not (tmp_path / "out").exists()
