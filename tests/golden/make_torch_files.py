"""Writes small files with PyTorch itself, for the tests of the readers. Run with a Python that has torch:

    python tests/golden/make_torch_files.py

Made with torch 1.13.0. Every tensor's elements are 0, 1, 2, ... in the order given by
`contiguous()`, unless the names say otherwise, so that the expected content can be written down in the test.
"""

import collections
import pickle
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "torch_files"


def tensors():
    shared = torch.arange(12, dtype=torch.float32)
    return collections.OrderedDict(
        contiguous=torch.arange(6, dtype=torch.float32).reshape(2, 3),
        transposed=torch.arange(6, dtype=torch.float32).reshape(3, 2).t(),
        channels_last=torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        shared_head=shared[:4],
        shared_tail=shared.reshape(3, 4)[1:, ::2],
        expanded=torch.tensor([7.0]).expand(3),
        parameter=torch.nn.Parameter(torch.arange(4.0)),
        half=torch.arange(5, dtype=torch.float16),
        bfloat16=torch.tensor([1.0, -2.5, 3.140625], dtype=torch.bfloat16),
        double=torch.arange(3, dtype=torch.float64),
        long=torch.tensor(41),
        int=torch.arange(3, dtype=torch.int32),
        uint8=torch.arange(3, dtype=torch.uint8),
        bool=torch.tensor([True, False]),
        empty=torch.zeros(0, 4),
    )


def main():
    FOLDER.mkdir(exist_ok=True)
    state = tensors()
    torch.save(state, FOLDER / "zip.pth")
    torch.save(state, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1, momentum=0.9)
    layers(torch.ones(1, 1, 5, 5)).sum().backward()
    optimizer.step()
    checkpoint = {"model": layers.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 3}
    torch.save(checkpoint, FOLDER / "checkpoint.pth")
    torch.save(layers, FOLDER / "whole_module.pth")
    arrays = {name: np.arange(6, dtype="f4").reshape(2, 3) for name in ("stem.conv1.weight", "fortran")}
    arrays["fortran"] = np.asfortranarray(arrays["fortran"])
    arrays["scalar"] = np.float32(2.5)
    content = {"model": arrays, "__author__": "nobody", "matching_heuristics": True}
    for protocol in (2, 4, 5):
        (FOLDER / f"detectron2_protocol{protocol}.pkl").write_bytes(pickle.dumps(content, protocol))
    print({path.name: path.stat().st_size for path in sorted(FOLDER.iterdir())}, torch.__version__)


if __name__ == "__main__":
    main()
