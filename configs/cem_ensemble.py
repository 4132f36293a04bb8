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
  lite0,lite2    or any other two or more backbones: a detector on each instead of three on one. The first one of the
                 list in configs/variants.py is the stage `real`; the others have the names of their backbones
  architectures  a Faster R-CNN (stage `real`), a RetinaNet and an EfficientDet instead of three Faster R-CNNs
The recipe of `real` is `detector`, that of another stage has its name: --config.detector.folds=5 --config.lite2.folds=5
"""

from configs import cem_real, variants
from configs.recipes.detector import detector
from elk_jax.tasks.detection.recipe import CombineDetectorsStage, EvaluateDetectorsStage, TrainDetectorStage

ARCHITECTURES = "architectures"
"""The word of the variant."""
WORDS = (*variants.DETECTOR_EXTRAS, ARCHITECTURES)
RIVALS = (variants.KINDS, (ARCHITECTURES, *variants.KINDS))
SEEDS = 3


def get_config(variant=None):
    size, extras = variants.parse(variant, WORDS, rivals=RIVALS)
    members, recipes = members_of(size, extras)
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


def members_of(size, extras):
    """The stages of the members, and their recipes."""
    backbones = [name for name in variants.BACKBONES if name in extras]
    if len(backbones) < 2:
        return of_each(size, extras, ("", *variants.KINDS)) if ARCHITECTURES in extras else seeds(size, extras)
    if ARCHITECTURES in extras:
        raise ValueError(f"'{ARCHITECTURES}' and several backbones ({', '.join(backbones)}) exclude each other")
    return of_each(size, extras.difference(backbones), backbones)


def seeds(size, extras):
    """Several trainings of one detector."""
    names = ["real", *(f"real_{number}" for number in range(1, 2 if size == "tiny" else SEEDS))]
    members = {name: member(repetition=number) for number, name in enumerate(names)}
    return members, {"detector": detector(size, extras)}


def of_each(size, extras, words):
    """A detector for each of `words`, which each change its recipe."""
    first, *others = words
    members = {"real": member(), **{word: member(recipe=word) for word in others}}
    recipes = {
        "detector": detector(size, extras | {first}),
        **{word: detector(size, extras | {word}) for word in others},
    }
    return members, recipes


def member(**settings):
    return TrainDetectorStage(train_on=("real",), validate_on="real", **settings)
