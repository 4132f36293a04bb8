"""Runs EfficientNets of torchvision, timm and the wheels' own port on seeded weights and stores what they say.

    python tests/golden/make_efficientnet.py

Made with torch 2.13.0, torchvision 0.29.1, timm 1.0.31 and efficientnet_lite_pytorch 0.1.0 on a CPU. Height and width
of the images are even and odd, so that TensorFlow's padding differs from PyTorch's along one axis alone.
"""

import json
from pathlib import Path

import numpy as np
import seeded
import timm
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet

FOLDER = Path(__file__).parent
CLASSES = 7
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
REPEATS = (1, 2, 2, 3, 3, 4, 1)


def of_torchvision():
    model = torchvision.models.efficientnet_b0(weights=None, num_classes=CLASSES)

    def stages(x):
        outputs = []
        for layer in model.features[:8]:
            x = layer(x)
            outputs.append(x)
        return outputs[1:]

    return model, stages, IMAGENET


def of_timm():
    model = timm.create_model("tf_efficientnet_b0.ns_jft_in1k", pretrained=False, num_classes=CLASSES)

    def stages(x):
        x = model.bn1(model.conv_stem(x))
        outputs = []
        for stage in model.blocks:
            x = stage(x)
            outputs.append(x)
        return outputs

    return model, stages, (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


def of_port():
    model = EfficientNet.from_name("efficientnet-lite0", image_size=None, num_classes=CLASSES)

    def stages(x):
        x = model._swish(model._bn0(model._conv_stem(x)))
        outputs = []
        for block in model._blocks:
            x = block(x)
            outputs.append(x)
        return [outputs[last - 1] for last in np.cumsum(REPEATS)]

    return model, stages, LITE


def main():
    outputs, shapes = {}, {}
    for name, build in {"torchvision": of_torchvision, "timm": of_timm, "efficientnet_pytorch": of_port}.items():
        model, stages, (mean, std) = build()
        shapes[name] = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        tensors = seeded.state_dict(shapes[name], [], {})
        model.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
        model.eval()
        images = (seeded.efficientnet_images() - np.array(mean)) / np.array(std)
        x = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32)
        for number, stage in enumerate(stages(x), start=1):
            outputs[f"{name}/{number}"] = seeded.project(stage.permute(0, 2, 3, 1).numpy())
            print(name, number, tuple(stage.shape), float(stage.std()), float(stage.abs().max()))
        outputs[f"{name}/logits"] = model(x).numpy()
        print(name, outputs[f"{name}/logits"])
    made_with = {library.__name__: library.__version__ for library in (torch, torchvision, timm)}
    facts = {"made_with": made_with | {"efficientnet_lite_pytorch": "0.1.0"}, "shapes": shapes}
    (FOLDER / "efficientnet.json").write_text(json.dumps(facts) + "\n")
    np.savez_compressed(FOLDER / "efficientnet.npz", **outputs)


if __name__ == "__main__":
    with torch.no_grad():
        main()
