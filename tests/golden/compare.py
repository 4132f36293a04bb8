"""Runs our detector as the reference scripts run theirs, and compares."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.detection import backbone, dense, efficientdet, faster_rcnn, retinanet
from elk_jax.detection.faster_rcnn import FasterRCNN
from elk_jax.weights import detectors, effdet, resnet

GOLDEN = Path(__file__).parent


def facts(name):
    """How the fixture `name` was made: versions, names and shapes of the tensors, counts."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def load(name, seeded):
    """(tensors of the seeded reference model, what the reference said)."""
    made = facts(name)
    with np.load(GOLDEN / f"{name}.npz") as stored:
        expected = dict(stored)
    return seeded.state_dict(made["shapes"], made["gains"], made["added"]), expected


def golden_batch(seeded, lesion_free=None):
    """The seeded images with their lesions, padded to 4; image `lesion_free` without."""
    count = len(seeded.SIZES)
    boxes, labels, valid = np.zeros((count, 4, 4), "f4"), np.zeros((count, 4), "i4"), np.zeros((count, 4), bool)
    for i, (image_boxes, image_labels) in enumerate(zip(seeded.BOXES, seeded.LABELS)):
        n = len(image_boxes)
        boxes[i, :n], labels[i, :n], valid[i, :n] = image_boxes, image_labels, i != lesion_free
    return {
        "image": seeded.images(),
        "image_size": np.array(seeded.SIZES, "f4"),
        "gt_boxes": boxes,
        "gt_labels": labels,
        "gt_valid": valid,
        "gt_ignore": np.zeros_like(valid),
    }


def run_chain(config, params, seeded):
    """Everything the fixtures store, from one compiled program."""
    model, detector = FasterRCNN(config), faster_rcnn.detector(config)
    batch = {key: jnp.asarray(value) for key, value in golden_batch(seeded).items()}
    lesion_free = {key: jnp.asarray(value) for key, value in golden_batch(seeded, lesion_free=1).items()}
    truth = {key: jnp.stack([batch[key], lesion_free[key]]) for key in batch if key.startswith("gt_")}

    @partial(jax.jit, compiler_options=LITTLE)
    def chain(params, batch, truth):
        (c5,) = backbone.stages(config.backbone, params, batch, strides=(32,))
        pyramid = faster_rcnn.features(model, params, batch)
        outputs = faster_rcnn.rpn_outputs(model, params, pyramid)
        proposed = faster_rcnn.proposals(config, outputs, batch, training=False)
        regions = faster_rcnn.pooled(config, pyramid, proposed.boxes, proposed.valid)
        scored = faster_rcnn.box_outputs(model, params, regions)
        found = faster_rcnn.predict_from_features(model, params, pyramid, batch)
        of_truth = lambda t: detector.loss_from_features(params, pyramid, {**batch, **t}, jax.random.key(0))[1]
        losses = jax.vmap(of_truth)(truth)
        return c5, pyramid, outputs, proposed, scored, found, losses

    c5, pyramid, outputs, proposed, scored, found, losses = jax.device_get(chain(params, batch, truth))
    four = np.stack([losses[f"loss_{name}"] for name in ("rpn_objectness", "rpn_box", "class", "box")], 1)
    ours = {
        "c5": seeded.project(c5),
        **{f"p{level}": seeded.project(x) for level, x in enumerate(pyramid, start=2)},
        "objectness": np.concatenate(outputs.objectness_logits, 1),
        "deltas": np.concatenate(outputs.deltas, 1)[:, :: seeded.STRIDE_OF_DELTAS],
        "proposals": proposed.boxes,
        "class_logits": scored.class_logits,
        "box_deltas": scored.box_deltas,
        **{f"detected_{key}": found[key] for key in ("boxes", "scores", "labels")},
        "counts": np.array([proposed.valid.sum(1), found["valid"].sum(1)]),
        "losses": four[0],
        "losses_lesion_free": four[1],
    }
    return {key: np.array(value) for key, value in ours.items()}


LITTLE = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": False}
"""These networks are of full size: unoptimised, their program runs for longer than optimising it a little takes."""


def retinanet_with_reference(name, seeded):
    """(largest differences, the import) for the RetinaNet of a fixture, its weights converted."""
    tensors, expected = load(name, seeded)
    changes = {"detections": facts(name)["detections"], "level_candidates": facts(name)["candidates"]}
    imported = detectors.convert_foreign(resnet.foreign(tensors, "torchvision"), changes)
    config, model = imported.model, retinanet.RetinaNet(imported.model)
    batch, lesion_free = golden_batch(seeded), golden_batch(seeded, lesion_free=1)

    @partial(jax.jit, compiler_options=LITTLE)
    def chain(params, batch, lesion_free):
        (c5,) = backbone.stages(config.backbone, params, batch, strides=(32,))
        pyramid = dense.features(model, params, batch)
        outputs = dense.outputs(model, params, pyramid)
        loss = lambda b: retinanet.loss(config, outputs, b)[1]
        found = dense.predict_from_features(model, params, pyramid, batch)
        return c5, pyramid, outputs, found, loss(batch), loss(lesion_free)

    c5, pyramid, outputs, found, *losses = jax.device_get(chain(imported.params, batch, lesion_free))
    logits, deltas = (np.concatenate(part, 1)[:, :: seeded.STRIDE_OF_DELTAS] for part in outputs)
    both = [np.array([terms["loss_class"], terms["loss_box"]]) for terms in losses]
    ours = {
        "c5": seeded.project(c5),
        **{f"p{level}": seeded.project(x) for level, x in enumerate(pyramid, start=3)},
        "logits": logits,
        "deltas": deltas,
        "anchors": np.concatenate(dense.anchors(config, *seeded.CANVAS))[:: seeded.STRIDE_OF_DELTAS],
        **{f"detected_{key}": np.array(found[key]) for key in ("boxes", "scores", "labels")},
        "counts": found["valid"].sum(1)[None],
        "losses": both[0],
        "losses_lesion_free": both[1],
    }
    expected["detected_labels"] -= 1  # its first class is the background
    np.testing.assert_array_equal(ours["counts"], expected["counts"])
    for key in ("losses", "losses_lesion_free"):
        ours[key], expected[key] = ours[key] / expected[key], np.ones(2)
    return worst_differences(expected, ours, seeded), imported


