"""The sum of clipped gradients without materialising the gradient of any unit (ghost norms, book-keeping).

Shapes: M units at once; for one of them N positions of a layer (examples times tokens), I inputs and O outputs.

For a layer y = x W, the gradient of a unit is x^T g and its squared norm <x x^T, g g^T>, which needs two matrices
[N, N] instead of one [I, O] (Goodfellow 2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679). Every such layer is
given one number per unit, and returns the squared norm as its derivative: `jax.vjp` sums over layers. The number is the
clipping factor, by which only the gradient of the weight is multiplied: a second call with the factors found sums the
same x and g whose norms were measured (Bu et al. 2023, arXiv:2210.00038). Factors at the loss would be carried back
through other roundings, so that a clipped gradient in bfloat16 could be longer than the clip norm.

The layers are found in the traced program of the loss, whatever module they belong to. A parameter used by exactly one
matrix product, convolution or function with its own derivative is a layer. For all others (biases, scales, tables, and
parameters that several layers share, whose parts must be added before squaring) every unit gets a copy, and therefore
its own gradient. These are small, except in detectors whose heads serve several levels of a pyramid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.custom_batching import custom_vmap
from jax.extend import core

from elk_jax.precision import at_least_float32
from elk_jax.privacy.settings import Clipping, Normalised
from elk_jax.training.model import Params

LAYERS = ("dot_general", "conv_general_dilated", "custom_vjp_call")
CONVERSION = "convert_element_type"
VIEWS = (CONVERSION, "reshape", "squeeze", "transpose", "broadcast_in_dim", "slice", "copy")
"""Operations that only rearrange the numbers of a parameter do not change the norm of its gradient."""
NESTED = ("jit", "remat2")
"""Operations that contain programs: `jax.jit`, `jax.checkpoint`."""
ROUNDING = 32
"""Rounding error of a squared norm by matrices of positions, in units of the last place of its largest terms. It is
added: large terms that cancel would otherwise hide a gradient."""


class Weight(NamedTuple):
    """The parameter of one layer, in the precision of its gradient, whatever the layer computes in.

    tap: the clipping factor of a unit; its derivative is the squared norm of the unit's gradient.
    """

    array: jax.Array
    tap: jax.Array


def clipped_sum(
    loss: Callable[..., jax.Array],
    clipping: Clipping,
    clip_norm: jax.Array | float,
    micro_batch: int,
    trained: Params,
    examples: Any,
    keys: jax.Array,
    padding: jax.Array,
) -> tuple[Params, jax.Array]:
    """Like `per_example.clipped_sum`, but a gradient that is not finite adds nothing at all."""

    def factor(norms: jax.Array) -> jax.Array:
        if isinstance(clipping, Normalised):
            return 1 / (norms + clipping.stability)
        return jnp.minimum(1, clip_norm / norms)

    kinds = optax.microbatching.AccumulationType
    used = ~padding.reshape(micro_batch, -1).all(0)
    return optax.microbatching.microbatch(
        partial(_of_some, loss, factor),
        argnums=(1, 2, 3),
        microbatch_size=micro_batch,
        accumulator=(kinds.SUM, kinds.CONCAT),
        num_real_microbatches=jnp.max(jnp.where(used, 1 + jnp.arange(len(used)), 0)),
    )(trained, examples, keys, padding)


def _of_some(
    loss: Callable[..., jax.Array],
    factor: Callable[[jax.Array], jax.Array],
    trained: Params,
    examples: Any,
    keys: jax.Array,
    padding: jax.Array,
) -> tuple[Params, jax.Array]:
    """`clipped_sum` for the units of one micro-batch. factor: clipping factor by norm."""
    leaves, structure = jax.tree.flatten(trained)
    one = jax.tree.map(lambda x: x[0], (examples, keys))
    program = jax.make_jaxpr(lambda leaves, one: loss(jax.tree.unflatten(structure, leaves), *one))(leaves, one)
    is_layer = single_layers(program.jaxpr, len(leaves))
    count = len(padding)

    def losses(shared: Sequence[jax.Array], copies: Sequence[jax.Array], taps: jax.Array) -> jax.Array:
        def of_unit(copies: Sequence[jax.Array], tap: jax.Array, *of_one: Any) -> jax.Array:
            weights = [Weight(leaf, tap) for leaf in shared]
            values = [*_in_order(is_layer, weights, copies), *jax.tree.leaves(of_one)]
            return evaluate(program.jaxpr, program.consts, values)[0]

        return jax.vmap(of_unit)(copies, taps, examples, keys)

    shared = [leaf for leaf, layer in zip(leaves, is_layer) if layer]
    copies = [jnp.broadcast_to(leaf, (count, *leaf.shape)) for leaf, layer in zip(leaves, is_layer) if not layer]
    kind = jnp.promote_types(jnp.float32, program.out_avals[0].dtype)
    values, pull = jax.vjp(partial(losses, shared), copies, jnp.ones(count, kind))
    gradients, squares = pull(jnp.ones_like(values))
    norms = jnp.sqrt(sum((_square(jnp.square(at_least_float32(g))) for g in gradients), squares))
    factors = factor(norms)
    factors = jnp.where(padding | ~jnp.isfinite(norms) | ~jnp.isfinite(factors), 0, factors)
    (sums,) = jax.vjp(lambda shared: losses(shared, copies, factors), shared)[1](jnp.ones_like(values))
    of_copies = [(_by_unit(factors, g) * jnp.where(jnp.isfinite(g), g, 0)).sum(0) for g in gradients]
    return jax.tree.unflatten(structure, _in_order(is_layer, sums, of_copies)), norms


def _in_order(is_layer: Sequence[bool], layers: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Merge the values of layers and of other parameters into the order of the parameters."""
    of_layers, of_others = iter(layers), iter(others)
    return [next(of_layers) if layer else next(of_others) for layer in is_layer]


