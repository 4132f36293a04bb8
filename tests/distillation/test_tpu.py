"""What distillation reads of an image, compiled for chips of a TPU."""

import jax
import jax.numpy as jnp

from elk_jax.distillation import points
from elk_jax.distillation.points import Grid
from elk_jax.programs.account import account
from elk_jax.training import mesh as meshes
from tests.tpu import compiled, tpu_mesh

SIDE = 512


def test_the_cells_of_the_breast_are_found_in_few_readings_of_the_image():
    """An array [h, 8, w, 8] of a cell's 8 x 8 pixels would be padded to [h, 8, w, 128]."""
    images = jax.ShapeDtypeStruct((4, SIDE, SIDE, 1), jnp.float32, sharding=meshes.batch_sharding(tpu_mesh()))
    grid = Grid((SIDE // 8, SIDE // 8), (SIDE, SIDE))
    found = jax.jit(lambda image: points.cells_of_breast(image, grid, 0.03)).lower(images)
    assert account(compiled(found), 4).total.bytes < 6 * 4 * SIDE**2
