"""The order of names by the numbers in them."""

import random

import pytest

from elk_jax.images.names import natural_keys
from tests.refusals import refused


def in_order(names):
    names = sorted(names)
    keys = dict(zip(names, natural_keys(names)))
    return sorted(names, key=keys.__getitem__)


@pytest.mark.parametrize(
    "names",
    [
        ["slice1", "Slice2", "slice10"],
        ["slice-1", "slice-2", "slice-10"],  # a dash, not a sign
        ["slice_-3.5", "slice_-1.5", "slice_0.5", "slice_2.5"],
        ["-10", "-9", "-1", "0", "+1", "2"],
        ["z=-1.5", "z=-1", "z=0.25", "z=0.5", "z=1", "z=12.25", "z=12.5"],
        ["0.05", "0.1", "0.5", "1.25"],
        ["1.25", "1.50", "1.75", "2.00", "10.00"],
        ["im1", "im1.5", "im2"],
        [f"series1.{k}" for k in range(1, 12)],  # counted behind the dot
        ["1.2.840.9", "1.2.840.10", "1.2.840.113"],
        ["im 3 of 10", "im 10 of 10"],
        ["a", "b2", "b10", "1"],
    ],
    ids=lambda names: names[0],
)
def test_numbers_in_names_are_compared_as_numbers(names):
    shuffled = random.Random(0).sample(names, len(names))
    assert in_order(shuffled) == names


def test_names_whose_order_is_not_clear_are_refused():
    for names in (["1.5", "1.25"], ["1.8", "1.9", "1.11"], ["0.05", "0.1", "1.9", "1.10"]):
        with refused(names[0], "decimals", where="here"):
            natural_keys(names, "here")


def test_names_that_may_be_one_have_one_key():
    for one, other in (("a1", "A01"), ("1.5", "1.50"), ("1", "01")):
        assert len(set(natural_keys([one, other]))) == 1
    for one, other in (("a1", "a2"), ("a_1", "a_-1")):
        assert len(set(natural_keys([one, other]))) == 2
