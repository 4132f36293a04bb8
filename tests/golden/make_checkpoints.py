"""Writes small checkpoints as training programs leave them, with PyTorch and NumPy themselves:

    python tests/golden/make_checkpoints.py

Made with torch 2.13.0 and NumPy 2.4.6. What they hold beside the weights are plain objects: a Counter and a Namespace
(torchvision's references/detection), settings of a class (Lightning), an enumeration, random states, and all that
`beside` lists.
"""

import argparse
import datetime
import enum
import functools
import pathlib
import pickle
import sys
import types
import typing

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent / "torch_files"


def layers():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    with torch.no_grad():
        for number, value in enumerate(model.state_dict().values()):
            value.copy_(torch.arange(value.numel()).reshape(value.shape) + number)
    return model


def foreign_class(module, name, base):
    """A class that pickles under a name that the reader does not have."""
    kind = type(name, (base,), {"__module__": module})
    sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module], name, kind)
    return kind


def torchvision_training():
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[16, 22])
    average = torch.optim.swa_utils.AveragedModel(model)
    args = argparse.Namespace(lr=0.02, output_dir=pathlib.PosixPath("out"), started=datetime.datetime(2024, 1, 2))
    return {
        "model": torch.nn.DataParallel(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "model_ema": average.state_dict(),
        "args": args,
        "epoch": 3,
        "random": [np.random.default_rng(0), np.random.RandomState(0).get_state(), torch.get_rng_state()],
    }


def lightning():
    settings = foreign_class("lightning_stand_in", "AttributeDict", dict)(lr=0.1, widths=[1, 2])
    mode = enum.Enum("Mode", {"TRAIN": "train"}, module="project_stand_in", qualname="Mode")
    sys.modules["project_stand_in"] = types.ModuleType("project_stand_in")
    sys.modules["project_stand_in"].Mode = mode
    state = {f"model._orig_mod.{name}": value for name, value in layers().state_dict().items()}
    return {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5), "kth": {}}},
        "hyper_parameters": settings,
        "mode": mode.TRAIN,
        "loops": {"fit_loop": {"state": {1, 2}}},
    }


def beside():
    """Kinds of tensors and objects that have to be read past, in both formats of PyTorch."""
    model, marked, table = layers(), torch.zeros(2), torch.nn.Parameter(torch.zeros(2))
    marked.note = table.note = "attribute"
    kind = foreign_class("scheduler_stand_in", "Schedule", object)
    kind.curve = lambda x: x
    kind.curve.__module__, kind.curve.__qualname__ = kind.__module__, "Schedule.curve"
    within, deep = {}, {}
    within["itself"], node = within, deep
    for _ in range(150):
        node["next"] = node = {}
    state = {name: value.detach() for name, value in model.state_dict().items()}
    state["0.bias"].note = "attribute"
    return {
        "first": [within, deep],
        "model": {**state, "1._extra_state": None},
        "class": torch.nn.ReLU,
        "functions": [kind.curve, kind().__init__, functools.partial(torch.nn.ReLU, inplace=True)],
        "types": [typing.Literal["a"], int | None, list[int], type(None)],
        "marked": [marked, table],
        "complex": [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.complex128).conj()],
        "small": [torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), torch.zeros(2).to(torch.float8_e5m2)],
        "others": [torch.eye(2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(3).untyped_storage()],
        "arrays": [np.ma.zeros(2), np.rec.array([(1, 2.0)]), np.str_("a"), np.complex64(1), np.longdouble(1)],
    }


def main():
    torch.save(beside(), FOLDER / "beside.pth")
    torch.save(beside(), FOLDER / "beside_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(torchvision_training(), FOLDER / "torchvision_training.pth")
    torch.save(lightning(), FOLDER / "lightning.ckpt")
    torch.save(torch.optim.swa_utils.AveragedModel(layers()).state_dict(), FOLDER / "averaged.pth")
    torch.save(layers().state_dict() | {"epoch": 3}, FOLDER / "not_a_tensor.pth")
    cube = np.arange(24, dtype="f4").reshape(2, 3, 4)
    arrays = {"c": cube, "fortran": np.asfortranarray(cube), "axes": cube.transpose(1, 0, 2), "strided": cube[:, ::2]}
    arrays |= {"scalar": np.float64(2.5), "whole": np.int64(7), "big_endian": cube.astype(">f4")}
    for protocol in (2, 5):
        (FOLDER / f"numpy_protocol{protocol}.pkl").write_bytes(pickle.dumps(arrays, protocol))
    print({path.name: path.stat().st_size for path in sorted(FOLDER.iterdir())}, torch.__version__, np.__version__)


if __name__ == "__main__":
    main()
