"""An ensemble of detectors in one model folder: the boxes of several seeds and input sizes are fused.

  python launch/train.py --config=configs/cem_ensemble.py                      embedded data, minutes on 2 CPU cores
  python launch/predict.py --workdir=runs/cem_ensemble --input=FOLDER --output=found
  python launch/train.py --config=configs/cem_ensemble.py --stages=ensemble --workdir=runs/both \\
      "--config.stages.ensemble.members=('runs/a/real/model','runs/b/real/model')" \\
      "--config.stages.ensemble.scales=(1.0,1.25)"                             of detectors that are already trained
The members differ in their initial weights and in their batches (`repetition`). Detectors of any architecture and from
any run can be members if they have the same classes; for a single member, overlapping boxes are merged. The IoU from
which two boxes count as the same lesion, and the operating points of the fused boxes, are chosen on the validation
split; with --config.detector.folds=5, on predictions for all patients outside the test split by folds that had not seen
them. Variants: as in configs/cem_real.py.
"""

from configs import cem_real, variants
from configs.recipes.detector import detector
from elk_jax.tasks.detection.recipe import CombineDetectorsStage, EvaluateDetectorsStage, TrainDetectorStage

SEEDS = 3


def get_config(variant=None):
    size, extras = variants.parse(variant)
    names = ["real", *(f"real_{number}" for number in range(1, 2 if size == "tiny" else SEEDS))]
    return variants.experiment(
        "cem_ensemble",
        data=cem_real.data(size, extras),
        detector=detector(size, extras),
        stages={
            **{
                name: TrainDetectorStage(train_on=("real",), validate_on="real", repetition=number)
                for number, name in enumerate(names)
            },
            "ensemble": CombineDetectorsStage(members=tuple(names), validate_on="real"),
            "evaluate": EvaluateDetectorsStage(models=(*names, "ensemble"), on="real"),
        },
    )
