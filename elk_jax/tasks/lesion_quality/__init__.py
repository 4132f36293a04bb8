"""Lesion quality: how like real lesions the painted ones of a data source are."""

from elk_jax.tasks.lesion_quality import evaluate, recipe, report
from elk_jax.tasks.task import StageKind, Task

TASK = Task(
    name="lesion_quality",
    stages={"evaluate": StageKind(recipe.LesionQualityStage, evaluate.evaluate, check=evaluate.check_start)},
    report=report.part,
)
