"""Generation: patches by class, from a generator trained against a discriminator, a denoiser, or a public pool."""

from elk_jax.tasks.generation import evaluate, export, fit, model, recipe, report, synthesize, train
from elk_jax.tasks.task import Action, StageKind, Task

TASK = Task(
    name="generation",
    stages={
        "train": StageKind(
            recipe.TrainGeneratorStage,
            train.train,
            train.check_train,
            workload=train.workload,
            recipe=recipe.GenerationRecipe,
        ),
        "fit": StageKind(recipe.FitPoolStage, fit.fit, fit.check_fit, recipe=recipe.PoolRecipe),
        "synthesize": StageKind(recipe.SampleStage, synthesize.synthesize, synthesize.check_classes),
        "evaluate": StageKind(recipe.EvaluateSamplesStage, evaluate.evaluate, evaluate.check_sources),
    },
    report=report.part,
    architectures=(model.ARCHITECTURE, model.DENOISER, model.POOL),
    model="generator",
    builds_on=("classification",),
    synthesize=Action(synthesize.synthesize_files, recipe.SampleSettings),
    export=Action(export.export_folder, export.ExportSettings),
)
