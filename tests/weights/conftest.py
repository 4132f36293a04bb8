"""The modules beside the golden fixtures, which tests cannot import by name."""

import importlib.util
import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent.parent / "golden"


def _module(name):
    spec = importlib.util.spec_from_file_location(f"golden_{name}", GOLDEN / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def seeded():
    """Weights and images made from their names (tests/golden/seeded.py)."""
    return _module("seeded")


@pytest.fixture(scope="session")
def compare():
    """Our side of the comparison with a reference (tests/golden/compare.py)."""
    return _module("compare")


@pytest.fixture(scope="session")
def vocabulary():
    """A small tokenizer, texts and their ids by transformers (tests/golden/make_tokenizer.py)."""
    return json.loads((GOLDEN / "tokenizer.json").read_text())


@pytest.fixture(scope="session")
def tiny_parts(vocabulary):
    """The JSON files of a small Stable Diffusion inpainter, as diffusers and transformers write them."""
    attention, plain = "CrossAttn{}Block2D", "{}Block2D"
    return {
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.6.0.dev0",
            "act_fn": "silu",
            "attention_head_dim": 2,
            "block_out_channels": [8, 16],
            "center_input_sample": False,
            "cross_attention_dim": 12,
            "down_block_types": [attention.format("Down"), plain.format("Down")],
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": 9,
            "layers_per_block": 1,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-5,
            "norm_num_groups": 4,
            "out_channels": 4,
            "sample_size": 8,
            "up_block_types": [plain.format("Up"), attention.format("Up")],
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": [4, 8],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "out_channels": 3,
            "sample_size": 16,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
        },
        "text_encoder": {
            "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "dropout": 0.0,
            "hidden_act": "quick_gelu",
            "hidden_size": 12,
            "intermediate_size": 20,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "torch_dtype": "float32",
            "vocab_size": len(vocabulary["vocab"]),
        },
        "scheduler": {
            "_class_name": "PNDMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
        },
    }
