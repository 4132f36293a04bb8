"""ELK's transfer: a detector trained on low-energy mammograms provides the initial weights for contrast-enhanced ones.

  python launch/train.py --config=configs/mammo_pretrain.py --workdir=runs/mammo
  python launch/train.py --config=configs/cem_real.py --config.stages.real.init_from=runs/mammo/mammo/model
With your own images: --config.data.mammo.spec=coco:/data/mammo/low_energy.json
"""

from configs import variants
from configs.recipes.detector import detector
from configs.sources import few, phantom
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.detection.recipe import EvaluateDetectorsStage, TrainDetectorStage


def get_config(variant=None):
    size, extras = variants.parse(variant)
    spec = phantom(size, "realistic", seed=3, modality="low_energy")
    return variants.experiment(
        "mammo_pretrain",
        data={"on_error": "stop", "mammo": SourceSpec(spec, patients=few(size, extras))},
        detector=detector(size, extras),
        stages={
            "mammo": TrainDetectorStage(train_on=("mammo",), validate_on="mammo"),
            "evaluate": EvaluateDetectorsStage(models=("mammo",), on="mammo"),
        },
    )
