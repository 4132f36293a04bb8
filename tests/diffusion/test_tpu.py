"""A training step of a block of the U-Net, compiled for four chips of a TPU."""

import re

import jax
import jax.numpy as jnp
import pytest

from elk_jax.diffusion.attention import attend
from elk_jax.diffusion.unet import DownBlock, UNetConfig
from elk_jax.programs import costs, hlo
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Model
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.step import on_mesh
from tests.tpu import compiled, tpu_mesh
from tests.training.hlo import gathers

IMAGES, SIDE, TOKENS, WIDTH = 4, 4, 7, 128  # wide enough for kernels to be split over chips


@pytest.fixture(scope="module")
def step():
    """(shapes of the state, the executable)"""
    mesh = tpu_mesh(fsdp=4)
    block = DownBlock(UNetConfig(layers_per_block=1, norm_num_groups=4, dtype="bfloat16"), WIDTH, heads=2, last=False)
    shapes = {"x": (IMAGES, SIDE, SIDE, WIDTH), "time": (IMAGES, WIDTH), "text": (IMAGES, TOKENS, WIDTH)}
    start = lambda rng: block.init(rng, *(jnp.zeros(shape, jnp.bfloat16) for shape in shapes.values()))

    def loss(params, _, batch, *rest):
        return block.apply(params, *(batch[name] for name in shapes))[0].astype(jnp.float32).mean(), {}

    program = on_mesh(gradient(Model(start, loss, None, per_example=False), TrainingRecipe(), mesh), mesh)
    sharding = meshes.batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for name, shape in shapes.items()}
    return program.state, compiled(program.update.lower(program.state, {}, batch))


def test_kernels_are_gathered_where_images_stay_and_the_state_is_donated(step):
    state, executable = step
    text = executable.as_text()
    split = {leaf.size for leaf in jax.tree.leaves(state.params) if leaf.size >= meshes.SMALL}
    moved = gathers(text)
    assert {one.kind for one in moved} == {"all-gather"} and {one.elements for one in moved} <= split
    aliases = text[text.index("input_output_alias=") :].split("entry_computation_layout")[0]
    assert len(re.findall(r"(?:may|must)-alias", aliases)) == len(jax.tree.leaves(state))


def test_products_are_of_bfloat16_and_attention_is_a_kernel(step):
    products, kernels = [], []
    module = hlo.parse(step[1].as_text())
    for computation in module:
        for instruction in computation.instructions.values():
            if instruction.opcode in ("convolution", "dot"):
                products.append({x.outputs[0].dtype for x in computation.inputs(instruction)})
            if "tpu_custom_call" in instruction.attributes:
                kernels.append(costs.arithmetic(module, computation, instruction))
    assert len(products) > 30 and all(kinds == {"bf16"} for kinds in products)
    scores = [SIDE**4, SIDE**2 * TOKENS]  # of the image of a chip with itself and with the text
    assert sorted(kernels) == sorted(2 * n * products * WIDTH for n in scores for products in (2, 5))


def test_attention_to_a_single_key_is_not_a_kernel():
    """The compiler rejects the kernel's products with a matrix of one column of bfloat16."""
    mesh = tpu_mesh()
    few, one = (
        jax.ShapeDtypeStruct((IMAGES, n, 2, 64), jnp.bfloat16, sharding=meshes.batch_sharding(mesh)) for n in (16, 1)
    )
    loss = lambda *given: attend(*given).astype(jnp.float32).sum()
    program = jax.jit(meshes.traced_on(mesh, jax.grad(loss, (0, 1, 2))))
    assert "tpu_custom_call" not in compiled(program.lower(few, one, one)).as_text()
