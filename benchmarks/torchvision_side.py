"""torchvision's Faster R-CNN, timed on request. Runs in a Python of its own that has torch and torchvision.

    python torchvision_side.py FOLDER      FOLDER/settings.json, FOLDER/batch.npz -> FOLDER/weights.pth

Started by detector.py. Says what it is in one JSON line, then answers every line `train N` or `infer N` on its
standard input with one JSON line {"seconds": mean of N calls in a row}, and `memory` with {"bytes": peak}. Only one
side works at a time, so both can use the whole machine. It needs nothing but torch, torchvision and numpy.
"""

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

RESIDUAL_GAIN = 0.25
"""Scale of the norm that ends each residual branch: without it the features of random weights grow with depth."""


def build(settings, device):
    """fasterrcnn_resnet*_fpn with frozen batch norm, random weights, two classes, images taken as they are."""
    torch.manual_seed(0)
    name = f"resnet{settings['depth']}"
    backbone = resnet_fpn_backbone(
        backbone_name=name,
        weights=None,
        norm_layer=torchvision.ops.misc.FrozenBatchNorm2d,
        trainable_layers=settings["trainable_layers"],
    )
    last = "bn3.weight" if settings["depth"] >= 50 else "bn2.weight"
    for key, value in backbone.state_dict().items():
        if key.endswith(last):
            value.fill_(RESIDUAL_GAIN)
    model = FasterRCNN(backbone, num_classes=2, **settings["detector"])
    model.transform.resize = lambda image, target: (image, target)  # the images have their size
    return model.to(device)


def load_batch(path, device):
    stored = np.load(path)
    images, targets = [], []
    for image, size, boxes, valid in zip(*(stored[k] for k in ("image", "image_size", "gt_boxes", "gt_valid"))):
        height, width = size.astype(int)
        grey = torch.tensor(image[:height, :width, 0])
        images.append(grey.expand(3, -1, -1).contiguous().to(device))
        found = torch.tensor(boxes[valid]).to(device)
        targets.append({"boxes": found, "labels": torch.ones(len(found), dtype=torch.int64, device=device)})
    return images, targets


class Side:
    def __init__(self, settings, folder, device):
        self.device = device
        self.now = {"wall": time.perf_counter, "cpu": time.process_time}[settings["clock"]]
        self.model = build(settings, device)
        torch.save(self.model.state_dict(), folder / "weights.pth")
        if settings["channels_last"]:
            self.model.to(memory_format=torch.channels_last)
            self.model.backbone.register_forward_pre_hook(
                lambda _, inputs: (inputs[0].to(memory_format=torch.channels_last),)
            )
        self.images, self.targets = load_batch(folder / "batch.npz", device)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = settings["optimizer"]
        self.optimizer = torch.optim.SGD(
            trainable, lr=optimizer["rate"], momentum=optimizer["momentum"], weight_decay=optimizer["weight_decay"]
        )
        self.bfloat16 = settings["dtype"] == "bfloat16"

    def precision(self):
        return torch.autocast(self.device, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext()

    def train(self):
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            loss = sum(self.model(self.images, self.targets).values())
        loss.backward()
        self.optimizer.step()
        return loss

    def infer(self):
        self.model.eval()
        with torch.inference_mode(), self.precision():
            return self.model(self.images)

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call, count):
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


def matmul_rate(device, rows=512, inner=4096, columns=1024):
    """FLOP/s of a float32 matrix product like the box head's: tells a torch that was built on a slow BLAS."""
    a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


def main():
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    device = "cuda" if settings["accelerator"] and torch.cuda.is_available() else "cpu"
    if device == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(cores)
    torch.backends.cudnn.benchmark = True  # the shapes are fixed
    side = Side(settings, folder, device)
    say(
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        versions={"torch": torch.__version__, "torchvision": torchvision.__version__},
        threads=torch.get_num_threads(),
        memory_format="channels_last" if settings["channels_last"] else "contiguous",
        precision="bfloat16 autocast" if side.bfloat16 else "float32",
        matmul_flops_per_second=matmul_rate(device),
        compiled=False,  # torch.compile does not take torchvision's detectors as a whole
    )
    for line in sys.stdin:
        what, _, count = line.strip().partition(" ")
        if what == "memory":
            say(bytes=side.peak_bytes())
        elif what == "loss":
            say(loss=float(side.train()))
        elif what == "detections":
            say(detections=[len(found["boxes"]) for found in side.infer()])
        else:
            say(seconds=side.seconds({"train": side.train, "infer": side.infer}[what], int(count)))


def say(**values):
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
