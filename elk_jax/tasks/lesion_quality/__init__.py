"""Lesion quality: the similarity of the painted lesions of a data source to real ones."""

from elk_jax.tasks.lesion_quality import evaluate, recipe, report
from elk_jax.tasks.task import StageKind, Task

TASK = Task(
    name="lesion_quality",
    stages={"evaluate": StageKind(recipe.LesionQualityStage, evaluate.evaluate, check=evaluate.check_start)},
    report=report.part,
)
