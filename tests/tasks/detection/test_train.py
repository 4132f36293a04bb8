"""What a training starts from, and the sizes of its anchors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.recipes.detector import detector
from elk_jax import fields
from elk_jax.backbones import efficientnet, resnet
from elk_jax.data.augment import NO_AUGMENTATION, Resize
from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.detection import detectors, faster_rcnn_config
from elk_jax.detection.faster_rcnn import FasterRCNNConfig
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.detection import train
from elk_jax.tasks.detection.recipe import DetectionRecipe
from elk_jax.weights import classifiers, model_folder
from tests.models import save_imported
from tests.refusals import refused


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
    initial = train.from_weights(folder, fresh, detectors.build(model), "detector")
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), initial, fresh)
    return {name: np.unique(leaf).item() for name, leaf in model_folder.flatten(initial).items()}


def test_another_number_of_classes_starts_the_class_layers_alone_anew(tmp_path):
    save_imported(tmp_path / "first", params(classes=1, value=7.0))
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
    """As an import that left layers out does (`--drop`)."""
    backbone = {"backbone": params(classes=1, value=7.0)["backbone"]}
    save_imported(tmp_path / "imported", backbone, absent=["^(rpn|box_head)/"])
    found = started(tmp_path / "imported", classes=1)
    assert {value for name, value in found.items() if name.startswith("backbone/")} == {7.0}
    assert {value for name, value in found.items() if not name.startswith("backbone/")} == {0.0}
    save_imported(tmp_path / "half", backbone)
    with refused("rpn/deltas/kernel", "box_head/fc1/kernel", where=tmp_path / "half"):
        started(tmp_path / "half", classes=1)


def test_other_layers_must_fit(tmp_path):
    other = params(classes=1, value=7.0)
    other["backbone"]["stem"]["kernel"] = np.zeros((5, 2), np.float32)
    save_imported(tmp_path / "other", other)
    with refused("backbone/stem/kernel", "(5, 2)", "(3, 2)", "--config.RECIPE.model.KEY", where="/other") as error:
        started(tmp_path / "other", classes=1)
    assert "`drop`" not in str(error.value)
    with refused("model", where="nowhere"):
        started(tmp_path / "nowhere", classes=1)


# ---- What the weights mean -----------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
    """Writes the model that a stage starts from: (its configuration, number of classes, parts) -> what it started."""

    def start(before: FasterRCNNConfig, now: FasterRCNNConfig, classes: int = 1, parts=(), absent=()) -> dict:
        whole = params(classes, 7.0)
        save_imported(tmp_path / "first", {part: whole[part] for part in parts or whole}, before, absent)
        return started(tmp_path / "first", 1, now)

    return start


def detectron2(**changes) -> FasterRCNNConfig:
    """changes: of the backbone."""
    return faster_rcnn_config.detectron2(backbone=resnet.detectron2(**changes))


GREY = detectron2(pixel_mean=(60.0,), pixel_std=(60.0,))


@pytest.mark.parametrize(
    "field, value, todo",
    [
        ("backbone.pixel_scale", 1.0, "1.0"),
        ("backbone.pixel_mean", (1.0, 2.0, 3.0), "'(1.0, 2.0, 3.0)'"),
        ("backbone.pixel_std", (57.0, 57.0, 58.0), "'(57.0, 57.0, 58.0)'"),
        ("backbone.stride_in_1x1", False, "False"),
        ("backbone.norm_eps", 0.0, "0.0"),
        ("anchor_ratios", (2.0, 1.0, 0.5), "'(2.0, 1.0, 0.5)'"),
        ("anchor_offset", 0.5, "0.5"),
        ("anchor_rounded", True, "True"),
        ("roi_aligned", False, "False"),
        ("background", "first", "first"),
        ("box_weights", (1.0, 1.0, 1.0, 1.0), "'(1.0, 1.0, 1.0, 1.0)'"),
    ],
)
def test_weights_are_not_trained_on_under_other_conventions(kept, field, value, todo):
    ours = faster_rcnn_config.detectron2()
    name = field.removeprefix("backbone.")
    part = ours if name == field else ours.backbone
    theirs = dataclasses.replace(part, **{name: value})
    before = theirs if part is ours else dataclasses.replace(ours, backbone=theirs)
    with refused(f"{field} {value!r}", repr(getattr(part, name)), where="first") as error:
        kept(before, ours)
    assert error.value.todo == f"set --config.detector.model.{field}={todo}"


def test_groups_of_a_norm_are_a_convention(kept):
    with refused("norm_groups", 16, 32, where="first"):
        kept(detectron2(norm="gn", norm_groups=16), detectron2(norm="gn"))


def test_the_error_names_all_settings_to_change(kept):
    ours = detectron2(depth=50)
    with refused("backbone.stride_in_1x1", False, True, where="first") as error:
        kept(faster_rcnn_config.torchvision(), ours)
    words = [word for word in error.value.todo.split() if word.startswith("--")]
    flags = [word.partition("=")[0].partition(".model.")[2] for word in words]
    of_backbone = ("stride_in_1x1", "pixel_scale", "pixel_mean", "pixel_std")
    assert flags == [*(f"backbone.{name}" for name in of_backbone), "anchor_rounded", "roi_aligned", "background"]


@pytest.mark.parametrize(
    "before, now, parts",
    [
        (GREY, dataclasses.replace(GREY, anchor_sizes=((9.0,), (12.0,), (15.0,), (20.0,), (30.0,))), {}),  # planned
        (GREY, detectron2(pixel_mean=(40.0,), pixel_std=(50.0,)), {}),
        (dataclasses.replace(GREY, detections=5), GREY, {}),
        (GREY, detectron2(pixel_mean=(60.0,), pixel_std=(60.0,), dtype="bfloat16", norm="affine_bn", remat=(2,)), {}),
        (detectron2(), detector("paper")["model"], {}),
        (detectron2(norm_groups=16), detectron2(), {}),  # there are none
        # a backbone alone has no say in what is made of its features, nor class layers that are not taken
        (dataclasses.replace(GREY, roi_aligned=False, anchor_rounded=True), GREY,
         {"parts": ("backbone",), "absent": ("^(rpn|box_head)/",)}),
        (dataclasses.replace(GREY, background="first", box_weights=(1.0,) * 4), GREY, {"classes": 90}),
    ],
)  # fmt: skip
def test_what_a_training_may_change_it_may(kept, before, now, parts):
    now = now if isinstance(now, FasterRCNNConfig) else fields.build(FasterRCNNConfig, now)
    assert kept(before, now, **parts)["backbone/stem/kernel"] == 7.0


# ---- A network as the backbone -------------------------------------------------------------------------------------


NETWORK = efficientnet.EfficientNetConfig(width=0.25, depth=0.2, norm="gn", num_classes=3)


@pytest.fixture
def network(tmp_path):
    """A function that writes an imported network of these settings, every leaf 7, and returns its folder."""

    def write(config: efficientnet.EfficientNetConfig, remove: str = "") -> Path:
        shapes = model_folder.flatten(jax.eval_shape(lambda key: efficientnet.init(config, key), jax.random.key(0)))
        params = {name: np.full(leaf.shape, 7.0, np.float32) for name, leaf in shapes.items() if name != remove}
        described = classifiers.ImportedClassifier("efficientnet", config, classifiers.Origin("timm", "file", ""))
        model_folder.save_params(tmp_path / "network", model_folder.nest(params), described)
        return tmp_path / "network"

    return write


def from_network(folder: Path, backbone: efficientnet.EfficientNetConfig) -> dict:
    ours = detectors.build(faster_rcnn_config.detectron2(backbone=backbone, fpn_channels=8, box_fc_width=8))
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), jax.eval_shape(ours.init, jax.random.key(0)))
    return model_folder.flatten(train.from_weights(folder, fresh, ours, "detector"))


@pytest.mark.parametrize("trained_here", [False, True])
def test_a_detector_starts_from_the_backbone_of_a_classifier(network, trained_here):
    """All of it, and nothing of its head; the classes and what is behind the backbone are the detector's own."""
    folder = network(NETWORK)
    if trained_here:
        params, _ = model_folder.load_params(folder)
        described = {"architecture": classifiers.TRAINED, "model": dataclasses.asdict(NETWORK), "classes": ("a", "b")}
        model_folder.save_params(folder, params, described)
    found = from_network(folder, dataclasses.replace(NETWORK, num_classes=0))
    assert all((leaf == (7 if name.startswith("backbone/") else 0)).all() for name, leaf in found.items())
    assert {name.split("/")[0] for name in found} == {"backbone", "fpn", "rpn", "box_head"}


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"pixel_mean": (0.5, 0.5, 0.5)}, "model.backbone.pixel_mean"),
        ({"padding": "symmetric"}, "model.backbone.padding=same"),
        ({"norm_groups": 4}, "model.backbone.norm_groups=8"),
        ({"width": 0.5}, "stage1_0/depthwise/kernel"),
        ({"squeeze_excite": False}, "squeeze"),
        ({"pixel_mean": (0.5,), "pixel_std": (0.2,)}, "(3, 3, 1, 8)"),
    ],
)
def test_weights_of_another_network_are_refused(network, changes, word):
    with refused(word, where="network"):
        from_network(network(NETWORK), dataclasses.replace(NETWORK, num_classes=0, **changes))


