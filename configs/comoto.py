"""CoMoTo: a detector of mammograms teaches one of tomosynthesis slices, which are few and from other patients.

  python launch/train.py --config=configs/comoto.py                            embedded data, 10 minutes on 2 CPU cores
  python launch/train.py --config=configs/comoto.py --config.distill.mode=pkd   another distillation mode
  python launch/train.py --config=configs/comoto.py:small --config.data.mammo.spec=coco:/data/mammo.json \\
      --config.data.dbt.spec=coco:/data/dbt.json --config.data.dbt.train_share=0.1
  python launch/train.py --config=configs/comoto.py:published --config.data.mammo.spec=coco:/data/mammo.json \\
      --config.data.dbt.spec=coco:/data/dbt.json --config.stages.teacher.init_from=weights/imagenet
                                                                               the published configuration, on a GPU
  python launch/predict.py --workdir=RUN --stage=student --volumes --volume_rule=comoto --score_floor=0.05 ...
                                                                               its findings in volumes, as published
Stages: a teacher is trained on all mammograms, with point alignment unless --config.distill.intra_align=false. A
student starts from its weights and is trained on slices, and by the teacher with --config.distill.mode: lesion, image,
classwise (the teacher sees its mammograms); pkd, fgd, cwd, hints, outputs (it sees the slices); pretraining (only its
weights); none. The student is evaluated on test slices, the teacher on test mammograms; tiny and quick also evaluate
whole volumes (DBTex).
To use one teacher for several students: configs/comoto.py:student --config.stages.student.teacher=RUN/teacher/model.
Without a teacher: configs/comoto.py:student --config.distill.mode=none --config.stages.student.init_from=DIR.
published repeats the published configuration for comparison, with its preprocessing and batch norms;
configs/recipes/distillation.py lists the remaining differences. It starts from a ResNet-50 of ImageNet imported as if
for grey values from 0 to 255: launch/import_weights.py --format=torchvision --set=pixel_scale=255. The word deep is for
16-bit files: both then range up to 65535, and values from 65520 are infinite in float16. If images name no split,
--config.data.dbt.split_shares=0.7,0.1,0.2 divides the patients as published; for bcs_dbt:DIR,
--config.data.dbt.where='class=benign|cancer' leaves out the volumes without boxes. A student has 50 epochs of a tenth
of the images; with more images, give a larger --config.distill.student_length.
Variants besides the size (tiny, quick, small, published): student (no teacher is trained), baselines (also a student
from random weights, and one detector for both sets), volumes (also evaluated), deep; half, lite0, lite1,
lite2, swin (other backbones; published,swin: the published Swin transformer); faster_rcnn, efficientdet (other
detectors; the anchors of a Faster R-CNN are those of its proposals).
Many settings: configs/comoto_table.py.
Published: with 10 % of the images, a mean sensitivity 7 points above pretraining and image-level distillation.
Results here: on the embedded volumes the mode outputs gains over pretraining, but lesion does not (docs/comoto.md).
"""

from typing import Any

from configs import variants
from configs.recipes.distillation import distillation
from configs.sources import phantom_volumes
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.detection.recipe import EvaluateDetectorsStage, TrainDetectorStage
from elk_jax.tasks.distillation.recipe import TrainDistilledStage
from elk_jax.tasks.stages import Stage

SIZES = ("tiny", "quick", "small", "published")
DETECTORS = ("faster_rcnn", "efficientdet")
"""Detectors instead of the RetinaNet."""


def get_config(variant=None):
    words = ("student", "baselines", "volumes", "deep", *DETECTORS, *variants.BACKBONES)
    size, extras = variants.parse(variant, words, SIZES, rivals=(DETECTORS, variants.BACKBONES))
    published = size == "published"
    if published and (other := extras & {*DETECTORS, *variants.BACKBONES} - {"swin"}):  # for which nothing is published
        raise ValueError(f"'published' and '{min(other)}' exclude each other")
    if "deep" in extras and not published:
        raise ValueError(f"'{size}' and 'deep' exclude each other: 'deep' requires 'published'")
    data = "paper" if published else size
    few: dict[str, Any] = {"train_share_of": "images"} if published else {}
    slices: dict[str, Any] = {"train_on": ("dbt",), "validate_on": "dbt"}
    alone = "student" in extras
    students: dict[str, TrainDetectorStage] = {
        "student": TrainDistilledStage(role="student", teacher="" if alone else "teacher", beside=("mammo",), **slices)
    }
    if "baselines" in extras:
        students["scratch"] = TrainDetectorStage(recipe="distill", **slices)
        students["joint"] = TrainDetectorStage(train_on=("mammo", "dbt"), validate_on="dbt", recipe="distill")
    stages: dict[str, Stage] = {
        "teacher": TrainDistilledStage(role="teacher", train_on=("mammo",), validate_on="mammo"),
        **students,
        "evaluate": EvaluateDetectorsStage(models=tuple(students), on="dbt", recipe="distill"),
        "mammograms": EvaluateDetectorsStage(models=("teacher",), on="mammo", recipe="distill"),
    }
    if size in ("tiny", "quick") or "volumes" in extras:
        stages["volumes"] = EvaluateDetectorsStage(
            models=tuple(students),
            on="dbt",
            metric="dbtex",
            volume_rule="comoto" if published else "group",
            recipe="distill",
        )
    return variants.experiment(
        "comoto",
        data={
            "on_error": "stop",
            "mammo": SourceSpec(phantom_volumes(data, seed=3, modality="mammogram")),
            "dbt": SourceSpec(phantom_volumes(data, seed=5), train_share=0.5 if size == "tiny" else 0.1, **few),
        },
        distill=distillation(size, extras),
        stages={name: stage for name, stage in stages.items() if not alone or name not in ("teacher", "mammograms")},
    )
