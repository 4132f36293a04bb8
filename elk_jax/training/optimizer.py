"""One optax transformation from a configuration: decay, learning rates and freezing by regular expression.

Expressions are matched with `re.search` against parameter paths such as `backbone/stem/conv/kernel`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import optax

from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, BELOW_ONE, AtLeast, check
from elk_jax.spread import spread
from elk_jax.training.model import Params

NO_DECAY = (
    r"(^|/)(bias|scale)$",
    r"(?i)(norm|(^|[/_])(bn|gn|ln))[_\d]*(/|$)",
    r"(^|/)(relative_position|weights)$",
)
"""Expressions of parameters without weight decay by default: biases, every parameter of a normalisation layer and, as
published, the tables of relative positions of a Swin and the fusion weights of a BiFPN."""


@dataclass(frozen=True)
class OptimizerConfig:
    """name: `sgd` (as in torch and detectron2: decay is added to the gradient, then momentum) or `adamw` (decoupled).

    clip_norm: the gradient over all trainable parameters is scaled down to this L2 norm; 0 switches clipping off.
    no_decay: expressions of parameters without weight decay. An expression here may match nothing.
    multipliers: (expression, factor) pairs for the learning rate; the first that matches a parameter applies.
    frozen: expressions of parameters that are not trained: no update, no decay, no optimiser state, not in the norm.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, BELOW_ONE] = 0.9  # of sgd, like nesterov
    nesterov: bool = False
    b1: Annotated[float, BELOW_ONE] = 0.9  # of adamw, like b2 and eps
    b2: Annotated[float, BELOW_ONE] = 0.999
    eps: Annotated[float, ABOVE_ZERO] = 1e-8
    weight_decay: Annotated[float, AtLeast(0)] = 1e-4
    clip_norm: Annotated[float, AtLeast(0)] = 0.0
    no_decay: tuple[str, ...] = NO_DECAY
    multipliers: tuple[tuple[str, Annotated[float, AtLeast(0)]], ...] = ()
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self)
        scaled = tuple(pattern for pattern, _ in self.multipliers)
        for name, patterns in {"no_decay": self.no_decay, "frozen": self.frozen, "multipliers": scaled}.items():
            for pattern in patterns:
                compile_pattern(pattern, name)
        own = {"momentum": self.momentum != OptimizerConfig.momentum, "nesterov": self.nesterov}
        if self.name != "sgd" and (unread := next((name for name, is_set in own.items() if is_set), "")):
            what = f"{unread} is {getattr(self, unread)}, which {self.name} does not read"
            raise UserError(what, where=unread, todo="leave it out, or set name=sgd")


FOLLOWED = 2
"""Label of running statistics, beside True (trained) and False (not trained), with which it is sorted."""


def paths(params: Params) -> Any:
    """The tree of `params` with each leaf replaced by its path, `a/b/c`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )


def matches(params: Params, patterns: Iterable[str], where: str, *, may_miss: bool = False) -> Any:
    """Tree of bools: whether any of `patterns` matches the leaf's path.

    Raises UserError for a malformed expression and, unless `may_miss`, for one that matches no parameter.
    """
    names = paths(params)
    flat = jax.tree.leaves(names)
    compiled = [compile_pattern(pattern, where) for pattern in patterns]
    for expression in compiled:
        if not may_miss and not any(expression.search(name) for name in flat):
            raise UserError(
                f"the expression {expression.pattern!r} matches no parameter",
                where=where,
                todo=f"examples of parameter names: {', '.join(flat[i] for i in spread(len(flat), 5))}",
            )
    return jax.tree.map(lambda name: any(expression.search(name) for expression in compiled), names)


def compile_pattern(pattern: str, where: str) -> re.Pattern[str]:
    """`re.compile`, with UserError for a bad expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"not a regular expression: {pattern!r} ({error})", where=where) from error


def trainable_mask(
    params: Params, config: OptimizerConfig, frozen: Iterable[str] = (), statistics: Iterable[str] = ()
) -> Any:
    """Tree of bools, True for trained parameters. frozen, statistics: the model's own expressions (`Model`), in
    addition to the config's."""
    by_model = matches(params, (*frozen, *statistics), "the model's frozen parameters", may_miss=True)
    by_config = matches(params, config.frozen, "optimizer.frozen")
    trainable = jax.tree.map(lambda a, b: not (a or b), by_model, by_config)
    if not any(jax.tree.leaves(trainable)):
        raise UserError("every parameter is frozen: nothing is left to train", where="optimizer.frozen")
    return trainable


