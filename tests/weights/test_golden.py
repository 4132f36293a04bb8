"""Converted weights of torchvision and detectron2 give their features, proposals, losses and detections.

Both sides make the same weights and images from their names; the reference's answers are stored in tests/golden,
with the scripts that made them. Tolerances are about ten times what was seen (float32, CPU).
"""

import math
import re

import numpy as np
import pytest

from elk_jax.detection import efficientdet_config, retinanet
from elk_jax.detection.faster_rcnn import detectron2, torchvision, torchvision_v2
from elk_jax.weights import effdet
from elk_jax.weights.detectors import parameter_shapes
from tests.refusals import refused

TOLERANCES = {
    "c5": 2e-4,  # features are of size 1 to 10
    **{f"p{level}": 2e-4 for level in (2, 3, 4, 5, 6)},
    "objectness": 3e-4,
    "deltas": 1e-4,
    "proposals": 0.01,  # pixels
    "class_logits": 5e-4,
    "box_deltas": 1e-3,
    "detected_boxes": 0.01,
    "detected_scores": 1e-4,
    "detected_labels": 0.0,
    "losses": 1e-5,
    "losses_lesion_free": 1e-5,
    "counts": 0.0,
}

MODELS = {
    "torchvision_v1": ("torchvision", {}),
    "torchvision_v2": ("torchvision", {}),
    # No region has more than 10 pixels per bin: exactly detectron2's adaptive sampling.
    "detectron2_r101": ("detectron2", {"roi_max_samples": 10}),
}


@pytest.mark.parametrize("name", MODELS)
def test_same_as_the_reference(name, compare, seeded):
    file_format, changes = MODELS[name]
    worst, imported = compare.with_reference(name, file_format, seeded, **changes)
    print(name, {key: float(f"{value:.2g}") for key, value in worst.items()})
    assert set(worst) == set(TOLERANCES)
    for key, tolerance in TOLERANCES.items():
        assert worst[key] <= tolerance, (key, worst[key])
    assert not imported.name_map.filled and not imported.name_map.dropped
    assert all(ignored.endswith("num_batches_tracked") for ignored in imported.name_map.ignored)
    assert imported.model.num_classes == seeded.NUM_CLASSES
    assert imported.model.backbone.depth == (101 if file_format == "detectron2" else 50)


RETINANET = {
    "c5": 2e-4,
    **{f"p{level}": 2e-4 for level in (3, 4, 5, 6, 7)},
    "logits": 1e-3,  # of size 10
    "deltas": 1e-4,
    "anchors": 0.0,
    "detected_boxes": 0.01,  # pixels
    "detected_scores": 1e-4,
    "detected_labels": 0.0,
    "losses": 1e-4,  # relative
    "losses_lesion_free": 1e-4,
    "counts": 0.0,
}


@pytest.mark.parametrize(("name", "parameters"), [("retinanet_v1", 34_014_999), ("retinanet_v2", 38_198_935)])
def test_retinanet_is_that_of_torchvision(name, parameters, compare, seeded):
    worst, imported = compare.retinanet_with_reference(name, seeded)
    print(name, {key: float(f"{value:.2g}") for key, value in worst.items()})
    assert set(worst) == set(RETINANET)
    for key, tolerance in RETINANET.items():
        assert worst[key] <= tolerance, (key, worst[key])
    assert not imported.name_map.filled and not imported.name_map.dropped
    preset = {"retinanet_v1": retinanet.torchvision, "retinanet_v2": retinanet.torchvision_v2}[name]
    shapes, facts = parameter_shapes(preset(num_classes=90)), compare.facts(name)
    assert _count(shapes, norms=True) == facts["parameters_with_91_classes"] + facts["buffers_with_91_classes"]
    published = preset(num_classes=90)
    frozen = [re.compile(pattern) for pattern in retinanet.frozen(published)]
    trained = {n: s for n, s in shapes.items() if not any(p.search(n) for p in frozen)}
    assert _count(trained, norms=True) == parameters


EFFICIENTDET = {
    **{f"p{level}": 1e-4 for level in (3, 4, 5, 6, 7)},
    **{"logits": 1e-4, "deltas": 1e-4, "losses": 1e-4, "positives": 0.0},
    "anchors": 1e-3,  # pixels
    **{f"{kind}_boxes": 0.02 for kind in ("hard", "soft")},  # pixels
    **{f"{kind}_scores": 1e-4 for kind in ("hard", "soft")},
    **{f"{kind}_labels": 0.0 for kind in ("hard", "soft")},
}


@pytest.mark.parametrize(
    "name", ["tf_efficientdet_d0", "efficientdet_d0", "tf_efficientdet_lite0", "efficientdet_lite0"]
)
def test_efficientdet_is_that_of_effdet(name, compare, seeded):
    """Both fusions, paddings and activations, with biases beside norms and without, norms repeat first."""
    worst, imported = compare.efficientdet_with_reference(name, seeded)
    print(name, {key: float(f"{value:.2g}") for key, value in worst.items()})
    assert set(worst) == set(EFFICIENTDET)
    # With these weights PyTorch's own float32 differs from its float64 by 7e-5 of the largest feature; else by 1e-6.
    looser = 4 if name == "tf_efficientdet_lite0" else 1
    for key, tolerance in EFFICIENTDET.items():
        assert worst[key] <= looser * tolerance, (key, worst[key])
    assert not imported.name_map.filled and imported.model.num_classes == seeded.NUM_CLASSES


