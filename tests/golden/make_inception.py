"""Makes inception.npz: means of the last map of Inception-v3, by torchvision and by pytorch-fid, with made weights.

    pip install torch torchvision pytorch-fid
    python tests/golden/make_inception.py

Weights and images follow from their names (seeded.py, textures.py). The networks see images of 107 pixels, whose last
map has two rows: at its borders the two pool in different ways.
"""

import json
from pathlib import Path

import numpy as np
import seeded
import textures
import torch
import torchvision
from pytorch_fid import inception as fid

SIDE = 107
GAINS = [["^fc", 0.1, False], [r"\.conv\.weight$", 1.0, True]]


def images():
    """[2, SIDE, SIDE] float32 in [0, 1]."""
    return np.stack([textures.image(name, SIDE, SIDE) for name in ("smooth", "rough")]).astype(np.float32) / 255


def of_fid():
    """pytorch-fid's network, without the weights that it downloads."""
    model = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    for name, kind, channels in (
        *((f"Mixed_5{k}", fid.FIDInceptionA, c) for k, c in (("b", (192, 32)), ("c", (256, 64)), ("d", (288, 64)))),
        *((f"Mixed_6{k}", fid.FIDInceptionC, (768, c)) for k, c in (("b", 128), ("c", 160), ("d", 160), ("e", 192))),
        ("Mixed_7b", fid.FIDInceptionE_1, (1280,)),
        ("Mixed_7c", fid.FIDInceptionE_2, (2048,)),
    ):
        names = {"A": ("in_channels", "pool_features"), "C": ("in_channels", "channels_7x7"), "1": ("in_channels",)}
        keys = names[{"FIDInceptionA": "A", "FIDInceptionC": "C"}.get(kind.__name__, "1")]
        setattr(model, name, kind(**dict(zip(keys, channels))))
    return model


def pooled(model):
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    made = seeded.state_dict(shapes, GAINS, {})
    model.load_state_dict({name: torch.from_numpy(np.asarray(tensor)) for name, tensor in made.items()})
    model.eval()
    found = []
    model.avgpool.register_forward_hook(lambda module, inputs, output: found.append(output[..., 0, 0]))
    model.transform_input = False
    with torch.no_grad():
        model(torch.from_numpy(images())[:, None].repeat(1, 3, 1, 1) * 2 - 1)
    return shapes, found[0].numpy()


if __name__ == "__main__":
    place = Path(__file__)
    shapes, theirs = pooled(torchvision.models.inception_v3(aux_logits=False, weights=None, init_weights=False))
    _, fids = pooled(of_fid())
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, pytorch-fid 0.3.0"
    np.savez_compressed(place.with_name("inception.npz"), torchvision=theirs, fid=fids)
    made = {"version": versions, "shapes": shapes, "gains": GAINS}
    place.with_name("inception.json").write_text(json.dumps(made) + "\n")
    print(theirs[:, :5], fids[:, :5], theirs.std(), abs(theirs - fids).max())
