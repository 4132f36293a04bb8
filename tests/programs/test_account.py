"""The account of compiled programs, against hand counts and against XLA's own cost analysis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from elk_jax.programs import costs, hlo
from elk_jax.programs.account import account, account_of
from elk_jax.programs.parts import Part, part_of, turns_of
from tests.tpu import compiled, tpu_mesh

NAMES = {
    "jit(update)/jvp(FasterRCNN.features)/backbone/res2_0/conv1/conv_general_dilated": (
        ("backbone", "res2_0", "conv1"), "forward"),
    "jit(update)/transpose(jvp(rpn))/conv1/transpose()/conv_general_dilated": (("rpn", "conv1"), "backward"),
    "jit(update)/jvp(proposals)/shard_map/vmap(vmap(jit(clip)))/min": (("proposals",), "forward"),
    "jit(update)/jvp(roi_align)/shard_map/vmap()/turns=12/while/body/gather": (("roi_align",), "forward"),
    "jit(update)/jvp()/jit(_threefry_split)/loss_from_features.<locals>.<genexpr>/xor": ((), "forward"),
    "jit(f)/jvp(UNet)/mid/rematted_computation/attn1/bqhd,bkhd->bhqk/dot_general": (
        ("UNet", "mid", "attn1"), "recomputation"),
    "state.params['fpn']['output2']['kernel']": (("fpn", "output2"), "forward"),
    "state.opt_state[0].trace['fpn']['output2']['kernel']": (("optimizer",), "forward"),
    "constants[\\'vae\\'][\\'conv_in\\'][\\'bias\\']": (("vae", "conv_in"), "forward"),
    "batch['image']": (("input",), "forward"),
    "jit(update)/add": ((), "forward"),
    "": ((), "forward"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_an_operation_says_its_part(name):
    assert part_of(name) == Part(*NAMES[name])


def test_a_scope_says_how_often_its_loop_runs():
    assert turns_of("jit(f)/turns=3/while/body/turns=12/while") == 12 and turns_of("jit(f)/while") is None


BYTES = {
    "f32[2,3]": 24,
    "bf16[8,128]{1,0:T(8,128)(2,1)}": 2048,
    "f32[100,4]{1,0:T(8,128)}": 104 * 128 * 4,
    "f32[100,4]{0,1:T(8,128)}": 128 * 8 * 4,  # the long axis is the fastest: 4 rows are padded to 8
    "f32[3]{0:T(1024)}": 4096,
    "f32[]": 4,
    "pred[5]{0}": 5,
    "s4[10]{0:E(4)}": 5,
    "f8e4m3fn[7]": 7,
    "token[]": 0,
}


@pytest.mark.parametrize("text", BYTES)
def test_bytes_of_arrays_have_the_padding_of_their_tiles(text):
    (array,) = hlo.arrays(text)
    assert array.bytes == BYTES[text] and array.in_main_memory


def test_arrays_on_the_chip_are_not_in_main_memory():
    (array,) = hlo.arrays("f32[8,128]{1,0:T(8,128)S(1)}")
    assert array.space == 1 and not array.in_main_memory


GROUPS = {
    "replica_groups={{0,1},{2,3}}, x": 2,
    "replica_groups=[2,8]<=[16]": 8,
    "replica_groups=mesh['a'=2,'b'=4] {'b'}, x={1}": 4,
    "replica_groups=mesh['a'=2,'b'=4] {'a','b'}": 8,
    "replica_groups=mesh['a'=8] {'a':(2)4}": 4,
    "source_target_pairs={{0,1},{1,0}}": 2,
    "replica_groups={}": 32,
}


@pytest.mark.parametrize("attributes", GROUPS)
def test_devices_that_take_part_in_a_collective(attributes):
    assert costs._group_size(attributes, 32) == GROUPS[attributes]


PROGRAM = """HloModule m, is_scheduled=true

