"""Inpainting: a diffusion model is trained on close-ups of lesions, and paints lesions into healthy tissue."""

from elk_jax.tasks.inpainting import model, recipe, report, synthesize, train
from elk_jax.tasks.task import Action, StageKind, Task

TASK = Task(
    name="inpainting",
    stages={
        "train": StageKind(
            recipe.TrainInpainterStage,
            train.train,
            train.check_start,
            needs_lesions=("train", "val"),
            workload=train.workload,
            lacks=train.lacks,
            recipe=recipe.InpaintingRecipe,
        ),
        "synthesize": StageKind(recipe.PaintStage, synthesize.synthesize, synthesize.check_start),
    },
    report=report.part,
    architectures=(model.ARCHITECTURE,),
    model="inpainter",
    synthesize=Action(synthesize.synthesize_source, recipe.PaintSettings, on_images=True),
)
