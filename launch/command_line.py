"""Shared parts of the launch scripts: reading flags, and one-line errors for wrong ones."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import config_flags

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # config files import their shared parts as `configs.*`
    sys.path.insert(0, str(ROOT))

from elk_jax.errors import UserError, run_main  # noqa: E402

flags.disclaim_key_flags()  # flags are listed in the help of the script that defines them
T = TypeVar("T")

_FLAG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError)
"""Exceptions that absl, ml_collections and a configuration file raise while flags are read."""


def run(main: Callable[[], object], doc: str) -> None:
    """Parse the flags of the calling script, then call `main()`. `--help` prints `doc` above the flags."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(RuntimeError):  # the user has no home folder
            cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(cache) / "elk_jax")  # compile each program once
    run_main(_parse_and_call, main, doc)


def required(flag: flags.FlagHolder, example: str = "") -> Any:
    """The value of a flag that must be given."""
    if not flag.value:
        raise UserError(f"no --{flag.name} given", todo=f"try --{flag.name}={example}" if example else "see --help")
    return flag.value


class _Numbers(flags.ArgumentParser):
    """Reads `1,0.8` as numbers."""

    def parse(self, argument: Any) -> list[float]:
        parts = argument.split(",") if isinstance(argument, str) and argument.strip() else argument or ()
        try:
            return [float(part) for part in parts]
        except ValueError as error:
            raise ValueError("not a list of numbers, such as 0.5,0.25") from error


def define_numbers(name: str, default: Sequence[float] | None, text: str) -> flags.FlagHolder:
    """A flag that is a list of numbers."""
    return flags.DEFINE(_Numbers(), name, default, text, serializer=flags.ListSerializer(","))


def settings(kind: type[T], own: Sequence[flags.FlagHolder], model: str) -> T:
    """A task's own settings, a dataclass, from the given flags. A UserError names the flag.

    own: flags of the script that apply to some tasks only. model: the task's word for a model.
    """
    from elk_jax import fields

    present = given([flag for flag in own if flag.present])
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in present:
        if name not in known:
            raise UserError(f"--{name} does not apply to a {model}", where=f"--{name}", todo="leave it out")
    of_flags(lambda: fields.check_types(kind, present))
    return of_flags(lambda: kind(**present))


def given(own: Sequence[flags.FlagHolder]) -> dict[str, Any]:
    """The flags that have a value, by name."""
    return {flag.name: _tuple(flag.value) for flag in own if flag.value is not None}


def of_flags(call: Callable[[], T]) -> T:
    """The result of `call`. Its UserError about a field then names the flag of the same name."""
    try:
        return call()
    except UserError as error:
        raise UserError(error.what, where=f"--{error.where}", todo=error.todo.removesuffix(" or None")) from error


def config_value(key: str, text: str) -> Any:
    """The value that `--config.KEY=TEXT` would set in the configuration named by --config.

    UserError for an unknown key and for text of the wrong type; it names `--config.KEY=TEXT`.
    """
    node: Any = _config_of([f"--config={_config_argument()}", f"--config.{key}={text}"])
    for part in key.split("."):
        node = node[part]
    return node


def other_config(path: str) -> Any:
    """Another configuration, FILE[:VARIANT], with the overrides --config.KEY=VALUE whose keys it has.

    UserError for a missing file, and for an exception raised in it.
    """
    if not Path(path.partition(":")[0]).is_file():
        raise _no_config(path.partition(":")[0])
    given = [argument for argument in sys.argv[1:] if argument.startswith("--config.")]
    try:
        known = _keys(load_config(path), "")
    except _FLAG_ERRORS as error:
        raise UserError(str(error), where=path, todo="see the head of the file for its variants") from error
    fitting = [argument for argument in given if _key_of(argument) in known]
    return _config_of([f"--config={path}", *fitting])


def _config_of(arguments: Sequence[str]) -> Any:
    """The configuration given by --config and its overrides. A UserError names the wrong override."""
    own = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=own, sys_argv=["", *arguments])
    try:
        own(["", *arguments])
    except _FLAG_ERRORS as error:
        raise _explain(error, arguments) from error
    return own["config"].value


