"""Denoising: a generator of patches by class that is trained to denoise them. Its models are those of generation."""

from elk_jax.tasks.denoising import recipe, report, train
from elk_jax.tasks.task import StageKind, Task

TASK = Task(
    name="denoising",
    stages={
        "train": StageKind(
            recipe.TrainDenoiserStage,
            train.train,
            train.check_start,
            workload=train.workload,
            recipe=recipe.DenoisingRecipe,
        ),
    },
    report=report.part,
    builds_on=("generation",),
)
