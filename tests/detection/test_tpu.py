"""A training step of a small detector, of what one-stage detectors have behind a backbone, and ROIAlign alone, compiled
for four chips of a TPU."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

from elk_jax.backbones import resnet
from elk_jax.data.batches.detection import blank_batch
from elk_jax.detection import detectors, faster_rcnn_config
from elk_jax.detection.efficientdet_config import EfficientDetConfig
from elk_jax.detection.retinanet_config import RetinaNetConfig
from elk_jax.detection.roi_align import multilevel_roi_align
from elk_jax.programs import hlo
from elk_jax.programs.account import account_of
from elk_jax.programs.parts import part_of
from elk_jax.tasks.detection.model import trainable
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Model
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.step import on_mesh
from elk_jax.weights import model_folder
from tests.tpu import compiled, tpu_mesh
from tests.training.hlo import collectives, gathers

CONFIG = faster_rcnn_config.detectron2(
    backbone=resnet.detectron2(
        depth=18, width=32, norm="none", dtype="bfloat16", stride_in_1x1=False, pixel_mean=(60.0,), pixel_std=(60.0,)
    ),
    fpn_channels=64, box_fc_width=128, roi_samples=64, rpn_pre_nms_train=128, rpn_post_nms_train=64,
)  # fmt: skip
FROZEN = (r"backbone/(stem|res2|res3|res4)",)  # fewer convolutions to compile
ONE_STAGE = {
    "retinanet": RetinaNetConfig(backbone=CONFIG.backbone, fpn_channels=64, head_convs=1),
    "efficientdet": EfficientDetConfig(backbone=CONFIG.backbone, channels=64, cells=1, head_convs=1),
}


def step_of(model, frozen=(), **more):
    """(shapes of the state, the text of the program) of a model and blank images. more: entries of the batch."""
    mesh = tpu_mesh()
    optimizer = OptimizerConfig(name="sgd", momentum=0.9, frozen=frozen)
    program = on_mesh(gradient(model, TrainingRecipe(optimizer=optimizer), mesh), mesh)
    sharding = meshes.batch_sharding(mesh)
    blank = {**blank_batch(4, (256, 256), 8), **more}
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), blank)
    return program.state, compiled(program.update.lower(program.state, {}, batch)).as_text()


@pytest.fixture(scope="module")
def step():
    return step_of(trainable(detectors.build(CONFIG)), FROZEN)


@pytest.fixture(scope="module", params=ONE_STAGE)
def one_stage(request):
    """`step_of` a detector without its backbone, whose maps are given."""
    detector = detectors.build(ONE_STAGE[request.param])

    def init(rng):
        return {name: part for name, part in detector.init(rng).items() if name != "backbone"}

    def loss(params, constants, batch, rng, map_images):
        pyramid = detector.backbone.pyramid(params, batch["maps"])
        return detector.loss_from_features(params, pyramid, batch, rng, map_images)

    maps = [
        jax.ShapeDtypeStruct((4, 256 // stride, 256 // stride, 8 * stride), jnp.bfloat16)
        for stride in detector.config.stages
    ]
    return step_of(Model(init, loss, None, per_example=False), maps=maps)


def check_placement(step):
    """Images stay on their chip, and the state is donated."""
    state, text = step
    assert gathers(text) == []
    aliases = text[text.index("input_output_alias=") :].split("entry_computation_layout")[0]
    assert len(re.findall(r"(?:may|must)-alias", aliases)) == len(jax.tree.leaves(state))


def kinds_of_convolutions(text, *parts):
    """The types of the two factors of every convolution of these parts of the model."""
    return [
        {x.outputs[0].dtype for x in computation.inputs(instruction)}
        for computation in hlo.parse(text)
        for instruction in computation.instructions.values()
        if instruction.opcode == "convolution" and part_of(instruction.op_name).path[0] in parts
    ]


def test_images_stay_on_their_chip_and_the_state_is_donated(step):
    check_placement(step)


def test_convolutions_are_of_bfloat16(step):
    kinds = kinds_of_convolutions(step[1], "backbone")
    assert len(kinds) > 20 and all(found == {"bf16"} for found in kinds)


def check_exchange(step, frozen):
    """The chips exchange the gradient once and a few numbers."""
    state, text = step
    read = account_of(hlo.parse(text), 4)
    (((kind, group), total),) = read.collectives().items()
    flat = model_folder.flatten(state.params)
    count = sum(leaf.size for name, leaf in flat.items() if not any(re.search(one, name) for one in frozen))
    assert (kind, group) == ("all-reduce", 4)
    # in the format of the layers, bfloat16, of the last two and those of all levels float32
    assert 2 * count <= total.bytes <= 4 * count
    reduced = [
        sum(operand.outputs[0].elements for operand in computation.inputs(instruction))
        for computation in hlo.parse(text)
        for instruction in computation.instructions.values()
        if instruction.opcode.removesuffix("-start") == "all-reduce"
    ]
    assert sum(reduced) == pytest.approx(count, rel=1e-3)


def test_what_the_chips_exchange_is_the_gradient_and_a_few_numbers(step):
    check_exchange(step, FROZEN)


def test_one_stage_detectors_keep_to_their_chip_and_to_bfloat16(one_stage):
    check_placement(one_stage)
    check_exchange(one_stage, ())
    kinds = kinds_of_convolutions(one_stage[1], "fpn", "class_head", "box_head")
    assert len(kinds) > 20 and all(found == {"bf16"} for found in kinds)


def test_losses_of_all_anchors_read_no_table_of_rows(one_stage):
    """A table [A, 4] would be padded to 128 lanes: 6 MB for these 12,276 anchors, and moved several times."""
    module = hlo.parse(one_stage[1])
    opcodes = {instruction.opcode for computation in module for instruction in computation.instructions.values()}
    assert not {"gather", "scatter", "sort", "while", "conditional"} & opcodes
    read = account_of(module, 4)
    assert not read.unknown_loops and 0 < read.share("losses") < 0.08
    assert read.layout_copies < 0.27 * read.total.bytes


def test_regions_are_pooled_by_tiles(step):
    """Without a scatter; ROIAlign does not have most of the traffic, though the network is small."""
    read = account_of(hlo.parse(step[1]), 4)
    assert 0 < read.share("roi_align") < 0.5
    opcodes = {cost.opcode for cost in read.costs if cost.part.path[:1] == ("roi_align",)}
    assert "scatter" not in opcodes


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
