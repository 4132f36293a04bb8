"""Saves a small Stable Diffusion inpainter with diffusers itself, and what it answers. Needs torch, transformers:

    python tests/golden/make_diffusers_folder.py

Made with torch 2.13.0, diffusers 0.42.1 and transformers 5.24.0 on a CPU. The folder diffusers_folder is as
`save_pretrained` writes it: every default stands in its JSON files. Inputs come from their names (seeded.py); the
answers are in diffusers_folder.npz. The vocabulary is that of make_tokenizer.py.
"""

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import seeded
import torch
import transformers

HERE = Path(__file__).parent
FOLDER = HERE / "diffusers_folder"
TEXTS = ["a mammogram with a mass lesion", "Mammogram!"]
ATTENTION = "CrossAttn{}Block2D"


def with_seeded_weights(model):
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if "position_ids" not in name}
    tensors = seeded.diffusion_tensors(shapes)
    model.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
    return model.eval()


def make():
    vocabulary = json.loads((HERE / "tokenizer.json").read_text())
    merges = [tuple(pair) for pair in vocabulary["merges"]]
    text = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": len(vocabulary["vocab"]), "eos_token_id": vocabulary["vocab"]["<|endoftext|>"]}
    return diffusers.StableDiffusionInpaintPipeline(
        unet=with_seeded_weights(
            diffusers.UNet2DConditionModel(
                sample_size=8,
                in_channels=9,
                block_out_channels=(4, 8),
                down_block_types=(ATTENTION.format("Down"), "DownBlock2D"),
                up_block_types=("UpBlock2D", ATTENTION.format("Up")),
                layers_per_block=1,
                norm_num_groups=2,
                attention_head_dim=2,
                cross_attention_dim=12,
            )
        ),
        vae=with_seeded_weights(
            diffusers.AutoencoderKL(
                block_out_channels=(4, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=2,
                sample_size=16,
            )
        ),
        text_encoder=with_seeded_weights(transformers.CLIPTextModel(transformers.CLIPTextConfig(**text))),
        tokenizer=transformers.CLIPTokenizer(vocab=vocabulary["vocab"], merges=merges, model_max_length=77),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, solver_order=3
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def nchw(x):
    return torch.tensor(x.transpose(0, 3, 1, 2))


def nhwc(x):
    return x.permute(0, 2, 3, 1).numpy()


def answers(pipeline):
    ids = pipeline.tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    text = pipeline.text_encoder(ids).last_hidden_state
    sample, image = seeded.uniform("sample", (2, 8, 8, 9), -1, 1), seeded.uniform("image", (1, 16, 16, 3), -1, 1)
    mean = pipeline.vae.encode(nchw(image)).latent_dist.mean
    return {
        "ids": ids.numpy(),
        "text": text.numpy(),
        "noise": nhwc(pipeline.unet(nchw(sample), torch.tensor([9, 700]), text).sample),
        "mean": nhwc(mean),
        "decoded": nhwc(pipeline.vae.decode(mean).sample),
    }


def main():
    pipeline = make()
    shutil.rmtree(FOLDER, ignore_errors=True)
    pipeline.save_pretrained(FOLDER)
    np.savez_compressed(HERE / "diffusers_folder.npz", **answers(pipeline))
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    print(size, diffusers.__version__, transformers.__version__, torch.__version__)


if __name__ == "__main__":
    with torch.no_grad():
        main()
