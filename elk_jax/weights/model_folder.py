"""A model on disk: a folder with `params.safetensors` (flat a/b/c names, float32) and `model.json`.

Imports and training write one, and `init_from` of a training stage reads one. `model.json` has the `format` of the
folder, the SHA-256 of the parameters' file and the `architecture`; the modules of that architecture describe its other
entries as a dataclass (`Content.build`). Folders of earlier versions have neither format nor hash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
import safetensors
import safetensors.numpy

from elk_jax import fields, files
from elk_jax.errors import UserError
from elk_jax.fields import AtLeast
from elk_jax.privacy.mechanism import Statement, in_words, once
from elk_jax.weights.reading import read_safetensors

PARAMS = "params.safetensors"
CONFIG = "model.json"

FORMAT = 2
"""Format of folders written now: with a hash of the parameters, and complete."""
HASH = "params_sha256"
PROMISE = "promise"
"""The joint privacy guarantee of a model's private training runs, as a sentence for readers; `trained` is binding."""
MARK = "elk_jax_format"
"""In the header of the parameters, so that a model.json without its format cannot pass for an earlier version."""

Params = Any
"""A nested dict of arrays."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Training:
    """The history of weights: `trained` of model.json.

    step: training step, the last or the best. on: names of the data sources. init_from: the initial weights, "" for
    random ones. patients: hashes (`data.sources.patients`) of all patients that the weights have seen, except those of
    private training. privacy: the statement of a private training run. inherited: the statements of earlier private
    training runs, from which the initial weights come.
    """

    step: Annotated[int, AtLeast(0)] = 0
    on: tuple[str, ...] = ()
    init_from: str = ""
    patients: tuple[str, ...] = ()
    privacy: Statement | None = None
    inherited: tuple[Statement, ...] = ()

    @property
    def promises(self) -> tuple[Statement, ...]:
        """The statements of all private training runs behind these weights, in order."""
        return self.inherited if self.privacy is None else (*self.inherited, self.privacy)

    def sentence(self) -> str:
        """The statements in words; "" if there are none."""
        if self.privacy is None and self.inherited:
            return (
                "Only the private training runs behind these weights protect their patients. "
                f"{in_words(self.inherited)}"
            )
        return in_words(self.promises)


def of_members(members: Sequence[Training | None]) -> Training:
    """The joint history of several models; None: a model not trained with elk_jax."""
    known = [one for one in members if one is not None]
    on = dict.fromkeys(name for one in known for name in one.on)
    seen = frozenset[str]().union(*(one.patients for one in known))
    promised = once(promise for one in known for promise in one.promises)
    return Training(0, tuple(on), "", tuple(sorted(seen)), None, promised)


def join_members(params: Sequence[Params]) -> Params:
    """The parameters of a model composed of several members, from theirs."""
    return {"members": {str(number): one for number, one in enumerate(params)}}


def split_members(params: Params, count: int, where: object) -> list[Params]:
    """The parameters of the `count` members of a model, from those of `join_members`. UserError for others."""
    names, found = [str(number) for number in range(count)], params.get("members", {})
    if set(params) != {"members"} or set(found) != set(names):
        what = f"the model has {count} members, but parameters of {', '.join(sorted(found))}"
        raise UserError(what, where=where, todo="rewrite the folder")
    return [found[name] for name in names]


@dataclasses.dataclass(frozen=True)
class Content:
    """The content of a model.json: plain JSON, without its format.

    hash: SHA-256 of the parameters' file; "" in a folder of an earlier version.
    """

    file: Path
    entries: Mapping[str, Any]
    hash: str = ""

    @property
    def whole(self) -> bool:
        """Whether it must be complete, as in all folders except those of earlier versions."""
        return bool(self.hash)

    @property
    def architecture(self) -> str:
        """The architecture; "" if there is none."""
        return self.entries.get("architecture", "")

    @property
    def training(self) -> Training | None:
        """The history; None for weights not trained with elk_jax."""
        trained = self.entries.get("trained")
        if trained is None:
            return None
        with _within(self.file):
            known = _known(Training, trained) if not self.whole and isinstance(trained, Mapping) else trained
            # users may remove the patients before publishing a model; privacy was added after other entries
            later = {"patients": (), "privacy": None, "inherited": ()}
            given = {**later, **known} if isinstance(known, Mapping) else known
            if isinstance(given, dict):  # as were a statement's entries on chains, and its identity
                given["privacy"] = _with_later(given["privacy"])
                if isinstance(given["inherited"], Sequence):
                    given["inherited"] = [_with_later(one) for one in given["inherited"]]
            return fields.build(Training, given, "trained", complete=self.whole)

    def filled(self, name: str, later: Mapping[str, Any]) -> Content:
        """The same content, with missing fields of every entry in the list `name` filled from `later`."""
        found = self.entries.get(name)
        if not isinstance(found, list):
            return self
        entries = [{**later, **one} if isinstance(one, Mapping) else one for one in found]
        return dataclasses.replace(self, entries={**self.entries, name: entries})

    def build(
        self, kind: type[T], earlier: Mapping[str, Any] | None = None, later: Mapping[str, Any] | None = None
    ) -> T:
        """The description as the dataclass of its architecture; a field `trained` is `training`.

        earlier: entries, by section, missing from folders of earlier versions. Those may also lack fields with a
        default, and may have obsolete entries. UserError, with the key after the file, for unknown, missing or
        impossible entries. later: entries, by section, that were added later and may be missing from any folder.
        """
        entries = _filled(later or {}, self.entries)
        if not self.whole:
            entries = _filled(earlier or {}, _known(kind, entries))
        trained = {"trained": self.training} if "trained" in entries else {}
        with _within(self.file):
            return fields.build(kind, entries | trained, complete=self.whole)


def save_params(folder: str | os.PathLike, params: Params, description: Any, *, private: bool = False) -> None:
    """Write `params` (nested dict of arrays, kept as float32) and `description` into `folder`.

    description: the dataclass of an architecture, or a mapping of plain JSON values. private: the parameters contain
    training images or features of them, and only their owner may read them. Both files are written atomically,
    model.json last: a folder that has it is complete. Raises UserError if the folder cannot be written or the disk is
    full.
    """
    folder = files.make_folder(folder)
    flat = {name: np.array(leaf, np.float32, order="C") for name, leaf in flatten(params).items()}
    entries = description if isinstance(description, Mapping) else dataclasses.asdict(description)
    content = safetensors.numpy.save(flat, metadata={MARK: str(FORMAT)})
    described = Content(folder / CONFIG, entries, hashlib.sha256(content).hexdigest())
    said = described.training.sentence() if described.training else ""
    words = {PROMISE: said} if said else {}
    with files.locked(folder):
        (folder / CONFIG).unlink(missing_ok=True)
        write = files.write_private if private else files.write_bytes
        write(folder / PARAMS, content)
        files.write_json(folder / CONFIG, {"format": FORMAT, HASH: described.hash, **words, **entries})


def load_params(folder: str | os.PathLike) -> tuple[Params, Content]:
    """(params, content of model.json) from a folder of `save_params`.

    UserError for any other or a damaged folder, and for non-finite parameters: detectors drop boxes that are not
    numbers, so such a model would find nothing in any image.
    """
    content = read(folder)
    path = content.file.with_name(PARAMS)
    if not path.is_file():
        raise no_model(path.parent)
    _check_hash(path, content)
    flat = read_safetensors(path)
    if unknown := next((name for name, leaf in flat.items() if not np.isfinite(leaf).all()), ""):
        todo = "use an earlier checkpoint, or retrain or reimport the model"
        raise UserError(f"the parameter {unknown} contains NaN or infinity", where=path, todo=todo)
    sections = {name[:end] for name in flat for end, letter in enumerate(name) if letter == "/"}
    if both := sections & flat.keys():
        what = f"{min(both)} is a parameter and also a section of others"
        raise UserError(what, where=path, todo="rewrite the folder")
    return nest(flat), content


def read(folder: str | os.PathLike) -> Content:
    """The content of a folder's model.json; the parameters are not read. UserError for any other folder."""
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise no_model(file.parent)
    entries = files.read_json(file)
    if not isinstance(entries, dict):
        raise UserError("not the description of a model", where=file, todo="rewrite the folder")
    version = entries.get("format")
    if version is None and HASH in entries:
        raise UserError("format is missing", where=f"{file}: format", todo=f"give {FORMAT}, or rewrite the folder")
    if version is not None and (type(version) is not int or version != FORMAT):
        todo = "update elk_jax" if isinstance(version, int) and version > FORMAT else f"give {FORMAT}"
        raise UserError(f"a model folder with format {version!r}", where=f"{file}: format", todo=todo)
    if not isinstance(entries.get("architecture", ""), str):
        what = f"architecture is {entries['architecture']!r}"
        raise UserError(what, where=f"{file}: architecture", todo="rewrite the folder")
    if version is None:
        return Content(file, entries)
    known = entries.get(HASH)
    if not known or not isinstance(known, str):
        what = f"{HASH} is {known!r}"
        raise UserError(what, where=f"{file}: {HASH}", todo=f"give the SHA-256 of {PARAMS}, or rewrite the folder")
    rest = {name: value for name, value in entries.items() if name not in ("format", HASH, PROMISE)}
    return Content(file, rest, known)


