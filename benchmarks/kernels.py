"""Share of the detector's kernels in a training step: NMS, ROIAlign, matching and sampling.

    python benchmarks/kernels.py --size=800x1333 --depth=50 --batch=2

Every kernel runs separately, on the boxes and features of the model for phantom images, and the whole training step in
the same rounds. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import measure, workload  # noqa: E402
from elk_jax import host_memory  # noqa: E402
from elk_jax.backbones.resnet import BLOCKS  # noqa: E402
from elk_jax.detection import boxes as box_ops  # noqa: E402
from elk_jax.detection import faster_rcnn  # noqa: E402
from elk_jax.detection.faster_rcnn import FasterRCNN, FasterRCNNConfig  # noqa: E402
from elk_jax.detection.matching import match  # noqa: E402
from elk_jax.detection.nms import nms  # noqa: E402
from elk_jax.detection.sampling import sample  # noqa: E402
from elk_jax.errors import run_main  # noqa: E402
from elk_jax.training import mesh as meshes  # noqa: E402
from elk_jax.training.timing import peak_memory  # noqa: E402

Array = jax.Array


class Kernel(NamedTuple):
    """forward: as in a step. both: forward and backward in one program; None without a gradient."""

    forward: Callable[[], Any]
    both: Callable[[], Any] | None = None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="800x1333", help="image height x width")
    parser.add_argument("--depth", type=int, default=50, choices=tuple(BLOCKS))
    parser.add_argument("--tiny", action="store_true", help="a few channels instead of --depth, for tests")
    parser.add_argument("--batch", type=measure.count, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--conventions",
        default="torchvision",
        choices=sorted(workload.CONVENTIONS),
        help="sets, among others, ROIAlign: 2 samples per bin (torchvision), or as many as it has pixels, up to 8",
    )
    parser.add_argument("--repetitions", type=measure.count, default=5)
    parser.add_argument("--least_seconds", type=float, default=0.5, help="least time per program and round")
    parser.add_argument("--clock", default="wall", choices=sorted(measure.CLOCKS), help="see detector.py")
    options = parser.parse_args(arguments)
    config = workload.faster_rcnn(options.depth, options.dtype, conventions=options.conventions, tiny=options.tiny)
    size = workload.parse_size(options.size)
    host_memory.keep_freed()  # as in the launch scripts
    result = benchmark(config, size, options.batch, options.repetitions, options.least_seconds, options.clock)
    result["settings"]["conventions"] = options.conventions
    print(json.dumps(result, allow_nan=False))


def benchmark(
    config: FasterRCNNConfig,
    size: tuple[int, int],
    batch_size: int,
    repetitions: int,
    least_seconds: float = 0.5,
    clock: str = "wall",
) -> dict[str, Any]:
    """The content of the JSON line."""
    surroundings = measure.surroundings()
    data = workload.phantom_data(size, batch_size, threads=2)
    subject = workload.Subject(config, data, meshes.make_mesh(devices=jax.devices()[:1]))
    programs: dict[str, Callable[[], Any]] = {}
    for name, kernel in kernels(config, subject).items():
        programs[name] = kernel.forward
        if kernel.both is not None:
            programs[f"{name}:both"] = kernel.both
    programs["step"] = subject.step
    calls = {name: measure.calls_for(call, least_seconds) for name, call in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repetitions):
        for name, call in programs.items():
            times[name].append(measure.seconds_per_call(call, calls[name], clock))
    return {
        "benchmark": "kernels",
        "settings": {
            "size": list(size),
            "canvas": list(data.config.buckets[0]),
            "batch": batch_size,
            "depth": config.backbone.depth,
            "dtype": config.backbone.dtype,
            "repetitions": repetitions,
            "clock": clock,
        },
        **surroundings,
        "peak_memory_bytes": peak_memory(),
        **shares(times),
    }


def shares(times: dict[str, list[float]]) -> dict[str, Any]:
    """Times of each kernel, and its share of the step timed in the same round.

    The part of a kernel is forward and backward if it has a gradient, else forward. `share` is that of NMS, ROIAlign,
    matching and sampling; with_selection counts all of proposal selection (top-k, decoding, clipping) instead of NMS.
    """
    step = times["step"]
    names = [name for name in times if ":" not in name and name != "step"]
    in_step = {name: times.get(f"{name}:both", times[name]) for name in names}

    def share(parts: list[str]) -> dict[str, float]:
        return measure.spread([sum(in_step[name][i] for name in parts) / step[i] for i in range(len(step))])

    counted = [name for name in names if name != "proposal_selection"]
    return {
        "step_seconds": measure.spread(step),
        "kernels": {
            name: {
                "forward_seconds": measure.spread(times[name]),
                "forward_backward_seconds": measure.spread(both) if (both := times.get(f"{name}:both")) else None,
                "share": share([name])["median"],
            }
            for name in names
        },
        "share": share(counted),
        "share_with_selection": share([n for n in counted if n != "nms"] + ["proposal_selection"]),
    }


def kernels(config: FasterRCNNConfig, subject: workload.Subject) -> dict[str, Kernel]:
    """The kernels with their arguments in a training step of `subject`."""
    batch, params = subject.batch, subject.params
    model = FasterRCNN(config)

    @jax.jit
    def inputs(params, batch):
        pyramid = faster_rcnn.features(model, params, batch)
        outputs = faster_rcnn.rpn_outputs(model, params, pyramid)
        proposed = faster_rcnn.proposals(config, outputs, batch, training=True)
        rngs = jax.random.split(jax.random.key(0), len(batch["image"]))
        samples = faster_rcnn.roi_samples(config, proposed, batch, rngs)
        return pyramid, outputs, proposed, samples, rngs

    pyramid, outputs, proposed, samples, rngs = inputs(params, batch)
    levels = faster_rcnn.anchors(config, *batch["image"].shape[1:3])
    truth = tuple(batch[key] for key in ("gt_boxes", "gt_valid", "gt_ignore"))

    select = jax.jit(lambda outputs, batch: faster_rcnn.proposals(config, outputs, batch, training=True))
    find = jax.jit(lambda outputs, size: jax.vmap(lambda *a: _candidates(config, levels, *a))(*outputs, size))
    candidates = find(outputs, batch["image_size"])
    most = min(candidates[0].shape[2], config.rpn_post_nms_train)
    thin = jax.jit(jax.vmap(jax.vmap(lambda b, s: nms(b, s, config.rpn_nms_iou, most, jnp.isfinite(s)))))

    match_anchors = jax.jit(
        jax.vmap(
            lambda *gt: match(
                jnp.concatenate(levels), *gt, low=config.rpn_low, high=config.rpn_high, allow_low_quality=True
            )
        )
    )
    all_boxes = jnp.concatenate([proposed.boxes, batch["gt_boxes"]], axis=1)
    match_proposals = jax.jit(
        jax.vmap(lambda boxes, *gt: match(boxes, *gt, low=config.roi_iou, high=config.roi_iou, allow_low_quality=False))
    )
    sample_anchors = jax.jit(
        jax.vmap(lambda rng, labels: sample(rng, labels, config.rpn_samples, config.rpn_positive_fraction))
    )
    sample_proposals = jax.jit(
        jax.vmap(lambda rng, labels: sample(rng, labels, config.roi_samples, config.roi_positive_fraction))
    )
    anchor_labels, proposal_labels = match_anchors(*truth).labels, match_proposals(all_boxes, *truth).labels

    def pool(pyramid, samples):
        return faster_rcnn.pooled(config, pyramid, samples.boxes, samples.valid)

    pool_forward = jax.jit(pool)

    @jax.jit
    def pool_both(pyramid, samples, cotangent):
        pooled, backward = jax.vjp(lambda pyramid: pool(pyramid, samples), pyramid)
        return pooled, backward(cotangent)

    cotangent = jnp.ones_like(pool_forward(pyramid, samples))
    return {
        "proposal_selection": Kernel(lambda: select(outputs, batch)),
        "nms": Kernel(lambda: thin(*candidates)),
        "roi_align": Kernel(lambda: pool_forward(pyramid, samples), lambda: pool_both(pyramid, samples, cotangent)),
        "matching": Kernel(lambda: (match_anchors(*truth), match_proposals(all_boxes, *truth))),
        "sampling": Kernel(lambda: (sample_anchors(rngs, anchor_labels), sample_proposals(rngs, proposal_labels))),
    }


def _candidates(
    config: FasterRCNNConfig,
    levels: tuple[np.ndarray, ...],
    logits: tuple[Array, ...],
    deltas: tuple[Array, ...],
    image_size: Array,
) -> tuple[Array, Array]:
    """Boxes [L, N, 4] and scores [L, N] of one image, the input of the NMS of each level; -inf for padding."""
    most = min(config.rpn_pre_nms_train, max(len(level) for level in levels))
    boxes, scores = [], []
    for anchors, level_logits, level_deltas in zip(levels, logits, deltas, strict=True):
        best, index = jax.lax.top_k(level_logits, min(most, len(anchors)))
        missing = most - len(best)
        decoded = box_ops.decode(level_deltas[index], jnp.asarray(anchors)[index])
        decoded = box_ops.clip(decoded, image_size[0], image_size[1])
        boxes.append(jnp.pad(decoded, ((0, missing), (0, 0))))
        scores.append(jnp.pad(best, (0, missing), constant_values=-jnp.inf))
    return jnp.stack(boxes), jnp.stack(scores)


if __name__ == "__main__":
    run_main(main)
