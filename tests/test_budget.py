"""The budget of a foreign file: what fits is taken off, what does not is refused with the file's name."""

import pytest

from elk_jax.budget import FACTOR, FLOOR, budget_for
from elk_jax.errors import UserError


def test_budget_grows_with_the_file_and_is_used_up():
    budget = budget_for(100, "weights.pth")
    budget.spend(FLOOR, "tensor a")
    assert budget.left == FACTOR * 100
    budget.spend(FACTOR * 100, "tensor b")
    with pytest.raises(UserError, match="tensor c") as error:
        budget.spend(1, "tensor c")
    assert error.value.where == "weights.pth"


@pytest.mark.parametrize("count", [-1, FLOOR + 1, 2**63, 10**400])
def test_impossible_amounts_are_refused(count):
    budget = budget_for(0, "f")
    with pytest.raises(UserError, match="tensor"):
        budget.spend(count, "tensor")
    assert budget.left == FLOOR
