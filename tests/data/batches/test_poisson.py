"""Batches of units: who is in which, and that nothing but the units is in them."""

import pickle

import numpy as np
import pytest
from scipy import stats

from elk_jax.data.batches import poisson
from elk_jax.data.batches.stream import Reading
from elk_jax.images.schema import ImageInfo
from elk_jax.privacy import secret as secrets
from tests.refusals import refused

SECRET = secrets.known(3)
MEMBERS = ((0,), (1, 2), (3, 4, 5, 6, 7), (8,)) * 25
MEMBERS = tuple(tuple(index + 9 * (place // 4) for index in own) for place, own in enumerate(MEMBERS))
"""100 units of one, two, five and one example."""


def example(index, rng):
    return {"x": np.full((2, 3), index, np.float32), "draw": np.float64(rng.random())}


def stream(secret=SECRET, rate=0.2, threads=2, **options):
    return poisson.private_batches(example, MEMBERS, secret, rate, Reading(threads=threads), images=3, **options)[0]


def units_of(batch):
    return sorted(batch["unit"][batch["unit"] >= 0].tolist())


def test_a_row_holds_one_unit_with_its_own_examples_and_nothing_else():
    for _ in range(5):
        batch = stream().__next__()
        assert batch["examples"]["x"].shape[1:] == (3, 2, 3) and batch["examples"]["x"].dtype == np.float32
        for row, unit in enumerate(batch["unit"]):
            there = batch["examples"]["valid"][row]
            found = batch["examples"]["x"][row, there, 0, 0].astype(int).tolist()
            own = MEMBERS[unit] if unit >= 0 else ()
            assert set(found) <= set(own) and len(set(found)) == len(found) == min(len(own), 3)
            assert not batch["examples"]["x"][row, ~there].any()
    assert len(units_of(batch)) > 0


def test_views_of_an_image_lie_side_by_side_with_their_own_augmentation():
    batch = next(stream(views=2))
    assert batch["examples"]["x"].shape[1] == 6
    row = int(np.flatnonzero(batch["examples"]["valid"].sum(1) == 6)[0])
    images, draws = batch["examples"]["x"][row, :, 0, 0], batch["examples"]["draw"][row]
    assert (images[::2] == images[1::2]).all() and len(set(images)) == 3 and len(set(draws)) == 6


def test_sizes_are_binomial_and_units_independent():
    chosen = [poisson.drawn_units(SECRET, number, 200, 1 / 9) for number in range(2000)]
    sizes = np.array([len(units) for units in chosen])
    mean, deviation = 200 / 9, np.sqrt(200 * 8 / 81)
    assert sizes.mean() == pytest.approx(mean, abs=4 * deviation / np.sqrt(2000))
    assert sizes.std() == pytest.approx(deviation, rel=4 / np.sqrt(2 * 2000))
    often = np.bincount(np.concatenate(chosen), minlength=200)
    assert stats.chisquare(often, np.full(200, often.mean())).pvalue > 1e-4
    both = sum(0 in units and 1 in units for units in chosen)
    assert both == pytest.approx(2000 / 81, abs=4 * np.sqrt(2000 / 81))


def test_a_batch_follows_from_the_secret_and_its_number_alone():
    drawn = lambda secret, number: poisson.drawn_units(secret, number, 200, 0.3).tolist()
    assert drawn(SECRET, 4) == drawn(secrets.known(3), 4)
    assert drawn(SECRET, 4) != drawn(SECRET, 5) and drawn(SECRET, 4) != drawn(secrets.known(4), 4)
    assert drawn(secrets.fresh(), 4) != drawn(secrets.fresh(), 4)


def test_a_stream_is_resumed_where_it_was_and_threads_change_nothing():
    whole = stream(threads=4)
    batches = [next(whole) for _ in range(4)]
    again = stream(threads=1)
    next(again)
    other = stream()
    other.set_state(again.get_state())
    for one in batches[1:]:
        two = next(other)
        np.testing.assert_array_equal(one["unit"], two["unit"])
        np.testing.assert_array_equal(one["examples"]["draw"], two["examples"]["draw"])
    for one in (whole, again, other):
        one.close()
    with refused("other data"):
        stream(rate=0.3).set_state(again.get_state())
    assert SECRET.text() not in str(again.get_state())


@pytest.mark.parametrize("lanes, micro_batch", [(1, 1), (8, 1), (4, 3)])
def test_devices_share_the_same_units_evenly(lanes, micro_batch):
    batch, alone = next(stream(lanes=lanes, micro_batch=micro_batch)), next(stream())
    assert units_of(batch) == units_of(alone)
    assert len(batch["unit"]) % (lanes * micro_batch) == 0
    there = (batch["unit"] >= 0).reshape(lanes, -1)
    assert np.ptp(there.sum(1)) <= 1
    assert (np.diff(there.astype(int), axis=1) <= 0).all()  # padding comes last: its micro-batches are left out
    by_unit = lambda batch: {int(u): batch["examples"]["draw"][r] for r, u in enumerate(batch["unit"]) if u >= 0}
    for unit, draws in by_unit(alone).items():
        np.testing.assert_array_equal(by_unit(batch)[unit], draws)


def test_two_hosts_have_the_halves_of_a_batch():
    whole = next(stream(lanes=4))
    halves = [next(stream(lanes=4, process_index=index, process_count=2)) for index in range(2)]
    np.testing.assert_array_equal(np.concatenate([half["unit"] for half in halves]), whole["unit"])
    np.testing.assert_array_equal(np.concatenate([h["examples"]["x"] for h in halves]), whole["examples"]["x"])


@pytest.mark.parametrize("units, rate", [(1104, 1 / 9), (4104, 1 / 33), (20, 0.01), (50, 1.0)])
def test_rows_are_exceeded_once_in_a_million_million_batches(units, rate):
    rows = poisson.row_count(units, rate, 8)
    assert rows % 8 == 0 and stats.binom.sf(rows, units, rate) < 1e-12
    assert rows <= 8 or stats.binom.sf(rows - 9, units, rate) > 1e-13 or rate == 1


def test_a_batch_that_overflows_is_an_error_and_an_empty_one_is_padding():
    make = lambda rate, rows: poisson.PoissonBatches(
        example, MEMBERS, SECRET, rate, rows, 3, 1, 1, slice(None), {"x": ((2, 3), np.dtype(np.float32))}
    )
    with refused(100, 8, where="private batches"):
        make(1.0, 8)(0)
    empty = make(0.0, 8)(0)
    assert (empty["unit"] == -1).all() and not empty["examples"]["valid"].any() and not empty["examples"]["x"].any()
    assert units_of(make(1.0, 100)(0)) == list(range(100))
    again = pickle.loads(pickle.dumps(make(0.5, 100)))  # for worker processes
    np.testing.assert_array_equal(again(7)["unit"], make(0.5, 100)(7)["unit"])


def info(image, patient, source=0):
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    return ImageInfo(image, patient, 8, 8, *none, source=source)


def test_units_are_patients_however_they_are_written_or_images_with_all_their_tiles():
    infos = [info("1", "P1"), info("2", "P2"), info("2", "P2"), info("3", "p01"), info("3", "P2", source=1)]
    assert poisson.members(infos, "patient") == ((0, 3), (1, 2, 4))
    assert poisson.members(infos, "image") == ((0,), (1, 2), (3,), (4,))
    with refused("17", where="privacy.unit"):
        poisson.members([*infos, info("17", "17")], "patient")
