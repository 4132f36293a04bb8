"""Damaged and hostile inputs at every door: each gives a UserError of one line, or a right result, and nothing else.

A few inputs a door run with the tests. Many more by hand, with other seeds, all doors or one:

    python tests/test_fuzz.py --count=5000 --seed=1 --door=coco
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import hashlib
import io
import json
import logging
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for entry in (ROOT, ROOT / "launch", ROOT / "data_prep", ROOT / "tests" / "data_prep"):
    if str(entry) not in sys.path:
        sys.path.insert(0, str(entry))

import cdd_tables  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import safetensors.numpy  # noqa: E402
from cdd_layout import circle, image_row, write_tables  # noqa: E402
from command_line import load_config  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from elk_jax.data.batches.detection import LoaderConfig  # noqa: E402
from elk_jax.data.sources import coco, decode  # noqa: E402
from elk_jax.data.sources.spec import SourceSpec  # noqa: E402
from elk_jax.detection.detectors import build as build_detector  # noqa: E402
from elk_jax.detection.faster_rcnn_config import detectron2  # noqa: E402
from elk_jax.errors import UserError  # noqa: E402
from elk_jax.evaluation.detections import read_results  # noqa: E402
from elk_jax.evaluation.operating import Choice, OperatingPoint  # noqa: E402
from elk_jax.experiments.parse import parse, plain  # noqa: E402
from elk_jax.tasks.detection import model as detector_folder  # noqa: E402
from elk_jax.weights import diffusers_folder, model_folder, reading, resnet, stable_diffusion  # noqa: E402
from tests.damage import INSIDE, Random, as_text, changed, damaged  # noqa: E402
from tests.data.sources import dicom_files  # noqa: E402
from tests.models import save_earlier  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"
SECONDS = 20
"""For one input."""

# ---- Doors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Door:
    """make(folder) writes the whole input there; change(folder, random) damages it; read(folder) returns the result and
    raises AssertionError where it cannot be a right one."""

    make: Callable[[Path], None]
    change: Callable[[Path, Random], None]
    read: Callable[[Path], Any]
    share: int = 1
    """Inputs for each of the quickest doors'."""


def change_file(path: Path, random: Random, others: list[bytes]) -> None:
    """Damage a file; JSON by its content, mostly."""
    content = path.read_bytes()
    if path.suffix == ".json" and random.integers(0, 4):
        new = as_text(changed(json.loads(content), random), random)
    elif path.suffix == ".safetensors" and random.integers(0, 3):
        length = int.from_bytes(content[:8], "little")
        header = as_text(changed(json.loads(content[8 : 8 + length]), random), random)
        new = len(header).to_bytes(8, "little") + header + content[8 + length :]
    else:
        inside = INSIDE.get(content[:2]) if random.integers(0, 3) else None
        new = damaged(content, random, others[random.integers(0, len(others))])
        with contextlib.suppress(Exception):  # of libraries that write no such file
            new = inside(content, random) if inside else new
    path.write_bytes(new)


def change_any_file(folder: Path, random: Random) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = paths[random.integers(0, len(paths))]
    others = [other.read_bytes() for other in paths]
    if random.integers(0, 20):
        return change_file(path, random, others)
    path.unlink()
    return path.mkdir() if random.integers(0, 2) else None


def files_door(samples: Callable[[], dict[str, bytes]], read: Callable[[Path], Any], share: int = 1) -> Door:
    """One file of several samples: `read` is of a file of any of them."""

    def make(folder: Path) -> None:
        for name, content in samples().items():
            (folder / name).write_bytes(content)

    def change(folder: Path, random: Random) -> None:
        paths = sorted(folder.iterdir())
        others = [path.read_bytes() for path in paths]
        chosen = paths[random.integers(0, len(paths))]
        for path in paths:
            if path != chosen:
                path.unlink()
        change_file(chosen, random, others)

    return Door(make, change, lambda folder: {path.name: read(path) for path in sorted(folder.iterdir())}, share)


def coco_content() -> dict[str, Any]:
    images = [
        {"id": 1, "file_name": "a.png", "width": 64, "height": 48, "split": "train", "patient_id": "P1"},
        {"id": 2, "file_name": "b.png", "width": 64, "height": 48, "split": "val", "volume": "v", "slice": 0},
    ]
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 16, 16], "area": 256, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [30.5, 8, 6, 16.25], "iscrowd": 1},
    ]
    info = {"description": "a set", "seen_patients": None}
    return {"info": info, "images": images, "annotations": boxes, "categories": [{"id": 1, "name": "mass"}]}