def of_another_kind(content: Content, folder: Path, wanted: str, stage: str) -> UserError:
    """The error for a model folder of another architecture. wanted: the model, stage: the stage that makes it, in
    words."""
    todo = f"name the model folder of {stage}: RUN/STAGE/model"
    return UserError(f"a model of '{content.architecture}', not {wanted}", where=folder, todo=todo)


def architecture_of(folder: str | os.PathLike) -> str:
    """The architecture of a model folder; "" if it has none. UserError for any other folder."""
    return read(folder).architecture


def _training(folder: Path) -> Training | None:
    """The provenance of the weights in a model folder; None without one."""
    return read(folder).training if (folder / CONFIG).is_file() else None


def kept_step(folder: Path, otherwise: int) -> int:
    """The training step, the last or the best, of the weights in a model folder; `otherwise` without a folder."""
    trained = _training(folder)
    return otherwise if trained is None else trained.step


def promises(folder: Path) -> tuple[Statement, ...]:
    """The statements of all private training runs of a model; none without a folder."""
    trained = _training(folder)
    return trained.promises if trained else ()


def promise(folder: Path) -> str:
    """The statements of a model in words; "" for a model not trained privately."""
    trained = _training(folder)
    return trained.sentence() if trained else ""


def find(workdir: Path, stage: str | None, architectures: Collection[str], called: str) -> Path:
    """The model folder given by a user: `workdir` itself, or that of a stage of a run folder.

    stage: of the run; None: the last one that trained one of the `architectures`. called: such a model, in words.
    UserError if there is none.
    """
    for folder in (workdir, workdir / "model"):
        if (folder / CONFIG).is_file():
            if stage is not None:
                raise UserError(f"a model folder has no stage '{stage}'", where=folder, todo="leave --stage out")
            return folder
    config = files.read_json(workdir / "config.json") if (workdir / "config.json").is_file() else None
    stages = config.get("stages") if isinstance(config, dict) else None
    if not isinstance(stages, dict):
        todo = "train first: see launch/train.py"
        raise UserError("neither a run folder nor a model folder", where=workdir, todo=todo)
    folders = {name: workdir / name / "model" for name in stages}
    trained = [n for n, f in folders.items() if (f / CONFIG).is_file() and architecture_of(f) in architectures]
    if not trained:
        raise UserError(f"no stage of this run has trained {called}", where=workdir, todo="rerun launch/train.py")
    if stage is not None and stage not in trained:
        todo = f"choose one of {', '.join(trained)}"
        raise UserError(f"stage '{stage}' has not trained {called}", where=workdir, todo=todo)
    return folders[stage or trained[-1]]


