"""Mammogram to CEM: a Brownian bridge translates low-energy images into subtracted (contrast-enhanced) ones.

  python launch/train.py --config=configs/bridge_le_to_cem.py                 embedded data, minutes on 2 CPU cores
  python launch/train.py --config=configs/bridge_le_to_cem.py:small --config.data.pairs.spec=coco:data/tiles/tiles.json
                                                                              tiles of 128 px, a CPU or any GPU
  python launch/train.py --config=configs/bridge_le_to_cem.py:paper --config.data.pairs.spec=coco:data/tiles/tiles.json
                                                                              tiles of 512 px, a GPU
  python launch/train.py --config=configs/bridge_le_to_cem.py:private --config.bridge.privacy.epsilon=6
                                                                              the patients of the tiles are protected
The tiles come from data_prep/paired_tiles.py. Variants: tiny (tests), quick (default), small, paper; and private.
"""

from configs import variants
from configs.recipes.bridge import bridge
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.translation.recipe import EvaluateTranslatorsStage, TrainTranslatorStage

PHANTOMS = {"tiny": (64, 32), "quick": (256, 200), "small": (512, 200), "paper": (1024, 400)}
"""Variant -> (pixels of a side, images) of the embedded data; both images of a breast are drawn."""


def get_config(variant=None):
    size, extras = variants.parse(variant, ("private",))
    pixels, count = PHANTOMS[size]
    return variants.experiment(
        "bridge_le_to_cem",
        data={"on_error": "stop", "pairs": SourceSpec(f"phantom:size={pixels},count={count},seed=2")},
        bridge=bridge(size, private="private" in extras),
        stages={
            "translator": TrainTranslatorStage(train_on=("pairs",), validate_on="pairs"),
            "evaluate": EvaluateTranslatorsStage(models=("translator",), on="pairs"),
        },
    )
