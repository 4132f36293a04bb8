"""Classification: images of two classes, by a linear head on frozen features that differential privacy may protect."""

from elk_jax.tasks.classification import evaluate, model, predict, recipe, report, train
from elk_jax.tasks.task import Action, StageKind, Task

TASK = Task(
    name="classification",
    stages={
        "fit": StageKind(
            recipe.FitHeadStage, train.fit, train.check_fit, learns_classes=True, recipe=recipe.HeadRecipe
        ),
        "evaluate": StageKind(recipe.EvaluateClassifiersStage, evaluate.evaluate, recipe=recipe.HeadRecipe),
    },
    report=report.part,
    architectures=(model.ARCHITECTURE,),
    model="classifier",
    evaluate=Action(evaluate.evaluate_source, evaluate.EvaluateSettings),
    predict=Action(predict.predict_files, predict.PredictSettings),
)
