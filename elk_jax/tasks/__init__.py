"""The tasks of elk_jax, in the order of their parts on a report: a new task is a package here and a line below."""

from elk_jax.tasks import detection, inpainting, lesion_quality, translation
from elk_jax.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        detection.TASK,
        lesion_quality.TASK,
        inpainting.TASK,
        translation.TASK,
    )
}