def make_coco(folder: Path) -> None:
    (folder / "set.json").write_text(json.dumps(coco_content()))


def read_coco(folder: Path) -> Any:
    from elk_jax.data.sources import open as opening

    found = coco.read_coco(folder / "set.json")
    for info in found.infos:
        assert info.boxes.shape == (len(info.labels), 4) and info.ignore.dtype == bool
        assert ((info.boxes >= 0) & (info.boxes <= [info.width, info.height] * 2)).all()
        assert (info.boxes[:, 2:] > info.boxes[:, :2]).all()
        assert ((info.labels >= 0) & (info.labels < len(found.classes))).all()
        assert isinstance(info.file_name, str) and isinstance(info.patient_id, str) and isinstance(info.split, str)
    opening.list_source(SourceSpec(spec=f"coco:{folder / 'set.json'}"), "train")
    return [(info.image_id, info.boxes.tolist(), info.labels.tolist()) for info in found.infos]


def make_results(folder: Path) -> None:
    entries = [
        {"image_id": 1, "category_id": 1, "bbox": [8, 8, 16.5, 16], "score": 0.75},
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1e-3},
    ]
    (folder / "results.json").write_text(json.dumps(entries))


def infos() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        make_coco(Path(folder))
        return coco.read_coco(Path(folder) / "set.json").infos


def read_detections(folder: Path) -> Any:
    found = read_results(folder / "results.json", KNOWN)
    for detections in found.values():
        assert np.isfinite(detections.boxes).all() and np.isfinite(detections.scores).all()
        assert (detections.boxes[:, 2:] >= detections.boxes[:, :2]).all() and (detections.labels == 0).all()
    return {key: (value.boxes.tolist(), value.scores.tolist()) for key, value in found.items()}


def weights_samples() -> dict[str, bytes]:
    folder = GOLDEN / "torch_files"
    names = ["zip.pth", "legacy.pth", "checkpoint.pth", "lightning.ckpt", "beside.pth", "beside_legacy.pth"]
    names += ["numpy_protocol5.pkl", "numpy_protocol2.pkl"]
    arrays = {"a.weight": np.arange(6, dtype="f4").reshape(2, 3), "b.bias": np.zeros(3, "f2")}
    found = {name: (folder / name).read_bytes() for name in names}
    for protocol in (0, 4):
        found[f"protocol{protocol}.pkl"] = pickle.dumps(collections.OrderedDict(arrays, epoch=np.int64(3)), protocol)
    return found | {"a.safetensors": safetensors.numpy.save(arrays), "bare": safetensors.numpy.save(arrays)}


def read_weights(path: Path) -> Any:
    tensors = reading.read_tensors(path)
    assert tensors and all(isinstance(name, str) for name in tensors)
    for array in tensors.values():
        assert type(array) is np.ndarray and array.flags.c_contiguous and array.dtype.kind in "fiub"
    assert sum(array.nbytes for array in tensors.values()) < 1 << 30
    for file_format in ("torchvision", "detectron2"):
        try:
            resnet.foreign(tensors, file_format)
        except UserError as error:
            assert "\n" not in str(error)
    return {name: (array.shape, str(array.dtype), array.tobytes()) for name, array in tensors.items()}


def read_folder_of_diffusers(folder: Path) -> Any:
    model, _ = stable_diffusion.from_pipeline(diffusers_folder.read_pipeline(folder), where=folder)
    leaves = model_folder.flatten(model.params)
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in leaves.values())
    ids = model.tokenizer.encode(["a mass", "x"])
    assert ids.min() >= 0 and ids.max() < model.text.vocab_size
    json.dumps(model.parts, allow_nan=False)
    return {name: leaf.tobytes() for name, leaf in leaves.items()}, ids.tolist(), model.schedule.prediction


def make_model(folder: Path) -> None:
    model_folder.save_params(folder, PARAMS, DESCRIPTION)
    (folder / "earlier").mkdir()
    entries = json.loads((folder / "model.json").read_bytes())
    del entries["format"], entries[model_folder.HASH]
    save_earlier(folder / "earlier", PARAMS, entries)


def change_model(folder: Path, random: Random) -> None:
    change_any_file(folder, random)
    config, params = folder / "model.json", folder / "params.safetensors"
    # a hash that fits, as whoever made the file would write it
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        if random.integers(0, 2):
            content = json.loads(config.read_bytes())
            content[model_folder.HASH] = hashlib.sha256(params.read_bytes()).hexdigest()
            config.write_text(json.dumps(content))