def _square(x: jax.Array) -> jax.Array:
    """[M, ...] -> its sums [M]."""
    return x.sum(tuple(range(1, x.ndim)))


def _by_unit(values: jax.Array, x: jax.Array) -> jax.Array:
    """Values [M] with the axes of x [M, ...]."""
    return values.reshape(-1, *(1 for _ in x.shape[1:]))


# ---- The program of a loss -------------------------------------------------------------------------------------------


def single_layers(program: core.Jaxpr, count: int) -> list[bool]:
    """Which of the first `count` arguments are the parameter of exactly one layer."""
    uses: list[list[bool]] = [[] for _ in range(count)]
    results = _uses(program, dict(zip(program.invars, range(count))), uses)
    return [own == [True] and place not in results.values() for place, own in enumerate(uses)]


def _uses(program: core.Jaxpr, places: dict[Any, int], uses: list[list[bool]]) -> dict[int, int]:
    """Record whether each use of the parameters at `places` is as a layer. Returns which results are parameters."""
    for equation in program.eqns:
        own = [(number, places[v]) for number, v in enumerate(equation.invars) if _is_in(v, places)]
        if not own:
            continue
        if inner := _nested(equation):
            passed = _uses(inner, {inner.invars[number]: place for number, place in own}, uses)
            places |= {equation.outvars[number]: place for number, place in passed.items()}
        elif _is_view(equation):
            places[equation.outvars[0]] = own[0][1]
        else:
            layer = len(own) == 1 and _is_layer(equation)
            for _, place in own:
                uses[place].append(layer)
    return {number: places[v] for number, v in enumerate(program.outvars) if _is_in(v, places)}