def efficientdet_with_reference(name, seeded):
    """(largest differences, the import) for the EfficientDet of a fixture, its weights converted.

    Differences of features are shares of the largest one.
    """
    tensors, expected = load(name, seeded)
    made = facts(name)
    plain = {"pixel_mean": (0.0,) * 3, "pixel_std": (1.0,) * 3}  # the reference has not normalised the images
    changes = {**made["settings"], "level_candidates": made["candidates"], "backbone": plain}
    imported = detectors.convert_understood(effdet.understand(tensors, name, changes))
    config, model = imported.model, efficientdet.EfficientDet(imported.model)
    soft = dataclasses.replace(config, soft_nms_sigma=0.5)

    @partial(jax.jit, compiler_options=LITTLE)
    def chain(params, batch):
        pyramid = dense.features(model, params, batch)
        outputs = dense.outputs(model, params, pyramid)
        terms = efficientdet.loss(config, outputs, batch)[1]
        return pyramid, outputs, terms, [dense.detections(kind, outputs, batch) for kind in (config, soft)]

    batch = golden_batch(seeded)
    rows, columns = (whole - part for whole, part in zip(made["canvas"], seeded.CANVAS))
    batch["image"] = np.pad(batch["image"], ((0, 0), (0, rows), (0, columns), (0, 0)))
    pyramid, outputs, terms, found = jax.device_get(chain(imported.params, batch))
    logits, deltas = (np.concatenate(part, 1)[:, :: seeded.STRIDE_OF_DELTAS] for part in outputs)
    ours = {
        **{f"p{level}": seeded.project(x) for level, x in enumerate(pyramid, start=3)},
        "logits": logits,
        "deltas": deltas,
        "anchors": np.concatenate(dense.anchors(config, *made["canvas"]))[:: seeded.STRIDE_OF_DELTAS],
        "losses": np.array([terms["loss_class"], terms["loss_box"]]),
        "positives": np.array([terms["positives"] * len(seeded.SIZES)]),
    }
    for kind, rows in zip(("hard", "soft"), found):
        ours |= {f"{kind}_{part}": rows[part] for part in ("boxes", "scores", "labels")}
    for key in ("deltas", "anchors"):  # y before x
        expected[key] = expected[key][..., [1, 0, 3, 2]]
    for key in ("p3", "p4", "p5", "p6", "p7", "logits", "deltas", "losses"):
        largest = np.abs(expected[key]).max()
        expected[key], ours[key] = expected[key] / largest, ours[key] / largest
    return {key: float(np.abs(expected[key] - ours[key]).max()) for key in expected}, imported


def worst_differences(expected, ours, seeded):
    """Largest difference of everything, after pairing off proposals and detections (equal scores come in any
    order)."""
    seeded.pair_rows(expected, ours)
    return {key: float(np.abs(expected[key] - ours[key]).max()) for key in expected}


SAMPLING = {  # a slot for each of the 14,328 anchors and for each of 62 proposals and 4 lesions: all are sampled
    "rpn_pre_nms_train": 400,
    "rpn_pre_nms_test": 400,
    "rpn_post_nms_train": 62,
    "rpn_post_nms_test": 62,
    "rpn_samples": 14400,
    "rpn_positive_fraction": 1.0,
    "roi_samples": 66,
    "roi_positive_fraction": 1.0,
    "detections": 40,
    "score_floor": 0.05,
}


def with_reference(name, file_format, seeded, **changes):
    """(largest differences, the import) for the detector of a fixture, its weights converted."""
    tensors, expected = load(name, seeded)
    foreign = resnet.foreign(tensors, file_format)
    imported = detectors.convert_foreign(foreign, {**SAMPLING, **changes})
    ours = run_chain(imported.model, imported.params, seeded)
    deltas = expected["box_deltas"].reshape(*expected["box_deltas"].shape[:2], -1, 4)
    if imported.model.background == "first":  # ours: background last and without a box
        deltas = deltas[:, :, 1:]
        expected["class_logits"] = np.roll(expected["class_logits"], -1, axis=-1)
        expected["detected_labels"] = np.maximum(expected["detected_labels"] - 1, 0)
    expected["box_deltas"] = deltas
    np.testing.assert_array_equal(ours["counts"], expected["counts"])
    return worst_differences(expected, ours, seeded), imported
