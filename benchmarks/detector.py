"""Speed of a detector in training and inference, compared with torchvision or effdet on the same machine, images and
weights.

    python benchmarks/detector.py --size=800x1333 --depth=50 --torch_python=/usr/bin/python3
    python benchmarks/detector.py --detector=efficientdet --variant=lite0 --torch_python=/usr/bin/python3

The last line of the output is one JSON object; benchmarks/README.md explains it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with the other process

import jax  # noqa: E402

from benchmarks import measure, rival, workload  # noqa: E402
from elk_jax import host_memory  # noqa: E402
from elk_jax.backbones.resnet import BLOCKS  # noqa: E402
from elk_jax.detection import dense  # noqa: E402
from elk_jax.detection.efficientdet_config import VARIANTS, EfficientDetConfig  # noqa: E402
from elk_jax.detection.faster_rcnn_config import FasterRCNNConfig  # noqa: E402
from elk_jax.detection.retinanet_config import RetinaNetConfig  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.training import mesh as meshes  # noqa: E402
from elk_jax.training.timing import peak_memory  # noqa: E402
from elk_jax.weights import detectors, effdet, reading, resnet  # noqa: E402

Config = FasterRCNNConfig | RetinaNetConfig | EfficientDetConfig
DETECTORS = ("faster_rcnn", "retinanet", "retinanet_v2", "efficientdet")

TRAINABLE_STAGES = 3
"""Trainable stages of the backbone, from the top; `workload.RECIPE` freezes the others."""


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    size = workload.parse_size(options.size)
    config = configure(options)
    python = rival.chosen_python(options.torch_python, library(config))
    host_memory.keep_freed()  # as in the launch scripts
    jax.config.update("jax_enable_compilation_cache", options.tiny)  # compile time is one of the results
    result = benchmark(
        config,
        size,
        options.batch,
        repetitions=options.repetitions,
        loop_steps=options.loop_steps,
        variant=options.variant,
        python=python,
        channels_last={"auto": None, "channels_last": True, "contiguous": False}[options.torch_layout],
        least_seconds=options.least_seconds,
        clock=options.clock,
    )
    print(json.dumps(result, allow_nan=False))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="512x512", help="image height x width, for example 512x512")
    parser.add_argument("--detector", default="faster_rcnn", choices=DETECTORS)
    parser.add_argument("--variant", default="d0", choices=tuple(VARIANTS), help="variant of the EfficientDet")
    parser.add_argument(
        "--depth", type=int, default=50, choices=tuple(BLOCKS), help="layers of the ResNet of the other detectors"
    )
    parser.add_argument("--tiny", action="store_true", help="a few channels instead of --depth, for tests")
    parser.add_argument("--batch", type=int, default=2, help="images per step")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repetitions", type=int, default=5, help="rounds; each times every program once")
    parser.add_argument("--least_seconds", type=float, default=0.5, help="least time per program and round")
    parser.add_argument("--loop_steps", type=int, default=10, help="steps of the actual training loop; 0: none")
    parser.add_argument(
        "--torch_python", default="auto", help="a Python with torch and torchvision or effdet; or auto or none"
    )
    parser.add_argument("--torch_layout", default="auto", choices=("auto", "channels_last", "contiguous"),
                        help="memory format of torch; auto: channels_last on a GPU, contiguous on a CPU")  # fmt: skip
    measure.add_clock(parser)
    options = parser.parse_args(arguments)
    for name in ("batch", "repetitions"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}", where=f"--{name}", todo="give at least 1")
    return options


def configure(options: argparse.Namespace) -> Config:
    """The settings of the requested detector."""
    if options.detector == "efficientdet":
        return workload.efficientdet(options.variant, options.dtype, tiny=options.tiny)
    if options.detector == "faster_rcnn":
        return workload.faster_rcnn(options.depth, options.dtype, tiny=options.tiny)
    version = 2 if options.detector == "retinanet_v2" else 1
    return workload.retinanet(options.depth, options.dtype, version=version, tiny=options.tiny)


def library(config: Config) -> str:
    """The library with the same detector."""
    return "effdet" if isinstance(config, EfficientDetConfig) else "torchvision"


def benchmark(
    config: Config,
    size: tuple[int, int],
    batch_size: int,
    *,
    repetitions: int,
    loop_steps: int,
    variant: str = "d0",
    python: str = "",
    channels_last: bool | None = None,
    least_seconds: float = 0.5,
    clock: str = "wall",
) -> dict[str, Any]:
    """The content of the JSON line. variant: of an EfficientDet. python: with torch and the library; '' for none."""
    accelerator = jax.default_backend() != "cpu"
    surroundings = measure.surroundings()
    data = workload.phantom_data(size, batch_size, threads=max(2, min(8, (os.cpu_count() or 2) // 2)))
    layout = accelerator if channels_last is None else channels_last
    settings = rival_settings(config, variant, data.config.buckets[0], accelerator, layout, clock)
    with rival.start(python, settings, data.batch, library(config)) as other:
        params = None if other is None else rival_weights(other, config, settings["name"])
        subject = workload.Subject(config, data, meshes.make_mesh(devices=jax.devices()[:1]), params)
        jax.block_until_ready(subject.step())
        first_loss = float(subject.metrics["loss"])
        ours = {"train": subject.step, "infer": subject.infer}
        calls = {name: measure.calls_for(call, least_seconds) for name, call in ours.items()}
        times: dict[str, list[float]] = {name: [] for name in ours}
        their_times: dict[str, list[float]] = {name: [] for name in ours}
        their_calls: dict[str, int] = {}
        comparison: dict[str, Any] | None = None
        if other is not None:
            comparison = {**other.description, "first_loss": other.ask("loss")["loss"]}
            comparison["detections"] = other.ask("detections")["detections"]
            for name in ours:
                their_calls[name] = measure.calls_of_seconds(partial(other.seconds, name, 1), least_seconds)
        for _ in range(repetitions):
            for name, call in ours.items():
                times[name].append(measure.seconds_per_call(call, calls[name], clock))
                if other is not None:
                    their_times[name].append(other.seconds(name, their_calls[name]))
        if other is not None and comparison is not None:
            comparison["peak_memory_bytes"] = other.ask("memory")["bytes"]
            comparison |= {
                label: measure.timing(their_times[name], batch_size, their_calls[name])
                for name, label in (("train", "train"), ("infer", "inference"))
            }
    finite = bool(subject.metrics["finite"])
    detections = jax.device_get(subject.infer())["valid"].sum(1).tolist()
    peak = peak_memory()
    loop = workload.run_loop(subject, data, loop_steps) if loop_steps else None
    result = {
        "benchmark": "detector",
        "settings": {
            "size": list(size),
            "canvas": list(data.config.buckets[0]),
            "batch": batch_size,
            "detector": config.name,
            "variant": variant if isinstance(config, EfficientDetConfig) else version_of(config),
            "depth": None if isinstance(config, EfficientDetConfig) else config.backbone.depth,
            "dtype": config.backbone.dtype,
            "conventions": library(config),
            "repetitions": repetitions,
            "clock": clock,
        },
        **surroundings,
        "train": measure.timing(times["train"], batch_size, calls["train"], measure.flops(subject.train_cost)),
        "inference": measure.timing(times["infer"], batch_size, calls["infer"], measure.flops(subject.inference_cost)),
        "compile_seconds": subject.compile_seconds,
        "compilations": loop["compilations"] if loop else None,
        "data_wait_share": loop["data_wait_share"] if loop else None,
        "loop": loop,
        "peak_memory_bytes": peak,
        "peak_memory_of": "device" if jax.devices()[0].memory_stats() else "process",
        "step_memory_bytes": subject.step_memory,
        "first_loss": first_loss,
        "finite": finite,
        "detections": detections,
        library(config): comparison,
        "ratio": None,
    }
    if comparison is not None:
        result["ratio"] = {
            "train": measure.ratios(their_times["train"], times["train"]),
            "inference": measure.ratios(their_times["infer"], times["infer"]),
        }
    return result


def rival_settings(
    config: Config, variant: str, canvas: tuple[int, int], accelerator: bool, channels_last: bool, clock: str
) -> dict[str, Any]:
    """The settings of the same detector in its library."""
    recipe = workload.recipe_of(config)
    settings: dict[str, Any] = {
        "name": config.name,
        "dtype": config.backbone.dtype,
        "clock": clock,
        "accelerator": accelerator,
        "channels_last": channels_last,
        "optimizer": {
            "rate": recipe.schedule.base,
            "momentum": recipe.optimizer.momentum,
            "weight_decay": recipe.optimizer.weight_decay,
        },
        "detector": limits(config, canvas),
    }
    if isinstance(config, EfficientDetConfig):
        inputs = {"pixel_mean": config.backbone.pixel_mean, "pixel_std": config.backbone.pixel_std}
        ratios = [1 / ratio for ratio in config.anchor_ratios]  # there, ratios are width / height
        return {**settings, **inputs, "name": f"tf_efficientdet_{variant}", "aspect_ratios": ratios}
    version = version_of(config)
    return {**settings, "depth": config.backbone.depth, "version": version, "trainable_layers": TRAINABLE_STAGES}


def version_of(config: FasterRCNNConfig | RetinaNetConfig) -> int:
    """1 or 2, of torchvision's detector."""
    return 2 if isinstance(config, RetinaNetConfig) and config.head_norm == "gn" else 1


