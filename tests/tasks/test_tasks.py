"""Every task keeps to its package: which files it has, what its stages are, and that nothing else names it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from elk_jax import files
from elk_jax.experiments import report
from elk_jax.fields import build
from elk_jax.tasks import TASKS, find_model
from elk_jax.tasks.stages import CombineStage, EvaluateStage, SynthesizeStage, TrainStage
from elk_jax.training.recipe import TrainingRecipe
from tests.refusals import refused

PACKAGE = Path(__file__).resolve().parents[2] / "elk_jax"
MODULES = {
    "recipe", "model", "train", "fit", "search", "combine", "evaluate", "synthesize", "predict", "export", "report",
    "page", "volumes", "volumes_page",
}  # fmt: skip
KINDS = {
    "train": TrainStage,
    "fit": TrainStage,
    "combine": CombineStage,
    "evaluate": EvaluateStage,
    "synthesize": SynthesizeStage,
}


# ---- Packages ------------------------------------------------------------------------------------------------------


def test_every_package_of_tasks_is_in_the_table():
    assert {path.parent.name for path in (PACKAGE / "tasks").glob("*/__init__.py")} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_the_modules_that_every_task_may_have(name):
    found = {path.stem for path in (PACKAGE / "tasks" / name).iterdir() if path.name != "__pycache__"}
    assert {"__init__", "recipe", "report"} <= found <= MODULES | {"__init__"}


@pytest.mark.parametrize("name", TASKS)
def test_the_stages_of_a_task_are_stages_of_its_kind_and_name(name):
    task = TASKS[name]
    for kind, stage in task.stages.items():
        assert issubclass(stage.settings, KINDS[kind])
        fields = stage.settings.__dataclass_fields__
        assert (fields["kind"].default, fields["task"].default) == (kind, name)
        assert bool(fields["recipe"].default) == (stage.recipe is not None)
        assert kind != "train" or issubclass(stage.recipe, TrainingRecipe)
    assert bool({"train", "fit"} & set(task.stages)) == bool(task.architectures or task.builds_on)


def test_a_model_folder_is_of_one_task():
    architectures = Counter(name for task in TASKS.values() for name in task.architectures)
    assert architectures and set(architectures.values()) == {1}


@pytest.mark.parametrize("name", TASKS)
def test_what_a_launch_script_takes_of_a_task_has_defaults(name):
    task = TASKS[name]
    for action in filter(None, (task.evaluate, task.predict)):
        assert build(action.settings, {}, name) == action.settings()


# ---- Report --------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_report_are_in_the_order_of_the_table(painted_run, summaries):
    page = report.write(painted_run, summaries).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Synthetic lesions",
        "Most similar to a training lesion",
        "Painted lesions",
        "Progress of the inpainter",
        "Inpainter training",
        "Data",
        "Environment",
    ]
    assert "Lesion synthesis · two" in page


# ---- Models --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path):
    """A run folder with an inpainter and, trained after it, a translator."""
    stages = {"inpainter": {}, "lesions": {}, "translator": {}}
    files.write_json(tmp_path / "config.json", {"stages": stages})
    for stage in ("inpainter", "translator"):
        files.make_folder(tmp_path / stage / "model")
        files.write_json(tmp_path / stage / "model" / "model.json", {"architecture": stage})
    return tmp_path


def test_a_model_is_the_last_one_that_can_be_used(trained):
    anything = lambda task: True
    assert find_model(trained, None, anything) == (trained / "translator" / "model", TASKS["translation"])
    assert find_model(trained, "inpainter", anything) == (trained / "inpainter" / "model", TASKS["inpainting"])
    only_painters = lambda task: task.name == "inpainting"
    assert find_model(trained, None, only_painters)[0] == trained / "inpainter" / "model"
    assert find_model(trained / "translator", None, lambda task: task.predict)[1] is TASKS["translation"]


def test_a_model_that_cannot_be_used_is_refused(trained):
    with refused("'inpainter'", "detector or a translator", where=trained / "inpainter" / "model"):
        find_model(trained / "inpainter" / "model", None, lambda task: task.predict)
    with refused("'inpainter'", "translator", where=trained):
        find_model(trained, "inpainter", lambda task: task.predict)
    with refused("run folder", "model folder", where=trained / "lesions"):
        find_model(trained / "lesions", None, lambda task: True)


# ---- Nothing else names a task -------------------------------------------------------------------------------------


def mentions(path: Path, names: set[str]) -> list[str]:
    """Where the code of a file names one of the tasks `names`: 'LINE: NAME'.

    That is a text constant, docstrings and other texts that stand alone left out, or an import of the task's package.
    """
    tree, found = ast.parse(path.read_text()), []
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        named: set[str] = set()
        if isinstance(node, ast.Constant) and id(node) not in alone:
            named = {node.value} if isinstance(node.value, str) else set()
        elif isinstance(node, ast.Import):
            named = {part for alias in node.names for part in _task_of(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {part for alias in node.names for part in _task_of(f"{node.module}.{alias.name}")}
        found += [f"{node.lineno}: {name}" for name in sorted(named & names)]
    return found


def _task_of(module: str) -> list[str]:
    top, tasks, *rest = [*module.split("."), "", ""]
    return rest[:1] if (top, tasks) == ("elk_jax", "tasks") else []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_task_is_named_by_its_own_package_alone(path):
    if path == PACKAGE / "tasks" / "__init__.py":
        return
    folder = path.relative_to(PACKAGE).parts
    task = TASKS.get(folder[1]) if folder[0] == "tasks" else None
    own = {task.name, *task.builds_on} if task else set()
    assert mentions(path, set(TASKS) - own) == []


def test_a_name_outside_of_the_package_is_seen(tmp_path):
    (tmp_path / "made.py").write_text(
        '"""detection"""\n'
        "import elk_jax.tasks.detection.model\n"
        "from elk_jax.tasks import translation, training\n"
        "from elk_jax.tasks.inpainting.recipe import PaintStage\n"
        "from elk_jax.detection import boxes\n"
        "def paint(task):\n"
        '    """inpainting"""\n'
        '    return task == "inpainting" or {"lesion_quality": 1} or f"{task} of detection"\n'
    )
    assert mentions(tmp_path / "made.py", set(TASKS)) == [
        "2: detection", "3: translation", "4: inpainting", "8: inpainting", "8: lesion_quality"
    ]  # fmt: skip
