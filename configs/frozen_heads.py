"""Classify patches into two classes with kernel heads on frozen features, and their mean: no privacy, seconds on a CPU.

  python launch/train.py --config=configs/frozen_heads.py                     generated patches, a minute on 2 CPU cores
  python launch/train.py --config=configs/frozen_heads.py:small \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)" \\
      --config.networks.features.lite0.weights=weights/lite0 --config.networks.features.half.weights=weights/half
The patches are DIR/SPLIT/CLASS/FILE, or any source whose images have one class each. The frozen networks are an
EfficientNet-Lite0 and a ResNet-50 of half the width (data_prep/public_weights.py); the small variant needs the weights
of one of them. Trained networks can join the mean: --config.stages.mean.members="('networks','DIR')", with DIR a model
folder of configs/swin_real.py. A kernel head keeps the features of its training images, so its model folder is as
private as these; for private heads see configs/private_head.py. Variants: tiny (tests), quick (default), small (the
published crops).
Published (CBIS-DDSM test split, frozen Swin-T from ImageNet): AUROC 0.778.
"""

from dataclasses import replace

from configs import private_head, variants
from configs.private_head import PHANTOMS
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.classification.recipe import (
    CombineClassifiersStage,
    EvaluateClassifiersStage,
    FitHeadStage,
    KernelSearch,
)
from elk_jax.tasks.frozen import NetworkFeatures, ScatteringFeatures

PUBLISHED = (("Osuala et al. 2024", 0.0, 0.778),)
LINEAR = (0.0,)
"""Widths of a search for linear kernels only."""


def get_config(variant=None):
    size, _ = variants.parse(variant, ())
    pixels, count = PHANTOMS[size]
    recipes = heads(size)
    fits = {name: FitHeadStage(train_on=("patches",), validate_on="patches", recipe=name) for name in recipes}
    return variants.experiment(
        "frozen_heads",
        data={
            "on_error": "stop",
            "patches": SourceSpec(f"phantom_patches:size={pixels},count={count},healthy_fraction=0.1,seed=5"),
        },
        **recipes,
        stages={
            **fits,
            "mean": CombineClassifiersStage(members=tuple(fits), validate_on="patches"),
            "evaluate": EvaluateClassifiersStage(
                models=(*fits, "mean"),
                on="patches",
                published=PUBLISHED if size == "small" else (),
                bootstrap=200 if size == "tiny" else 2000,
            ),
        },
    )


def heads(size):
    """The recipes at the size of a variant, each of a stage of the same name."""
    base = private_head.head(size)
    if size != "small":
        gaussian = replace(base, features={"scattering": base.features["scattering"]}, search=KernelSearch())
        return {"gaussian": gaussian, "linear": replace(gaussian, search=KernelSearch(widths=LINEAR))}
    waves = {
        "coarse": ScatteringFeatures(windows=7),
        "fine": ScatteringFeatures(scales=4, windows=7, spacing=12.0),
    }
    every = waves | {"lite0": NetworkFeatures(), "half": NetworkFeatures(stages=(2, 3))}
    of_waves = KernelSearch(features=("coarse", "fine", "coarse+fine"))
    sets = ("lite0", "coarse+lite0", "coarse+fine+lite0", "half", "coarse+half", "lite0+half", "coarse+lite0+half")
    of_every = KernelSearch(features=sets)
    return {
        "scattering": replace(base, features=waves, search=of_waves),
        "networks": replace(base, features=every, search=of_every),
    }