def limits(config: Config, canvas: tuple[int, int]) -> dict[str, Any]:
    """The amount of work of the library's detector for an image of the canvas, by the names of its arguments."""
    if isinstance(config, RetinaNetConfig):
        return {
            "score_thresh": config.score_floor,
            "topk_candidates": config.level_candidates,
            "detections_per_img": config.detections,
        }
    if isinstance(config, EfficientDetConfig):
        levels = dense.anchors(config, *canvas)
        return {
            "fpn_channels": config.channels,
            "fpn_cell_repeats": config.cells,
            "box_class_repeats": config.head_convs,
            "max_detection_points": sum(min(len(level), config.level_candidates) for level in levels),
            "max_det_per_image": config.detections,
        }
    return {
        "rpn_pre_nms_top_n_train": config.rpn_pre_nms_train,
        "rpn_pre_nms_top_n_test": config.rpn_pre_nms_test,
        "rpn_post_nms_top_n_train": config.rpn_post_nms_train,
        "rpn_post_nms_top_n_test": config.rpn_post_nms_test,
        "rpn_batch_size_per_image": config.rpn_samples,
        "box_batch_size_per_image": config.roi_samples,
        "box_score_thresh": config.score_floor,
        "box_detections_per_img": config.detections,
    }


def rival_weights(other: rival.Rival, config: Config, name: str) -> Any:
    """The library's random weights, converted, so that both sides do the same work."""
    tensors = reading.read_tensors(other.weights)
    if isinstance(config, EfficientDetConfig):
        changes = {field: getattr(config, field) for field in ("channels", "cells", "head_convs")}
        return detectors.convert_understood(effdet.understand(tensors, name, changes)).params
    return detectors.convert_foreign(resnet.foreign(tensors, "torchvision")).params


if __name__ == "__main__":
    run_main(main)
