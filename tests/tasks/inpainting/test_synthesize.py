"""Painting into a user's own images with a model folder: depths of files, and canvases that cannot be painted on."""

from __future__ import annotations

import cv2
import jax
import numpy as np
import pytest
from elk_jax.tasks.inpainting.settings import Inpainter

from elk_jax import files
from elk_jax.data.batches import crops as closeup_batches
from elk_jax.data.batches.crops import CloseupConfig
from elk_jax.data.sources import coco
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.diffusion import inpainter
from elk_jax.diffusion.inpainter import InpainterConfig, Words
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import make_schedule
from elk_jax.diffusion.unet import WITHOUT, UNetConfig
from elk_jax.errors import UserError
from elk_jax.synthesis.placement import AreaRule
from elk_jax.tasks.inpainting import model as inpainting_model
from elk_jax.tasks.inpainting import synthesize as inpainting_synthesize
from elk_jax.tasks.run import SYNTHETIC
from elk_jax.weights import model_folder as store

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
    description = inpainting_model.describe(parts, {}, CloseupConfig(window=WINDOW, margin=0.0), rules, ("mass",))
    store.save_params(folder, params, description)
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


def paint(model, canvases, output, count=1):
    inpainting_synthesize.synthesize_source(
        model=model, canvases=SourceSpec(canvases), split="train", on_error="stop", count=count, output=output,
        batch_size=2,
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
    config = CloseupConfig(window=WINDOW, margin=0.0, batch_size=2)
    (batch,) = closeup_batches.eval_closeups(source, config, WINDOW, seed=0)
    assert batch["index"].tolist() == [0, 1] and 59 / 255 < batch["image"].min() < batch["image"].max() < 121 / 255


def test_what_is_painted_has_the_depth_of_its_canvas(model, mixed, tmp_path):
    folder, _, spec = mixed
    paint(model, spec, tmp_path / "out", count=4)
    names = {1: "eight.png", 2: "sixteen.png"}
    seen = []
    for info in coco.read_coco(tmp_path / "out" / SYNTHETIC)[0]:
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
    "pixels, boxes, message",
    [
        (np.zeros((60, 60), np.uint8), [], r"no healthy window of 32 px found in 1 canvases"),
        (np.full((60, 60), 90, np.uint8), [[25, 25, 10, 10]], r"no healthy window of 32 px found in 1 canvases"),
        (np.full((60, 31), 90, np.uint8), [], r"smaller than the window of 32 px, the largest has 31 x 60 px"),
    ],
)
def test_canvases_that_cannot_be_painted_on_leave_no_folder(model, tmp_path, pixels, boxes, message):
    spec = write_source(tmp_path, {"a.png": pixels}, {"a.png": boxes})
    with pytest.raises(UserError, match=message):
        paint(model, spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()
