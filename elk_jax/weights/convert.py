"""Convert named tensors of another library to our parameters, with rules that account for every tensor.

A format (detectron2, torchvision) is data: rules `foreign name -> our path, layout`, names of tensors that are not
weights, and constants for parameters missing from the format. `convert` applies them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from elk_jax.backbones.resnet import BLOCKS, has_bottlenecks
from elk_jax.errors import UserError
from elk_jax.weights import model_folder
from elk_jax.weights.reading import Tensors

Layout = Callable[[np.ndarray], np.ndarray]


def as_is(x: np.ndarray) -> np.ndarray:
    """Vectors, unchanged: biases and norms."""
    return x


def oihw_to_hwio(x: np.ndarray) -> np.ndarray:
    """Kernels of convolutions [out, in, h, w] -> [h, w, in, out]."""
    return x.transpose(2, 3, 1, 0)


def out_in_to_in_out(x: np.ndarray) -> np.ndarray:
    """Kernels of dense layers [out, in] -> [in, out]."""
    return x.transpose(1, 0)


def chw_to_hwc(size: int) -> Layout:
    """Kernels of the dense layer after a pooled region: [out, C h w] -> [h w C, out], for h = w = `size`."""

    def chw_to_hwc(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1, size, size).transpose(2, 3, 1, 0).reshape(-1, len(x))

    return chw_to_hwc


@dataclass(frozen=True)
class Rule:
    """A foreign name (regular expression for the whole name) and the path of its tensor; \\1 etc. refer to its
    groups."""

    pattern: str
    target: str
    layout: Layout = as_is


@dataclass(frozen=True)
class Format:
    """A foreign format. `ignored`, `constants`: regular expressions of whole names.

    rules: if several give one path, `rename` writes the name of the first, with the first of its alternatives.

    ignored: foreign tensors that are not weights. constants: (our path, value) of parameters that the file omits.
    path: applied to the target of a rule, for systematic differences in spelling. partial: parameters missing from the
    file may be re-initialised.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    constants: tuple[tuple[str, float], ...] = ()
    path: Callable[[str], str] = str
    partial: bool = True


@dataclass(frozen=True)
class Row:
    """One line of the name map."""

    foreign: str
    foreign_shape: tuple[int, ...]
    path: str
    shape: tuple[int, ...]
    layout: str


@dataclass(frozen=True)
class NameMap:
    """The use of every tensor in the file, and the origin of every parameter."""

    rows: tuple[Row, ...]
    ignored: tuple[str, ...]  # foreign names
    filled: tuple[tuple[str, float], ...]  # (path, constant)
    dropped: tuple[str, ...]  # paths to re-initialise


@dataclass(frozen=True)
class Foreign:
    """A recognised foreign file: its tensors with uniform names, their format, and the architecture.

    preset: the conventions of the training: 'detectron2', 'torchvision' or 'torchvision_v2'; 'retinanet' or
    'retinanet_v2', also torchvision's. resnet, settings: configuration fields of the backbone and the detector that
    follow from the shapes. backbone_only: the file has no detector.
    """

    tensors: Tensors
    format: Format
    preset: str
    resnet: dict[str, Any]
    settings: dict[str, Any]
    backbone_only: bool


class Understood(NamedTuple):
    """The file of a classifier: its tensors with uniform names, the settings of the model, the rules for its names."""

    tensors: Tensors
    model: Any
    format: Format


def layer(pattern: str, target: str, kernel: Layout) -> tuple[Rule, ...]:
    """Rules for a layer's weight and bias."""
    return Rule(rf"{pattern}\.weight", f"{target}/kernel", kernel), Rule(rf"{pattern}\.bias", f"{target}/bias")


def norm(pattern: str, target: str) -> tuple[Rule, ...]:
    """Rules for a normalisation layer: scale, bias, and statistics if it has them."""
    parts = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return tuple(Rule(rf"{pattern}\.{theirs}", f"{target}/norm/{ours}") for theirs, ours in parts.items())


