"""What a layer knows of the devices: the ambient mesh of JAX, if its program is traced on one (`mesh.traced_on`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P


def batch_spec(batch: int) -> P | None:
    """How a batch of this size is split over all devices; None without a mesh, or where it does not divide.

    None also inside `shard_map`, where a program sees the images of one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or batch % mesh.size:
        return None
    return P(mesh.axis_names)


def split_by_images(x: jax.Array) -> jax.Array:
    """`x` [B, ...], whose images, and the gradients of them, stay on their devices.

    Where parameters are split as well, the compiler may otherwise split the result as it finds the kernel split, and
    move images instead of kernels.
    """
    spec = batch_spec(x.shape[0])
    if spec is None or jax.sharding.get_abstract_mesh().size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def with_one_gradient(function: Callable[[Any, Any], Any], params: Any, inputs: Any) -> Any:
    """`function(params, inputs)`, of arrays [B, ...] and image by image, that uses its parameters several times.

    Each device adds up the gradient of all uses for its own images; then the devices exchange the sum. The compiler
    would exchange the gradient of each use, and add up afterwards.
    """
    spec = batch_spec(jax.tree.leaves(inputs)[0].shape[0])  # which may be a symbol (`jax.export`): it has no `len`
    if spec is None or jax.sharding.get_abstract_mesh().size == 1:
        return function(params, inputs)
    return jax.shard_map(function, in_specs=(P(), spec), out_specs=spec, check_vma=False)(params, inputs)
