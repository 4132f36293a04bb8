"""A halving convolution with its gradients, compiled for a chip of a TPU."""

import jax
import jax.numpy as jnp

from elk_jax.gan.layers import halved
from elk_jax.programs.account import account
from elk_jax.training import mesh as meshes
from tests.tpu import compiled, tpu_mesh


def test_kernels_larger_than_their_maps_are_not_rearranged():
    mesh = tpu_mesh()
    maps = jax.ShapeDtypeStruct((4, 8, 8, 128), jnp.float32, sharding=meshes.batch_sharding(mesh))
    kernel = jax.ShapeDtypeStruct((6, 6, 128, 256), jnp.float32, sharding=meshes.replicated(mesh))
    gradients = jax.jit(jax.grad(lambda *given: jnp.square(halved(*given)).sum(), (0, 1)))
    read = account(compiled(gradients.lower(maps, kernel)), 4)
    assert read.layout_copies < 4 * kernel.size, "less than one reading of the kernel"
