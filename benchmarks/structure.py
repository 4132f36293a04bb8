"""How the code hangs together: what a setting crosses, and what a new task, detector or key of a data source touches.

    python benchmarks/structure.py [--static]

It prints a table: each measure before the tasks became packages, now, and the bound to keep. Most figures are read from
the syntax trees of elk_jax/, configs/ and launch/ (docstrings and comments do not count). Two need a run, of
`cem_real:tiny` on a few COCO images, started by launch/train.py's main; `--static` leaves them out:

files that depth crosses: until the training step is compiled, every call of a function of the project is looked at.
    Where an argument holds the depth of the model itself (a mapping, a dataclass or a module with an entry `depth`),
    the function's file counts, and so do those of its callers, as far as a variable of theirs holds it within three
    steps (`config.detector.model.depth`). Callers that carry it in a closure or deep inside a Run do not count.
times parsed: calls of `fields.build` with the model's dataclass, in the same time.
times a source is opened: for each (source, split), the larger of how often it is listed and how often its image files
    are checked; to the end of the run, report included.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
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
    """One measure. before: of the code before; to_reach: the largest value that is fine; files: what was counted."""

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
    """One file. path: from the root. names: identifiers, attributes, keywords and whole strings, without docstrings.
    imports: dotted names, `package.module.thing` for a thing."""

    path: str
    tree: ast.Module
    names: frozenset[str]
    imports: Mapping[str, str]


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
    stays, climbs = walk_of_config({module.path: module for module in package})
    sizes = {module.path: len((ROOT / module.path).read_text().splitlines()) for module in package}
    largest = max(sizes, key=lambda path: sizes[path])
    return [
        Row("places that state the legal values of depth", "6", len(depths), 1, depths),
        *(
            Row(f"files that a key of a data source touches: {key}", before, len(files), 2, files)
            for key, before in (("ignore_over", "7"), ("bit_depth", "19"))
            if (files := tuple(module.path for module in every if key in module.names))
        ),
        Row("existing source files that a task edits (the most of all tasks)", "9", len(most), 1, most),
        Row("existing source files that name the detector", "9", len(files := _naming_detector(every)), 1, files),
        Row("modules outside a task's package that import it", "12", len(imported), 0, imported),
        Row("tasks' names outside their packages, configs/, launch/", "many", len(named), 0, named),
        Row("walk of `config` from run_experiment: functions", "56", len(stays), 20, tuple(stays)),
        Row("the same: files", "21", len(files := tuple(dict.fromkeys(s.split(":")[0] for s in stays))), None, files),
        Row("the same: climbs, calls of a file that imports the caller's", "17", len(climbs), 2, tuple(climbs)),
        Row("lines of elk_jax", "22503", sum(sizes.values()), None),
        Row("lines of its largest file", "", sizes[largest], None, (largest,)),
    ]


def _module(path: Path) -> Module:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    imports: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # a docstring is never a single name
        else:
            names |= {value for key in ("id", "attr", "arg", "name") if isinstance(value := getattr(node, key, 0), str)}
    return Module(str(path.relative_to(ROOT)), tree, frozenset(names), imports)


def _lists_of(values: set[int], tree: ast.AST) -> Iterator[int]:
    """The lines of literals (dict, set, tuple, list) and flag or Literal arguments that list all of `values`."""
    for node in ast.walk(tree):
        parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        if values <= {part.value for part in parts if isinstance(part, ast.Constant)}:
            yield node.lineno  # type: ignore[attr-defined]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200:
            words = node.value.replace(",", " ").replace("|", " ").replace(".", " ").split()
            if {str(value) for value in values} <= set(words):
                yield node.lineno


def _imports_task(module: Module, task: str) -> bool:
    own, dotted = f"elk_jax/tasks/{task}/", f"elk_jax.tasks.{task}"
    return not module.path.startswith(own) and any(f"{name}.".startswith(f"{dotted}.") for name in _imported(module))


def _names_task(module: Module, task: str) -> bool:
    """Whether a file outside a task's package holds its name as a string, or imports the package."""
    if module.path.startswith(f"elk_jax/tasks/{task}/"):
        return False
    strings = {node.value for node in ast.walk(module.tree) if isinstance(node, ast.Constant)}
    return task in strings or _imports_task(module, task)


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
    names = lambda m: any(name.startswith(f"elk_jax.detection.{DETECTOR}") for name in _imported(m))
    return tuple(m.path for m in every if not m.path.startswith(own) and (names(m) or DETECTOR in m.names))