def _keys(node: object, prefix: str) -> list[str]:
    """Dotted names of all leaves of a configuration."""
    if not hasattr(node, "items"):
        return [prefix]
    return [name for key, child in node.items() for name in _keys(child, f"{prefix}.{key}" if prefix else key)]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _parse_and_call(main: Callable[[], object], doc: str) -> None:
    if any(argument in ("--help", "-h", "-help", "--helpfull", "--helpshort") for argument in sys.argv[1:]):
        print(doc.strip() + "\n\nFlags:" + _flag_help())
        return
    sys.argv[1:] = [with_home(argument) for argument in sys.argv[1:]]
    file = _config_argument().partition(":")[0]
    if file and "config" in flags.FLAGS and not Path(file).is_file():
        raise _no_config(file)
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except _FLAG_ERRORS as error:
        raise _explain(error, sys.argv[1:]) from error
    if rest:
        raise UserError(f"unexpected argument '{rest[0]}'", todo="flags are written --name=value; see --help")
    from elk_jax import host_memory  # after the flags: importing JAX takes seconds
    from elk_jax.programs import libtpu

    host_memory.keep_freed()
    libtpu.only_compile()
    main()


def with_home(argument: str) -> str:
    """`--name=~/path`, `--name=KIND:~/path` or `--name=~/a,~/b` with the home folder: shells expand ~ only at the
    beginning of a word."""
    home = os.path.expanduser("~")
    return re.sub("(?<=[=:,])~(?=/|$)", lambda _: home, argument) if argument.startswith("--") else argument


def _flag_help() -> str:
    """Help of the flags that the script itself defines, without those of libraries."""
    lines = flags.FLAGS.module_help(sys.modules["__main__"]).splitlines()[2:]
    return "\n" + "\n".join(line for line in lines if not line.strip().startswith("(a ") and "override" not in line)


def _explain(error: Exception, arguments: Sequence[str]) -> UserError:
    """Turn an exception of absl or ml_collections about bad flags into one line that suggests the nearest key."""
    text = str(error.args[0] if error.args else error)
    if "Traceback (most recent call last)" in text:  # from a configuration file: the last line has the reason
        text = text.strip().splitlines()[-1].partition("Error: ")[2] or text
    overrides = [a for a in arguments if a.startswith("--config.")]
    known = _all_config_keys() if overrides else []
    for override in overrides:
        key = _key_of(override)
        if known and not any(name == key or name.startswith(f"{key}.") for name in known):
            close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}" if close else "see config.json of a run for all keys"
            return UserError(f"unknown config key '{key}'", where=override, todo=hint)
    wrong = next((a for a in overrides if f"{_key_of(a)}=" in text), None)
    if wrong:
        reason = text.rpartition(f"{wrong}: ")[2]
        return UserError(f"bad value for config key '{_key_of(wrong)}': {reason}", where=wrong)
    return UserError(text.replace("FATAL Flags parsing error: ", ""), todo="see --help")


def _key_of(override: str) -> str:
    return override.removeprefix("--config.").split("=", 1)[0]


def _config_argument() -> str:
    """FILE[:VARIANT] as given by --config; "" if it is not given."""
    return next((a.split("=", 1)[1] for a in sys.argv[1:] if a.startswith("--config=")), "")


def _no_config(file: str) -> UserError:
    files = sorted((ROOT / "configs").glob("*.py"))
    known = ", ".join(f"configs/{path.name}" for path in files if "def get_config" in path.read_text(encoding="utf-8"))
    if (ROOT / file).is_file():
        return UserError("no such configuration from this folder", where=file, todo=f"give {ROOT / file}")
    return UserError("no such configuration", where=file, todo=f"choose from {known}")


def _all_config_keys() -> list[str]:
    """Dotted names of all leaves of the configuration named by --config; [] if it cannot be loaded."""
    path = _config_argument()
    if not path:
        return []
    try:
        config = load_config(path)
    except Exception:  # only used for a hint
        return []
    return _keys(config, "")


def load_config(path: str):
    """Load `configs/NAME.py[:variant]` without flags."""
    import importlib.util

    file, _, variant = path.partition(":")
    spec = importlib.util.spec_from_file_location("elk_jax_config", file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise _no_config(file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant or None)
