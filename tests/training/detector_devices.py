"""Five training steps of a tiny Faster R-CNN on several devices, and losses of the detectors of one stage: run as a
program, it writes what it saw as JSON.

python -m tests.training.detector_devices OUT              on 8 simulated devices
python -m tests.training.detector_devices OUT I PORT       as process I of 2, with 1 device each
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from elk_jax.backbones import resnet
from elk_jax.detection import detectors, faster_rcnn
from elk_jax.detection.detector import Detector
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.detection.retinanet_config import RetinaNetConfig
from elk_jax.programs.account import account
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Model
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Constant
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.step import fresh_params, on_mesh
from elk_jax.weights.model_folder import flatten
from tests.training import hlo

STEPS, BATCH, SIZE = 5, 8, 64
ONE_STAGE = ("retinanet", "efficientdet")
RECIPE = TrainingRecipe(optimizer=OptimizerConfig(name="sgd", weight_decay=0.0), schedule=Constant(base=0.02))


def detector(dtype: str) -> Detector:
    return faster_rcnn.detector(
        faster_rcnn.FasterRCNNConfig(
            num_classes=2,
            backbone=resnet.ResNetConfig(
                depth=18,
                width=4,
                norm="batch_bn",
                num_classes=0,
                pixel_mean=(0.5,),
                pixel_std=(0.25,),
                dtype=dtype,
            ),
            fpn_channels=8,
            anchor_sizes=((8,), (16,), (32,), (64,), (128,)),
            rpn_pre_nms_train=40,
            rpn_post_nms_train=40,
            rpn_samples=32,
            roi_samples=24,
            roi_size=3,
            roi_sampling_ratio=1,
            box_fc_width=16,
        )
    )


def batch(number: int, dtype: str, rows: slice = slice(None)) -> dict[str, np.ndarray]:
    """Noise with a bright lesion in every image but the first; the last is a filler."""
    rng = np.random.default_rng(number)
    image = rng.uniform(0, 0.3, (BATCH, SIZE, SIZE, 1))
    corner = rng.integers(2, 30, (BATCH, 2))
    extent = rng.integers(10, 30, (BATCH, 2))
    gt_boxes = np.zeros((BATCH, 2, 4))
    gt_boxes[:, 0] = np.concatenate([corner, corner + extent], axis=1)
    for i, (x1, y1, x2, y2) in enumerate(gt_boxes[:, 0].astype(int)):
        image[i, y1:y2, x1:x2] += 0.6
    made = {
        "image": image.astype(dtype),
        "image_size": np.full((BATCH, 2), SIZE, dtype),
        "gt_boxes": gt_boxes.astype(dtype),
        "gt_labels": rng.integers(0, 2, (BATCH, 2)).astype(np.int32),
        "gt_valid": np.arange(BATCH)[:, None] * np.array([[1, 0]]) > 0,
        "gt_ignore": np.zeros((BATCH, 2), bool),
        "valid": np.arange(BATCH) < BATCH - 1,
    }
    return {key: value[rows] for key, value in made.items()}


def run(mesh, dtype: str, rows: slice = slice(None)) -> dict:
    """The metrics of five steps, with the norm of the running statistics, and what the compiled step sends around."""
    net = detector(dtype)
    model = Model(
        init=lambda rng: jax.tree.map(lambda x: x.astype(dtype), net.init(rng)),
        loss=lambda params, _, batch, rng, map_images: net.loss(params, batch, rng, map_images),
        predict=lambda params, _, batch, map_images: net.predict(params, batch, map_images),
        per_example=False,
        statistics=net.statistics,
    )
    step = gradient(model, RECIPE, mesh)
    program = on_mesh(step, mesh)
    state = program.init(fresh_params(step, mesh))
    first = meshes.put_batch(batch(0, dtype, rows), mesh)
    update = program.update.lower(state, {}, first).compile()
    seen: list[dict[str, float]] = []
    for number in range(STEPS):
        state, metrics = update(state, {}, meshes.put_batch(batch(number, dtype, rows), mesh))
        seen.append({key: float(value) for key, value in metrics.items()} | {"statistics": of_statistics(state.params)})
    gathers = [list(c) for c in hlo.gathers(update.as_text())]
    return {"metrics": seen, "gathers": gathers, "collectives": len(hlo.collectives(update.as_text()))}


def one_stage(name: str) -> Detector:
    """Another detector on the same network, with its own normaliser of the loss."""
    shared = {"num_classes": 2, "backbone": detector("float64").config.backbone, "head_convs": 1}
    sizes = tuple((2.0 * stride,) for stride in (8, 16, 32, 64, 128))
    if name == "retinanet":
        config: Any = RetinaNetConfig(**shared, fpn_channels=8, anchor_sizes=sizes)
    else:
        config = EfficientDetConfig(**shared, channels=8, cells=1, anchor_sizes=sizes, norm="none")
    return detectors.build(config)


def losses(name: str, mesh) -> dict[str, float]:
    """The terms of the loss of one batch, in float64."""
    net, first = one_stage(name), meshes.put_batch(batch(0, "float64"), mesh)
    params = meshes.place(jax.tree.map(lambda x: x.astype("float64"), net.init(jax.random.key(0))), mesh)

    def of_batch(params, batch):
        value, terms = net.loss(params, batch, jax.random.key(1), meshes.shard_map_images(mesh))
        return {"loss": value, **terms}

    return {key: float(value) for key, value in jax.jit(meshes.traced_on(mesh, of_batch))(params, first).items()}


def exchange(name: str, mesh) -> dict[str, Any]:
    """The gradient of what is behind the backbone, in float64: its norm by part, its bytes, and those that devices
    exchange."""
    net, maps = one_stage(name), []
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype("float64"), net.init(jax.random.key(0)))
    own = meshes.place({part: leaf for part, leaf in params.items() if part != "backbone"}, mesh)
    for number, one in enumerate(jax.eval_shape(net.backbone.maps, shapes, batch(0, "float64"))):
        maps.append(np.random.default_rng(number).normal(size=one.shape))

    def loss(own, maps, batch):
        pyramid = net.backbone.pyramid(own, tuple(maps))
        return net.loss_from_features(own, pyramid, batch, jax.random.key(1), meshes.shard_map_images(mesh))[0]

    inputs = meshes.put_batch({"maps": maps}, mesh)["maps"], meshes.put_batch(batch(0, "float64"), mesh)
    compiled = (
        jax.jit(meshes.traced_on(mesh, jax.grad(loss)), out_shardings=meshes.replicated(mesh))
        .lower(own, *inputs)
        .compile()
    )
    found = account(compiled, mesh.size).collectives()
    return {
        "norms": {part: float(optax.tree.norm(leaves)) for part, leaves in compiled(own, *inputs).items()},
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(own)),
        "exchanged": {kind: moved.bytes for (kind, _), moved in found.items()},
    }


def of_statistics(params) -> float:
    """The L2 norm of the running statistics."""
    names = {name: leaf for name, leaf in flatten(params).items() if name.endswith(("norm/mean", "norm/var"))}
    return float(np.sqrt(sum(np.sum(np.square(jax.device_get(leaf))) for leaf in names.values())))


def main() -> None:
    out = Path(sys.argv[1])
    if len(sys.argv) == 2:
        layouts = {"one": meshes.make_mesh(devices=jax.devices()[:1]), "eight": meshes.make_mesh()}
        dtypes, rows = ("float64", "float32"), slice(None)
    else:
        index = int(sys.argv[2])
        meshes.initialize_distributed(
            {"ELK_COORDINATOR": f"localhost:{sys.argv[3]}", "ELK_NUM_PROCESSES": "2", "ELK_PROCESS_ID": str(index)}
        )
        layouts = {"two": meshes.make_mesh()}
        dtypes, rows = ("float64",), slice(index * BATCH // 2, (index + 1) * BATCH // 2)
    seen = {}
    for dtype in dtypes:
        jax.config.update("jax_enable_x64", dtype == "float64")
        for name, mesh in layouts.items():
            seen[f"{dtype}-{name}"] = run(mesh, dtype, rows)
    if len(sys.argv) == 2:
        jax.config.update("jax_enable_x64", True)
        for detector_name in ONE_STAGE:
            seen[detector_name] = {name: losses(detector_name, mesh) for name, mesh in layouts.items()}
            seen[f"{detector_name}-exchange"] = {name: exchange(detector_name, mesh) for name, mesh in layouts.items()}
    if jax.process_index() == 0:
        (out / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
