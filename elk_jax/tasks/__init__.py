"""The tasks of elk_jax, in the order of their parts in a report. A new task is a package here and a line below."""

from collections.abc import Callable
from pathlib import Path

from elk_jax.errors import UserError
from elk_jax.tasks import (
    classification,
    denoising,
    detection,
    distillation,
    generation,
    inpainting,
    lesion_quality,
    translation,
    unified,
)
from elk_jax.tasks.task import Task
from elk_jax.weights import model_folder

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        detection.TASK,
        distillation.TASK,
        unified.TASK,
        lesion_quality.TASK,
        inpainting.TASK,
        translation.TASK,
        denoising.TASK,
        generation.TASK,
        classification.TASK,
    )
}


def find_model(workdir: Path, stage: str | None, usable: Callable[[Task], object]) -> tuple[Path, Task]:
    """(the model folder that the user means, the task that made it).

    workdir: a model folder, or a run folder. stage: of the run; None: the last one with a usable model. usable: whether
    the models of a task can be used for the user's purpose. UserError if there is none.
    """
    able = [task for task in TASKS.values() if usable(task)]
    called = " or ".join(_with_article(task.model) for task in able)
    folder = model_folder.find(workdir, stage, [name for task in able for name in task.architectures], called)
    architecture = model_folder.architecture_of(folder)
    for task in able:
        if architecture in task.architectures:
            return folder, task
    raise UserError(
        f"a model with the architecture '{architecture}' cannot be used for this",
        where=folder,
        todo=f"name {called}",
    )


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
