"""Shared by all LIBRARY_side.py: set-up, clock, training, and the protocol with the benchmark.

Import it before the library: it removes this folder from the path, whose kernels.py would shadow a library of that
name. It requires only torch.
"""

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != HERE]

import torch  # noqa: E402


class Side:
    """Something to time. A model has `train()`, one update, which returns the loss, and `infer()`."""

    def __init__(self, settings, device):
        self.settings, self.device = settings, device
        self.bfloat16 = settings["dtype"] == "bfloat16"
        self.now = {"wall": time.perf_counter, "cpu": time.process_time}[settings["clock"]]

    def precision(self):
        return torch.autocast(self.device, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext()

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call, count):
        """Mean time of `count` calls in a row."""
        self.wait()
        start = self.now()
        for _ in range(count):
            call()
        self.wait()
        return (self.now() - start) / count

    def peak_bytes(self):
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def begin():
    """(folder, settings, device) of this process; on a CPU torch uses all cores available to the process."""
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    device = "cuda" if settings["accelerator"] and torch.cuda.is_available() else "cpu"
    if device == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(cores)
    torch.backends.cudnn.benchmark = True  # the shapes are fixed
    return folder, settings, device


def sgd(model, settings):
    """The optimiser for the trained parameters of a model."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(
        trainable, lr=settings["rate"], momentum=settings["momentum"], weight_decay=settings["weight_decay"]
    )


def train_without_statistics(model):
    """`model.train()`, but batch norms keep their statistics, as on the other side; scales and biases are trained."""
    model.train()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()


def matmul_rate(device, rows=512, inner=4096, columns=1024):
    """FLOP/s of a float32 matrix product as in a box head, which reveals a torch with a slow BLAS."""
    a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


def serve(side, versions, about, answers, calls=None):
    """Print a description of this side as one JSON line, then answer every line of standard input with one.

    `train N`, `infer N`: {"seconds": mean of N calls in a row}; `memory`: {"bytes": peak}; `loss`: that of one update.
    versions: of the library; about: further items of the first line; answers: command -> function that answers it.
    calls: timed functions by name, instead of `train` and `infer`.
    """
    say(
        device=torch.cuda.get_device_name() if side.device == "cuda" else "cpu",
        versions={"torch": torch.__version__, **versions},
        threads=torch.get_num_threads(),
        memory_format="channels_last" if side.settings["channels_last"] else "contiguous",
        **about,
    )
    answers = {
        "memory": lambda: {"bytes": side.peak_bytes()},
        "loss": lambda: {"loss": float(side.train())},
        **answers,
    }
    calls = calls or {"train": side.train, "infer": side.infer}
    for line in sys.stdin:
        what, _, count = line.strip().partition(" ")
        say(**(answers[what]() if what in answers else {"seconds": side.seconds(calls[what], int(count))}))


def say(**values):
    print(json.dumps(values), flush=True)
