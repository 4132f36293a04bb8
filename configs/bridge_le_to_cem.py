"""Mammogram to CEM: a Brownian bridge translates low-energy images into subtracted (contrast-enhanced) ones.

  python launch/train.py --config=configs/bridge_le_to_cem.py                 embedded data, minutes on 2 CPU cores
  python launch/train.py --config=configs/bridge_le_to_cem.py:small --config.data.pairs.spec=coco:data/tiles/tiles.json
                                                                              tiles of 128 px, a CPU or any GPU
  python launch/train.py --config=configs/bridge_le_to_cem.py:paper --config.data.pairs.spec=coco:data/tiles/tiles.json
                                                                              tiles of 512 px, a GPU
The tiles come from data_prep/paired_tiles.py. Variants: tiny (tests), quick (default), small, paper.
"""

from configs import base

NAME = "bridge_le_to_cem"


def get_config(variant=None):
    size, _ = base.parse(variant, ())
    return base.experiment(
        NAME,
        data={"on_error": "stop", "pairs": base.source(phantom(size))},
        bridge=bridge(size),
        stages={"translator": train_translator("pairs"), "evaluate": evaluate_translators("translator", on="pairs")},
    )


def phantom(size: str) -> str:
    """The embedded data at the size of a variant; both images of a breast are drawn, so no modality is named."""
    pixels, count = {"tiny": (64, 32), "quick": (256, 200), "small": (512, 200), "paper": (1024, 400)}[size]
    return f"phantom:size={pixels},count={count},seed=2"


def bridge(size: str) -> dict:
    """The recipe of a translator: everything that its stages read (elk_jax/tasks/translation/train.py)."""
    recipe = {
        "model": {
            "size": 128,  # side of a tile
            "patch": 4,  # pixels of one place of the U-Net, in each direction
            "condition": "source",  # the low-energy image is stacked onto the noisy one; none: it is the end alone
            "answer": "clean",  # of the U-Net: the clean image; difference: of the noisy from it, as published
            "bridge": {"steps": 1000, "max_variance": 1.0},
            "down_block_types": ("DownBlock2D", "DownBlock2D"),  # attention in the middle alone
            "block_out_channels": (48, 96),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "norm_num_groups": 16,
            "dtype": "float32",
            "remat": False,
        },
        "loss": "l1",  # or l2
        "sampler": {"steps": 20, "eta": 1.0},
        "pairs": {  # elk_jax/data/batches/pairs.py
            "stride": 0,  # pixels from a tile to the next where images are larger; 0: side by side
            "max_black": 0.7,
            "batch_size": 8,
            "horizontal_flip": 0.5,
            "vertical_flip": 0.5,
            "threads": 2,
            "workers": 0,
            "prefetch": 4,
        },
        "steps": 500,
        "accumulate": 1,
        "optimizer": {
            "name": "adamw", **base.OPTIMIZER, "weight_decay": 0.0, "clip_norm": 1.0, "multipliers": (), "frozen": (),
        },
        "schedule": {"name": "warmup_cosine", "base": 1e-3, "warmup_steps": 50},
        "ema_decay": 0.99,
        "validation_pairs": 64,
        "choose": "last",  # or best: by the loss on the validation pairs
        "log_every": 20,
        "checkpoint_every": 250,
        "eval_every": 250,
        "bootstrap": 2000,
    }  # fmt: skip
    if size == "tiny":
        base.merge(
            recipe,
            {
                "model": {
                    "size": 32, "down_block_types": ("DownBlock2D",), "block_out_channels": (8,), "norm_num_groups": 4,
                    "attention_head_dim": 2,
                },
                "sampler": {"steps": 2},
                "pairs": {"batch_size": 4},
                "steps": 4,
                "schedule": {"warmup_steps": 1},
                "validation_pairs": 6,
                "log_every": 2,
                "checkpoint_every": 2,
                "eval_every": 2,
                "bootstrap": 50,
            },
        )  # fmt: skip
    if size == "small":
        base.merge(recipe, {"steps": 2000, "checkpoint_every": 500, "eval_every": 500, "sampler": {"steps": 50}})
    if size == "paper":
        base.merge(recipe, published())
    return recipe


def published() -> dict:
    """The published template for 256 px (LBBDM-f4) at 512: widths, bridge, loss, rate, EMA, 200 steps of sampling.

    What differs: patches of 4 px take the place of its VQGAN, which reduces an image as much and was trained on
    photographs; the U-Net of Stable Diffusion halves by a strided convolution and adds the time, where the published
    one halves in residual blocks and scales and shifts by it; one rate, where the published one falls on a plateau;
    bfloat16. The published attention is at factors 8 to 32, which three blocks do not reach: in the middle alone, as
    here.
    """
    return {
        "model": {
            "size": 512,
            "answer": "difference",
            "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D"),
            "block_out_channels": (128, 512, 1024),
            "layers_per_block": 2,
            "attention_head_dim": 16,  # heads of 64 channels
            "norm_num_groups": 32,
            "dtype": "bfloat16",
            "remat": True,
        },
        "sampler": {"steps": 200},
        "pairs": {"horizontal_flip": 0.0, "vertical_flip": 0.0, "threads": 8},
        "steps": 50000,
        "optimizer": {"clip_norm": 0.0},
        "schedule": {"name": "constant", "base": 1e-4},
        "ema_decay": 0.995,
        "choose": "best",
        "log_every": 50,
        "checkpoint_every": 1000,
        "eval_every": 2500,
    }


def train_translator(*train_on: str, validate_on: str = "", init_from: str = "") -> dict:
    """Stage: train the recipe `bridge` on pairs of the training split; leaves WORKDIR/STAGE/model.

    init_from: a model folder of the same architecture (another run's STAGE/model).
    """
    return {
        "kind": "train",
        "task": "translation",
        "recipe": "bridge",
        "train_on": train_on,
        "validate_on": validate_on or train_on[0],
        "init_from": init_from,
    }


def evaluate_translators(*models: str, on: str, split: str = "test") -> dict:
    """Stage: translate one split with trained stages, and compare with the real subtracted images."""
    return {"kind": "evaluate", "task": "translation", "recipe": "bridge", "models": models, "on": on, "split": split}
