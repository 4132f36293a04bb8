"""What a train stage starts from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from elk_jax.detection import detectors, faster_rcnn_config
from elk_jax.detection.faster_rcnn import FasterRCNNConfig
from elk_jax.errors import UserError
from elk_jax.tasks.detection import train as detection_stages
from elk_jax.weights import model_folder as store


def params(classes: int, value: float) -> dict:
    """The skeleton of a detector, every leaf filled with `value`."""
    full = lambda *shape: jnp.full(shape, value, jnp.float32)
    return {
        "backbone": {"stem": {"kernel": full(3, 2)}, "res2_0": {"conv3": {"norm": {"scale": full(2)}}}},
        "rpn": {"deltas": {"kernel": full(3, 12)}},
        "box_head": {
            "fc1": {"kernel": full(4, 3)},
            "class_logits": {"kernel": full(3, classes + 1), "bias": full(classes + 1)},
            "box_deltas": {"kernel": full(3, 4 * classes)},
        },
    }


def started(folder: Path, classes: int, model: FasterRCNNConfig | None = None) -> dict:
    """Names and values (each leaf is constant) of what a model of so many classes starts from; a fresh one is 0."""
    fresh, model = params(classes, 0.0), model or faster_rcnn_config.detectron2()
    initial = detection_stages._from_weights(folder, fresh, detectors.build(model), "detector")
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), initial, fresh)
    return {name: np.unique(leaf).item() for name, leaf in store.flatten(initial).items()}


def test_another_number_of_classes_starts_the_class_layers_alone_anew(tmp_path):
    store.save_params(tmp_path / "first", params(classes=1, value=7.0), {"architecture": "faster_rcnn"})
    assert set(started(tmp_path / "first", classes=1).values()) == {7.0}
    assert started(tmp_path / "first", classes=3) == {
        "backbone/stem/kernel": 7.0,
        "backbone/res2_0/conv3/norm/scale": 7.0,
        "rpn/deltas/kernel": 7.0,
        "box_head/fc1/kernel": 7.0,
        "box_head/class_logits/kernel": 0.0,
        "box_head/class_logits/bias": 0.0,
        "box_head/box_deltas/kernel": 0.0,
    }


def test_a_folder_may_lack_what_it_says_is_absent(tmp_path):
    """As an imported backbone does."""
    backbone = {"backbone": params(classes=1, value=7.0)["backbone"]}
    store.save_params(tmp_path / "imported", backbone, {"absent": ["^(rpn|box_head)/"]})
    found = started(tmp_path / "imported", classes=1)
    assert {value for name, value in found.items() if name.startswith("backbone/")} == {7.0}
    assert {value for name, value in found.items() if not name.startswith("backbone/")} == {0.0}
    store.save_params(tmp_path / "half", backbone, {})
    with pytest.raises(UserError, match=r"lack rpn/deltas/kernel.*, box_head/fc1/kernel"):
        started(tmp_path / "half", classes=1)


def test_other_layers_must_fit(tmp_path):
    other = params(classes=1, value=7.0)
    other["backbone"]["stem"]["kernel"] = np.zeros((5, 2), np.float32)
    store.save_params(tmp_path / "other", other, {})
    words = r"backbone/stem/kernel is \(5, 2\) in the weights and \(3, 2\) .*/other\).*--config\.RECIPE\.model\.KEY"
    with pytest.raises(UserError, match=words) as error:
        started(tmp_path / "other", classes=1)
    assert "`drop`" not in str(error.value)
    with pytest.raises(UserError, match="no model here"):
        started(tmp_path / "nowhere", classes=1)


# ---- What the weights mean -----------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
    """Writes the model that a stage starts from: (its configuration, number of classes, parts) -> what it started."""

    def start(before: FasterRCNNConfig, now: FasterRCNNConfig, classes: int = 1, parts=(), **said) -> dict:
        whole = params(classes, 7.0)
        description = {"architecture": "faster_rcnn", "model": dataclasses.asdict(before), **said}
        store.save_params(tmp_path / "first", {part: whole[part] for part in parts or whole}, description)
        return started(tmp_path / "first", 1, now)

    return start


GREY = faster_rcnn_config.detectron2(pixel_mean=(60.0,), pixel_std=(60.0,))


@pytest.mark.parametrize(
    "field, value, todo",
    [
        ("pixel_scale", 1.0, "1.0"),
        ("pixel_mean", (1.0, 2.0, 3.0), r"'\(1\.0, 2\.0, 3\.0\)'"),
        ("pixel_std", (57.0, 57.0, 58.0), r"'\(57\.0, 57\.0, 58\.0\)'"),
        ("stride_in_1x1", False, "False"),
        ("norm_eps", 0.0, "0.0"),
        ("anchor_ratios", (2.0, 1.0, 0.5), r"'\(2\.0, 1\.0, 0\.5\)'"),
        ("anchor_offset", 0.5, "0.5"),
        ("anchor_rounded", True, "True"),
        ("roi_aligned", False, "False"),
        ("background", "first", "first"),
        ("box_weights", (1.0, 1.0, 1.0, 1.0), r"'\(1\.0, 1\.0, 1\.0, 1\.0\)'"),
    ],
)
def test_weights_are_not_trained_on_under_other_conventions(kept, field, value, todo):
    ours = faster_rcnn_config.detectron2()
    words = rf"with {field} .*, the recipe has .*first\)\. set --config\.detector\.model\.{field}={todo}$"
    with pytest.raises(UserError, match=words):
        kept(dataclasses.replace(ours, **{field: value}), ours)


def test_groups_of_a_norm_are_a_convention(kept):
    ours = faster_rcnn_config.detectron2(norm="gn")
    with pytest.raises(UserError, match="norm_groups 16, the recipe has 32"):
        kept(dataclasses.replace(ours, norm_groups=16), ours)


def test_the_line_says_all_that_is_to_be_set(kept):
    ours = faster_rcnn_config.detectron2(depth=50)
    with pytest.raises(UserError, match=r"with pixel_scale 1\.0, the recipe has 255\.0") as error:
        kept(faster_rcnn_config.torchvision(), ours)
    flags = [word.partition("=")[0].rpartition(".")[2] for word in str(error.value).split() if word.startswith("--")]
    means = ["pixel_scale", "pixel_mean", "pixel_std"]
    assert flags == [*means, "stride_in_1x1", "anchor_rounded", "roi_aligned", "background"]


@pytest.mark.parametrize(
    "before, now, parts",
    [
        (GREY, dataclasses.replace(GREY, anchor_sizes=((9.0,), (12.0,), (15.0,), (20.0,), (30.0,))), {}),  # planned
        (GREY, dataclasses.replace(GREY, pixel_mean=(40.0,), pixel_std=(50.0,)), {}),
        (GREY, dataclasses.replace(GREY, dtype="bfloat16", detections=5, norm="affine_bn", remat=(2,)), {}),
        (faster_rcnn_config.detectron2(), base.detector("paper")["model"], {}),
        (faster_rcnn_config.detectron2(norm_groups=16), faster_rcnn_config.detectron2(), {}),  # there are none
        # a backbone alone has no say in what is made of its features, nor class layers that are not taken
        (dataclasses.replace(GREY, roi_aligned=False, anchor_rounded=True), GREY,
         {"parts": ("backbone",), "absent": ("^(rpn|box_head)/",)}),
        (dataclasses.replace(GREY, background="first", box_weights=(1.0,) * 4), GREY, {"classes": 90}),
    ],
)  # fmt: skip
def test_what_a_training_may_change_it_may(kept, before, now, parts):
    now = now if isinstance(now, FasterRCNNConfig) else FasterRCNNConfig(**now)
    assert kept(before, now, **parts)["backbone/stem/kernel"] == 7.0