def test_a_backbone_that_lacks_a_tensor_is_refused(network):
    folder = network(NETWORK, remove="backbone/stem/kernel")
    with refused("backbone/stem/kernel", where="network"):
        from_network(folder, dataclasses.replace(NETWORK, num_classes=0))


# ---- Anchors from lesions ------------------------------------------------------------------------------------------


def info(number: int, height: int, width: int, boxes: list, ignore: list | None = None) -> ImageInfo:
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
    infos = (
        info(0, 200, 100, [[0, 0, 20, 20]]),  # halved: 10 px
        info(1, 100, 50, [[5, 5, 45, 45], [0, 0, 2, 2]], ignore=[False, True]),  # 40 px; the other is not a lesion
    )
    fit = Resize(short_sides=(), jitter=(1.0, 1.0))
    config = LoaderConfig(resize=fit, augmentation=NO_AUGMENTATION, buckets=((100, 50),))
    sizes = train.planned_anchor_sizes(infos, config, levels=2)
    # the central 95 % of log 10 .. log 40 leave out 2.5 % at both ends; two parts of equal ratio, the middle of each
    low, high = 10 * 4**0.025, 10 * 4**0.975
    ratio = high / low
    assert sizes == ((pytest.approx(low * ratio**0.25, abs=0.01),), (pytest.approx(low * ratio**0.75, abs=0.01),))