def convert(
    tensors: Tensors,
    fmt: Format,
    target_shapes: Mapping[str, tuple[int, ...]],
    drop: Sequence[str] = (),
    ignore: Sequence[str] = (),
    where: object = "",
) -> tuple[model_folder.Params, NameMap]:
    """Our parameters (nested, float32) for exactly the paths of `target_shapes`, and the name map.

    drop: regular expressions (re.search) of our paths to re-initialise; the result omits them. ignore: of foreign names
    to ignore, in addition to the format's. where: the file, for errors. Raises UserError if any other tensor is unused,
    or a parameter is missing, given twice, has the wrong shape, or is not finite.
    """
    dropped = model_folder.compile_patterns(drop, "--drop")
    also_ignored = model_folder.compile_patterns(ignore, "--ignore")
    wanted = {path: shape for path, shape in target_shapes.items() if not model_folder.matches(dropped, path)}
    rules = [(re.compile(rule.pattern), rule) for rule in fmt.rules]  # more than `re` caches
    rows: dict[str, Row] = {}
    params: dict[str, np.ndarray] = {}
    ignored, left_over, mismatched, infinite = [], [], [], []
    for name, tensor in tensors.items():
        if any(re.fullmatch(pattern, name) for pattern in fmt.ignored) or model_folder.matches(also_ignored, name):
            ignored.append(name)
            continue
        path, layout = _place(name, fmt, rules)
        if model_folder.matches(dropped, path) and path in target_shapes:
            continue
        if path not in wanted:
            left_over.append(f"{name} {tensor.shape}")
            continue
        if path in rows:
            what = f"{name} and {rows[path].foreign} are both converted to {path}"
            raise UserError(what, where=where, todo="remove one of them from the file")
        value = _lay_out(tensor, layout)
        if value is None or value.shape != tuple(wanted[path]):
            given = tensor.shape if value is None else value.shape
            mismatched.append(f"{name} gives {path} {given}, the model has {tuple(wanted[path])}")
            continue
        if not np.isfinite(value).all():
            infinite.append(name)
        params[path] = value
        rows[path] = Row(name, tensor.shape, path, value.shape, layout.__name__)
    absent = [path for path in wanted if path not in params]
    filled = tuple((path, v) for path in absent for pattern, v in fmt.constants if re.fullmatch(pattern, path))
    params |= {path: np.full(wanted[path], number, np.float32) for path, number in filled}
    missing = [f"{path} {tuple(shape)}" for path, shape in wanted.items() if path not in params]
    _complain(left_over, mismatched, missing, infinite, where, fmt.partial)
    ordered = {path: params[path] for path in wanted}
    anew = tuple(path for path in target_shapes if path not in wanted)
    used = tuple(rows[path] for path in wanted if path in rows)
    return model_folder.nest(ordered), NameMap(used, tuple(ignored), filled, anew)


def rename(params: model_folder.Params, fmt: Format) -> Tensors:
    """The inverse of `convert`: foreign name -> tensor of every parameter, contiguous, in the parameter's type.

    For formats without `path`, whose patterns have no parentheses other than groups, `(...)`, and alternatives,
    `(?:...)`, without nesting. ValueError for a parameter that no rule produces.
    """
    rules = [(re.compile(_paths_of(rule)), rule) for rule in fmt.rules]
    tensors = {}
    for path, value in model_folder.flatten(params).items():
        for pattern, rule in rules:
            if match := pattern.fullmatch(path):
                tensors[_name_of(rule, match.groupdict())] = _laid_back(np.asarray(value), rule.layout)
                break
        else:
            raise ValueError(f"no rule makes {path}")
    return tensors


_GROUP, _ALTERNATIVES = re.compile(r"\((?!\?)([^()]*)\)"), re.compile(r"\(\?:([^()|]*)[^()]*\)\??")


