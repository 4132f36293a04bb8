"""Runs a small SwinTransformer of MONAI on seeded weights and stores its maps.

    python tests/golden/make_monai_swin.py

Made with monai 1.6.1 and torch 2.14.1 on a CPU. Weights are seeded by their names in elk_jax, and put into MONAI's
layers here. The sizes of the maps are not multiples of a window: MONAI pads them as well.
"""

from pathlib import Path

import numpy as np
import seeded
import torch
from monai.networks.nets.swin_unetr import SwinTransformer

EMBED, DEPTHS, HEADS, WINDOW, SIZE = 6, (2, 2, 2, 2), (1, 2, 2, 4), 3, (128, 160)


def images():
    """[2, H, W, 3] as if normalised."""
    return seeded.uniform("monai images", (2, *SIZE, 3), -1, 1)


def ours(name, shape):
    """The value of MONAI's tensor `name`, from that of elk_jax."""
    parts = name.split(".")
    if parts[0] == "patch_embed":
        if parts[-1] == "bias":
            return seeded.parameter("patches/projection/bias", shape)
        out, channels, side, _ = shape
        kernel = seeded.parameter("patches/projection/kernel", (side * side * channels, out))
        return kernel.reshape(side, side, channels, out).transpose(3, 2, 0, 1)
    stage, rest = int(parts[0].removeprefix("layers")), parts[2:]
    if rest[0] == "downsample":
        place = f"merge{stage + 2}/{rest[1]}"
        if rest[1] == "reduction":
            return seeded.parameter(f"{place}/kernel", shape[::-1]).T
        return seeded.parameter(f"{place}/{'scale' if rest[2] == 'weight' else 'bias'}", shape)
    layers = {"attn": "attention", "proj": "projection", "linear1": "mlp1", "linear2": "mlp2"}
    inner = [layers.get(one, one) for one in rest[2:-1] if one != "mlp"]
    place = "/".join([f"res{stage + 1}_{rest[1]}", *inner])
    kinds = {"bias": "bias", "relative_position_bias_table": "relative_position"}
    if rest[-1] in kinds:
        return seeded.parameter(f"{place}/{kinds[rest[-1]]}", shape)
    if "norm" in place:
        return seeded.parameter(f"{place}/scale", shape)
    return seeded.parameter(f"{place}/kernel", shape[::-1]).T


def main():
    model = SwinTransformer(
        in_chans=3,
        embed_dim=EMBED,
        window_size=(WINDOW, WINDOW),
        patch_size=(2, 2),
        depths=DEPTHS,
        num_heads=HEADS,
        spatial_dims=2,
    ).eval()
    state = model.state_dict()
    made = {name: ours(name, tuple(x.shape)) for name, x in state.items() if x.is_floating_point()}
    model.load_state_dict(state | {name: torch.tensor(np.ascontiguousarray(x)) for name, x in made.items()})
    with torch.no_grad():
        maps = model(torch.tensor(images().transpose(0, 3, 1, 2)))[1:]
    found = {f"map{number}": one.numpy().transpose(0, 2, 3, 1) for number, one in enumerate(maps, 1)}
    print({name: (one.shape, float(np.abs(one).mean())) for name, one in found.items()})
    # of the finest maps every seventh column
    np.savez_compressed(Path(__file__).parent / "monai_swin.npz", **{k: x[:, :, ::7] for k, x in found.items()})


if __name__ == "__main__":
    main()
