"""What a layer knows of the devices: the ambient mesh of JAX, if its program is traced on one (`mesh.traced_on`)."""

from __future__ import annotations

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