def read_model(folder: Path) -> Any:
    found = []
    for place in (folder, folder / "earlier"):
        trained = detector_folder.load(place)
        leaves = model_folder.flatten(trained.params)
        assert all(isinstance(leaf, np.ndarray) for leaf in leaves.values())
        description = trained.description
        assert description.classes and len(description.classes) == trained.detector.config.num_classes
        assert all(1 <= side <= 8192 for canvas in description.input.buckets for side in canvas)
        found.append((description, sorted((name, leaf.tobytes()) for name, leaf in leaves.items())))
        model_folder.seen_patients(place)
    return found


def make_config(folder: Path) -> None:
    config = load_config(str(ROOT / "configs" / "cem_mixed.py"))
    (folder / "config.json").write_text(json.dumps(plain(config)))


def sections(content: Any) -> Any:
    """Nested ConfigDicts, in order."""
    if not isinstance(content, dict):
        return content
    return ConfigDict({key: sections(value) for key, value in content.items()}, sort_keys=False)


def read_config(folder: Path) -> Any:
    """What a configuration file of any content would give."""
    content = json.loads((folder / "config.json").read_bytes())
    try:
        config = sections(content)
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # of ml_collections itself
        raise UserError(str(error).replace("\n", " ")) from error
    experiment = parse(config)
    assert experiment.stages and 0 <= experiment.seed < 2**63
    return sorted(experiment.stages), experiment.seed


def change_config(folder: Path, random: Random) -> None:
    path = folder / "config.json"
    path.write_bytes(json.dumps(changed(json.loads(path.read_bytes()), random)).encode("utf-8", "surrogatepass"))


def rasters() -> dict[str, bytes]:
    grey = (np.arange(24 * 20).reshape(24, 20) % 250).astype(np.uint8)
    deep = grey.astype(np.uint16) * 257
    encode = lambda suffix, pixels: cv2.imencode(suffix, pixels)[1].tobytes()
    return {
        "a.png": encode(".png", grey),
        "b.png": encode(".png", deep),
        "c.png": encode(".png", np.dstack([grey] * 3)),
        "d.jpg": encode(".jpg", grey),
        "e.tif": encode(".tif", deep),
        "f.tif": encode(".tif", grey),
    }


def dicoms() -> dict[str, bytes]:
    from pydicom.uid import ImplicitVRLittleEndian

    stack = np.stack([dicom_files.RAMP, dicom_files.RAMP[::-1]])
    lut = dicom_files.item(LUTDescriptor=[4, 0, 12], LUTData=np.array([0, 1000, 2000, 4095], "<u2").tobytes())
    return {
        "a.dcm": dicom_files.make(WindowCenter=2000, WindowWidth=3000),
        "b.dcm": dicom_files.make(syntax=ImplicitVRLittleEndian, RescaleSlope=1, RescaleIntercept=-100),
        "c.dcm": dicom_files.make(stack),
        "d.dcm": dicom_files.make(VOILUTSequence=[lut]),
    }


def read_image(path: Path) -> Any:
    image, meta = decode.decode_image(path, frame=0 if path.name == "c.dcm" else None)
    assert image.ndim == 3 and image.shape[2] == 1 and image.dtype == np.float32
    assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
    return image.shape, image.tobytes(), str(meta)


def make_tables(folder: Path) -> None:
    names = [f"P{patient}_L_{kind}_CC" for patient in (1, 2) for kind in ("DM", "CM")]
    write_tables(folder, [image_row(name) for name in names], [(name, circle(12, 12, 4)) for name in names])


def make_csv_tables(folder: Path) -> None:
    names = [f"P{patient}_L_CM_CC" for patient in (1, 2)]
    write_tables(folder, [image_row(name) for name in names], [(names[0], circle(12, 12, 4))], kind="csv")


def change_tables(folder: Path, random: Random) -> None:
    paths = sorted(folder.iterdir())
    path = paths[random.integers(0, len(paths))]
    if path.suffix != ".csv" or not random.integers(0, 3):
        return change_file(path, random, [path.read_bytes() for path in paths])
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    buffer, rows = io.StringIO(), changed(rows, random)
    csv.writer(buffer).writerows(list(map(str, row if isinstance(row, list) else [row])) for row in rows)
    path.write_bytes(buffer.getvalue().encode("utf-8", "surrogatepass"))
    return None