def evaluate(program: core.Jaxpr, constants: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """The results of a program for values some of which are a `Weight`."""
    known: dict[Any, Any] = dict(zip([*program.constvars, *program.invars], [*constants, *values]))
    read = lambda v: v.val if isinstance(v, core.Literal) else known[v]
    for equation in program.eqns:
        given = [read(v) for v in equation.invars]
        weights = [number for number, value in enumerate(given) if isinstance(value, Weight)]
        scope = str(equation.source_info.name_stack)
        with jax.named_scope(scope) if scope else nullcontext():
            if not weights:
                found = run(program, equation, given)
            elif inner := _nested(equation):
                found = _evaluate_nested(equation, inner, given)
            elif equation.primitive.name == CONVERSION:
                found = given  # by the layer itself
            elif _is_view(equation):
                (weight,) = given
                (array,) = run(program, equation, [weight.array])
                found = [Weight(array, weight.tap)]
            else:
                found = [layer(program, equation, given, weights[0])]
        known |= dict(zip(equation.outvars, found))
    return [read(v) for v in program.outvars]


def run(program: core.Jaxpr, equation: core.JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """The results of one operation of a program."""
    given = [(v, value) for v, value in zip(equation.invars, values) if not isinstance(v, core.Literal)]
    alone = program.replace(constvars=[], invars=[v for v, _ in given], outvars=equation.outvars, eqns=[equation])
    return jax.core.eval_jaxpr(alone, (), *(value for _, value in given))


def _evaluate_nested(equation: core.JaxprEqn, inner: core.Jaxpr, values: Sequence[Any]) -> list[Any]:
    whole = partial(evaluate, inner, getattr(equation.params["jaxpr"], "consts", ()))
    if equation.primitive.name == "jit":
        return whole(values)
    return jax.checkpoint(whole, prevent_cse=equation.params["prevent_cse"], policy=equation.params["policy"])(values)


def _nested(equation: core.JaxprEqn) -> core.Jaxpr | None:
    found = equation.params["jaxpr"] if equation.primitive.name in NESTED else None
    return found.jaxpr if isinstance(found, core.ClosedJaxpr) else found


def _is_in(v: Any, places: Mapping[Any, int]) -> bool:
    return not isinstance(v, core.Literal) and v in places


def _is_view(equation: core.JaxprEqn) -> bool:
    variables: list[Any] = [*equation.invars, *equation.outvars]
    sizes = {math.prod(v.aval.shape) for v in variables}
    return equation.primitive.name in VIEWS and len(equation.invars) == 1 and len(sizes) == 1


def _is_layer(equation: core.JaxprEqn) -> bool:
    variables: list[Any] = [*equation.invars, *equation.outvars]
    floats = all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in variables)
    return equation.primitive.name in LAYERS and floats and len(equation.outvars) == 1


# ---- A layer ---------------------------------------------------------------------------------------------------------

Apply = Callable[..., jax.Array]
"""(weight, other arguments) -> result, for one unit."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of a layer's weight, from arrays [M, ...] of all units: (weight, gradient of the result, others).

    squared_norm: of each unit [M]. total: summed over all units, each times its factor [M], which follows the weight.
    """

    squared_norm: Callable[..., jax.Array]
    total: Callable[..., jax.Array]


def layer(program: core.Jaxpr, equation: core.JaxprEqn, values: Sequence[Any], place: int) -> jax.Array:
    """An operation of one unit whose argument at `place` is a `Weight`; under `jax.vmap`, with squared norms."""
    weight, kind = values[place], equation.primitive.name
    read: Any = equation.invars[place]

    def apply(array: jax.Array, *others: jax.Array, equation: core.JaxprEqn = equation) -> jax.Array:
        return run(program, equation, [*others[:place], array, *others[place:]])[0]

    def converted(array: jax.Array, *others: jax.Array) -> jax.Array:
        return apply(array.astype(read.aval.dtype), *others)

    def precise(array: jax.Array, *others: jax.Array) -> jax.Array:
        wide = jnp.promote_types(jnp.float32, read.aval.dtype)
        return apply(array.astype(wide), *map(at_least_float32, others), equation=_precise(equation))

    if kind == "custom_vjp_call":
        # under vmap, a function with its own derivative would compute the gradient of every unit before summing them
        norms, total = partial(norms_in_turn, converted), partial(sum_in_turn, converted)
    else:
        # both in the same precision: a unit must not add more than its measured norm
        norms, total = partial(norms_in_turn, precise), partial(sum_at_once, precise)
    if kind == "dot_general":
        norms = partial(product_norms, equation.params["dimension_numbers"], place)
    others = [value for number, value in enumerate(values) if number != place]
    return _of_one(converted, Gradient(norms, total))(weight.array, weight.tap, *others)


def _precise(equation: core.JaxprEqn) -> core.JaxprEqn:
    """A product or convolution whose result has the precision of its factors."""
    highest = jax.lax.Precision.HIGHEST
    return equation.replace(params={**equation.params, "precision": (highest, highest), "preferred_element_type": None})


def _of_one(apply: Apply, gradient: Gradient) -> Apply:
    @custom_vmap
    def of_one(weight: jax.Array, tap: jax.Array, *others: jax.Array) -> jax.Array:
        return apply(weight, *others)

    @of_one.def_vmap
    def of_units(count: int, mapped: Sequence[bool], weight: jax.Array, tap: jax.Array, *others: jax.Array):
        of_weight, _, *of_others = mapped
        assert not of_weight  # a copy is not the parameter of a layer
        every = [x if own else jnp.broadcast_to(x, (count, *x.shape)) for x, own in zip(others, of_others)]
        return _of_all(apply, gradient)(weight, tap, *every), True

    return of_one


def _of_all(apply: Apply, gradient: Gradient) -> Apply:
    """A layer of M units. The derivative by the weight is the sum of the units' gradients times `taps` [M]; that by the
    taps is the squared norm of each unit's gradient."""

    @jax.custom_vjp
    def of_all(weight: jax.Array, taps: jax.Array, *others: jax.Array) -> jax.Array:
        return _mapped(apply, weight, *others)

    def forward(weight: jax.Array, taps: jax.Array, *others: jax.Array):
        return _mapped(apply, weight, *others), (weight, taps, others)

    def backward(saved: tuple[jax.Array, jax.Array, tuple[jax.Array, ...]], g: jax.Array):
        weight, taps, others = saved
        of_others = jax.vjp(partial(_mapped, apply, weight), *others)[1](g)
        squares = gradient.squared_norm(weight, g, *others).astype(taps.dtype)
        finite = jnp.stack([_is_finite(x) for x in (g, *others)]).all(0)
        # 0 times a non-finite number is not 0
        clean = [jnp.where(_by_unit(finite, x), x, 0) for x in (g, *others)]
        return gradient.total(weight, taps, *clean), squares, *of_others

    of_all.defvjp(forward, backward)
    return of_all


def _mapped(apply: Apply, weight: jax.Array, *others: jax.Array) -> jax.Array:
    return jax.vmap(apply, (None, *(0 for _ in others)))(weight, *others)


def _is_finite(x: jax.Array) -> jax.Array:
    """[M, ...] -> [M]: whether all numbers of a unit are finite."""
    return jnp.isfinite(x).all(tuple(range(1, x.ndim)))


def sum_at_once(apply: Apply, weight: jax.Array, factors: jax.Array, g: jax.Array, *others: jax.Array) -> jax.Array:
    """The gradient of a weight, summed over all units times their factors, at least in float32."""
    scaled = _by_unit(factors, g) * at_least_float32(g)
    return jax.vjp(lambda weight: _mapped(apply, weight, *others), at_least_float32(weight))[1](scaled)[0]


def sum_in_turn(apply: Apply, weight: jax.Array, factors: jax.Array, g: jax.Array, *others: jax.Array) -> jax.Array:
    """`sum_at_once`, one unit after another."""

    def add(total: jax.Array, given: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        factor, *of_unit = given
        return total + factor * _of_unit(apply, at_least_float32(weight), *of_unit), None

    return jax.lax.scan(add, jnp.zeros_like(at_least_float32(weight)), (factors, g, *others))[0]


def norms_in_turn(apply: Apply, weight: jax.Array, g: jax.Array, *others: jax.Array) -> jax.Array:
    """[M] squared norms of the gradients of a weight, one unit after another."""
    norm = lambda given: jnp.square(_of_unit(apply, at_least_float32(weight), *given)).sum()
    return jax.lax.map(norm, (g, *others))


def _of_unit(apply: Apply, weight: jax.Array, g: jax.Array, *others: jax.Array) -> jax.Array:
    result, pull = jax.vjp(lambda weight: apply(weight, *others), weight)
    return pull(g.astype(result.dtype))[0]


def product_norms(dimensions: Any, place: int, weight: jax.Array, g: jax.Array, x: jax.Array) -> jax.Array:
    """[M] squared norms of the gradients x^T g of a weight that is argument `place` of a `dot_general`.

    x, g: [M, ...]. Batch axes shared by both factors are separate products.
    """
    contracted, batch = dimensions[0][1 - place], dimensions[1][1 - place]
    free = [axis for axis in range(x.ndim - 1) if axis not in (*contracted, *batch)]
    products, positions, inputs = (math.prod(x.shape[1 + axis] for axis in axes) for axes in (batch, free, contracted))
    count, outputs = len(x), math.prod(g.shape) // max(1, len(x) * products * positions)
    rows = jnp.transpose(x, (0, *(1 + axis for axis in (*batch, *free, *contracted))))
    rows = rows.reshape(count, products, positions, inputs)
    # the result has the batch axes, then the axes of the first factor, then those of the second
    if place:
        columns = g.reshape(count, products, positions, outputs)
    else:
        columns = g.reshape(count, products, outputs, positions).swapaxes(-1, -2)
    kind = jnp.promote_types(jnp.float32, x.dtype)
    product = partial(jnp.einsum, preferred_element_type=kind, precision=jax.lax.Precision.HIGHEST)
    if positions * (inputs + outputs) < inputs * outputs:
        pairs = product("mpni,mpki->mpnk", rows, rows) * product("mpno,mpko->mpnk", columns, columns)
        largest = jnp.square(jnp.sqrt(jnp.diagonal(pairs, axis1=2, axis2=3)).sum(-1)).sum(-1)
        return pairs.sum((1, 2, 3)) + ROUNDING * jnp.finfo(kind).eps * largest
    return jnp.square(product("mpni,mpno->mpio", rows, columns)).sum((1, 2, 3))
