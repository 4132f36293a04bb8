"""Runs small Swin classifiers of torchvision, timm and transformers on seeded weights and stores their logits.

    python tests/golden/make_swin.py

Made with torch 2.13.0, torchvision 0.29.1, timm 1.0.31 and transformers 5.24.0 on a CPU. The maps have sizes that are
no multiples of a window, some with an odd number of tokens (of transformers with parts of patches). timm pads maps
after shifting them, and so is given maps of whole windows.
"""

import json
from pathlib import Path

import numpy as np
import seeded
import timm
import torch
import torchvision
import transformers
from torchvision.models.swin_transformer import SwinTransformer

FOLDER = Path(__file__).parent
EMBED, DEPTHS, HEADS, WINDOW, CLASSES = 16, (2, 2, 2, 2), (1, 2, 4, 8), 4, 5
SIZES = {"torchvision": (136, 92), "timm": (128, 256), "transformers": (134, 150)}


def build(library):
    if library == "torchvision":
        return SwinTransformer([4, 4], EMBED, list(DEPTHS), list(HEADS), [WINDOW, WINDOW], num_classes=CLASSES)
    if library == "timm":
        return timm.models.swin_transformer.SwinTransformer(
            SIZES[library], 4, 3, CLASSES, embed_dim=EMBED, depths=DEPTHS, num_heads=HEADS, window_size=WINDOW
        )
    config = transformers.SwinConfig(
        image_size=224,
        embed_dim=EMBED,
        depths=list(DEPTHS),
        num_heads=list(HEADS),
        window_size=WINDOW,
        num_labels=CLASSES,
    )
    return transformers.SwinForImageClassification(config)


def images(size):
    """[2, H, W, 3] as if normalised."""
    return seeded.uniform("swin images", (2, *size, 3), -1, 1)


def main():
    outputs, shapes = {}, {}
    for library, size in SIZES.items():
        model = build(library).eval()
        state = model.state_dict()
        shapes[library] = {name: tuple(value.shape) for name, value in state.items() if value.is_floating_point()}
        tensors = {name: torch.tensor(value) for name, value in seeded.swin_tensors(shapes[library]).items()}
        model.load_state_dict(state | tensors)
        with torch.no_grad():
            found = model(torch.tensor(images(size).transpose(0, 3, 1, 2)))
        outputs[library] = getattr(found, "logits", found).numpy()
        print(library, outputs[library])
    facts = {
        "made_with": {lib.__name__: lib.__version__ for lib in (torch, torchvision, timm, transformers)},
        "sizes": SIZES,
        "shapes": shapes,
    }
    (FOLDER / "swin.json").write_text(json.dumps(facts) + "\n")
    np.savez_compressed(FOLDER / "swin.npz", **outputs)


if __name__ == "__main__":
    main()
