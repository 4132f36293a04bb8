"""Memory of a program by what it holds."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from elk_jax.programs import hlo
from elk_jax.programs.memory import memory, waiting_activations
from elk_jax.training.state import TrainState

SCHEDULE = """HloModule m, is_scheduled=true

ENTRY %main (a: f32[1000]) -> f32[1000] {
  %a = f32[1000]{0} parameter(0), metadata={op_name="batch['image']"}
  %first = f32[1000]{0} exponential(%a), metadata={op_name="jit(f)/jvp(net)/one/exp"}
  %second = f32[1000]{0} tanh(%first), metadata={op_name="jit(f)/jvp(net)/two/tanh"}
  %third = f32[1000]{0:S(1)} tanh(%second), metadata={op_name="jit(f)/jvp(net)/three/tanh"}
  %back = f32[1000]{0} multiply(%second, %third), metadata={op_name="jit(f)/transpose(jvp(net))/three/mul"}
  %back2 = f32[1000]{0} multiply(%back, %second), metadata={op_name="jit(f)/transpose(jvp(net))/two/mul"}
  ROOT %out = f32[1000]{0} multiply(%back2, %first), metadata={op_name="jit(f)/transpose(jvp(net))/one/mul"}
}
"""


def test_activations_are_forward_results_that_wait_where_the_memory_is_fullest():
    """Fullest at back2: first and second wait, beside back and back2; what lies on the chip does not count."""
    assert waiting_activations(hlo.parse(SCHEDULE)) == 2 * 4000


WEIGHT = """  %w = f32[9000]{0} parameter(1)
  %new = f32[9000]{0} negate(%w), metadata={op_name="jit(f)/optimizer/neg"}
  ROOT %all = (f32[1000]{0}, f32[9000]{0}) tuple(%out, %new)
}"""


def test_results_in_the_place_of_arguments_are_not_working_memory():
    """The update of a large donated weight, at the end, is not where the memory is fullest."""
    updating = SCHEDULE.replace("  ROOT %out", "  %out").replace('/one/mul"}\n}', f'/one/mul"}}\n{WEIGHT}')
    donated = updating.replace("scheduled=true", "scheduled=true, input_output_alias={ {1}: (1, {}, may-alias) }")
    assert waiting_activations(hlo.parse(donated)) == 2 * 4000
    assert waiting_activations(hlo.parse(updating)) < 2 * 4000  # it is not donated


def test_memory_is_divided_by_the_names_of_the_arguments():
    def update(state, constants, batch):
        return state.params * constants["scale"] + batch["image"].sum(), state.opt_state + state.step

    state = TrainState(jnp.ones(()), jnp.ones(1000), jnp.ones(2000), None)
    program = jax.jit(update).lower(state, {"scale": jnp.ones(())}, {"image": jnp.ones((3, 5))}).compile()
    held = memory(program)
    assert held[:5] == (4000, 8000, 0, 4, 60 + 4)  # the step number is with the batch
    assert held.results >= 12000 and held.total == sum(held) >= 24068


TUPLE = """HloModule m, is_scheduled=true

ENTRY %main (args: (f32[10], f32[20], f32[30], f32[40])) -> f32[10] {
  %args = (f32[10]{0}, f32[20]{0}, f32[30]{0}, f32[40]{0}) parameter(0)
  ROOT %one = f32[10]{0} get-tuple-element(%args), index=0
}"""


def test_arguments_in_one_tuple_have_their_names():
    """JAX makes a tuple of more than 2000 arguments; those that no instruction reads are left out."""
    params, batch = {"w": jnp.zeros(10), "unread": jnp.zeros(5)}, {"image": jnp.zeros(40)}
    state = TrainState(jnp.zeros(20), params, {"trace": jnp.zeros(30)}, None)
    compiled = SimpleNamespace(
        memory_analysis=lambda: SimpleNamespace(
            temp_size_in_bytes=0, output_size_in_bytes=0, alias_size_in_bytes=0, generated_code_size_in_bytes=0
        ),
        as_text=lambda: TUPLE,
        args_info=((state, {}, batch), {}),
        _executable=SimpleNamespace(_kept_var_idx={0, 2, 3, 4}),
    )
    held = memory(compiled)
    assert (held.parameters, held.optimizer, held.batch) == (80, 120, 200)  # the step is that of the batch
