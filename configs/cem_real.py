"""ELK's baseline: a Faster R-CNN fine-tuned on real contrast-enhanced mammograms only.

  python launch/train.py --config=configs/cem_real.py                          embedded data, minutes on 2 CPU cores
  python launch/train.py --config=configs/cem_real.py:paper --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.stages.real.init_from=weights/dbt                               the published recipe, on a GPU
Published (CDD-CESM test split, chosen by sensitivity): mean sensitivity 0.71, AUFROC to 2 FP 0.66.
"""

from configs import variants
from configs.recipes.detector import detector
from configs.sources import few, phantom
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.detection.recipe import EvaluateDetectorsStage, TrainDetectorStage


def get_config(variant=None):
    size, extras = variants.parse(variant)
    return variants.experiment(
        "cem_real",
        data=data(size, extras),
        detector=detector(size, extras),
        stages={
            "real": TrainDetectorStage(train_on=("real",), validate_on="real"),
            "evaluate": EvaluateDetectorsStage(models=("real",), on="real"),
        },
    )


def data(size, extras):
    return {
        "on_error": "stop",  # or skip: leave out unreadable images, but count and list them
        "real": SourceSpec(phantom(size, "realistic", seed=1), patients=few(size, extras)),
    }
