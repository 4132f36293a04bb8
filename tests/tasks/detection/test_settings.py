"""From configuration to plain values: conditions on images, the numbers of a model, anchor sizes, the data."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest

from configs import base
from elk_jax.data.augment import Augmentation, Resize
from elk_jax.data.batches.detection import NO_AUGMENTATION, LoaderConfig
from elk_jax.detection.faster_rcnn import FasterRCNNConfig
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.detection import settings as detection
from elk_jax.training.optimizer import OptimizerConfig


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("", {}),
        (" , ", {}),
        ("is_mass=true", {"is_mass": True}),
        ("is_mass=true, view=MLO|CC", {"is_mass": True, "view": ("MLO", "CC")}),
        ("birads=4|5,density=null", {"birads": (4, 5), "density": None}),
        ("name=a=b", {"name": "a=b"}),
        ("note=", {"note": ""}),
    ],
)
def test_conditions_are_json_values_or_text(text, wanted):
    assert detection.parse_where(text) == wanted


def test_conditions_that_mean_nothing_are_refused():
    for text in ("is_mass", "=true", "view=MLO,is_mass"):
        with pytest.raises(UserError, match=r"is no condition.*write field=value"):
            detection.parse_where(text)
    with pytest.raises(UserError, match=r"'view' is named twice.*field=value\|value"):
        detection.parse_where("view=MLO,view=CC")


def test_model_settings_arrive():
    config = detection.model_config(
        {"name": "faster_rcnn", "anchor_sizes": [[8], [16], [32], [64], [128]], "depth": 18}, num_classes=3
    )
    assert config == FasterRCNNConfig(anchor_sizes=((8,), (16,), (32,), (64,), (128,)), depth=18, num_classes=3)
    with pytest.raises(UserError, match=r"no setting 'dept'.*depth"):
        detection.model_config({"name": "faster_rcnn", "dept": 18})


# ---- Every field can be set on the command line --------------------------------------------------------------------


@pytest.mark.parametrize("size", ["quick", "tiny", "small", "paper"])
def test_the_recipe_names_every_field(size):
    recipe = base.detector(size)
    names = lambda kind: {field.name for field in dataclasses.fields(kind)}
    assert set(recipe["model"]) == names(FasterRCNNConfig)
    assert set(recipe["optimizer"]) == names(OptimizerConfig)
    assert set(recipe["loader"]) == names(LoaderConfig) - {"weights"}  # a setting of the stage
    assert set(recipe["loader"]["augmentation"]) == names(Augmentation)
    assert set(recipe["loader"]["resize"]) == names(Resize) == set(recipe["test_resize"])


def test_what_the_recipe_does_not_change_is_the_default():
    recipe, defaults = base.detector("quick"), OptimizerConfig()
    for name in ("momentum", "nesterov", "b1", "b2", "eps", "no_decay"):
        assert recipe["optimizer"][name] == getattr(defaults, name), name
    for name in ("crop_sides", "min_visible"):
        assert recipe["loader"]["augmentation"][name] == getattr(Augmentation(), name), name


# ---- Anchors from lesions ------------------------------------------------------------------------------------------


def _info(number: int, height: int, width: int, boxes: list, ignore: list | None = None) -> ImageInfo:
    return ImageInfo(
        image_id=str(number),
        patient_id=str(number),
        width=width,
        height=height,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.zeros(len(boxes), np.int32),
        ignore=np.array(ignore or [False] * len(boxes), bool),
    )


def test_anchor_sizes_follow_the_lesions_as_the_network_sees_them():
    """Two images of which one is halved to fit its canvas: lesions of 10 and 40 px, in network pixels."""
    infos = [
        _info(0, 200, 100, [[0, 0, 20, 20]]),  # halved: 10 px
        _info(1, 100, 50, [[5, 5, 45, 45], [0, 0, 2, 2]], ignore=[False, True]),  # 40 px; the other is no lesion
    ]
    fit = Resize(short_sides=(), jitter=(1.0, 1.0))
    config = LoaderConfig(resize=fit, augmentation=NO_AUGMENTATION, buckets=((100, 50),))
    sizes = detection.planned_anchor_sizes(infos, config, levels=2)
    # the central 95 % of log 10 .. log 40 leave out 2.5 % at both ends; two parts of equal ratio, the middle of each
    low, high = 10 * 4**0.025, 10 * 4**0.975
    ratio = high / low
    assert sizes == ((pytest.approx(low * ratio**0.25, abs=0.01),), (pytest.approx(low * ratio**0.75, abs=0.01),))


def test_anchor_sizes_of_a_fixed_short_side():
    """Short side 100 px, long side at most 150: scales 100 / 50, and 150 / 100 instead of 100 / 60."""
    infos = [_info(0, 50, 60, [[0, 0, 10, 10]]), _info(1, 100, 60, [[0, 0, 10, 10]])]
    config = LoaderConfig(resize=Resize(short_sides=(50, 100), max_long_side=150), augmentation=NO_AUGMENTATION)
    ((size,),) = detection.planned_anchor_sizes(infos, config, levels=1)
    assert size == pytest.approx((20 * 15) ** 0.5, abs=0.01)  # the geometric middle of 20 and 15 px


# ---- Data ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path):
    """Six training and two test patients of one image each; every other one for training is marked."""
    images = []
    for i in range(8):
        split = "train" if i < 6 else "test"
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((8, 8), 100, np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "width": 8, "height": 8, "split": split})
        images[-1] |= {"patient_id": f"P{i}", "view": "CC" if i < 4 else "MLO"}
        images[-1] |= {"fewshot": i % 2 == 0 and split == "train"}
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 4, 4]} for i in range(8)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "lesion"}]}
    (tmp_path / "data.json").write_text(json.dumps(content))
    return f"coco:{tmp_path / 'data.json'}"


def opened(coco: str, split: str, **entry) -> list[str]:
    config = base.experiment("e", data={"on_error": "stop", "real": base.source(coco, **entry)})
    return [info.image_id for info in detection.open_data(config.data, ("real",), split, seed=0).infos]


def test_few_shots_limit_the_training_split_alone(coco):
    assert opened(coco, "train", train_where="fewshot=true") == ["0", "2", "4"]
    assert opened(coco, "test", train_where="fewshot=true") == ["6", "7"]
    assert opened(coco, "train", where="view=CC", train_where="fewshot=true") == ["0", "2"]
    assert len(opened(coco, "train", patients=2)) == 2 and opened(coco, "test", patients=2) == ["6", "7"]
    assert set(opened(coco, "train", train_where="fewshot=true", patients=2)) < {"0", "2", "4"}