def _count(shapes, *, norms):
    """Parameters, with the norms or without."""
    return sum(math.prod(shape) for path, shape in shapes.items() if norms or "/norm/" not in path)


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts(name, compare):
    facts = compare.facts(name)
    if name == "detectron2_r101":  # its frozen norms are buffers
        shapes = parameter_shapes(detectron2(num_classes=80))
        assert _count(shapes, norms=False) == facts["parameters_with_80_classes"] == 60_639_840
        assert _count(shapes, norms=True) == 60_639_840 + facts["buffers_with_80_classes"]
        return
    preset = torchvision if name == "torchvision_v1" else torchvision_v2
    shapes = parameter_shapes(preset(num_classes=90))  # torchvision counts the background: 91
    assert _count(shapes, norms=True) == facts["parameters_with_91_classes"] + facts["buffers_with_91_classes"]
    if name == "torchvision_v1":  # published with frozen norms, which are buffers
        assert _count(shapes, norms=False) == 41_755_286
    else:
        assert facts["parameters_with_91_classes"] == 43_712_278


@pytest.mark.parametrize(
    ("name", "backbone", "behind"),
    [
        ("efficientdet_d1", "symmetric", "symmetric"),
        ("efficientdet_d4", "symmetric", "same"),
        ("efficientdet_d5", "symmetric", "same"),
        ("efficientdet_lite0", "symmetric", "same"),
        ("tf_efficientdet_d4", "same", "same"),
        ("tf_efficientdet_d5_ap", "same", "same"),
        ("tf_efficientdet_lite3x", "same", "same"),
    ],
)
def test_paddings_of_effdets_names(name, backbone, behind):
    """Of effdet's own D4 and D5 pyramid and heads pad as TensorFlow does: their `pad_type` was left at its default."""
    model = effdet.understand(effdet_outputs(), name, {}).model
    assert (model.backbone.padding, model.padding) == (backbone, behind)


def effdet_outputs(anchors=9, classes=2):
    """The two kernels that show the classes."""
    outputs = {"class": anchors * classes, "box": anchors * 4}
    return {f"{net}_net.predict.conv_pw.weight": np.zeros((n, 64, 1, 1), "f4") for net, n in outputs.items()}


def test_the_anchors_of_effdets_bench_must_be_those_of_the_model():
    """A bench has its anchors beside its model: top, left, bottom, right, in px, the first cell first."""
    around = np.array([[2**octave * w, 2**octave * h] for octave in (0, 1 / 3, 2 / 3) for w, h in EFFDET_RATIOS])
    y, x = 16 * around[:, 1:], 16 * around[:, :1]  # half of 4 strides of 8 px, about the middle of the first cell
    anchors = np.concatenate([4 - y, 4 - x, 4 + y, 4 + x], axis=1)
    bench = {f"model.{name}": kernel for name, kernel in effdet_outputs().items()}
    for prefix in ("", "module."):
        file = {prefix + name: tensor for name, tensor in (bench | {"anchors.boxes": anchors}).items()}
        found = effdet.understand(file, "tf_efficientdet_d0", {})
        assert found.model.num_classes == 2 and found.tensors.keys() == effdet_outputs().keys()
    beside = {**bench, "anchors.boxes": anchors, "loss.weight": anchors}
    found = effdet.understand(beside, "tf_efficientdet_d0", {}, ignore=["^loss"])
    assert found.tensors.keys() == {*effdet_outputs(), "loss.weight"}
    for other in (anchors[:, [1, 0, 3, 2]], anchors[:8], 4 + (anchors - 4) / 2):
        with refused("anchors.boxes", "anchor_sizes"):
            effdet.understand(bench | {"anchors.boxes": other}, "tf_efficientdet_d0", {})
    halves = {"anchor_sizes": efficientdet_config.octaves(2.0, 5)}
    effdet.understand(bench | {"anchors.boxes": 4 + (anchors - 4) / 2}, "tf_efficientdet_d0", halves)


def test_the_classes_of_effdet_follow_from_any_number_of_anchors():
    found = effdet.understand(effdet_outputs(6, 3), "tf_efficientdet_d0", {"anchor_ratios": [1, 2]})
    assert found.model.num_classes == 3


EFFDET_RATIOS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))


@pytest.mark.parametrize(
    "name", ["efficientdet_d6", "efficientdet_lite3", "tf_efficientdet_lite0_ap", "tf_efficientdet_d7x_ap", "d0"]
)
def test_names_that_effdet_does_not_have_are_refused(name):
    with refused(name, where="--model"):
        effdet.understand({}, name, {})