%slicing (p0: f32[100,128], p1: s32[]) -> f32[1,128] {
  %p0 = f32[100,128]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %d = f32[1,128]{1,0} dynamic-slice(%p0, %p1, %z), dynamic_slice_sizes={1,128}
}

%updating (q0: f32[100,128], q1: f32[1,128], q2: s32[]) -> f32[100,128] {
  %q0 = f32[100,128]{1,0} parameter(0)
  %q1 = f32[1,128]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %z.1 = s32[] constant(0)
  ROOT %u = f32[100,128]{1,0} dynamic-update-slice(%q0, %q1, %q2, %z.1)
}

ENTRY %main (a: f32[100,128], i: s32[]) -> f32[100,128] {
  %a = f32[100,128]{1,0} parameter(0), metadata={op_name="state.params['head']['kernel']"}
  %i = s32[] parameter(1)
  %row = f32[1,128]{1,0} fusion(%a, %i), kind=kLoop, calls=%slicing, metadata={op_name="jit(f)/head/(odd \\"name/slice"}
  %start = (f32[1,128]{1,0:S(1)}, f32[1,128]{1,0}, u32[]{:S(2)}) copy-start(%row)
  %near = f32[1,128]{1,0:S(1)} copy-done(%start)
  %room = f32[100,128]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %out = f32[100,128]{1,0} fusion(%a, %near, %i), kind=kLoop, calls=%updating, metadata={op_name="jit(f)/tail/add"}
}
"""


def test_slices_and_updates_in_place_cost_what_they_touch():
    found = {cost.name: cost for cost in account_of(hlo.parse(PROGRAM)).costs}
    row = 128 * 4
    assert {name: cost.bytes for name, cost in found.items()} == {"row": 2 * row + 4, "start": row, "out": row + 4}
    assert found["start"].part.path == ("tail",)  # a prefetch is of the part that reads it


UPDATE = "dynamic-update-slice(%q0, %q1, %q2, %z.1)"
ROW, WHOLE = 128 * 4, 100 * 128 * 4
UPDATED = f"%u = f32[100,128]{{1,0}} {UPDATE}\n  ROOT %end = "
FUSIONS = {  # instructions in place of the update in place -> bytes beside the index; the row is on the chip
    "a bitcast of an update in place": (UPDATED + "f32[100,128]{1,0} bitcast(%u)", ROW),
    "read by another operation": (UPDATED + "f32[100,128]{1,0} exponential(%u)", 2 * WHOLE),
    "in another order": (UPDATED + "f32[100,128]{0,1} copy(%u)", 2 * WHOLE),
    "of zeros": ("%n = f32[] constant(0)\n  %b = f32[100,128]{1,0} broadcast(%n), dimensions={}\n"
                 f"  ROOT %u = f32[100,128]{{1,0}} {UPDATE.replace('%q0', '%b')}", WHOLE),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSIONS)
def test_an_update_is_in_place_only_where_a_result_takes_the_place_of_an_operand(name):
    body, expected = FUSIONS[name]
    program = PROGRAM.replace(f"ROOT %u = f32[100,128]{{1,0}} {UPDATE}", body)
    (cost,) = (cost for cost in account_of(hlo.parse(program)).costs if cost.name == "out")
    assert cost.bytes == expected + 4


NESTED = """HloModule m

%relabel (r: f32[10,100]) -> f32[1000] {
  %r = f32[10,100]{1,0} parameter(0)
  ROOT %flat = f32[1000]{0} bitcast(%r)
}

%outer (q: f32[10,100]) -> f32[1000] {
  %q = f32[10,100]{1,0} parameter(0)
  %within = f32[1000]{0} fusion(%q), kind=kLoop, calls=%relabel
  ROOT %end = f32[1000]{0} exponential(%within)
}

ENTRY %main (a: f32[10,100]) -> f32[1000] {
  %a = f32[10,100]{1,0} parameter(0)
  ROOT %out = f32[1000]{0} fusion(%a), kind=kLoop, calls=%outer
}
"""
END = "ROOT %end = f32[1000]{0} exponential(%within)"
SLICE = "ROOT %end = f32[10]{0} slice(%within), slice={[0:10]}"
HANDED_ON = {  # program -> bytes: what a fusion in a fusion hands on is read from there
    "it is read": (NESTED, 8000),
    "a part of it is read": (NESTED.replace(END, SLICE).replace("%out = f32[1000]", "%out = f32[10]"), 80),
    "it is the result": (NESTED.replace("calls=%outer", "calls=%relabel"), 8000),
}


@pytest.mark.parametrize("name", HANDED_ON)
def test_an_operand_that_a_fusion_hands_on_is_read(name):
    program, expected = HANDED_ON[name]
    (cost,) = account_of(hlo.parse(program)).costs
    assert cost.bytes == expected


INSTRUCTIONS = {  # at the end of the program -> bytes
    "dynamic-update-slice(%a, %near, %i, %i)": ROW + 4 + 4,  # the row lies on the chip and is only written
    "dynamic-update-slice(%a, %row, %i, %i)": 2 * ROW + 4 + 4,
    "dynamic-slice(%a, %i, %i)": 2 * WHOLE + 4 + 4,
    "negate(%a)": 2 * WHOLE,
}


@pytest.mark.parametrize("text", INSTRUCTIONS)
def test_bytes_of_an_instruction(text):
    program = PROGRAM.replace("fusion(%a, %near, %i), kind=kLoop, calls=%updating", text)
    (cost,) = (cost for cost in account_of(hlo.parse(program)).costs if cost.name == "out")
    assert cost.bytes == INSTRUCTIONS[text]


STARTS = {  # of an array of 4000 bytes, from and to main memory: what it makes is written once
    "(f32[1000]{0}, f32[1000]{0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}": 8000,
    "(f32[1000]{0}, f32[4000]{0}) all-gather-start(%a), replica_groups={{0,1,2,3}}, dimensions={0}": 20000,
    "f32[1000]{0} all-reduce-start(%a), replica_groups={}": 8000,
    "(f32[1000]{0}, f32[1000]{0}, u32[]) copy-start(%a)": 8000,
    "(f32[1000]{0}, f32[1000]{0:S(5)}, u32[]) copy-start(%a)": 8000,
    "(f32[1000]{0:S(5)}, f32[1000]{0}, u32[]) copy-start(%a)": 4000,  # to the host
    "((f32[1000]{0}), f32[10]{0:S(1)}, s32[]) slice-start(%a), slice={[0:10]}": 40,
}


@pytest.mark.parametrize("text", STARTS)
def test_what_runs_beside_the_program_is_counted_once(text):
    program = f"""HloModule m

ENTRY %main (a: f32[1000]) -> f32[1000] {{
  %a = f32[1000]{{0}} parameter(0)
  ROOT %s = {text}
}}
"""
    (cost,) = account_of(hlo.parse(program), devices=4).costs
    assert cost.bytes == STARTS[text] and cost.is_async


def test_a_kernel_has_the_arithmetic_that_it_says_it_has():
    config = 'custom_call_target="kernel", backend_config={"cost_estimate":{"flops":"960","bytes_accessed":"7"}}'
    call = PROGRAM.replace("fusion(%a, %i), kind=kLoop, calls=%slicing", f"custom-call(%a, %i), {config}")
    (kernel,) = (cost for cost in account_of(hlo.parse(call)).costs if cost.opcode == "custom-call")
    assert kernel.flops == 960 and kernel.bytes == 100 * 128 * 4 + 4 + 128 * 4


@pytest.mark.parametrize("text", ["", "HloModule m", "nothing of the kind"])
def test_a_text_that_is_not_a_program(text):
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse(text)


def conv(x, k, **how):
    return jax.lax.conv_general_dilated(x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **how)


CONVOLUTIONS = {
    "padded": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 2), "padding": ((3, 3), (3, 3))},
    "dilated": {"window_strides": (1, 1), "padding": "VALID", "rhs_dilation": (2, 2)},
    "transposed": {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), "lhs_dilation": (2, 2)},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_arithmetic_is_that_of_the_cost_analysis(name):
    x, k = jnp.ones((2, 9, 11, 8)), jnp.ones((3, 3, 8, 16))
    program = jax.jit(lambda x, k: conv(x, k, **CONVOLUTIONS[name])).lower(x, k)
    assert account(program.compile()).total.flops == pytest.approx(program.cost_analysis()["flops"], rel=1e-6)


IMAGE, KERNEL, RESULT = "f32[2,9,11,8]{3,2,1,0}", "f32[3,3,8,16]{3,2,1,0}", "f32[2,9,11,16]{3,2,1,0}"
WINDOW = "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f"
LIBRARY = {  # what a GPU's program calls -> (first operand, second operand, result, target)
    "the convolution": (IMAGE, KERNEL, RESULT, "convForward"),
    "the gradient of its image": (RESULT, KERNEL, IMAGE, "convBackwardInput"),
    "the gradient of its kernel": (IMAGE, RESULT, KERNEL, "convBackwardFilter"),
}


def library_call(first: str, second: str, result: str, rest: str):
    """The cost of a call of a library with 1000 bytes of working space."""
    program = f"""HloModule m

ENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {{
  %a = {first} parameter(0)
  %b = {second} parameter(1)
  ROOT %call = ({result}, s8[1000]{{0}}) custom-call(%a, %b), {rest}
}}
"""
    (cost,) = account_of(hlo.parse(program)).costs
    return cost


@pytest.mark.parametrize("name", LIBRARY)
def test_convolutions_of_a_library_have_their_arithmetic(name):
    *shapes, target = LIBRARY[name]
    cost = library_call(*shapes, f'{WINDOW}, custom_call_target="__cudnn${target}"')
    x, k = jnp.ones((2, 9, 11, 8)), jnp.ones((3, 3, 8, 16))
    program = jax.jit(lambda x, k: conv(x, k, **CONVOLUTIONS["padded"])).lower(x, k)
    assert cost.flops == pytest.approx(program.cost_analysis()["flops"], rel=1e-6)
    assert cost.bytes == 4 * (2 * 9 * 11 * (8 + 16) + 3 * 3 * 8 * 16)


@pytest.mark.parametrize("target", ["__cublas$gemm", "__cublas$lt$matmul"])
def test_products_of_a_library_have_their_arithmetic(target):
    numbers = '"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}'
    rest = f'custom_call_target="{target}", backend_config={{"gemm_backend_config":{{{numbers}}}}}'
    cost = library_call("f32[3,40,50]{2,1,0}", "f32[3,40,60]{2,1,0}", "f32[3,50,60]{2,1,0}", rest)
    assert cost.flops == 2 * 3 * 50 * 60 * 40 and cost.bytes == 4 * 3 * (40 * 50 + 40 * 60 + 50 * 60)


def test_loops_count_as_often_as_they_run():
    def f(x, w):
        def body(x, _):
            with jax.named_scope("layer"):
                return jnp.tanh(x @ w), None

        return jax.lax.scan(body, x, None, length=7)[0]

    found = account(jax.jit(f).lower(jnp.ones((16, 32)), jnp.ones((32, 32))).compile())
    assert found.total.flops == 7 * 2 * 16 * 32 * 32 and not found.unknown_loops
    assert found.by_part()["layer"].flops == found.total.flops
    assert found.total.bytes >= 7 * 32 * 32 * 4


def test_a_loop_of_unknown_length_counts_once_unless_its_scope_says_more():
    def f(x, scope):
        with jax.named_scope(scope):
            return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x)

    once, often = (
        account(jax.jit(f, static_argnums=1).lower(jnp.ones((4, 4)), scope).compile()) for scope in ("a", "turns=5")
    )
    assert once.unknown_loops and not often.unknown_loops
    assert 5 * once.total.flops == often.total.flops == 5 * 2 * 4**3


def layers(weights: int, rows: int):
    """The gradient of a layer on v5e:2x2: (program, bytes of its weights)."""
    mesh = tpu_mesh("v5e:2x2", fsdp=weights)
    x = jax.ShapeDtypeStruct((rows, 256), jnp.float32)
    w = jax.ShapeDtypeStruct((256, 512), jnp.float32)

    def gradient(w, x):
        with jax.named_scope("layer"):
            return jax.grad(lambda w: jnp.square(jnp.tanh(x @ w)).sum())(w)

    batch, split = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P(None, "fsdp"))
    return compiled(jax.jit(gradient, in_shardings=(split, batch), out_shardings=split).lower(w, x)), 256 * 512 * 4


RING = """HloModule m, is_scheduled=true

%body (p: (f32[64], u32[])) -> (f32[64], u32[]) {{
  %p = (f32[64], u32[]) parameter(0)
  %x = f32[64]{{0}} get-tuple-element(%p), index=0
  %i = u32[] get-tuple-element(%p), index=1
  %next = f32[64]{{0}} collective-permute(%x), source_target_pairs={{{{0,1}},{{1,0}}}}
  %by = u32[] constant({step})
  %after = u32[] add(%i, %by)
  ROOT %out = (f32[64], u32[]) tuple(%next, %after)
}}

%more (q: (f32[64], u32[])) -> pred[] {{
  %q = (f32[64], u32[]) parameter(0)
  %j = u32[] get-tuple-element(%q), index=1
  %limit = u32[] constant({limit})
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}}

ENTRY %main (a: f32[64]) -> (f32[64], u32[]) {{
  %a = f32[64]{{0}} parameter(0)
  %first = u32[] constant(0)
  %begin = (f32[64], u32[]) tuple(%a, %first)
  ROOT %loop = (f32[64], u32[]) while(%begin), condition=%more, body=%body
}}
"""


@pytest.mark.parametrize("step, limit, turns", [(1, 4, 4), (2, 4, 2), (2, 7, 4), (3, 0, 0)])
def test_loops_that_count_by_a_constant_run_so_often(step, limit, turns):
    read = account_of(hlo.parse(RING.format(step=step, limit=limit)), 2)
    assert sum(exchange.bytes for exchange in read.collectives().values()) == turns * 64 * 4
    assert not read.unknown_loops


def test_a_loop_that_may_never_end_counts_once():
    read = account_of(hlo.parse(RING.format(step=0, limit=4)), 2)
    assert len(read.unknown_loops) == 1


def test_collectives_of_a_data_parallel_tpu_program_are_those_counted_by_hand():
    """Every chip has the weights; their gradient is summed over all four, and nothing else is exchanged."""
    program, weights = layers(weights=1, rows=64)
    read = account(program, 4)
    assert read.collectives() == {("all-reduce", 4): (weights, 1)}
    assert read.by_part()["layer"].flops == 2 * (64 // 4) * 256 * 512 * 2  # forward, and the gradient of w


def test_collectives_of_a_program_with_split_weights_are_those_counted_by_hand():
    """Every chip has a quarter of the weights: they are gathered for the product, and each gets the sum of its part of
    the gradient."""
    program, weights = layers(weights=4, rows=8192)
    found = account(program, 4).collectives()
    assert found == {("all-gather", 4): (weights, 1), ("reduce-scatter", 4): (weights, 1)}
    assert program.memory_analysis().argument_size_in_bytes == (weights + 8192 * 256 * 4) // 4


def test_a_scan_that_the_tpus_compiler_rewrites_counts_as_often_as_it_runs():
    mesh = tpu_mesh("v5e:1x1")
    square = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=NamedSharding(mesh, P()))

    def f(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

    read = account(compiled(jax.jit(f).lower(square, square)))
    assert not read.unknown_loops and read.total.flops == 7 * 2 * 256**3