def followed_mask(params: Params, config: OptimizerConfig, statistics: Iterable[str] = ()) -> Any:
    """Tree of bools, True for running statistics, which follow the batches.

    UserError for an expression of the config that freezes some of them: training would still use the statistics of the
    batch, and predictions would use others.
    """
    own = matches(params, statistics, "the model's statistics", may_miss=True)
    for pattern in config.frozen:
        frozen = jax.tree.map(lambda a, b: a and b, own, matches(params, (pattern,), "optimizer.frozen", may_miss=True))
        names = [name for name, both in zip(jax.tree.leaves(paths(params)), jax.tree.leaves(frozen)) if both]
        if names:
            what = f"the expression {pattern!r} freezes {names[0]}, a running statistic of a norm that reads the batch"
            todo = r"choose norm=affine_bn, or exclude statistics with '^(?!.*/norm/(mean|var)$)' before the expression"
            raise UserError(what, where="optimizer.frozen", todo=todo)
    return own


def build(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    params: Params,
    frozen: Iterable[str] = (),
    statistics: Iterable[str] = (),
) -> optax.GradientTransformation:
    """The transformation for `params` (arrays or abstract shapes; only their paths are read).

    Order: clip the global norm -> (sgd) add decay, momentum | (adamw) Adam, add decay -> learning rate ->
    multipliers. The step of running statistics is applied unchanged.
    """
    trainable = trainable_mask(params, config, frozen, statistics)
    spared = matches(params, config.no_decay, "optimizer.no_decay", may_miss=True)
    decayed = jax.tree.map(lambda spare: not spare, spared)
    decay = optax.add_decayed_weights(config.weight_decay, mask=_inside(decayed, trainable))
    parts: list[optax.GradientTransformation] = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.name == "sgd":
        parts += [decay, optax.trace(config.momentum, config.nesterov)]
    else:
        parts += [optax.scale_by_adam(config.b1, config.b2, config.eps), decay]
    parts.append(optax.scale_by_learning_rate(schedule))
    parts += _scales(params, config.multipliers, trainable)
    follows = followed_mask(params, config, statistics)
    kinds: dict[int, optax.GradientTransformation] = {True: optax.chain(*parts), False: optax.set_to_zero()}
    if any(jax.tree.leaves(follows)):  # otherwise the state stays that of models without statistics
        kinds[FOLLOWED] = optax.scale(-1.0)
    return optax.partition(kinds, jax.tree.map(lambda t, f: FOLLOWED if f else bool(t), trainable, follows))


def _scales(params: Params, multipliers, trainable: Any) -> list[optax.GradientTransformation]:
    """One masked scale per distinct factor; every parameter follows the first pair that matches it. UserError for a
    pair that none follows."""
    for pattern, _ in multipliers:
        matches(params, (pattern,), "optimizer.multipliers")

    def first(name: str) -> int:
        return next((i for i, (pattern, _) in enumerate(multipliers) if re.search(pattern, name)), -1)

    followed = jax.tree.map(first, paths(params))
    for number, (pattern, _) in enumerate(multipliers):
        if number not in jax.tree.leaves(followed):
            what = f"the expression {pattern!r} has no effect: earlier ones match all of its parameters"
            raise UserError(what, where="optimizer.multipliers", todo="give the narrower expression first")
    factors = jax.tree.map(lambda number: multipliers[number][1] if number >= 0 else 1.0, followed)
    distinct = sorted({value for value in jax.tree.leaves(factors) if value != 1.0})
    return [
        optax.masked(optax.scale(value), _inside(jax.tree.map(lambda f, v=value: f == v, factors), trainable))
        for value in distinct
    ]


def _inside(mask: Any, trainable: Any) -> Any:
    """`mask` as seen within the partition, where frozen leaves are MaskedNodes."""
    return jax.tree.map(lambda m, t: m if t else optax.MaskedNode(), mask, trainable)
