"""Unified representations: one detector combines what two have learned. Its models are those of detection."""

from elk_jax.tasks.detection import train as detection
from elk_jax.tasks.detection.recipe import DetectionRecipe
from elk_jax.tasks.task import StageKind, Task
from elk_jax.tasks.unified import recipe, report, train

TASK = Task(
    name="unified",
    stages={
        "train": StageKind(
            recipe.TrainFusedStage,
            train.train,
            train.check_start,
            detection.needs,
            needs_lesions=("train",),
            learns_classes=True,
            workload=train.workload,
            lacks=detection.lacks,
            join=train.join,
            recipe=DetectionRecipe,
        ),
    },
    report=report.part,
    builds_on=("detection",),
)
