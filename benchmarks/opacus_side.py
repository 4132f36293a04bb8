"""Times plain and private updates of torch on request, in a separate Python with torch, torchvision and Opacus.

    python opacus_side.py FOLDER      FOLDER/settings.json, FOLDER/batch.npz

privacy.py starts it. The protocol is that of `torch_side.serve`; what can be timed is `programs` of the first line: the
name of each program, and of the plain one that it is compared with. torch.func trains the network of the settings;
Opacus trains it where it can, and a ResNet-18 with group normalisation. It requires torch, torchvision and opacus.
"""

import warnings
from functools import partial

import torch_side  # isort: skip  corrects the path before the libraries are imported
import numpy as np
import opacus
import torch
import torchvision
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models.resnet import BasicBlock, ResNet

GROUPS = 32
CLIP_NORM, NOISE = 1.0, 1.0
RESNET = "resnet18_gn"


class Block(BasicBlock):
    """Without operations in place, which the hooks of Opacus forbid."""

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def network(name, classes, device):
    torch.manual_seed(0)
    if name == RESNET:
        model = ResNet(Block, [2, 2, 2, 2], num_classes=classes, norm_layer=partial(nn.GroupNorm, GROUPS))
    else:
        model = getattr(torchvision.models, name)(num_classes=classes)
    for layer in model.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
        if isinstance(layer, torchvision.ops.StochasticDepth):
            layer.p = 0.0  # torch.func cannot draw its numbers for every example
    return model.to(device)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)


class Side(torch_side.Side):
    def __init__(self, settings, folder, device):
        super().__init__(settings, device)
        stored = np.load(folder / "batch.npz")
        images = torch.tensor(stored["image"]).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous().to(device)
        layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format
        self.images = images.to(memory_format=layout)
        self.labels = torch.tensor(stored["label"]).long().to(device)
        self.programs, self.calls, self.failed = {}, {}, {}
        name = settings["network"]
        make = lambda name: network(name, settings["classes"], device).to(memory_format=layout)
        self.add(name, name, self.plain(make(name)))
        for size in settings["micro_batches"]:
            self.add(f"{name}/torch.func/{size}", name, self.per_example(make(name), size))
        for other in (name, RESNET):
            if other != name:
                self.add(other, other, self.plain(make(other)))
            for way in (self.hooks, self.ghost):
                try:
                    self.add(f"{other}/opacus/{way.__name__}", other, way(make(other)))
                except NotImplementedError as error:  # of Opacus, for layers that it has no rule for
                    reason = error.args[0][0] if isinstance(error.args[0], list) else error
                    self.failed[f"{other}/opacus/{way.__name__}"] = str(reason).splitlines()[0]

    def add(self, name, base, call):
        """A program, and the plain one that it is compared with, which may be itself."""
        call()
        self.programs[name], self.calls[name] = base, call

    def plain(self, model):
        optimizer = adamw(model)

        def update():
            optimizer.zero_grad(set_to_none=True)
            with self.precision():
                loss = cross_entropy(model(self.images), self.labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            return loss

        return update

    def per_example(self, model, size):
        """Gradients of `size` examples at once by torch.func; their clipped sum, noise, and an update."""
        optimizer = adamw(model)
        names = [name for name, _ in model.named_parameters()]

        def loss_of(params, image, label):
            with self.precision():
                return cross_entropy(torch.func.functional_call(model, params, (image[None],)), label[None])

        gradients = torch.func.vmap(torch.func.grad(loss_of), (None, 0, 0), randomness="different")

        def update():
            params = {name: p.detach() for name, p in model.named_parameters()}
            total = {name: torch.zeros_like(p) for name, p in params.items()}
            for images, labels in zip(self.images.split(size), self.labels.split(size)):
                found = gradients(params, images, labels)
                norms = sum(found[name].flatten(1).square().sum(1) for name in names).sqrt()
                factor = (CLIP_NORM / norms).clamp(max=1)
                for name in names:
                    total[name] += torch.einsum("b,b...->...", factor, found[name])
            for name, p in model.named_parameters():
                p.grad = (total[name] + NOISE * CLIP_NORM * torch.randn_like(p)) / len(self.images)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()

        return update

    def hooks(self, model):
        """Opacus by hooks, which keep the gradient of every example."""
        model = GradSampleModule(model)
        optimizer = DPOptimizer(
            adamw(model), noise_multiplier=NOISE, max_grad_norm=CLIP_NORM, expected_batch_size=len(self.images)
        )

        def update():
            optimizer.zero_grad(set_to_none=True)
            with self.precision():
                loss = cross_entropy(model(self.images), self.labels)
            loss.backward()
            optimizer.step()

        return update

    def ghost(self, model):
        """Opacus by norms without gradients, and a second backward pass."""
        model = GradSampleModuleFastGradientClipping(model, max_grad_norm=CLIP_NORM, use_ghost_clipping=True)
        optimizer = DPOptimizerFastGradientClipping(
            adamw(model), noise_multiplier=NOISE, max_grad_norm=CLIP_NORM, expected_batch_size=len(self.images)
        )
        criterion = DPLossFastGradientClipping(model, optimizer, nn.CrossEntropyLoss())

        def update():
            optimizer.zero_grad(set_to_none=True)
            with self.precision():
                loss = criterion(model(self.images), self.labels)
            loss.backward()
            optimizer.step()

        return update


def main():
    warnings.filterwarnings("ignore")
    folder, settings, device = torch_side.begin()
    side = Side(settings, folder, device)
    about = {
        "precision": "bfloat16 autocast" if side.bfloat16 else "float32",
        "programs": side.programs,
        "failed": side.failed,
    }
    versions = {"torchvision": torchvision.__version__, "opacus": opacus.__version__}
    torch_side.serve(side, versions, about, {}, side.calls)


if __name__ == "__main__":
    main()
