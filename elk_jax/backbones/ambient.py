"""A layer's knowledge of the devices: JAX's ambient mesh, if the program is traced on one (`mesh.traced_on`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P


def batch_spec(batch: int) -> P | None:
    """The split of a batch of this size over all devices; None without a mesh, or if it is not divisible.

    Also None inside `shard_map`, where a program sees only the images of one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or batch % mesh.size:
        return None
    return P(mesh.axis_names)


def split_by_images(x: jax.Array) -> jax.Array:
    """`x` [B, ...], constrained so that images and their gradients stay on their devices.

    If parameters are split as well, the compiler may otherwise split the result like the kernel, and move images
    instead of kernels.
    """
    spec = batch_spec(x.shape[0])
    if spec is None or jax.sharding.get_abstract_mesh().size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def with_one_gradient(function: Callable[[Any, Any], Any], params: Any, inputs: Any) -> Any:
    """`function(params, inputs)`, for arrays [B, ...] and image by image, that uses its parameters several times.

    Each device sums the gradient of all uses for its own images; then the devices exchange the sum. The compiler would
    exchange the gradient of each use and sum afterwards.
    """
    spec = batch_spec(jax.tree.leaves(inputs)[0].shape[0])  # may be a symbol (`jax.export`), which has no `len`
    if spec is None or jax.sharding.get_abstract_mesh().size == 1:
        return function(params, inputs)
    return jax.shard_map(function, in_specs=(P(), spec), out_specs=spec, check_vma=False)(params, inputs)