def read_tables(folder: Path) -> Any:
    rows = cdd_tables.read_tables(folder)
    for row in rows:
        boxes = np.asarray(row.boxes, float).reshape(-1, 4)
        assert np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    return [(row.name, np.asarray(row.boxes).tolist()) for row in rows]


KNOWN = infos()
PARAMS = {"rpn": {"conv1": {"kernel": np.arange(6, dtype="f4").reshape(2, 3), "bias": np.zeros(3, "f4")}}}
DESCRIPTION = detector_folder.describe(
    build_detector(detectron2(num_classes=1)),
    ("mass",),
    LoaderConfig(buckets=((64, 96),)),
    True,
    ("horizontal",),
    Choice((OperatingPoint(1.0, 0.4), OperatingPoint(2.0, None))),
    model_folder.Training(7, ("real",), "weights/coco", ("a1", "b2")),
)
DOORS = {
    "coco": Door(make_coco, change_any_file, read_coco, 2),
    "results": Door(make_results, change_any_file, read_detections),
    "weights": files_door(weights_samples, read_weights, 4),
    "diffusers": Door(
        lambda folder: shutil.copytree(GOLDEN / "diffusers_folder", folder, dirs_exist_ok=True) and None,
        change_any_file,
        read_folder_of_diffusers,
    ),
    "model folders": Door(make_model, change_model, read_model, 2),
    "configuration": Door(make_config, change_config, read_config),
    "images": files_door(rasters, read_image, 2),
    "dicom": files_door(dicoms, read_image, 2),
    "tables": Door(make_tables, change_tables, read_tables),
    "csv": Door(make_csv_tables, change_tables, read_tables),
}


# ---- The trial -------------------------------------------------------------------------------------------------------


class TimedOut(BaseException):
    """One input took longer than SECONDS; not an Exception, so that no reader takes it for a fault of the file."""


def trial(door: Door, folder: Path, random: Random) -> str:
    """'refused', 'right', 'timed out', or the traceback, for one damaged input in the empty `folder`."""

    def stop(*_: object) -> None:
        raise TimedOut

    door.make(folder)
    door.change(folder, random)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        door.read(folder)
        return "right"
    except UserError as error:
        return "refused" if "\n" not in str(error) else f"more than one line: {error}"
    except TimedOut:
        return "timed out"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def trials(name: str, seed: int, count: int, folder: Path) -> Iterator[tuple[int, str]]:
    """(number of the input, outcome) of so many inputs of a door; each is a function of (door, seed, number)."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            place = folder / str(number)
            place.mkdir(parents=True)
            yield number, trial(DOORS[name], place, np.random.default_rng([seed, number, *name.encode()]))
            shutil.rmtree(place)
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", DOORS)
def test_whole_inputs_are_read(name, tmp_path):
    DOORS[name].make(tmp_path)
    assert DOORS[name].read(tmp_path) == DOORS[name].read(tmp_path)


@pytest.mark.parametrize("name", DOORS)
def test_damaged_inputs_give_one_line_or_a_right_result(name, tmp_path):
    outcomes = dict(trials(name, 0, 20 * DOORS[name].share, tmp_path))
    wrong = {number: outcome for number, outcome in outcomes.items() if outcome not in ("right", "refused")}
    assert not wrong, "\n".join(f"{name}, input {number}: {outcome}" for number, outcome in wrong.items())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--count", type=int, default=1000, help="inputs, in all")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--door", choices=DOORS, action="append")
    chosen = arguments.parse_args()
    doors = chosen.door or list(DOORS)
    shares = sum(DOORS[name].share for name in doors)
    total: collections.Counter[str] = collections.Counter()
    for name in doors:
        start, counts = time.time(), collections.Counter()
        with tempfile.TemporaryDirectory() as folder:
            count = -(-chosen.count * DOORS[name].share // shares)
            for number, outcome in trials(name, chosen.seed, count, Path(folder)):
                kind = outcome if outcome in ("right", "refused", "timed out") else "wrong"
                counts[kind] += 1
                if kind in ("wrong", "timed out"):
                    print(f"{name}, seed {chosen.seed}, input {number}: {outcome}", flush=True)
        total += counts
        print(f"{name}: {dict(counts)}, {time.time() - start:.0f} s", flush=True)
    print(f"{sum(total.values())} inputs: {dict(total)}")
    sys.exit(bool(total["wrong"] + total["timed out"]))


if __name__ == "__main__":
    main()
