"""A whole task in one file of the tests: is there a lesion in an image? It joins elk_jax by a line in `TASKS`.

It is also a configuration (`--config=tests/experiments/toy_task.py`), and starts a launch script with the task there:
python -m tests.experiments.toy_task SCRIPT --flag=value ...
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from elk_jax import files
from elk_jax.data.batches.shuffle import Shuffle, Stacked, blank, host_rows
from elk_jax.data.batches.stream import Reading, Stream, digest
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.source import ImageSource, summary
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.fields import SHARE, AtLeast, check
from elk_jax.randomness import Purpose
from elk_jax.reporting import html
from elk_jax.reporting.report import Section
from elk_jax.reporting.run import Part
from elk_jax.tasks import TASKS, training
from elk_jax.tasks.run import Run, skipped_images
from elk_jax.tasks.stages import EvaluateModelsStage, TrainStage
from elk_jax.tasks.task import Action, StageKind, Summary, Task, Workload
from elk_jax.training.model import Model
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Constant, Schedule
from elk_jax.weights import model_folder

ROOT = Path(__file__).resolve().parents[2]
RATE = Constant(base=0.03)

# ---- Recipe and stages -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images(Reading):
    """side: of the images in the network. seconds: that every image takes to read."""

    batch_size: Annotated[int, AtLeast(1)] = 4
    side: Annotated[int, AtLeast(1)] = 8
    seconds: Annotated[float, AtLeast(0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class ToyRecipe(TrainingRecipe):
    images: Images = field(default_factory=Images)
    steps: Annotated[int, AtLeast(1)] = 40
    schedule: Schedule = RATE
    ema_decay: float = 0.9
    checkpoint_every: Annotated[int, AtLeast(0)] = 5
    eval_every: Annotated[int, AtLeast(0)] = 20


@dataclass(frozen=True, kw_only=True)
class TrainToyStage(TrainStage):
    task: Literal["toy"] = "toy"
    recipe: str = "toy"


@dataclass(frozen=True, kw_only=True)
class EvaluateToyStage(EvaluateModelsStage):
    task: Literal["toy"] = "toy"
    threshold: Annotated[float, SHARE] = 0.5


@dataclass(frozen=True)
class EvaluateSettings:
    threshold: Annotated[float, SHARE] = 0.5

    def __post_init__(self) -> None:
        check(self)


# ---- Model -----------------------------------------------------------------------------------------------------------


def logits(params: Any, image: jax.Array) -> jax.Array:
    return image.reshape(len(image), -1) @ params["weights"] + params["bias"]


def trainable(side: int) -> Model:
    def loss(params, constants, batch, rng, map_images):
        found = logits(params, batch["image"])
        each = jnp.logaddexp(0, found) - found * batch["lesion"]
        return each.mean(), {"accuracy": ((found > 0) == (batch["lesion"] > 0.5)).mean()}

    return Model(
        init=lambda rng: {"weights": 0.01 * jax.random.normal(rng, (side * side,)), "bias": jnp.zeros(())},
        loss=loss,
        predict=lambda params, constants, batch, map_images: {"score": jax.nn.sigmoid(logits(params, batch["image"]))},
        per_example=True,
    )


@dataclass(frozen=True)
class ToyDescription:
    """What model.json says."""

    architecture: str
    side: Annotated[int, AtLeast(1)]
    trained: model_folder.Training


# ---- Stages ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """Slot -> one image and whether it shows a lesion."""

    source: ImageSource
    images: Images
    shuffle: Shuffle

    def __call__(self, slot: int) -> dict[str, np.ndarray]:
        time.sleep(self.images.seconds)
        return example(self.source, self.shuffle(slot), self.images.side)


def example(source: ImageSource, position: int, side: int) -> dict[str, np.ndarray]:
    image = cv2.resize(source[position].image[..., 0], (side, side), interpolation=cv2.INTER_AREA)
    return {"image": image, "lesion": np.float32(source.infos[position].has_lesions)}


def measure(params: Any, source: ImageSource, side: int, threshold: float = 0.5) -> dict[str, float]:
    found = [example(source, i, side) for i in range(len(source))]
    scores = np.asarray(jax.nn.sigmoid(logits(params, np.stack([one["image"] for one in found]))))
    truth = np.array([one["lesion"] for one in found]) > 0.5
    return {"accuracy": float(((scores >= threshold) == truth).mean()), "images": float(len(source))}


def workload(stage: TrainToyStage, recipe: ToyRecipe, batch_size: int | None) -> Workload:
    count, side = batch_size or recipe.images.batch_size, recipe.images.side
    batch = blank({"image": (count, side, side), "lesion": (count,)})
    return Workload(trainable(side), count, {f"{side}x{side}": batch}, {f"{side}x{side}": batch}, ("no noise",))


def train(run: Run, stage: TrainToyStage, recipe: ToyRecipe) -> Summary:
    source, validation = run.open(stage.train_on, "train"), run.open(stage.validate_on, "val")
    images, shuffle = recipe.images, Shuffle(len(source), run.seed, Purpose.CLOSEUP_ORDER)
    rows = host_rows(images.batch_size, jax.process_index(), jax.process_count())
    make = Stacked(Example(source, images, shuffle), images.batch_size, rows)
    batches: Stream = Stream(make, digest(images, run.seed, [info.image_id for info in source.infos]), images)
    result = training.train(
        run,
        stage,
        recipe,
        trainable(images.side),
        batches,
        initial=None,
        evaluate=lambda params, step: measure(params, validation, images.side),
        best_metric="accuracy",
        settings=asdict(images),
        validation=validation.infos,
    )
    params, trained = training.kept_weights(run, stage, result, "best", source)
    if run.is_main:
        model_folder.save_params(run.folder / stage.name / "model", params, ToyDescription("toy", images.side, trained))
    counts = {"train": summary(source.infos), "validation": summary(validation.infos)}
    return {"kind": "train", "data": counts, "skipped": skipped_images(source), **training.outcome(result)}


def evaluate(run: Run, stage: EvaluateToyStage, recipe: None) -> Summary:
    source = run.open(stage.on, stage.split)
    found = {name: evaluated(run.model_folder(name), source, stage.threshold) for name in stage.models}
    if run.is_main:
        files.write_json(run.folder / stage.name / "evaluation.json", found)
    return {"kind": "evaluate", "split": stage.split, "data": summary(source.infos), "found": found}


def evaluated(folder: Path, source: ImageSource, threshold: float) -> dict[str, float]:
    params, content = model_folder.load_params(folder)
    return measure(params, source, content.build(ToyDescription).side, threshold)


def evaluate_source(
    *, model: Path, data: SourceSpec, split: str, on_error: Any, output: Path, settings: EvaluateSettings
) -> None:
    found = evaluated(model, open_source(data, split, on_error=on_error), settings.threshold)
    files.make_folder(output)
    files.write_json(output / "evaluation.json", found | asdict(settings))


def report(run: Run, summaries: Mapping[str, Summary]) -> Part:
    rows = [
        html.row([html.text(model), html.number(found["accuracy"])])
        for summary in summaries.values()
        for model, found in summary.get("found", {}).items()
    ]
    return Part("Toys", sections=[Section("Lesion or not", html.table(["Model", "Accuracy"], rows))])


TASK = Task(
    name="toy",
    stages={
        "train": StageKind(TrainToyStage, train, needs_lesions=("train",), workload=workload, recipe=ToyRecipe),
        "evaluate": StageKind(EvaluateToyStage, evaluate),
    },
    report=report,
    architectures=("toy",),
    model="toy",
    evaluate=Action(evaluate_source, EvaluateSettings),
)


def get_config(variant: str | None = None):
    """The experiment; the variant `slow` takes its time to read images."""
    from configs import variants

    spec = "phantom:size=64,count=24,healthy_fraction=0.5"
    return variants.experiment(
        "toys",
        data={"on_error": "stop", "real": SourceSpec(spec)},
        toy=ToyRecipe(images=Images(seconds=0.01 if variant == "slow" else 0.0)),
        stages={
            "train": TrainToyStage(train_on=("real",), validate_on="real"),
            "evaluate": EvaluateToyStage(models=("train",), on="real"),
        },
    )


if __name__ == "__main__":
    from tests.experiments import toy_task  # by its own name: the script becomes __main__

    TASKS["toy"] = toy_task.TASK
    script = ROOT / "launch" / f"{sys.argv[1]}.py"
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *sys.argv[2:]]
    runpy.run_path(str(script), run_name="__main__")
