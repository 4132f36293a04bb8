"""Slots, orders of epochs, hosts and filling: what all batches share."""

import pickle

import numpy as np
import pytest

from elk_jax.data.batches.shuffle import Shuffle, Stacked, batch_count, filled_rows, host_rows, stack
from elk_jax.data.batches.stream import Reading, Stream, digest
from elk_jax.randomness import Purpose
from tests.refusals import refused

PURPOSE = Purpose.PAIR_ORDER


def numbers(shuffle, first, last):
    return [shuffle(slot) for slot in range(first, last)]


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_everything_comes_once_an_epoch_in_a_new_order(count):
    shuffle = Shuffle(count, 3, PURPOSE)
    epochs = [numbers(shuffle, epoch * count, (epoch + 1) * count) for epoch in range(5)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 7 or len({tuple(epoch) for epoch in epochs}) == 5


def test_the_order_follows_from_seed_purpose_and_epoch():
    """The numbers that a plain generator gives, whichever slot is asked for first."""
    expected = np.concatenate([np.random.default_rng([3, 9, epoch]).permutation(7) for epoch in range(40)])
    backwards = [Shuffle(7, 3, PURPOSE)(slot) for slot in reversed(range(280))]
    assert backwards[::-1] == expected.tolist()
    of = Shuffle(7, 3, Purpose.STRATUM_ORDER, (5,))
    assert numbers(of, 14, 21) == np.random.default_rng([3, 0, 5, 2]).permutation(7).tolist()


def test_a_shuffle_goes_to_worker_processes():
    shuffle = Shuffle(7, 3, PURPOSE)
    assert numbers(pickle.loads(pickle.dumps(shuffle)), 0, 20) == numbers(shuffle, 0, 20)


@pytest.mark.parametrize(("count", "size", "rows"), [(3, 3, [0, 1, 2]), (1, 3, [0, 0, 0]), (2, 4, [0, 1, 1, 1])])
def test_filling_repeats_the_last_example(count, size, rows):
    assert filled_rows(count, size).tolist() == rows
    batch = stack([{"index": np.int32(i)} for i in range(count)], size)
    assert batch["index"].tolist() == rows and batch["index"].dtype == np.int32
    assert batch["valid"].tolist() == [row < count for row in range(size)]


@pytest.mark.parametrize("hosts", [1, 2, 3, 6])
def test_hosts_partition_every_batch(hosts):
    whole = Stacked(lambda slot: {"slot": np.asarray(slot)}, 6)
    for number in (0, 5):
        parts = [Stacked(whole.example, 6, host_rows(6, host, hosts))(number)["slot"] for host in range(hosts)]
        assert {len(part) for part in parts} == {6 // hosts}
        assert np.concatenate(parts).tolist() == list(range(6 * number, 6 * number + 6))
        assert np.concatenate(parts).tolist() == whole(number)["slot"].tolist()


def test_hosts_that_do_not_divide_the_batch_are_refused():
    with refused(6, 4, where="batch_size"):
        host_rows(6, 0, 4)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (8, 4), (9, 4), (3, 1)])
def test_a_finite_set_comes_once(count, batch_size):
    make = Stacked(lambda slot: {"slot": np.asarray(slot)}, batch_size, count=count)
    batches = [make(number) for number in range(batch_count(count, batch_size))]
    assert np.concatenate([batch["slot"][batch["valid"]] for batch in batches]).tolist() == list(range(count))
    assert {len(batch["slot"]) for batch in batches} == {batch_size}


@pytest.mark.parametrize("stop", [0, 1, 9, 1000])
def test_a_stream_resumes_at_any_batch_without_reading_those_before(stop):
    shuffle, asked = Shuffle(7, 3, PURPOSE), []

    def example(slot):
        asked.append(slot)
        return {"index": np.asarray(shuffle(slot))}

    stream = Stream(Stacked(example, 4), "digest", Reading(threads=1, prefetch=1))
    stream.set_state({"next_batch": stop, "stream": "digest"})
    assert next(stream)["index"].tolist() == numbers(shuffle, 4 * stop, 4 * stop + 4)
    stream.close()
    assert min(asked) == 4 * stop


def test_a_digest_ignores_how_batches_are_read():
    first = digest(Reading(), 1, ["a"])
    assert digest(Reading(threads=7, workers=2, prefetch=1), 1, ["a"]) == first
    assert digest(Reading(), 2, ["a"]) != first != digest(Reading(), 1, ["b"])
