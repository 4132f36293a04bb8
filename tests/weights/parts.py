"""The JSON that diffusers writes of small models, from our typed configurations."""

import dataclasses

from elk_jax.diffusion import unet


def describe(unet_config, autoencoder_config, text_config, scheduler):
    """`StableDiffusion.parts`, without the settings that only a published folder has."""
    ours = ("attention", "remat", "dtype")
    as_json = [
        {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(config).items()}
        for config in (unet_config, autoencoder_config, text_config)
    ]
    as_json = [{name: value for name, value in settings.items() if name not in ours} for settings in as_json]
    blocks = len(autoencoder_config.block_out_channels)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * blocks, "up_block_types": ["UpDecoderBlock2D"] * blocks}
    up = {"_class_name": "UNet2DConditionModel", "up_block_types": unet.up_block_types(unet_config)}
    return {
        "unet": as_json[0] | up,
        "vae": {"_class_name": "AutoencoderKL", **as_json[1], **kinds},
        "text_encoder": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **as_json[2]},
        "scheduler": dict(scheduler),
    }
