"""Runs torch twins of the generator and the discriminator on seeded weights and stores what they say.

    python tests/golden/make_gan.py

Made with torch 2.14.1 on a CPU. The layers are those of the published networks (arXiv:2407.12669): transposed
convolutions of 4, convolutions of 6 or 4, instance norms, an embedded class beside the noise or as a second image.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import seeded
import torch
from torch import nn

FOLDER = Path(__file__).parent
WIDTH, NOISE, EMBEDDING = 4, 10, 6
CASES = {"128_6": (128, 6), "64_6": (64, 6), "64_4": (64, 4)}  # name -> (pixels, kernel of the discriminator)
STRIDE = 5  # of stored pixels


class Condition(nn.Sequential):
    def __init__(self, features):
        super().__init__(nn.Embedding(2, EMBEDDING), nn.Linear(EMBEDDING, features), nn.LeakyReLU(0.1))


class Generator(nn.Module):
    def __init__(self, size):
        super().__init__()
        steps = (size // 4).bit_length() - 1
        widths = [2 * NOISE, *(WIDTH * 2**power for power in reversed(range(steps))), 1]
        self.condition, layers = Condition(NOISE), []
        for number, (channels, features) in enumerate(pairwise(widths)):
            stride, padding = (2, 1) if number else (1, 0)
            layers.append(nn.ConvTranspose2d(channels, features, 4, stride, padding, bias=False))
            layers += [nn.InstanceNorm2d(features), nn.ReLU()] if features > 1 else [nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise, label):
        return self.layers(torch.cat([self.condition(label), noise], 1)[..., None, None])


class Discriminator(nn.Module):
    def __init__(self, size, kernel):
        super().__init__()
        steps = (size // 4).bit_length() - 1
        widths = [2, *(WIDTH * 2**power for power in range(steps))]
        self.condition, layers = Condition(size * size), []
        for number, (channels, features) in enumerate(pairwise(widths)):
            layers.append(nn.Conv2d(channels, features, kernel, 2, kernel // 2 - 1, bias=False))
            layers += [nn.InstanceNorm2d(features), nn.LeakyReLU(0.1)] if number else [nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, kernel, 1, kernel // 2 - 2, bias=False))

    def forward(self, image, label):
        return self.layers(torch.cat([image, self.condition(label).view_as(image)], 1)).flatten()


def seed(model, name):
    """Weights that anybody can make again from their names."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            bound = 1 / np.sqrt(max(value[0].numel(), 1)) if value.ndim > 1 else 0.1
            value.copy_(torch.tensor(seeded.uniform(f"{name} {key}", tuple(value.shape), -bound, bound)))
    return model.eval()


def main():
    outputs = {}
    label = torch.tensor([0, 1, 1])
    noise = torch.tensor(seeded.uniform("gan noise", (3, NOISE), -2, 2))
    for name, (size, kernel) in CASES.items():
        generator, discriminator = seed(Generator(size), f"g{name}"), seed(Discriminator(size, kernel), f"d{name}")
        image = torch.tensor(seeded.uniform(f"gan images {size}", (3, 1, size, size), -1, 1))
        with torch.no_grad():
            outputs[f"{name}/image"] = generator(noise, label).numpy()[:, 0, ::STRIDE, ::STRIDE]
            outputs[f"{name}/score"] = discriminator(image, label).numpy()
        print(name, outputs[f"{name}/image"].std(), outputs[f"{name}/score"])
    np.savez_compressed(FOLDER / "gan.npz", **outputs)


if __name__ == "__main__":
    main()