def _imported(module: Module) -> set[str]:
    return set(module.imports.values())


# ---- The walk of `config` ------------------------------------------------------------------------------------------


def walk_of_config(package: Mapping[str, Module]) -> tuple[list[str], list[str]]:
    """(functions `FILE:NAME` that are handed the untyped configuration, calls that climb), from run_experiment on.

    Followed: the parameter, copies under other names, and what a call makes of it, as long as that is annotated as a
    dict or as Any (`fields.as_dict`); a typed Experiment ends the walk. Calls are resolved by the names that a file
    defines or imports. A climb is a call of a file that itself imports the caller's, at first or second hand.
    """
    waiting, seen, climbs = [("elk_jax/experiments/experiment.py", "run_experiment", "config")], [], []
    while waiting:
        place = waiting.pop(0)
        if place in seen:
            continue
        seen.append(place)
        path, name, parameter = place
        for target, function, handed in _handed_on(package, path, _functions(package[path])[name], parameter):
            waiting.append((target, function, handed))
            if target != path and path in _reach(package, target):
                climbs.append(f"{path} -> {target}:{function}")
    return list(dict.fromkeys(f"{path}:{name}" for path, name, _ in seen)), climbs


def _handed_on(
    package: Mapping[str, Module], path: str, function: ast.FunctionDef, parameter: str
) -> Iterator[tuple[str, str, str]]:
    """(file, function, its parameter) of every call that is handed `parameter`, or an untyped copy of it."""
    held = {parameter}
    for node in sorted(ast.walk(function), key=lambda n: getattr(n, "lineno", 0)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = node.value
            copied = isinstance(value, ast.Name) and value.id in held
            if copied or (isinstance(value, ast.Call) and _passes(value, held) and _untyped(package, path, value)):
                held.add(node.targets[0].id)
        if isinstance(node, ast.Call) and (found := _resolve(package, path, node.func)):
            names = [argument.arg for argument in found[1].args.args + found[1].args.kwonlyargs]
            yield from ((found[0], found[1].name, names[i]) for i, a in enumerate(node.args) if _is_held(a, held))
            yield from ((found[0], found[1].name, k.arg) for k in node.keywords if k.arg and _is_held(k.value, held))


def _is_held(node: ast.AST, held: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in held


def _passes(call: ast.Call, held: set[str]) -> bool:
    return any(_is_held(value, held) for value in (*call.args, *(keyword.value for keyword in call.keywords)))


def _untyped(package: Mapping[str, Module], path: str, call: ast.Call) -> bool:
    found = _resolve(package, path, call.func)
    returns = ast.unparse(found[1].returns) if found and found[1].returns else ""
    return returns.split("[")[0] in ("dict", "Any", "Mapping")


def _resolve(package: Mapping[str, Module], path: str, called: ast.AST) -> tuple[str, ast.FunctionDef] | None:
    """(file, function) of the project that `name` or `module.name` means in a file; None where it is another thing."""
    name = ast.unparse(called)
    if name in _functions(package[path]):
        return path, _functions(package[path])[name]
    head, dot, rest = name.partition(".")
    module, _, last = (package[path].imports.get(head, "") + dot + rest).rpartition(".")
    file = f"{module.replace('.', '/')}.py"
    return (file, _functions(package[file])[last]) if file in package and last in _functions(package[file]) else None


def _functions(module: Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in module.tree.body if isinstance(node, ast.FunctionDef)}


def _reach(package: Mapping[str, Module], path: str) -> set[str]:
    """The files that a file imports, at first hand or through others."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        for name in _imported(package[waiting.pop()]):
            whole = name.replace(".", "/")
            for file in (f"{whole}.py", f"{whole}/__init__.py", f"{whole.rpartition('/')[0]}.py"):
                if file in package and file not in found:
                    found.add(file)
                    waiting.append(file)
    return found


# ---- From a run ----------------------------------------------------------------------------------------------------


def traced_rows() -> list[Row]:
    """The rows that need a run of `cem_real:tiny` by launch/train.py."""
    sys.path.insert(0, str(ROOT / "launch"))
    import jax
    import train  # type: ignore[import-not-found]
    from absl import flags

    from elk_jax.detection.faster_rcnn_config import FasterRCNNConfig
    from elk_jax.tasks import run as runs

    trace, compile_step = Trace(FasterRCNNConfig), jax.stages.Lowered.compile
    listed: Counter[tuple[str, str]] = Counter()
    checked: Counter[tuple[str, str]] = Counter()

    def compiling(*arguments: Any, **settings: Any) -> Any:
        sys.setprofile(None)
        return compile_step(*arguments, **settings)

    def list_source(spec: Any, split: str, **settings: Any) -> Any:
        listed[settings["name"], split] += 1
        return runs_list(spec, split, **settings)

    def check_readable(source: Any, *rest: Any, **settings: Any) -> Any:
        checked[source.name, source.infos[0].split] += 1
        return runs_check(source, *rest, **settings)

    runs_list, runs_check = runs.list_source, runs.check_readable
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(jax.stages.Lowered, "compile", compiling),
        mock.patch.object(runs, "list_source", list_source),
        mock.patch.object(runs, "check_readable", check_readable),
    ):
        spec = f"--config.data.real.spec=coco:{write_coco(Path(folder) / 'data')}"
        config = f"--config={ROOT / 'configs' / 'cem_real.py'}:tiny"
        depth = f"--config.detector.model.depth={Trace.DEPTH}"
        with mock.patch.object(sys, "argv", ["train.py", config, spec, depth, f"--workdir={folder}/run"]):
            flags.FLAGS(sys.argv)
        sys.setprofile(trace)
        try:
            train.main()
        finally:
            sys.setprofile(None)
    crossed = tuple(sorted(trace.files))
    most = max([*listed.values(), *checked.values()])
    opened = tuple(f"{source}, {split}: {listed[source, split]}, {n}" for (source, split), n in sorted(checked.items()))
    return [
        Row("files that --config.detector.model.depth crosses to the compiled program", "18", len(crossed), 9, crossed),
        Row("times it is parsed", "3", trace.parsed, 1),
        Row("times an experiment opens one source (listed, checked)", "3", most, 1, opened),
    ]


class Trace:
    """A profile function that notes the files which the depth of a model crosses, and how often it is parsed."""

    DEPTH = 18
    STEPS = 3

    def __init__(self, settings: type) -> None:
        self.settings, self.files, self.parsed = settings, set[str](), 0
        self._root = f"{ROOT}/"
        self._here = {"benchmarks/structure.py"}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(self._root):
            return
        values, count = frame.f_locals, code.co_argcount + code.co_kwonlyargcount
        arguments = [values[name] for name in code.co_varnames[:count] if name in values]
        if code.co_name == "build" and self._file(frame) == "elk_jax/fields.py":
            self.parsed += values["kind"] is self.settings
        if any(self._holds(value, 1) for value in arguments):
            self.files.add(self._file(frame))
            self._note_callers(frame.f_back)

    def _note_callers(self, frame: FrameType | None) -> None:
        while frame is not None:
            own = frame.f_code.co_filename.startswith(self._root) and self._file(frame) not in self.files | self._here
            if own:
                values = [frame.f_locals[name] for name in frame.f_code.co_varnames if name in frame.f_locals]
                if any(self._holds(value, self.STEPS) for value in values):
                    self.files.add(self._file(frame))
            frame = frame.f_back

    def _file(self, frame: FrameType) -> str:
        return frame.f_code.co_filename.removeprefix(self._root)

    def _holds(self, value: Any, steps: int) -> bool:
        entries = _entries(value)
        if entries.get("depth") == self.DEPTH:
            return True
        return steps > 1 and any(self._holds(entry, steps - 1) for entry in list(entries.values()))


def _entries(value: Any) -> Mapping[str, Any]:
    """The entries of a mapping (a ConfigDict too), a dataclass or a module; none of anything else."""
    if isinstance(value, dict):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return getattr(value, "__dict__", {})
    return getattr(value, "_fields", {}) if type(value).__name__ == "ConfigDict" else {}


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
