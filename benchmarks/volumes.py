"""Speed and memory of reading a tomosynthesis volume, and of detecting in it.

    python benchmarks/volumes.py --slices=70 --size=2457x1890 --syntax=uncompressed

The last line of the output is one JSON object; benchmarks/README.md explains it.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import JPEG2000Lossless  # noqa: E402

from benchmarks import measure, workload  # noqa: E402
from data_prep.tomosynthesis_dicom import Header, volume_dataset  # noqa: E402
from elk_jax import host_memory  # noqa: E402
from elk_jax.data.augment import Resize  # noqa: E402
from elk_jax.data.sources.volumes import as_source, dicom_volume  # noqa: E402
from elk_jax.detection import detectors  # noqa: E402
from elk_jax.detection.volumes import RULES  # noqa: E402
from elk_jax.errors import UserError, run_main  # noqa: E402
from elk_jax.evaluation.volumes import VolumeDetections  # noqa: E402
from elk_jax.tasks.detection import predict  # noqa: E402
from elk_jax.tasks.detection.model import Description, Input, Trained, trainable  # noqa: E402
from elk_jax.tasks.detection.volumes import findings_of  # noqa: E402
from elk_jax.training import mesh as meshes  # noqa: E402

SYNTAXES = ("uncompressed", "jpeg2000")
PER_SLICE = 112
"""Largest number of detections per slice in the search along z: the detector's 100, as rounded by `detect_volumes`."""


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    print(json.dumps(benchmark(options), allow_nan=False))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=70)
    parser.add_argument("--size", default="2457x1890", help="rows x columns of a slice")
    parser.add_argument("--syntax", default="uncompressed", choices=SYNTAXES, help="compression of the file")
    parser.add_argument("--short_side", type=int, default=800, help="shorter side of the detector's input in px")
    parser.add_argument(
        "--depth", type=int, default=18, choices=(18, 34, 50, 101), help="layers of the detector's ResNet"
    )
    parser.add_argument("--tiny", action="store_true", help="a detector with few channels, for tests")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=sorted(measure.CLOCKS),
                        help="cpu: processor time of all cores, for a busy CPU; wall: elapsed time")  # fmt: skip
    options = parser.parse_args(arguments)
    for name, least in (("slices", 2), ("repetitions", 1), ("short_side", 32)):
        if getattr(options, name) < least:
            todo = f"give at least {least}"
            raise UserError(f"{name} is {getattr(options, name)}", where=f"--{name}", todo=todo)
    options.size = workload.parse_size(options.size)
    return options


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """The content of the JSON line."""
    host_memory.keep_freed()  # as in the launch scripts
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.dcm"
        job = (path, options.slices, options.size, options.syntax)
        # in its own process, so that the memory of the writer is not counted
        writer = multiprocessing.get_context("spawn").Process(target=write, args=job)
        writer.start()
        writer.join()
        if writer.exitcode:
            raise UserError("the volume could not be written", where=folder, todo="see the message above")
        trained = detector(options)
        seconds = lambda call: measure.seconds_per_call(call, 1, options.clock)
        peak = {"before": _peak()}
        reading = [seconds(lambda: _read_all(path)) for _ in range(options.repetitions)]
        peak["reading"] = _peak()
        found: list[VolumeDetections] = []
        detect = detecting(path, trained, found)
        first = seconds(detect)  # includes compilation
        both = [seconds(detect) for _ in range(options.repetitions)]
        peak["detecting"] = _peak()
        megabytes = path.stat().st_size / 1e6
    return {
        "benchmark": "volumes",
        "slices": options.slices,
        "size": list(options.size),
        "syntax": options.syntax,
        "file_megabytes": round(megabytes, 1),
        "detector": f"faster_rcnn, ResNet-{options.depth}, short side {options.short_side}",
        "repetitions": options.repetitions,
        "clock": options.clock,
        "slices_per_second": {
            "reading": measure.spread([options.slices / seconds for seconds in reading]),
            "reading_and_detecting": measure.spread([options.slices / seconds for seconds in both]),
        },
        "first_seconds": first,
        "peak_memory_bytes": peak,
        "slice_bytes": 4 * options.size[0] * options.size[1],
        "findings": len(found[-1].scores),
        **measure.surroundings(),
    }


def detecting(path: Path, trained: Trained, found: list[VolumeDetections]) -> Callable[[], None]:
    """The processing of a volume by launch/predict.py, compiled once; puts the findings into `found`."""
    mesh, (built, params, description) = meshes.make_mesh(), trained
    predictor, placed = predict.compile_predictor(trainable(built), mesh), meshes.place(params, mesh)

    def once() -> None:
        volume = dicom_volume(path, view="lcc")
        source = as_source([volume], description.classes)
        config = predict.input_of(description.input, source.infos)
        results = predict.detect(predictor, placed, source, config, mesh, title="")
        found.append(findings_of(RULES["group"], results, volume, PER_SLICE))

    return once


def detector(options: argparse.Namespace) -> Trained:
    """A detector with random weights."""
    config = workload.faster_rcnn(options.depth, "float32", tiny=options.tiny)
    built = detectors.build(config)
    entry = Input(False, Resize(short_sides=(options.short_side,), max_long_side=2 * options.short_side), (), ())
    description = Description("faster_rcnn", config, ("lesion",), entry, ())
    return Trained(built, jax.jit(built.init)(jax.random.key(0)), description)


def write(path: Path, slices: int, size: tuple[int, int], syntax: str) -> None:
    """A left breast of smooth noise, different in every slice."""
    rng, (rows, columns) = np.random.default_rng(0), size
    header = Header("P1", "S1", "L", "CC", 0.085, 1.0)
    dataset = volume_dataset(np.zeros((slices, 1, 1)), header)
    y, x = np.ogrid[:rows, :columns]
    breast = ((y - rows / 2) / (0.45 * rows)) ** 2 + (x / (0.8 * columns)) ** 2 < 1
    frames = []
    for _ in range(slices):
        tissue = cv2.resize(rng.uniform(200, 800, (40, 30)), (columns, rows), interpolation=cv2.INTER_CUBIC)
        pixels = np.where(breast, (tissue + rng.normal(0, 12, (rows, columns))).clip(0, 1023), 0).astype(np.uint16)
        frames.append(_jpeg2000(pixels) if syntax == "jpeg2000" else pixels.tobytes())
    dataset.Rows, dataset.Columns = size
    dataset.PixelData = encapsulate(frames) if syntax == "jpeg2000" else b"".join(frames)
    if syntax == "jpeg2000":
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)


def _jpeg2000(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG2000", irreversible=False, no_jp2=True)
    return buffer.getvalue()


def _read_all(path: Path) -> None:
    volume = dicom_volume(path, view="lcc")
    for position in range(len(volume)):
        volume.read(position)


def _peak() -> int:
    """Peak memory of the process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    run_main(main)