def _paths_of(rule: Rule) -> str:
    """A pattern of the paths that a rule produces. Its group g1 is the first group of the rule, and so on."""
    groups = _GROUP.findall(rule.pattern)
    parts = re.split(r"\\(\d)", rule.target)  # text and numbers alternately
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [f"(?P<g{number}>{groups[int(number) - 1]})" for number in parts[1::2]]
    return "".join(parts)


def _name_of(rule: Rule, groups: Mapping[str, str]) -> str:
    """The name that a rule converts to the path with these groups; with alternatives, the first one."""
    number = iter(range(1, 10))
    filled = _GROUP.sub(lambda _: re.escape(groups[f"g{next(number)}"]), rule.pattern)
    return re.sub(r"\\(.)", r"\1", _ALTERNATIVES.sub(r"\1", filled))


_FOREIGN_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}
"""Number of axes -> meaning of the axes of a foreign tensor in any layout: out, in, height, width."""


def _laid_back(value: np.ndarray, layout: Layout) -> np.ndarray:
    """The tensor that `layout` converts to `value`: a layout only moves numbers, so it is applied to their indices."""
    shape = tuple(value.shape[axis] for axis in _FOREIGN_AXES.get(value.ndim, range(value.ndim)))
    tensor = np.empty(value.size, value.dtype)
    tensor[layout(np.arange(value.size).reshape(shape)).reshape(-1)] = value.reshape(-1)
    return tensor.reshape(shape)


def _place(name: str, fmt: Format, rules: Sequence[tuple[re.Pattern[str], Rule]]) -> tuple[str, Layout]:
    for pattern, rule in rules:
        if match := pattern.fullmatch(name):
            return fmt.path(match.expand(rule.target)), rule.layout
    return "", as_is


def _lay_out(tensor: np.ndarray, layout: Layout) -> np.ndarray | None:
    """The tensor in our layout, contiguous float32; None if it does not have the axes that the layout moves."""
    try:
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite, and are refused as such
            return np.array(layout(tensor), np.float32, order="C")
    except (ValueError, TypeError):
        return None


def _complain(
    left_over: list[str], mismatched: list[str], missing: list[str], infinite: list[str], where: object, partial: bool
) -> None:
    architecture = "check --format and the model's settings"
    anew = ", or re-initialise parameters with --drop=REGEX" if partial else ""
    for what, names, todo in (
        ("shapes differ:", sorted(mismatched), architecture),
        ("the model has no parameter for", left_over, f"{architecture}, or ignore tensors with --ignore=REGEX"),
        ("the file lacks", missing, architecture + anew),
        ("NaN or infinity in", infinite, "use another file"),
    ):
        if names:
            raise UserError(f"{what} {model_folder.first_few(names)}", where=where, todo=todo)


_WRAPPERS = ("module.", "model.", "net.")
"""Prefixes from data-parallel training and averaging in PyTorch, and from common Lightning modules."""


def strip_wrappers(tensors: Tensors, ignore: Sequence[str] = ()) -> Tensors:
    """The tensors with their names before training wrappers.

    Removed are the prefixes _WRAPPERS if all names have them, torch.compile's `_orig_mod.` anywhere, and the counter
    `n_averaged` of an averaged model. ignore: regular expressions of names that need not have the prefixes, such as
    those of a loss beside the model. UserError for two tensors of the same name.
    """
    ignored = model_folder.compile_patterns(ignore, "--ignore")
    counter = "n_averaged"
    tensors = _renamed(tensors, lambda name: name.replace("_orig_mod.", ""))
    while True:
        tensors = {name: tensor for name, tensor in tensors.items() if name != counter}
        inside = [name for name in tensors if not model_folder.matches(ignored, name)]
        prefix = next((one for one in _WRAPPERS if inside and all(name.startswith(one) for name in inside)), "")
        if not prefix:
            return tensors
        tensors = _renamed(tensors, lambda name: name.removeprefix(prefix))  # noqa: B023


