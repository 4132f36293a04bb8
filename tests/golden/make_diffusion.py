"""Runs diffusers' and transformers' networks on seeded weights and inputs and stores what they say. Needs torch too:

    python tests/golden/make_diffusion.py

Made with torch 2.13.0, diffusers 0.42.1 and transformers 5.23.0 on a CPU. Weights and inputs come from their names
(seeded.py), so that the outputs, the settings and a fingerprint of all names and shapes are all that is stored.
"""

import hashlib
import json
from pathlib import Path

import diffusers
import numpy as np
import seeded
import torch
import transformers

FOLDER = Path(__file__).parent
ATTENTION, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
SMALL = {"block_out_channels": [16, 32], "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 8}
UNETS = {
    "unet_sd1": {
        **SMALL,
        "in_channels": 4,
        "down_block_types": [ATTENTION, PLAIN],
        "layers_per_block": 2,
        "attention_head_dim": 4,
        "cross_attention_dim": 12,
    },
    "unet_sd2": {
        **SMALL,
        "in_channels": 9,
        "down_block_types": [ATTENTION, ATTENTION],
        "attention_head_dim": [2, 4],
        "cross_attention_dim": 20,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "unet_no_text": {
        **SMALL,
        "in_channels": 3,
        "out_channels": 2,
        "down_block_types": [PLAIN, ATTENTION],
        "attention_head_dim": 4,
        "cross_attention_dim": None,
    },
}
VAE = {
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
TEXT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "bos_token_id": 58,
    "eos_token_id": 59,
}
TIMESTEPS = [3, 871]


def load(model):
    """The model with seeded weights, and what is stored of its state dict."""
    shapes = {
        name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith("position_ids")
    }
    tensors = seeded.diffusion_tensors(shapes)
    model.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
    names = json.dumps(sorted((name, list(shape)) for name, shape in shapes.items()))
    facts = {
        "tensors": len(shapes),
        "parameters": sum(int(np.prod(shape)) for shape in shapes.values()),
        "fingerprint": hashlib.sha256(names.encode()).hexdigest(),
    }
    return model.eval(), facts


def nchw(x):
    return torch.tensor(x.transpose(0, 3, 1, 2))


def nhwc(x):
    return x.permute(0, 2, 3, 1).numpy()


def main():
    outputs, facts = {}, {}
    for name, settings in UNETS.items():
        up = [kind.replace("Down", "Up") for kind in reversed(settings["down_block_types"])]
        width = settings["cross_attention_dim"]
        model = diffusers.UNet2DConditionModel(**{**settings, "up_block_types": up, "cross_attention_dim": width or 8})
        for block in model.modules() if width is None else ():
            if hasattr(block, "attn2"):
                block.attn2 = block.norm2 = None  # diffusers offers this in its transformer blocks alone
        model, facts[name] = load(model)
        sample, text = seeded.diffusion_inputs(settings["in_channels"], width)
        text = None if text is None else torch.tensor(text)
        outputs[name] = nhwc(model(nchw(sample), torch.tensor(TIMESTEPS), text).sample)
        facts[name]["settings"] = {**settings, "up_block_types": up}
    model, facts["vae"] = load(diffusers.AutoencoderKL(**VAE))
    facts["vae"]["settings"] = VAE
    moments = model.encode(nchw(seeded.uniform("image", (2, 16, 24, 3), -1, 1))).latent_dist
    outputs["vae_mean"], outputs["vae_logvar"] = nhwc(moments.mean), nhwc(moments.logvar)
    outputs["vae_image"] = nhwc(model.decode(nchw(seeded.uniform("latents", (2, 4, 6, 4), -1, 1))).sample)
    for activation in ("quick_gelu", "gelu"):
        name, settings = f"text_{activation}", {**TEXT, "hidden_act": activation}
        model, facts[name] = load(transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings)))
        ids = torch.tensor(seeded.token_ids(TEXT["vocab_size"]))
        outputs[name] = model(ids).last_hidden_state.numpy()
        facts[name]["settings"] = settings
    for name, value in outputs.items():
        print(name, value.shape, "mean", value.mean(), "std", value.std())
    facts["made_with"] = {m.__name__: m.__version__ for m in (torch, diffusers, transformers)}
    facts["timesteps"] = TIMESTEPS
    (FOLDER / "diffusion.json").write_text(json.dumps(facts, indent=1) + "\n")
    np.savez_compressed(FOLDER / "diffusion.npz", **outputs)


if __name__ == "__main__":
    with torch.no_grad():
        main()
