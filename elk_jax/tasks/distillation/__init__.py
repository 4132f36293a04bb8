"""Distillation: a detector of one modality teaches a detector of another. Its models are those of detection."""

from elk_jax.tasks.distillation import recipe, report, train
from elk_jax.tasks.task import StageKind, Task

TASK = Task(
    name="distillation",
    stages={
        "train": StageKind(
            recipe.TrainDistilledStage,
            train.train,
            train.check_start,
            train.needs,
            needs_lesions=("train",),
            learns_classes=True,
            workload=train.workload,
            lacks=train.lacks,
            join=train.join,
            recipe=recipe.DistillationRecipe,
        ),
    },
    report=report.part,
    builds_on=("detection",),
)
