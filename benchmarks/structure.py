"""Structure of the code: files that a setting crosses, and files touched by a new task, detector or data source key.

    python benchmarks/structure.py [--static]

It prints a table: each measure for the code before the tasks became packages, for the current code, and the bound to
keep. "18 (12)": as counted by hand then, and as computed by this script for that code. Most figures come from the
syntax trees of elk_jax/, configs/ and launch/; docstrings and comments do not count. The others need a run:
launch/train.py starts `cem_real:tiny` on a few COCO images. `--static` leaves them out.

depth crosses a file: until the training step is compiled, a function of the file takes the settings of the model (a
    mapping, dataclass or module with the entry `depth`) as an argument, or it calls one that does, directly or not, and
    a variable of it leads to these very settings in at most three steps (`config.detector.model`). Functions that have
    them in a closure or deep inside a Run do not count.
times parsed: calls of `fields.build` with the model's dataclass, in the same time.
a stay of `config`: calls of functions of one file that take a ConfigDict, the configuration or a section, one after
    the other until another file has its turn, in the same time. A climb is a stay in a file that imports the one
    before, at first or second hand.
a source is opened: the larger of how often a (source, split) is listed and how often its image files are checked, to
    the end of the run, report included.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

DEPTHS = {18, 34, 50, 101}
DETECTOR = "faster_rcnn"


class Row(NamedTuple):
    """One measure. before: for the earlier code; to_reach: the largest acceptable value; files: the counted files."""

    measure: str
    before: str
    now: int
    to_reach: int | None
    files: tuple[str, ...] = ()

    @property
    def reached(self) -> bool:
        return self.to_reach is None or self.now <= self.to_reach


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--static", action="store_true", help="without the measures that need a run")
    options = parser.parse_args(arguments)
    rows = static_rows()
    if not options.static:
        rows = [*traced_rows(), *rows]
    table = Table("measure", "before", "now", "to reach", "counted", show_lines=True)
    for row in rows:
        bound = "" if row.to_reach is None else f"<= {row.to_reach}{'' if row.reached else ', not reached'}"
        table.add_row(row.measure, row.before, str(row.now), bound, "\n".join(row.files))
    Console(width=150, soft_wrap=False).print(table)


# ---- From the syntax trees -----------------------------------------------------------------------------------------


class Module(NamedTuple):
    """One file. path: from the root. names: identifiers, attributes and keywords. strings: whole ones.
    imports: dotted names, `package.module.thing` for a thing."""

    path: str
    tree: ast.Module
    names: frozenset[str]
    strings: frozenset[str]
    imports: frozenset[str]


def modules(*folders: str) -> list[Module]:
    """The files of these folders of the project."""
    return [_module(path) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def static_rows() -> list[Row]:
    every = modules("elk_jax", "configs", "launch")
    package = [module for module in every if module.path.startswith("elk_jax/")]
    tasks = sorted(path.parent.name for path in (ROOT / "elk_jax" / "tasks").glob("*/__init__.py"))
    edits = {task: _edited_by_task(task, tasks, every) for task in tasks}
    most = max(edits.values(), key=len)
    depths = tuple(f"{m.path}:{line}" for m in every for line in _lists_of(DEPTHS, m.tree))
    outside = [module for module in package if module.path != "elk_jax/tasks/__init__.py"]
    named = tuple(f"{m.path}: {task}" for m in outside for task in tasks if _names_task(m, task))
    imported = tuple(f"{m.path}: {task}" for m in outside for task in tasks if _imports_task(m, task))
    sizes = {module.path: len((ROOT / module.path).read_text().splitlines()) for module in package}
    largest = max(sizes, key=lambda path: sizes[path])
    return [
        Row("places that state the legal values of depth", "6 (5)", len(depths), 1, depths),
        *(
            Row(f"files that a key of a data source touches: {key}", before, len(files), 2, files)
            for key, before in (("ignore_over", "7 (7)"), ("bit_depth", "19 (17)"))
            if (files := tuple(module.path for module in every if key in module.names | module.strings))
        ),
        Row("existing source files that a task edits (the most of all tasks)", "9", len(most), 1, most),
        Row("existing source files that name the detector", "9 (6)", len(files := _naming_detector(every)), 1, files),
        Row("modules outside a task's package that import it", "12", len(imported), 0, imported),
        Row("tasks' names outside their packages, configs/, launch/", "many", len(named), 0, named),
        Row("lines of elk_jax", "22503", sum(sizes.values()), None),
        Row("lines of its largest file", "", sizes[largest], None, (largest,)),
    ]


def _module(path: Path) -> Module:
    tree = ast.parse(path.read_text())
    names, strings, imports = set[str](), set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.add(node.value)
        else:
            names |= {value for key in ("id", "attr", "arg", "name") if isinstance(value := getattr(node, key, 0), str)}
    return Module(str(path.relative_to(ROOT)), tree, frozenset(names), frozenset(strings), frozenset(imports))


def _lists_of(values: set[int], tree: ast.AST) -> Iterator[int]:
    """The lines of collections, and of short texts such as the help of a flag, that list all of `values`."""
    for node in ast.walk(tree):
        parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        if values <= {part.value for part in parts if isinstance(part, ast.Constant)}:
            yield node.lineno  # type: ignore[attr-defined]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200:
            words = node.value.replace(",", " ").replace("|", " ").replace(".", " ").split()
            if {str(value) for value in values} <= set(words):
                yield node.lineno


def built_on(task: str) -> list[str]:
    """The tasks that build on it (`Task.builds_on`)."""
    from elk_jax.tasks import TASKS

    return [name for name, other in TASKS.items() if task in other.builds_on]


def _imports_task(module: Module, task: str) -> bool:
    own = tuple(f"elk_jax/tasks/{name}/" for name in (task, *built_on(task)))
    dotted = f"elk_jax.tasks.{task}"
    return not module.path.startswith(own) and any(f"{name}.".startswith(f"{dotted}.") for name in module.imports)


def _names_task(module: Module, task: str) -> bool:
    """Whether a file outside a task's package holds its name as a string, or imports the package."""
    if any(module.path.startswith(f"elk_jax/tasks/{own}/") for own in (task, *built_on(task))):
        return False
    return task in module.strings or _imports_task(module, task)


