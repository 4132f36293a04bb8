"""Fresh parameters of a network, without the compilation of one large program."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def draw_params(model: nn.Module, rng: jax.Array, *inputs: Any) -> Any:
    """model.init's parameters, a nested dict. Works under `jax.eval_shape` and `jit` with out_shardings.

    Jitted, so that XLA drops the forward pass and compiles only the random numbers. Those come from the "rbg"
    generator, seeded by `rng` of whatever kind: a third of threefry's compile time for the many arrays of a
    network, and numbers that do not depend on the sharding (they may on the kind of device).
    """

    def draw(rng: jax.Array) -> Any:
        key = jax.random.wrap_key_data(jax.random.bits(rng, (4,), jnp.uint32), impl="unsafe_rbg")
        return model.init(key, *inputs)["params"]

    return jax.jit(draw)(rng)
