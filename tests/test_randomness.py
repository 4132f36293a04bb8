"""Streams of random numbers: the numbers themselves, and that no purpose can be padded into another."""

from itertools import combinations, product

import numpy as np
import pytest

from elk_jax.errors import UserError
from elk_jax.randomness import Purpose, generator, random_order

SHARED = {
    frozenset({Purpose.PATIENTS, Purpose.STRATUM_ORDER}),
    frozenset({Purpose.CANVAS_ORDER, Purpose.BUCKET_ORDER}),
    frozenset({Purpose.PLACEMENT, Purpose.BATCH_ORDER}),
}
POOL = 4
"""Words up to which NumPy pads with zeros."""


def names(purpose, seed=42, most=12):
    """What NumPy makes of the words of many of a purpose's streams."""
    for indices in product(range(most), repeat=len(purpose.indices)):
        words = [seed, *purpose.words(*indices)]
        yield tuple(words + [0] * (POOL - len(words)))


def phantoms(purpose):
    return purpose.name.startswith("PHANTOM")


@pytest.mark.parametrize("of_phantoms", [False, True])
def test_no_stream_of_one_purpose_is_one_of_another(of_phantoms):
    members = [p for p in Purpose if phantoms(p) == of_phantoms and p is not Purpose.PHANTOM_LESION]
    found = {p: set(names(p)) for p in members}
    for one, other in combinations(members, 2):
        assert found[one].isdisjoint(found[other]) == (frozenset({one, other}) not in SHARED), (one, other)


@pytest.mark.parametrize("purpose", Purpose)
def test_every_index_gives_another_stream(purpose):
    assert len(set(names(purpose))) == 12 ** len(purpose.indices)


def test_numpy_pads_with_zeros_up_to_its_pool():
    drawn = lambda *words: np.random.default_rng(words).random()
    assert drawn(42, 5) == drawn(42, 5, 0, 0) != drawn(42, 5, 0, 0, 0)


def test_the_numbers_of_a_stream():
    for words, arguments in [
        ([42], (Purpose.PATIENTS,)),
        ([42, 3, 1, 2], (Purpose.AUGMENTATION, 1, 2)),
        ([42, 2, 0, 7], (Purpose.BATCH_ORDER, 7)),
        ([42, 4, 6, 5, 21], (Purpose.PHANTOM_TISSUE, 6, 5, 21)),
        ([42, 4, 6, 4], (Purpose.PHANTOM_GLAND, 6)),
    ]:
        assert generator(42, *arguments).random() == np.random.default_rng(words).random()
    expected = np.random.default_rng([42, 9, 2]).permutation(9)
    np.testing.assert_array_equal(random_order(9, 42, Purpose.PAIR_ORDER, 2), expected)


@pytest.mark.parametrize("indices", [(), (1, 2), (-1,), (1 << 32,)])
def test_a_purpose_has_its_number_of_indices(indices):
    with pytest.raises(ValueError, match="PAIR_ORDER"):
        generator(42, Purpose.PAIR_ORDER, *indices)


@pytest.mark.parametrize("seed", [-1, 1 << 32, 1 << 63, 0.5, True, "1"])
def test_a_seed_has_32_bits(seed):
    with pytest.raises(UserError) as error:
        generator(seed, Purpose.PATIENTS)
    assert error.value.where == "seed"