def _edited_by_task(task: str, tasks: list[str], every: list[Module]) -> tuple[str, ...]:
    """Files that name a task and are not its own. Its own: its package, and scripts of launch/ for no other task.

    Configurations choose among tasks; none has to be edited for a new one.
    """
    naming = [module for module in every if _names_task(module, task) and not module.path.startswith("configs/")]
    shared = lambda m: any(_names_task(m, other) for other in tasks if other != task)
    return tuple(m.path for m in naming if not m.path.startswith("launch/") or shared(m))


def _naming_detector(every: list[Module]) -> tuple[str, ...]:
    """Files that import the first detector's modules or hold its name, outside these modules and configs/."""
    own = (f"elk_jax/detection/{DETECTOR}", "configs/")
    names = lambda m: any(name.startswith(f"elk_jax.detection.{DETECTOR}") for name in m.imports)
    return tuple(m.path for m in every if not m.path.startswith(own) and (names(m) or DETECTOR in m.names | m.strings))


def _reach(package: Mapping[str, Module], path: str) -> set[str]:
    """The files that a file of `package` (by path) imports, directly or through others."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        for name in package[waiting.pop()].imports:
            whole = name.replace(".", "/")
            for file in (f"{whole}.py", f"{whole}/__init__.py", f"{whole.rpartition('/')[0]}.py"):
                if file in package and file not in found:
                    found.add(file)
                    waiting.append(file)
    return found


# ---- From a run ----------------------------------------------------------------------------------------------------


def traced_rows() -> list[Row]:
    """The rows that need a run of `cem_real:tiny` by launch/train.py. Call it once per process: flags are global."""
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # few calls of compiled functions
    sys.path.insert(0, str(ROOT / "launch"))
    import command_line  # type: ignore[import-not-found]
    import jax
    import train  # type: ignore[import-not-found]

    from elk_jax.backbones.resnet import ResNetConfig
    from elk_jax.tasks import run as runs

    trace, listed, checked = Trace(ResNetConfig), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    select, check_readable = runs.select, runs.check_readable

    def instead_of_compiling(lowered: Any) -> Any:
        """A training step that does nothing, which saves a minute of compilation."""
        sys.setprofile(None)
        metrics = jax.tree.map(lambda x: jax.numpy.ones(x.shape, x.dtype), lowered.out_info[1])
        return lambda state, constants, batch: (state, metrics)

    def listing(source: Any, spec: Any, split: str, **settings: Any) -> Any:
        listed[settings["name"], split] += 1
        return select(source, spec, split, **settings)

    def checking(source: Any, *rest: Any, **settings: Any) -> Any:
        checked[source.name, source.infos[0].split] += 1
        return check_readable(source, *rest, **settings)

    def traced() -> None:
        sys.setprofile(trace)
        train.main()

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(jax.stages.Lowered, "compile", instead_of_compiling),
        mock.patch.object(runs, "select", listing),
        mock.patch.object(runs, "check_readable", checking),
        mock.patch.object(sys, "argv", ["train.py", *_flags(Path(folder))]),
    ):
        try:
            command_line.run(traced, "")
        finally:
            sys.setprofile(None)
    crossed, most = tuple(sorted(trace.files)), max([*listed.values(), *checked.values()])
    opened = tuple(f"{source}, {split}: {listed[source, split]}, {n}" for (source, split), n in sorted(checked.items()))
    stays, climbs = tuple(trace.stays), trace.climbs(modules("elk_jax", "launch"))
    return [
        Row("files that --config.detector.model.backbone.depth crosses", "18 (12)", len(crossed), 9, crossed),
        Row("times it is parsed", "3", trace.parsed, 1),
        Row("times an experiment opens one source (listed, checked)", "3", most, 1, opened),
        Row("stays of `config`", "56 (57)", len(stays), 20, stays),
        Row("files of them", "21 (7)", len(set(stays)), None),
        Row("climbs of `config`", "17", len(climbs), 2, climbs),
    ]


def _flags(folder: Path) -> list[str]:
    return [
        f"--config={ROOT / 'configs' / 'cem_real.py'}:tiny",
        f"--config.data.real.spec=coco:{write_coco(folder / 'data')}",
        f"--config.detector.model.backbone.depth={Trace.DEPTH}",
        f"--workdir={folder / 'run'}",
    ]


class Trace:
    """A profile function (sys.setprofile): see the module docstring. settings: the dataclass of the model's
    settings."""

    DEPTH = 18
    STEPS = 3

    def __init__(self, settings: type) -> None:
        self.files: set[str] = set()  # that the depth crosses
        self.stays: list[str] = []  # files, of a ConfigDict
        self.parsed = 0
        self._settings, self._root = settings, f"{ROOT}/"

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not self._counts(frame):
            return
        values, file = frame.f_locals, self._file(frame)
        count = code.co_argcount + code.co_kwonlyargcount
        arguments = [values[name] for name in code.co_varnames[:count] if name in values]
        if file == "elk_jax/fields.py" and code.co_name == "build":
            self.parsed += values["kind"] is self._settings
        if file not in self.stays[-1:] and any(_is_config(value) for value in arguments):
            self.stays.append(file)
        for value in arguments:
            if _entries(value).get("depth") == self.DEPTH:
                self.files |= {file, *self._callers_with(value, frame.f_back)}

    def climbs(self, every: Sequence[Module]) -> tuple[str, ...]:
        """The stays in files that import the file of the stay before."""
        by_path = {module.path: module for module in every}
        return tuple(f"{a} -> {b}" for a, b in zip(self.stays, self.stays[1:]) if a in _reach(by_path, b))

    def _callers_with(self, settings: Any, frame: FrameType | None) -> Iterator[str]:
        while frame is not None:
            if self._counts(frame) and self._file(frame) not in self.files:
                values = (frame.f_locals[name] for name in frame.f_code.co_varnames if name in frame.f_locals)
                if any(_leads_to(settings, value, self.STEPS) for value in values):
                    yield self._file(frame)
            frame = frame.f_back

    def _counts(self, frame: FrameType) -> bool:
        """Whether the frame is of elk_jax/ or launch/."""
        return frame.f_code.co_filename.startswith((f"{self._root}elk_jax/", f"{self._root}launch/"))

    def _file(self, frame: FrameType) -> str:
        return frame.f_code.co_filename.removeprefix(self._root)


def _leads_to(settings: Any, value: Any, steps: int) -> bool:
    if value is settings:
        return True
    return steps > 0 and any(_leads_to(settings, entry, steps - 1) for entry in list(_entries(value).values()))


def _is_config(value: Any) -> bool:
    return type(value).__name__ == "ConfigDict"


def _entries(value: Any) -> Mapping[str, Any]:
    """The entries of a mapping (a ConfigDict too), a dataclass or a module; none of anything else."""
    if isinstance(value, dict):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return getattr(value, "__dict__", {})
    return value._fields if _is_config(value) else {}


def write_coco(folder: Path) -> Path:
    """Eight images of eight patients, a lesion in each; returns the COCO file."""
    import cv2
    import numpy as np

    images: list[dict[str, Any]] = []
    (folder / "images").mkdir(parents=True)
    for number, split in enumerate(("train",) * 4 + ("val",) * 2 + ("test",) * 2, start=1):
        pixels = np.random.default_rng(number).integers(60, 90, (128, 96), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), pixels)
        image = {"id": number, "file_name": f"{number}.png", "width": 96, "height": 128, "split": split}
        images.append({**image, "patient_id": f"P{number}"})
    lesions = [{"id": i["id"], "image_id": i["id"], "category_id": 1, "bbox": [30, 40, 20, 24]} for i in images]
    categories = [{"id": 1, "name": "mass"}]
    path = folder / "data.json"
    path.write_text(json.dumps({"images": images, "annotations": lesions, "categories": categories}))
    return path


if __name__ == "__main__":
    main()
