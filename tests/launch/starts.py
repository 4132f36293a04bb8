"""Many starts of launch scripts for the price of one: each is a fork of a process that has imported the libraries.

  python tests/launch/starts.py

Reads lines of JSON, [script, instead, argument, ...], and answers each with one of {"returncode", "stdout", "stderr"}.
A start runs the script's file as `__main__`, with its own sys.argv and flags, as the shell would start it. instead: ""
or what is not called: a function, `package.module.name`, or what a task does with its models, `TASK.evaluate` or
`TASK.predict`; what it would have been given is printed as JSON.
"""

import dataclasses
import importlib
import json
import os
import runpy
import signal
import sys
import tempfile
import traceback
from pathlib import Path

LAUNCH = Path(__file__).resolve().parent.parent.parent / "launch"
SECONDS = 120  # for one start


def call(script: str, arguments: list[str]) -> int:
    """Run a script to its end; its exit code."""
    sys.argv = [f"launch/{script}.py", *arguments]
    try:
        runpy.run_path(str(LAUNCH / f"{script}.py"), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def plain(value: object) -> object:
    """What JSON can hold: the fields of a dataclass, the text of a path."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)


def stand_in(place: str) -> None:
    """Put in the place of a function one that prints [arguments, keyword arguments]; a path is its text."""
    from elk_jax.tasks import TASKS

    show = lambda *a, **given: print(json.dumps([a, given], default=plain))
    module, _, name = place.rpartition(".")
    if module in TASKS:
        action = dataclasses.replace(getattr(TASKS[module], name), run=show)
        TASKS[module] = dataclasses.replace(TASKS[module], **{name: action})
    else:
        setattr(importlib.import_module(module), name, show)


def start(script: str, instead: str, arguments: list[str]) -> dict:
    """`call` in a child, with its output."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            if instead:
                stand_in(instead)
            code = call(script, arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return {"returncode": code, "stdout": texts[0], "stderr": texts[1]}


if __name__ == "__main__":
    sys.path[0] = str(LAUNCH)  # as if a script of that folder had been started
    sys.path.insert(1, str(LAUNCH.parent))
    from ml_collections import config_flags  # noqa: F401

    from elk_jax.experiments import experiment  # noqa: F401
    from elk_jax.planning import privacy  # noqa: F401

    for line in sys.stdin:
        script, instead, *arguments = json.loads(line)
        print(json.dumps(start(script, instead, arguments)), flush=True)
