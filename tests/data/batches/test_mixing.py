from collections import Counter

import numpy as np
import pytest

from elk_jax.data.batches import mixing
from tests.refusals import refused


@pytest.fixture
def infos(make_info):
    """10 portrait images with lesions, 7 without, 4 landscape with; of sources 0 and 1."""
    box = [[5, 5, 20, 20]]
    made = [make_info(n, box, 48, 64, source=n % 2) for n in range(10)]
    made += [make_info(n, [], 48, 64, source=0) for n in range(10, 17)]
    made += [make_info(n, box, 64, 48, source=1) for n in range(17, 21)]
    return made


def draws(strata, batch_size, epochs, seed=0):
    batches = [b for epoch in range(epochs) for b in mixing.epoch_batches(strata, batch_size, seed, epoch)]
    return batches, Counter(int(p) for batch in batches for p in batch.positions)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 32])
def test_every_record_is_drawn_equally_often(infos, batch_size):
    buckets = np.array([0] * 17 + [1] * 4)
    strata = mixing.plan_strata(infos, buckets, batch_size)
    batches, counts = draws(strata, batch_size, epochs=30)
    assert len(batches) == 30 * mixing.batches_per_epoch(strata, batch_size)
    assert len(counts) == len(infos)
    for stratum in strata:
        within = [counts[position] for position in stratum.positions]
        assert max(within) - min(within) <= 1
    for batch in batches:
        assert len(batch.positions) == batch_size and batch.valid.all()
        assert (buckets[batch.positions] == batch.bucket).all()
    if batch_size == 1:
        assert set(counts.values()) == {30}


def test_slots_are_unique_in_an_epoch(infos):
    strata = mixing.plan_strata(infos, np.array([0] * 17 + [1] * 4), 3)
    slots = np.concatenate([batch.slots for batch in mixing.epoch_batches(strata, 3, 0, 5)])
    assert sorted(slots) == list(range(len(slots)))


def test_pure_function_of_seed_and_epoch(infos):
    strata = mixing.plan_strata(infos, np.zeros(21, int), 4)

    def order(seed, epoch):
        return np.concatenate([batch.positions for batch in mixing.epoch_batches(strata, 4, seed, epoch)]).tolist()

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(1, 4) and order(1, 3) != order(2, 3)


def test_buckets_alternate_in_another_order_in_every_epoch(infos):
    strata = mixing.plan_strata(infos, np.array([0] * 17 + [1] * 4), 1)
    orders = {tuple(batch.bucket for batch in mixing.epoch_batches(strata, 1, 0, epoch)) for epoch in range(6)}
    assert len(orders) > 1 and all(sorted(order) == [0] * 17 + [1] * 4 for order in orders)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 1.0])
def test_lesion_share(infos, share):
    strata = mixing.plan_strata(infos, np.zeros(21, int), 1, lesion_share=share)
    _, counts = draws(strata, 1, epochs=20)
    of_first = {p: n for p, n in counts.items() if infos[p].source == 0}
    shown = sum(n for p, n in of_first.items() if len(infos[p].boxes)) / sum(of_first.values())
    assert shown == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(("lesion_share", "small_share"), [(None, 0.25), (0.5, 0.8), (1.0, 1.0)])
def test_small_share(make_info, lesion_share, small_share):
    """Of 64 px, a lesion of 5 px is small at a side of 0.08 (5.12 px), one of 6 px is not; ignore boxes are neither."""
    small, large, both = [[0, 0, 5, 5]], [[0, 0, 6, 6]], [[0, 0, 4, 4], [10, 10, 40, 40]]
    infos = [make_info(n, box, 48, 64) for n, box in enumerate([small, both, *[large] * 6, *[[]] * 4])]
    infos.append(make_info(12, [[0, 0, 4, 4], [9, 9, 30, 30]], 48, 64, ignore=[True, False]))
    strata = mixing.plan_strata(infos, np.zeros(13, int), 1, lesion_share=lesion_share, small_share=small_share)
    _, counts = draws(strata, 1, epochs=30)
    with_lesion = {p: n for p, n in counts.items() if infos[p].has_lesions}
    shown = sum(n for p, n in with_lesion.items() if p < 2) / sum(with_lesion.values())
    assert shown == pytest.approx(small_share, abs=0.06)
    expected = 9 / 13 if lesion_share is None else lesion_share
    assert sum(with_lesion.values()) / sum(counts.values()) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("side", [0.01, 1.0])
def test_small_share_where_all_lesions_are_of_one_kind(infos, side):
    """Then they are drawn as they come."""
    shares = {"lesion_share": 0.5, "small_share": 0.9, "small_side": side}
    strata = mixing.plan_strata(infos, np.zeros(21, int), 1, **shares)
    usual = mixing.plan_strata(infos, np.zeros(21, int), 1, lesion_share=0.5)
    assert [stratum.draws for stratum in strata] == [stratum.draws for stratum in usual]


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0, 2), (0.1, 0.9)])
def test_mixing_weights(infos, weights):
    strata = mixing.plan_strata(infos, np.array([0] * 17 + [1] * 4), 1, weights=weights)
    _, counts = draws(strata, 1, epochs=20)
    first = sum(n for p, n in counts.items() if infos[p].source == 0) / sum(counts.values())
    assert first == pytest.approx(weights[0] / sum(weights), abs=0.05)


def test_ignore_boxes_are_no_lesions(make_info):
    infos = [make_info(0, [[0, 0, 9, 9]], ignore=[True]), make_info(1, [[0, 0, 9, 9]])]
    strata = mixing.plan_strata(infos, np.zeros(2, int), 1, lesion_share=1.0)
    assert set(draws(strata, 1, 3)[1]) == {1}


@pytest.mark.parametrize("weights", [(1,), (0, 0), (1, -1)])
def test_weights_that_do_not_fit_the_sources(infos, weights):
    with refused(str(list(weights)), 2, where="weights"):
        mixing.plan_strata(infos, np.zeros(21, int), 2, weights=weights)


def test_no_image():
    with refused("image"):
        mixing.plan_strata([], np.zeros(0, int), 2)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_ordered_batches(batch_size):
    buckets = np.array([0, 1, 0, 0, 1, 0, 0])
    batches = mixing.ordered_batches(buckets, batch_size)
    shown = [int(p) for batch in batches for p in batch.positions[batch.valid]]
    assert shown == [0, 2, 3, 5, 6, 1, 4]
    assert all(len(batch.positions) == batch_size for batch in batches)
    assert all((buckets[batch.positions] == batch.bucket).all() for batch in batches)


def test_describe(infos):
    strata = mixing.plan_strata(infos, np.zeros(21, int), 1)
    assert mixing.describe(strata, infos, ("real", "synthetic")) == {
        "real without lesion": 7,
        "real with lesion": 5,
        "synthetic with lesion": 9,
    }
