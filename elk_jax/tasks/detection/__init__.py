"""Detection: a detector is trained on lesions with boxes, and evaluated by FROC and AP."""

from elk_jax.tasks.detection import combine, evaluate, export, model, predict, recipe, report, train, volumes
from elk_jax.tasks.task import Action, StageKind, Task

TASK = Task(
    name="detection",
    stages={
        "train": StageKind(
            recipe.TrainDetectorStage,
            train.train,
            train.check_start,
            train.needs,
            needs_lesions=("train",),
            learns_classes=True,
            workload=train.workload,
            lacks=train.lacks,
            join=combine.join_folds,
            recipe=recipe.DetectionRecipe,
        ),
        "combine": StageKind(
            recipe.CombineDetectorsStage,
            combine.combine,
            combine.check_combine,
            combine.needs,
            recipe=recipe.DetectionRecipe,
        ),
        "evaluate": StageKind(
            recipe.EvaluateDetectorsStage,
            evaluate.evaluate,
            evaluate.check_start,
            evaluate.needs,
            recipe=recipe.DetectionRecipe,
            statistics=evaluate.statistics,
        ),
    },
    report=report.part,
    architectures=model.ARCHITECTURES,
    model="detector",
    evaluate=Action(evaluate.evaluate_source, evaluate.EvaluateSettings),
    predict=Action(volumes.predict_inputs, predict.PredictSettings),
    export=Action(export.export_folder, export.ExportSettings),
)