def test_anchor_sizes_of_a_fixed_short_side():
    """Short side 100 px, long side at most 150: scales 100 / 50, and 150 / 100 instead of 100 / 60."""
    infos = (info(0, 50, 60, [[0, 0, 10, 10]]), info(1, 100, 60, [[0, 0, 10, 10]]))
    config = LoaderConfig(
        resize=Resize(short_sides=(50, 100), max_long_side=150, jitter=()), augmentation=NO_AUGMENTATION
    )
    ((size,),) = train.planned_anchor_sizes(infos, config, levels=1)
    assert size == pytest.approx((20 * 15) ** 0.5, abs=0.01)  # the geometric middle of 20 and 15 px


# ---- How it looks ----------------------------------------------------------------------------------------------------


def test_one_view_has_nothing_to_fuse():
    with refused("2 IoUs", "test_flips", where="config.detector.test_same"):
        fields.build(DetectionRecipe, {"test_same": (0.5, 0.4)}, "config.detector")
    with refused("2 IoUs", where="config.detector.test_same"):
        fields.build(DetectionRecipe, {"test_same": (0.5, 0.4), "test_scales": (1.0, 1.0)}, "config.detector")
    fields.build(DetectionRecipe, {"test_same": (0.5, 0.4), "test_scales": (1.0, 1.25)}, "config.detector")


@pytest.mark.parametrize("scales, words", [((0.8, 1.0), ("0.8", "1.0")), ((1.0, 3.0), ("3", "12288")), ((), ("one",))])
def test_scales_of_testing_begin_with_the_size_of_training_and_are_not_too_large(scales, words):
    changes = {"test_scales": scales, "loader": {"buckets": ((4096, 1024),)}}
    with refused(*words, where="config.detector.test_scales"):
        fields.build(DetectionRecipe, changes, "config.detector")
