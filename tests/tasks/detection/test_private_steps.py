"""One-stage detectors in a private step: its gradient is that of a loop over single images, clipped unit by unit."""

from __future__ import annotations

from dataclasses import asdict, replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import cem_real_dp
from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.data.batches import detection
from elk_jax.detection import detectors
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.detection.retinanet_config import RetinaNetConfig
from elk_jax.experiments.experiment import run_experiment
from elk_jax.privacy import secret
from elk_jax.privacy.mechanism import Mechanism
from elk_jax.privacy.settings import Flat, Privacy
from elk_jax.tasks.detection.model import trainable
from elk_jax.training import mesh as meshes
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Constant
from elk_jax.training.step.private import private
from elk_jax.training.step.step import Protection, on_mesh
from tests.refusals import refused

NETWORK = ResNetConfig(depth=18, width=2, norm="none", num_classes=0, pixel_mean=(60.0,), pixel_std=(60.0,))
SIZES = ((8.0,), (12.0,), (18.0,), (27.0,), (40.0,))
KINDS = {
    "retinanet": RetinaNetConfig(backbone=NETWORK, fpn_channels=4, head_convs=1, anchor_sizes=SIZES),
    "efficientdet": EfficientDetConfig(
        backbone=NETWORK, channels=4, cells=1, levels=3, head_convs=1, norm_groups=2, anchor_sizes=SIZES[:3]
    ),
}
ROWS, EXAMPLES, EXPECTED = 4, 2, 2
IMAGES = {5: (2, 0), 3: (1,), 8: (0, 3)}
"""Unit -> the lesions of each of its images, at most EXAMPLES."""
FROZEN = ("^backbone/",)
"""What lies behind it is what differs of these detectors, and compiles in half the time."""


def image_with(lesions, seed):
    rng = np.random.default_rng(seed)
    found = detection.empty_batch(1, (64, 64), 4)
    found["image"][:] = rng.random(found["image"].shape)
    found["image_size"][:] = 64
    corners = rng.uniform(0, 32, (lesions, 2))
    found["gt_boxes"][0, :lesions] = np.concatenate([corners, corners + rng.uniform(8, 30, (lesions, 2))], 1)
    found["gt_valid"][0, :lesions] = True
    return {name: found[name] for name in detection.LEARNED}


SINGLE = {unit: [image_with(n, [unit, i]) for i, n in enumerate(lesions)] for unit, lesions in IMAGES.items()}


def batch():
    """The units, and a row of padding; what is missing is NaN."""
    one = SINGLE[5][0]
    examples = {
        name: np.full((ROWS, EXAMPLES, *x.shape[1:]), np.nan if x.dtype.kind == "f" else 1, x.dtype)
        for name, x in one.items()
    }
    examples["valid"] = np.zeros((ROWS, EXAMPLES), bool)
    unit = np.full(ROWS, -1, np.int32)
    for row, (number, images) in enumerate(SINGLE.items()):
        unit[row] = number
        for place, image in enumerate(images):
            examples["valid"][row, place] = True
            for name, x in image.items():
                examples[name][row, place] = x[0]
    return {"examples": examples, "unit": unit}


@pytest.fixture(scope="module")
def loop(request):
    """(detector, params, sum of the gradients of the units clipped at a bound, the bound): one image after another,
    each in its own batch."""
    detector = detectors.build(KINDS[request.param])
    params = jax.device_get(jax.jit(detector.init)(jax.random.key(0)))
    fixed, trained = params["backbone"], {name: part for name, part in params.items() if name != "backbone"}
    loss = lambda trained, image: detector.loss({**trained, "backbone": fixed}, image, jax.random.key(0))[0]
    gradient = jax.jit(jax.grad(loss))
    units = []
    for images in SINGLE.values():
        alone = [gradient(trained, image) for image in images]
        units.append(jax.tree.map(lambda *parts: sum(parts) / len(parts), *alone))
    norms = [float(optax.tree.norm(unit)) for unit in units]
    bound = float(np.median(norms))
    assert min(norms) > 0 and sum(norm > bound for norm in norms) == 1
    clipped = [jax.tree.map(lambda x, n=n: min(1, bound / n) * x, unit) for unit, n in zip(units, norms)]
    return detector, params, jax.tree.map(lambda *parts: sum(parts), *clipped), bound


CASES = [
    ("retinanet", "per_example", 1),
    ("retinanet", "per_example", 4),
    ("retinanet", "ghost", 2),
    ("efficientdet", "per_example", 2),
]
"""Detector, gradients, micro-batch. Ghost norms of an EfficientDet are the same sum, but take a minute to compile."""


@pytest.mark.parametrize(("loop", "gradients", "micro_batch"), CASES, indirect=["loop"])
def test_a_step_is_that_of_a_loop_over_single_images(loop, gradients, micro_batch):
    detector, params, wanted, bound = loop
    privacy = Privacy(
        noise_multiplier=1.0, clipping=Flat(clip_norm=bound), gradients=gradients, micro_batch=micro_batch
    )
    plain = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0, frozen=FROZEN)
    recipe = TrainingRecipe(steps=10, optimizer=plain, schedule=Constant(base=1.0), ema_decay=0.0)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    protection = Protection(Mechanism(privacy, 100, EXPECTED, 0.0, 10), secret.known(5))
    step = private(trainable(detector, per_image=True), recipe, protection, mesh)
    program = on_mesh(step, mesh)
    state = program.init(jax.tree.map(jnp.array, params))
    after, metrics = program.update(state, step.constants, meshes.put_batch(batch(), mesh))
    moved = jax.tree.map(lambda before, now: EXPECTED * (before - np.asarray(now)), params, after.params)
    assert not any(map(np.any, jax.tree.leaves(moved.pop("backbone")))) and int(metrics["finite"]) == 1
    chex.assert_trees_all_close(moved, wanted, rtol=1e-3, atol=1e-5 * bound)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norms_are_refused_before_anything_is_trained(kind, tmp_path):
    config = cem_real_dp.get_config(f"tiny,{kind}")
    network = asdict(replace(NETWORK, norm="batch_bn"))
    for recipe in (config.detector, config.same_layers, config.private):
        recipe.model.backbone.update(network)
    config.private.optimizer.frozen = ()
    with refused("statistics of the batch", where="config.private.privacy"):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
