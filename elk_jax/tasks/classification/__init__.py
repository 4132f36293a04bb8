"""Classification: images of two classes, by a linear head on frozen features or by a network, privately or not."""

from elk_jax.tasks.classification import combine, evaluate, fit, model, predict, recipe, report, train
from elk_jax.tasks.task import Action, StageKind, Task

TASK = Task(
    name="classification",
    stages={
        "fit": StageKind(recipe.FitHeadStage, fit.fit, fit.check_fit, learns_classes=True, recipe=recipe.HeadRecipe),
        "train": StageKind(
            recipe.TrainClassifierStage,
            train.train,
            train.check_train,
            learns_classes=True,
            workload=train.workload,
            lacks=train.lacks,
            join=combine.join_folds,
            recipe=recipe.NetworkRecipe,
        ),
        "combine": StageKind(recipe.CombineClassifiersStage, combine.combine, combine.check_combine),
        "evaluate": StageKind(recipe.EvaluateClassifiersStage, evaluate.evaluate, statistics=evaluate.statistics),
    },
    report=report.part,
    architectures=model.ARCHITECTURES,
    model="classifier",
    evaluate=Action(evaluate.evaluate_source, evaluate.EvaluateSettings),
    predict=Action(predict.predict_files, predict.PredictSettings),
)
