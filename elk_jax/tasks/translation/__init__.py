"""Translation: a diffusion bridge turns low-energy mammograms into subtracted (contrast-enhanced) images."""

from elk_jax.tasks.task import Action, StageKind, Task
from elk_jax.tasks.translation import evaluate, model, predict, recipe, report, train

TASK = Task(
    name="translation",
    stages={
        "train": StageKind(
            recipe.TrainTranslatorStage,
            train.train,
            train.check_pairs,
            workload=train.workload,
            recipe=recipe.TranslationRecipe,
        ),
        "evaluate": StageKind(
            recipe.EvaluateTranslatorsStage, evaluate.evaluate, train.check_pairs, recipe=recipe.TranslationRecipe
        ),
    },
    report=report.part,
    architectures=(model.ARCHITECTURE,),
    model="translator",
    predict=Action(predict.translate_files, predict.TranslateSettings),
)