def _check_hash(path: Path, content: Content) -> None:
    """UserError if the file of parameters is not the one for which model.json was written."""
    if not content.whole:
        try:
            with safetensors.safe_open(path, "np") as file:  # type: ignore[no-untyped-call]
                marked = MARK in (file.metadata() or {})
        except Exception:  # reading the parameters reports what is wrong with them
            return
        if marked:
            what, where = "format is missing", f"{content.file}: format"
            raise UserError(what, where=where, todo="restore the file, or rewrite the folder")
        return
    known, found = content.hash, files.sha256(path)
    if known != found:
        what = f"damaged, or not the parameters of this {CONFIG}: their SHA-256 is {found[:16]}..., not {known[:16]}..."
        raise UserError(what, where=path, todo="copy the complete folder again, or retrain or reimport the model")


@contextlib.contextmanager
def _within(file: Path) -> Iterator[None]:
    """Put the file before the key in errors."""
    try:
        yield
    except UserError as error:
        raise UserError(error.what, where=f"{file}: {error.where}", todo=error.todo) from error


def _with_later(promise: Any) -> Any:
    return {"exposed": "", "identity": "", **promise} if isinstance(promise, Mapping) else promise


def _known(kind: type, entries: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in entries.items() if name in names}


def _filled(earlier: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """`entries`, with entries that only `earlier` has added, section by section."""
    filled = {**earlier, **entries}
    for name, section in earlier.items():
        if isinstance(section, Mapping) and isinstance(filled[name], Mapping):
            filled[name] = _filled(section, filled[name])
    return filled


def no_model(folder: Path) -> UserError:
    """The error for a folder that is not a model folder."""
    return UserError(
        "no model in this folder",
        where=folder,
        todo=f"give a folder with {PARAMS} and {CONFIG}: RUN/STAGE/model, or the output of launch/import_weights.py",
    )


def restore_into(template: Params, loaded: Params, drop: Sequence[str] = (), where: object = "") -> Params:
    """`template` with its leaves replaced by those of `loaded` of the same name, in the template's types.

    drop: regular expressions (re.search on a/b/c names). Parameters that match keep the template's fresh values if
    `loaded` has none of the same shape (another number of classes, a backbone without a detector), and may be unused in
    `loaded`. All others must agree: a missing or unused name, or another shape, is a UserError with names and shapes.
    where: the folder of `loaded`, for that error.
    """
    wanted, given = flatten(template), flatten(loaded)
    patterns = compile_patterns(drop, "drop")
    required = [name for name in wanted if not matches(patterns, name)]
    shapes = {name: tuple(np.shape(leaf)) for name, leaf in given.items()}
    needed = {name: tuple(wanted[name].shape) for name in required}
    missing = [f"{name} {shape}" for name, shape in needed.items() if name not in given]
    left_over = [f"{n} {shapes[n]}" for n in given if n not in wanted and not matches(patterns, n)]
    other = [
        f"{name} is {shapes[name]} in the weights and {shape} in the model"
        for name, shape in needed.items()
        if shapes.get(name, shape) != shape
    ]
    differences = ("the weights lack", missing), ("the model has no place for", left_over), ("shapes differ:", other)
    for what, names in differences:
        if names:
            todo = (
                "start from weights of the same architecture, or set the recipe's `model` "
                f"(--config.RECIPE.model.KEY=VALUE) to the values in {CONFIG} of the weights"
            )
            raise UserError(f"{what} {first_few(names)}", where=where, todo=todo)
    matching = {name: shapes.get(name) == tuple(leaf.shape) for name, leaf in wanted.items()}
    return nest({n: np.asarray(given[n], leaf.dtype) if matching[n] else leaf for n, leaf in wanted.items()})


def shapes_of(init: Callable[[jax.Array], Params]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of `init(random key)`, without computing parameters."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(jax.eval_shape(init, jax.random.key(0))).items()}


def check_fits(params: Params, shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
    """UserError unless a folder's parameters have the names and shapes of the model described by its model.json."""
    template = nest({path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()})
    try:
        restore_into(template, params, where=where)
    except UserError as error:
        todo = f"{CONFIG} describes another model: restore it, or rewrite the folder"
        raise UserError(error.what, where=where, todo=todo) from error


def check_same(before: Any, now: Any, fields: Collection[str], where: Path, section: str) -> None:
    """UserError for the first of `fields` that training would change in the model of its initial weights.

    before, now: the model settings of the weights and of the recipe, dataclasses; a field that only one of them has is
    not compared. fields: dotted names, also of sections. where: the folder of the weights. The error lists all settings
    to change. section: their section in the configuration, such as "detector.model".
    """
    old, new = (flatten(dataclasses.asdict(model)) for model in (before, now))
    wanted = tuple(f"{field}/".replace(".", "/") for field in fields)
    differing = [key for key in new if key in old and f"{key}/".startswith(wanted) and old[key] != new[key]]
    if differing:
        named = {key: key.replace("/", ".") for key in differing}
        settings = [f"--config.{section}.{named[key]}={shlex.quote(str(old[key]))}" for key in differing]
        first = differing[0]
        what = f"the weights were trained with {named[first]} {old[first]!r}, the recipe has {new[first]!r}"
        raise UserError(what, where=where, todo=f"set {' '.join(settings)}")


def flatten(params: Params) -> dict[str, Any]:
    """Nested dict -> {'a/b/c': leaf}, in the order of the dict."""
    return dict(_leaves("", params))


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for name, child in node.items():
        yield from _leaves(f"{prefix}/{name}" if prefix else str(name), child)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{'a/b/c': leaf} -> nested dict."""
    nested: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


def compile_patterns(patterns: Sequence[str], where: str) -> list[re.Pattern]:
    """Regular expressions from the user's setting `where`; UserError for an invalid one."""
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        what = f"not a regular expression: {error.pattern!r}, {error}"
        raise UserError(what, where=where, todo="correct it") from error


def matches(patterns: Sequence[re.Pattern], name: str) -> bool:
    """Whether any of the patterns matches within `name`."""
    return any(pattern.search(name) for pattern in patterns)


def first_few(items: Sequence[str], most: int = 4) -> str:
    """'a, b, c, d and 7 more'."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def seen_patients(folder: Path) -> frozenset[str]:
    """Hashes (`data.sources.patients`) of all patients on which a model was trained; empty if it stores none."""
    trained = _training(folder)
    return frozenset() if trained is None else frozenset(trained.patients)
