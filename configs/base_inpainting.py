"""What the experiments with lesion synthesis share: the inpainter's recipe and its stages."""

from __future__ import annotations

from configs.base import OPTIMIZER, merge


def inpainter(size: str) -> dict:
    """The recipe of a lesion inpainter: everything that its train stage reads (elk_jax/tasks/inpainting/train.py).

    A small model in pixel space, trained from scratch; `paper`: Stable Diffusion 1.5 inpainting, fine-tuned as
    published, which init_from brings (launch/import_weights.py --format=diffusers).
    """
    recipe = {
        "model": {  # with init_from the model comes from there, all but the size
            "size": 64,  # side of the model's picture; of Stable Diffusion it is closeups.window
            "patch": 4,  # pixels of one place of the U-Net, in each direction
            "scale": 0.3,  # standard deviation of the images, beside noise of 1
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),  # attention on 8 x 8 places alone
            "block_out_channels": (64, 128),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "norm_num_groups": 16,
        },
        "networks": {"dtype": "float32", "remat": False, "attention": "auto"},  # of a model that init_from brings
        "prompts": {  # of a model that reads text; also while painting
            "lesion": "a mammogram with a mass lesion",
            "tissue": "a mammogram",
            "negative": "",
        },
        # a model that init_from brings keeps its own
        "noise": {"name": "cosine", "steps": 1000, "prediction": "x0"},
        "sampler": {"name": "dpmpp_2m", "steps": 20, "lambda_min": -5.1},
        "guidance": 1.0,
        "closeups": {  # elk_jax/data/batches/crops.py
            "window": 64,  # native pixels
            "margin": 0.15,  # of a lesion's sides: so far beyond its box it is painted over, so that it can fade out
            "batch_size": 8,
            "tissue_share": 0.2,  # healthy tissue under the mask: what the model knows beside lesions
            "horizontal_flip": 0.5,
            "vertical_flip": 0.5,
            "gain": 0.1,
            "threads": 2,
            "workers": 0,
            "prefetch": 4,
        },
        "cached_windows": 0,  # encode every lesion in so many windows once, instead of a new one at every step
        "loss": {"mask_outside": 0.1, "min_snr_gamma": 0.0, "noise_offset": 0.0, "prior_weight": 0.5},
        "lora": {  # adapters instead of the whole model; they want a rate of about 1e-4
            "rank": 0,
            "alpha": 0.0,
            "targets": r"(attn\d*/to_(q|k|v|out_0)$)|(self_attn/(q|k|v|out)_proj$)",  # of U-Net and text encoder
        },
        "train_text_encoder": True,
        "steps": 1600,
        "accumulate": 1,
        "optimizer": {
            "name": "adamw", **OPTIMIZER, "weight_decay": 0.01, "clip_norm": 1.0, "multipliers": (), "frozen": (),
        },
        "schedule": {"name": "warmup_cosine", "base": 1e-3, "warmup_steps": 100},
        "ema_decay": 0.98,
        "validation_closeups": 32,
        "choose": "last",  # or best: by the loss on the validation close-ups
        "log_every": 20,
        "checkpoint_every": 500,
        "eval_every": 500,
    }
    if size == "tiny":
        merge(
            recipe,
            {
                "model": {"size": 32, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 2},
                "sampler": {"steps": 2},
                "closeups": {"window": 48, "batch_size": 4},
                "steps": 4,
                "schedule": {"warmup_steps": 1},
                "validation_closeups": 4,
                "log_every": 2,
                "checkpoint_every": 2,
                "eval_every": 2,
            },
        )
    if size == "small":
        merge(recipe, {"closeups": {"window": 96}, "sampler": {"steps": 30}, "steps": 2500})
    if size == "paper":
        merge(recipe, published_inpainter())
        recipe["model"] = {}  # init_from brings it
    return recipe


def published_inpainter() -> dict:
    """ELK's fine-tuning of Stable Diffusion 1.5 inpainting. A GPU with 40 GB (bfloat16, remat)."""
    return {
        "networks": {"dtype": "bfloat16", "remat": True, "attention": "auto"},
        "guidance": 2.0,
        "sampler": {"name": "dpmpp_2m", "steps": 50},
        "closeups": {
            "window": 512, "margin": 0.0, "batch_size": 8, "tissue_share": 0.0, "vertical_flip": 0.0,
            "horizontal_flip": 0.0, "gain": 0.0, "threads": 8,
        },
        "loss": {"mask_outside": 1.0, "min_snr_gamma": 0.0, "prior_weight": 1.0},
        "steps": 2400,
        "schedule": {"name": "constant", "base": 1e-6},
        "ema_decay": 0.0,
        "eval_every": 200,
        "checkpoint_every": 400,
    }  # fmt: skip


def train_inpainter(*train_on: str, validate_on: str = "", init_from: str = "") -> dict:
    """Stage: train the recipe `inpainter` on close-ups of lesions of the training split; leaves WORKDIR/STAGE/model.

    init_from: a model folder (another run's STAGE/model, or what launch/import_weights.py wrote).
    """
    return {
        "kind": "train",
        "task": "inpainting",
        "recipe": "inpainter",
        "train_on": train_on,
        "validate_on": validate_on or train_on[0],
        "init_from": init_from,
    }


def synthesize(
    model: str, canvases: str, share: float = 1.0, area: str = "free", whole_window: bool = False
) -> dict:
    """Stage: paint lesions into training images of the source `canvases`; `stage:NAME` is then a data source.

    share: painted lesions for each real one (ELK: 1.0 and 2.0) of the training split of `share_of`, by default
    `canvases`. area: free or medium, sizes of the training lesions.
    """
    return {
        "kind": "synthesize",
        "task": "inpainting",
        "model": model,
        "canvases": canvases,
        "share_of": canvases,
        "share": share,
        "count": 0,  # instead of share
        "area": area,
        "batch_size": 8,
        "lesion_free": False,  # only canvases without any lesion; else windows clear of them
        "grain": True,  # give lesions that are smoother than the tissue around them its grain; not in whole windows
        "whole_window": whole_window,  # paste the whole window, not the lesion alone with a soft border
    }


def paint_lesions(size: str, extras: frozenset[str]) -> dict:
    """Stages that lead from the source `real` to the source `synthetic` ('stage:lesions'): train, paint, look at it.

    `paper` pastes whole windows, as published; the others the lesion alone, with a soft border and grain.
    """
    share, area = 2.0 if "double" in extras else 1.0, "medium" if "medium" in extras else "free"
    return {
        "inpainter": train_inpainter("real"),
        "lesions": synthesize("inpainter", "real", share, area, whole_window=size == "paper"),
        "lesion_quality": evaluate_lesions("synthetic", on="real"),
    }


def evaluate_lesions(
    synthetic: str = "synthetic", on: str = "real", split: str = "train", features: str = ""
) -> dict:
    """Stage: compare the painted lesions of the source `synthetic` with the real ones of one split of `on`.

    features: a detection stage before it, or a detector's model folder, whose features are compared beside radiomics.
    """
    return {
        "kind": "evaluate",
        "task": "inpainting",
        "on": on,
        "split": split,
        "synthetic": synthetic,
        "features": features,
    }
