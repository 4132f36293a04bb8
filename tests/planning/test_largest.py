"""The largest batch that fits, found with few compilations."""

from __future__ import annotations

import math

import pytest

from elk_jax.planning.largest import MOST, largest_batch

LIMIT = 16e9


def line(fixed: float, each: float, refused: float = math.inf):
    """Memory along a line; from `refused` examples on the compiler gives no number."""
    return lambda size: math.inf if size >= refused else fixed + each * size


CASES = {  # memory -> the largest that fits
    "a line": (line(2e9, 1e9), 14),
    "a line that the compiler refuses above the limit": (line(2e9, 1e9, 15), 14),
    "the first is too large": (line(2e9, 5e9), 2),
    "only one fits": (line(2e9, 10e9), 1),
    "none fits": (line(20e9, 1e9), 0),
    "none is compiled": (line(0, 0, 1), 0),
    "in steps": (lambda size: 2e9 + 1e9 * (-(-size // 4) * 4), 12),
    "no end": (line(1e9, 0.0), MOST),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("start", [1, 2, 8])
def test_the_largest_batch_that_fits(name, start):
    memory, largest = CASES[name]
    asked: list[int] = []

    def total(size: int) -> float:
        asked.append(size)
        return memory(size)

    found = largest_batch(total, start, LIMIT)
    assert found == 0 or memory(found) <= LIMIT  # what is said to fit fits
    assert largest - max(1, largest // 8) <= found <= largest
    assert len(asked) == len(set(asked)) and (found == 0 or found in asked)
    assert len(asked) <= (13 if name == "no end" else 7), asked
