"""Generation: patches by class, drawn by a generator that is trained against a discriminator."""

from elk_jax.tasks.generation import evaluate, model, recipe, report, synthesize, train
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
        "synthesize": StageKind(recipe.SampleStage, synthesize.synthesize, synthesize.check_classes),
        "evaluate": StageKind(recipe.EvaluateSamplesStage, evaluate.evaluate, evaluate.check_sources),
    },
    report=report.part,
    architectures=(model.ARCHITECTURE,),
    model="generator",
    synthesize=Action(synthesize.synthesize_files, recipe.SampleSettings),
)
