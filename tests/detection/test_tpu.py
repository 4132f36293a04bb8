"""ROIAlign with its gradient, compiled for four chips of a TPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from elk_jax.detection.roi_align import multilevel_roi_align
from elk_jax.programs import hlo
from elk_jax.training import mesh as meshes
from tests.tpu import compiled, tpu_mesh
from tests.training.hlo import collectives


def test_roi_align_gathers_whole_tiles_and_never_widens_the_features():
    mesh = tpu_mesh()
    sharding, strides, rois = meshes.batch_sharding(mesh), (4, 8, 16, 32), 96
    levels = tuple((mesh.size, 512 // stride, 512 // stride, 256) for stride in strides)

    def both(levels, boxes, gradient):
        pool = lambda levels: multilevel_roi_align(levels, boxes, (7, 7), strides, 0, True, max_adaptive_samples=8)
        pooled, backward = jax.vjp(pool, levels)
        return pooled, backward(gradient)

    def shaped(shape, kind=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, kind, sharding=sharding)

    lowered = jax.jit(meshes.shard_map_images(mesh)(both)).lower(
        tuple(map(shaped, levels)), shaped((mesh.size, rois, 4), jnp.float32), shaped((mesh.size, rois, 7, 7, 256))
    )
    text = compiled(lowered).as_text()
    assert collectives(text) == []
    module = hlo.parse(text)
    instructions = [i for c in module for i in c.instructions.values()]
    fused = {name for i in instructions if i.opcode == "fusion" for name in i.called["calls"]}
    opcodes = [i.opcode for i in instructions]
    assert not {"scatter", "conditional"} & set(opcodes)
    assert 0 < opcodes.count("gather") < 30  # a gather of each pair of taps would be 16 x 16
    stored = [a for c in module if c.name not in fused for i in c.instructions.values() for a in i.outputs]
    of_features = [a for a in stored if a.elements >= 128 * 128 * 256]
    assert of_features and {a.dtype for a in of_features} == {"bf16"}
