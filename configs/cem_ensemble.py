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
them. Variants: as in configs/cem_real.py, and
  architectures  a Faster R-CNN (stage `real`), a RetinaNet and an EfficientDet instead of three Faster R-CNNs; each has
                 a recipe: --config.detector.folds=5 --config.retinanet.folds=5 --config.efficientdet.folds=5
"""

from configs import cem_real, variants
from configs.recipes.detector import detector
from elk_jax.tasks.detection.recipe import CombineDetectorsStage, EvaluateDetectorsStage, TrainDetectorStage

ARCHITECTURES = "architectures"
"""The word of the variant."""
WORDS = (*variants.DETECTOR_EXTRAS, ARCHITECTURES)
RIVALS = (*variants.RIVALS, (ARCHITECTURES, *variants.KINDS))
SEEDS = 3


def get_config(variant=None):
    size, extras = variants.parse(variant, WORDS, rivals=RIVALS)
    members, recipes = architectures(size, extras) if ARCHITECTURES in extras else seeds(size, extras)
    return variants.experiment(
        "cem_ensemble",
        data=cem_real.data(size, extras),
        **recipes,
        stages={
            **members,
            "ensemble": CombineDetectorsStage(members=tuple(members), validate_on="real"),
            "evaluate": EvaluateDetectorsStage(models=(*members, "ensemble"), on="real"),
        },
    )


def seeds(size, extras):
    """The stages of the members, and their recipe: several trainings of one detector."""
    names = ["real", *(f"real_{number}" for number in range(1, 2 if size == "tiny" else SEEDS))]
    members = {name: member(repetition=number) for number, name in enumerate(names)}
    return members, {"detector": detector(size, extras)}


def architectures(size, extras):
    """The same for detectors of different architectures, each with its own recipe."""
    members = {"real": member(), **{kind: member(recipe=kind) for kind in variants.KINDS}}
    recipes = {"detector": detector(size, extras), **{kind: detector(size, extras | {kind}) for kind in variants.KINDS}}
    return members, recipes


def member(**settings):
    return TrainDetectorStage(train_on=("real",), validate_on="real", **settings)