def _renamed(tensors: Tensors, new: Callable[[str], str]) -> Tensors:
    """The tensors under new names; UserError if two get the same."""
    given: dict[str, str] = {}  # new name -> the name before
    for name in tensors:
        if given.setdefault(new(name), name) != name:
            what = f"two tensors of one name, {given[new(name)]} and {name}"
            raise UserError(what, todo="keep the trained one")
    return {plain: tensors[name] for plain, name in given.items()}


def check_used(patterns: Sequence[str], names: Iterable[str], flag: str) -> None:
    """UserError for the first regular expression of a flag that matches no name: it is misspelt."""
    names = list(names)
    for pattern in patterns:
        if not any(model_folder.matches(model_folder.compile_patterns([pattern], flag), name) for name in names):
            what = f"{flag}={pattern} matches no name; the names are {model_folder.first_few(sorted(names))}"
            raise UserError(what, where=flag, todo="correct it, or leave it out")


def find(tensors: Tensors, name: str) -> np.ndarray:
    """A tensor whose shape shows the architecture; UserError if it is missing: the file is then of another kind."""
    if name not in tensors:
        few = model_folder.first_few([f"{key} {value.shape}" for key, value in tensors.items()], 3)
        raise UserError(f"the file has no {name}; it has {few}", todo="check --format and --input")
    return tensors[name]


def sizes(tensors: Tensors, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor with this number of axes; UserError as in `find`, and for another number of axes."""
    shape = find(tensors, name).shape
    if len(shape) != axes:
        raise UserError(f"{name} {shape} does not have {axes} axes", todo="check --format and --input")
    return shape


def pixels_of(channels: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, tuple[float, ...]]:
    """`pixel_mean` and `pixel_std` of a network with so many input channels whose library has these. A single channel
    takes their averages."""
    one = channels == 1
    return {name: (sum(x) / len(x),) if one else tuple(x) for name, x in (("pixel_mean", mean), ("pixel_std", std))}


def pooled_size(tensors: Tensors, name: str, channels: int) -> int:
    """The side of the pooled regions that a dense layer reads, from the kernel `name` [out, channels h w]; UserError as
    in `sizes`, and for regions that are not square."""
    _, inputs = sizes(tensors, name, 2)
    side = math.isqrt(inputs // channels)
    if channels * side**2 != inputs or not side:
        what = f"{name} reads {inputs} numbers, which is not a square region of {channels} channels"
        raise UserError(what, todo="use a detector that pools square regions")
    return side


def indices(tensors: Tensors, pattern: str) -> list[int]:
    """Sorted numbers matched by the group of `pattern` (whole name) in the names, to count repeated layers."""
    found = (re.fullmatch(pattern, name) for name in tensors)
    return sorted({int(match.group(1)) for match in found if match})


def resnet_settings(tensors: Tensors, stem: str, stages: Sequence[str]) -> dict[str, Any]:
    """`depth`, `width` and `stem_width` of a ResNet, from the name of its stem's kernel and the prefixes of its stages.

    UserError if a tensor is missing, or if no known ResNet has these numbers of blocks.
    """
    width, stem_width = (sizes(tensors, name, 4)[0] for name in (f"{stages[0]}.0.conv1.weight", stem))
    blocks = tuple(len(indices(tensors, rf"{re.escape(stage)}\.(\d+)\.conv1\.weight")) for stage in stages)
    bottleneck = f"{stages[0]}.0.conv3.weight" in tensors
    for depth, known in BLOCKS.items():
        if known == blocks and has_bottlenecks(depth) == bottleneck:
            return {"depth": depth, "width": width, "stem_width": 0 if stem_width == width else stem_width}
    raise UserError(
        f"no known ResNet has {list(blocks)} {'bottleneck' if bottleneck else 'basic'} blocks",
        todo=f"use weights of a ResNet with {', '.join(map(str, BLOCKS))} layers",
    )
