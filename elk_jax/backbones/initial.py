"""Initial parameters of a network, without compiling its forward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def draw_params(model: nn.Module, rng: jax.Array, *inputs: Any, method: str = "__call__") -> Any:
    """The parameters of `model.init`, a nested dict; for a method, those that it reads.

    Works under `jax.eval_shape`, and under `jit` with out_shardings.

    It is jitted, so that XLA drops the forward pass and compiles only the random numbers. These come from the "rbg"
    generator, seeded by `rng` (of any kind), which takes a third of threefry's compile time for the many arrays of a
    network. The numbers do not depend on the sharding, but may depend on the kind of device. Equal models are traced
    once per process, since training requests shapes before numbers.
    """
    return _draw(model, method, rng, *inputs)


@partial(jax.jit, static_argnums=(0, 1))
def _draw(model: nn.Module, method: str, rng: jax.Array, *inputs: Any) -> Any:
    key = jax.random.wrap_key_data(jax.random.bits(rng, (4,), jnp.uint32), impl="unsafe_rbg")
    return model.init(key, *inputs, method=method)["params"]
