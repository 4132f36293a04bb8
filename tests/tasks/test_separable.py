"""The losses of all tasks that train privately: whether examples meet in them is found by trying, not by what they say.

A loss in which examples meet is refused though it is marked as a sum over examples. That truthful losses pass is shown
here for detectors; for other tasks their own private trainings show it. Games: tests/tasks/generation/test_private.py.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.data.batches import detection, labelled
from elk_jax.detection import detectors
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.detection.faster_rcnn_config import FasterRCNNConfig
from elk_jax.detection.retinanet_config import RetinaNetConfig
from elk_jax.diffusion.inpainter import LossConfig, Words
from elk_jax.diffusion.patches import DenoiserConfig, Strengths
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import make_schedule
from elk_jax.diffusion.translator import TranslatorConfig
from elk_jax.diffusion.unet import UNetConfig
from elk_jax.tasks.classification import model as classifiers
from elk_jax.tasks.detection.model import trainable
from elk_jax.tasks.generation.model import Denoiser, denoising
from elk_jax.tasks.inpainting import model as inpainters
from elk_jax.tasks.inpainting.recipe import LoraConfig, PixelModel
from elk_jax.tasks.sampling import NoiseSettings
from elk_jax.tasks.translation import model as translators
from elk_jax.tasks.translation.recipe import BridgeSampler
from elk_jax.training.step.separable import check_examples, trial_example
from elk_jax.weights import model_folder
from tests.refusals import refused

BACKBONE = ResNetConfig(depth=18, width=2, norm="none", num_classes=0, pixel_mean=(60.0,), pixel_std=(60.0,))
SIZES = ((8.0,), (12.0,), (18.0,), (27.0,), (40.0,))
DETECTORS = {
    "retinanet": RetinaNetConfig(backbone=BACKBONE, fpn_channels=4, head_convs=1, anchor_sizes=SIZES),
    "efficientdet": EfficientDetConfig(
        backbone=BACKBONE, channels=4, cells=1, levels=3, head_convs=1, norm_groups=2, anchor_sizes=SIZES[:3]
    ),
    "faster_rcnn": FasterRCNNConfig(
        backbone=BACKBONE, fpn_channels=4, anchor_sizes=SIZES, rpn_samples=64, roi_samples=48, roi_size=2,
        rpn_pre_nms_train=60, rpn_post_nms_train=60, roi_sampling_ratio=1, box_fc_width=8,
    ),
}  # fmt: skip
UNET = UNetConfig(
    in_channels=8, out_channels=4, down_block_types=("DownBlock2D",), block_out_channels=(4,), layers_per_block=1,
    attention_head_dim=1, cross_attention_dim=None, norm_num_groups=2,
)  # fmt: skip
ONE_BLOCK = {"down_block_types": ("CrossAttnDownBlock2D",), "block_out_channels": (4,), "norm_num_groups": 2,
             "attention_head_dim": 2}  # fmt: skip


def falsely(model):
    """The same model, marked as one whose examples do not meet."""
    return replace(quickly(model), per_example=True, statistics=())


def quickly(model, parts=None):
    """The same model, whose first parameters are drawn in NumPy: JAX compiles nothing for them. parts: their top-level
    names, None for all."""

    def init(rng):
        shapes, draws = jax.eval_shape(model.init, rng), np.random.default_rng(0)

        def drawn(path, shape):
            if path.endswith(("scale", "var")):
                return np.ones(shape, np.float32)
            return (draws.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)

        flat = model_folder.flatten(shapes).items()
        chosen = {path: one.shape for path, one in flat if parts is None or path.split("/")[0] in parts}
        return model_folder.nest({path: drawn(path, shape) for path, shape in chosen.items()})

    return replace(model, init=init)


def detecting(name, **how):
    """A detector for training, whose levels are means of the image: its loss and its heads alone are tried."""
    detector = detectors.build(DETECTORS[name])

    def features(params, batch, rng):
        side = batch["image"].shape[1]
        cells = [side // min(stride, side) for stride in detector.strides]
        parts = [batch["image"].reshape(-1, n, side // n, n, side // n).mean((2, 4)) for n in cells]
        return tuple(part[..., None] ** np.arange(1, 5) for part in parts)  # of 4 channels

    return quickly(trainable(replace(detector, features=features), **how), ("rpn", "class_head", "box_head"))


def standardised(model):
    """The model whose loss sees images by how many deviations of the batch they differ from its mean."""

    def of_batch(x):
        return (x - x.mean()) / (x.std() + 1e-5) if x.ndim == 4 else x

    def loss(params, constants, batch, rng, map_images):
        changed = {name: of_batch(x) for name, x in batch.items()}
        return model.loss(params, constants, changed, rng, map_images)

    return replace(model, loss=loss)


def is_refused(model, examples):
    with refused("affect each other's gradients", where="privacy"):
        check_examples(model, examples)


# ---- What a loss is tried on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 5])
def test_images_of_a_trial_differ_in_all_that_is_counted(most):
    blank = detection.blank_batch(1, (64, 96), most, 1)
    four = [trial_example(blank, number) for number in range(4)]
    lesions = [int((one["gt_valid"] & ~one["gt_ignore"]).sum()) for one in four]
    assert lesions == [0, 1, most, most // 4 * 2] and lesions[0] != lesions[2] and lesions[1] != lesions[3]
    assert [int(one["gt_ignore"].sum()) for one in four] == [1, 0, 0, 1]
    for one in four:
        assert {name: (x.shape, x.dtype) for name, x in one.items()} == {
            name: (np.shape(x), np.asarray(x).dtype) for name, x in blank.items()
        }
        height, width = one["image_size"][0]
        boxes = one["gt_boxes"][one["gt_valid"]]
        assert 0 < height <= 64 and 0 < width <= 96 and one["valid"].all() and not one["gt_labels"].any()
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [width, height]).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 6).all()
        for region in one["gt_boxes"][one["gt_ignore"]]:
            np.testing.assert_array_equal(region, [0, 0, width, height])


def test_examples_of_a_trial_are_of_two_kinds_and_brightnesses():
    examples = {"image": np.zeros((1, 8, 8, 1), np.float32), "label": np.zeros(1, np.int32), "share": np.zeros(1)}
    four = [trial_example(examples, number) for number in range(4)]
    assert [int(one["label"][0]) for one in four] == [0, 0, 1, 1]
    assert [bool(one["share"][0] > 0.5) for one in four] == [False, False, True, True]
    assert [bool(one["image"].mean() > 0.5) for one in four] == [False, False, True, True]
    assert len({one["image"].tobytes() for one in four}) == 4


# ---- Losses of the tasks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientdet", "faster_rcnn"])
def test_a_detector_that_divides_by_counts_of_the_batch_is_refused(name):
    blank = detection.blank_batch(1, (64, 64), 4, 1)
    check_examples(detecting(name, per_image=True), blank)
    is_refused(replace(detecting(name), per_example=True), blank)


def test_a_detector_that_divides_by_counts_of_an_image_passes():
    """RetinaNet's normaliser is that of the image, so that its plain loss is a mean over images as well; one of the
    batch is not."""
    plain = replace(detecting("retinanet"), per_example=True)
    blank = detection.blank_batch(1, (64, 64), 4, 1)
    check_examples(plain, blank)

    def by_lesions(params, constants, batch, rng, map_images):
        return plain.loss(params, constants, batch, rng, map_images)[0] / (1 + batch["gt_valid"].sum()), {}

    is_refused(replace(plain, loss=by_lesions), blank)


def test_a_classifier_with_batch_norms_or_weights_of_classes_in_the_batch_is_refused():
    blank = labelled.blank_batch(1, 32)
    plain = quickly(classifiers.trainable(replace(BACKBONE, num_classes=2)))
    is_refused(falsely(classifiers.trainable(replace(BACKBONE, num_classes=2, norm="batch_bn"))), blank)

    def balanced(params, constants, batch, rng, map_images):
        share = jnp.maximum(batch["label"].sum(), 1) / len(batch["label"])
        return plain.loss(params, constants, batch, rng, map_images)[0] / share, {}

    is_refused(replace(plain, loss=balanced), blank)


def test_a_denoiser_of_standardised_batches_is_refused():
    config = DenoiserConfig(
        replace(UNET, in_channels=4, cross_attention_dim=4, down_block_types=("CrossAttnDownBlock2D",)),
        Strengths(0.4, (0.5, 0.2, 0.1, 0.05)), size=8, patch=2,
    )  # fmt: skip
    drawing = {"noise": NoiseSettings(), "sampler": SamplerConfig(steps=2), "guidance": 1.0, "hidden": 0.1}
    model, blank = quickly(denoising(Denoiser(model=config, **drawing))), labelled.blank_batch(1, 8)
    is_refused(standardised(model), blank)


def test_a_translator_of_standardised_batches_is_refused():
    config = TranslatorConfig(UNET, size=8, patch=2)
    parts = translators.Translator(config, BridgeSampler(), translators.Greys(0.5, 0.2, 0.5, 0.2))
    model = quickly(translators.trainable(parts))
    image = np.zeros((1, 8, 8, 1), np.float32)
    blank = {"low_energy": image, "subtracted": image, "valid": np.zeros(1, bool)}
    is_refused(standardised(model), blank)


def test_an_inpainter_that_counts_the_lesions_of_a_batch_is_refused():
    parts = inpainters.Inpainter(
        PixelModel(size=16, **ONE_BLOCK).config(contrast=0.15), make_schedule("cosine", steps=20, prediction="x0"),
        SamplerConfig(steps=2), 1.0, Words(),
    )  # fmt: skip
    image, none = np.zeros((1, 16, 16, 1), np.float32), np.zeros(1, np.float32)
    blank = {"image": image, "mask": image, "lesion": none, "valid": np.zeros(1, bool)}
    is_refused(falsely(inpainters.trainable(parts, LossConfig(), LoraConfig(), False, None, None)), blank)
