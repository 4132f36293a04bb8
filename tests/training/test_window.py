import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.training.window import Window, first_nonfinite
from tests.refusals import refused


def metrics(loss, **more):
    return {"loss": jnp.float32(loss), "finite": jnp.int32(np.isfinite(loss))} | more


def test_means_are_taken_of_the_steps_up_to_a_line_and_the_others_stay():
    window = Window()
    for step, loss in enumerate((1.0, 3.0, 7.0), start=1):
        window.add(step, metrics(loss, learning_rate=jnp.float32(step)))
    assert window.take(2) == {"loss": 2.0, "learning_rate": 2.0}
    assert window.on_host() == [[3, {"loss": 7.0, "learning_rate": 3.0, "finite": 1.0}]]
    assert Window(window.on_host()).take(3) == {"loss": 7.0, "learning_rate": 3.0}


def test_a_step_that_is_not_finite_is_named_with_its_term():
    window = Window()
    window.add(4, metrics(float("nan"), fit=jnp.float32("nan")))
    with refused(4, "fit", "nan", where="training"):
        window.on_host()


@pytest.mark.parametrize(
    "terms, loss, grad, found",
    [
        ({"box": 1.0, "class": 2.0}, 3.0, 1.0, None),
        ({"box": 1.0, "class": float("nan")}, float("nan"), float("nan"), "class"),
        ({"box": float("inf"), "class": float("nan")}, float("nan"), 1.0, "box"),
        ({"box": 1.0, "class": 2.0}, float("inf"), 1.0, "loss"),
        ({"box": 1.0, "class": 2.0}, 3.0, float("nan"), "grad_norm"),
    ],
)
def test_first_nonfinite_term_is_named(terms, loss, grad, found):
    finite = int(np.isfinite(loss) and np.isfinite(grad))
    metrics = {"finite": finite, "grad_norm": grad, "loss": loss, "update_norm": grad, "param_norm": grad} | terms
    assert first_nonfinite(metrics) == found


def test_a_step_may_have_no_norms():
    assert first_nonfinite({"finite": 0, "loss": float("nan"), "fooled": 0.5}) == "loss"


def test_a_term_that_may_be_undefined_does_not_stop_a_finite_step():
    metrics = {"finite": 1, "loss": 1.0, "grad_norm": 1.0, "accuracy": float("nan")}
    assert first_nonfinite(metrics) is None
