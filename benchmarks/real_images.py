"""Training a detector on real images, from files to the evaluated model: configs/cem_real.py with a ResNet-50.

    python benchmarks/real_images.py --data=/data/cdd_cesm_512 --dtype=bfloat16 --batch=8 --steps=1200
    python benchmarks/real_images.py --variant=tiny                                    the embedded data set

The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import measure  # noqa: E402
from configs import cem_real  # noqa: E402
from elk_jax import host_memory  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.experiments.experiment import run_experiment  # noqa: E402
from elk_jax.training.timing import peak_memory  # noqa: E402
from elk_jax.training.writer import read_metrics  # noqa: E402

FIGURES = ("mean_sensitivity", "sensitivity_at", "aufroc_3", "ap50", "counts")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    host_memory.keep_freed()  # as in the launch scripts
    print(json.dumps(benchmark(options), allow_nan=False))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="a COCO file, or a folder with subtracted.json; default: embedded")
    parser.add_argument(
        "--variant", default="small", help="variant of configs/cem_real.py; tiny: its ResNet-18, for tests"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=0, help="images per step; default: the variant's")
    parser.add_argument("--steps", type=int, default=0, help="default: the variant's")
    parser.add_argument("--threads", type=int, default=0, help="processes that load images; default: the variant's")
    return parser.parse_args(arguments)


def experiment(options: argparse.Namespace) -> Any:
    """The configuration. The learning rate grows with the batch."""
    config = cem_real.get_config(options.variant)
    if options.data:
        place = Path(options.data)
        place = place / "subtracted.json" if place.is_dir() else place
        if not place.is_file():
            raise UserError("no such file", where=place, todo="give a COCO file, or a folder with subtracted.json")
        config.data.real.spec = f"coco:{place}"
        config.data.real.clean_boxes = True
    recipe = config.detector
    if options.variant != "tiny":
        recipe.model.backbone.depth = 50
    recipe.model.backbone.dtype = options.dtype
    if options.batch:
        recipe.schedule.base *= options.batch / recipe.loader.batch_size
        recipe.loader.batch_size = options.batch
    if options.steps:
        recipe.steps = options.steps
        recipe.eval_every = recipe.checkpoint_every = max(1, options.steps // 3)
    if options.threads:
        recipe.loader.threads = options.threads
    return config


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """The content of the JSON line."""
    surroundings = measure.surroundings()
    config = experiment(options)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        run_experiment(config, workdir=folder)
        seconds = time.perf_counter() - start
        records = [r for r in read_metrics(Path(folder) / "real" / "metrics.jsonl") if "time/step_seconds" in r]
        evaluation = json.loads((Path(folder) / "evaluate" / "real" / "evaluation.json").read_text())
    recipe = config.detector
    batch = recipe.loader.batch_size
    later = records[1:] or records  # the first one includes compilation and the initial filling of the loader's queue
    return {
        "benchmark": "real_images",
        "settings": {
            "variant": options.variant,
            "data": options.data,
            "depth": recipe.model.backbone.depth,
            "dtype": recipe.model.backbone.dtype,
            "batch": batch,
            "steps": recipe.steps,
        },
        **surroundings,
        "seconds": seconds,
        "step_seconds": measure.spread([record["time/step_seconds"] for record in later]),
        "data_wait_share": measure.spread([record["time/data_wait_share"] for record in later]),
        "images_per_second": measure.spread([record["time/images_per_second"] for record in later]),
        "first_loss": records[0]["train/loss"],
        "last_loss": records[-1]["train/loss"],
        "peak_memory_bytes": peak_memory(),
        "evaluation": {name: evaluation[name] for name in FIGURES},
    }


if __name__ == "__main__":
    run_main(main)
