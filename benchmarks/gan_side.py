"""Times steps of MCGAN in torch on request, in a separate Python with torch.

    python gan_side.py FOLDER      FOLDER/settings.json, FOLDER/batch.npz

gan.py starts it. The protocol is that of `torch_side.serve`. The networks are those of arXiv:2407.12669: transposed
convolutions of 4, convolutions of 6, instance norms; a step consists of `ratio` updates of the discriminator with Adam,
and one of the generator, whose last patches are scored again.
"""

import torch_side  # isort: skip  corrects the path before the libraries are imported
import numpy as np
import torch
from torch import nn
from torch.nn.functional import softplus

NOISE, EMBEDDING = 100, 50


class Condition(nn.Sequential):
    def __init__(self, features):
        super().__init__(nn.Embedding(2, EMBEDDING), nn.Linear(EMBEDDING, features), nn.LeakyReLU(0.1))


class Generator(nn.Module):
    def __init__(self, size, width):
        super().__init__()
        steps = (size // 4).bit_length() - 1
        channels, layers = 2 * NOISE, []
        for power in reversed(range(steps)):
            first = power == steps - 1
            layers.append(
                nn.ConvTranspose2d(channels, width * 2**power, 4, 1 if first else 2, 0 if first else 1, bias=False)
            )
            layers += [nn.InstanceNorm2d(width * 2**power), nn.ReLU(inplace=True)]
            channels = width * 2**power
        self.condition = Condition(NOISE)
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels, 1, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, noise, label):
        return self.layers(torch.cat([self.condition(label), noise], 1)[..., None, None])


class Discriminator(nn.Module):
    def __init__(self, size, width):
        super().__init__()
        steps, channels, layers = (size // 4).bit_length() - 1, 2, []
        for power in range(steps):
            layers.append(nn.Conv2d(channels, width * 2**power, 6, 2, 2, bias=False))
            layers += [nn.InstanceNorm2d(width * 2**power)] * bool(power) + [nn.LeakyReLU(0.1, inplace=True)]
            channels = width * 2**power
        self.condition = Condition(size * size)
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 6, 1, 1, bias=False))

    def forward(self, image, label):
        return self.layers(torch.cat([image, self.condition(label).view_as(image)], 1)).flatten()


class Side(torch_side.Side):
    def __init__(self, settings, folder, device):
        super().__init__(settings, device)
        stored = np.load(folder / "batch.npz")
        layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format
        images = torch.tensor(stored["image"]).permute(0, 3, 1, 2).contiguous()
        self.images = images.to(device, memory_format=layout).split(settings["batch"])
        self.labels = torch.tensor(stored["label"]).long().to(device).split(settings["batch"])
        build = lambda kind: kind(settings["size"], settings["width"]).to(device, memory_format=layout)
        self.generator, self.discriminator = build(Generator), build(Discriminator)
        adam = lambda model: torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.5, 0.999))
        self.own, self.other = adam(self.generator), adam(self.discriminator)
        self.train()

    def train(self):
        for image, label in zip(self.images, self.labels):
            count = len(image)
            noise = torch.randn(count, NOISE, device=self.device)
            drawn = torch.randint(2, (count,), device=self.device)
            with self.precision():
                made = self.generator(noise, drawn)
                real = self.discriminator(2 * image - 1, label).float()
                target = torch.empty(count, device=self.device).uniform_(0.7, 1.2)
                loss = (softplus(real) - target * real).mean()
                loss = loss + softplus(self.discriminator(made.detach(), drawn).float()).mean()
            self.other.zero_grad(set_to_none=True)
            loss.backward()
            self.other.step()
        for p in self.discriminator.parameters():  # its own gradients are not needed here
            p.requires_grad_(False)
        with self.precision():
            loss = softplus(-self.discriminator(made, drawn).float()).mean()
        self.own.zero_grad(set_to_none=True)
        loss.backward()
        self.own.step()
        for p in self.discriminator.parameters():
            p.requires_grad_(True)
        return loss

    def infer(self):
        with torch.no_grad():
            return self.generator(torch.randn(len(self.images[0]), NOISE, device=self.device), self.labels[0])


if __name__ == "__main__":
    folder, settings, device = torch_side.begin()
    side = Side(settings, folder, device)
    count = sum(p.numel() for model in (side.generator, side.discriminator) for p in model.parameters())
    torch_side.serve(side, {}, {"parameters": count}, {})
