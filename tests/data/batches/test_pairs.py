"""Batches of pairs made by hand: low energy 0.5 + number / 10, subtracted number / 10, and one bright corner."""

from __future__ import annotations

import numpy as np
import pytest

from elk_jax.data.batches.pairs import PairConfig, blank_batch, eval_pairs, train_pairs
from elk_jax.data.sources.pairs import Pairs
from tests.refusals import refused


def tile(grey):
    image = np.full((8, 8, 1), grey, np.float32)
    image[-1, -1] = 1.0  # left and right, up and down can be told apart
    return image


@pytest.fixture
def pairs(make_info):
    infos = tuple(make_info(i, [], 8, 8) for i in range(3))
    places = tuple((i, (0, 0, 8, 8)) for i in range(3))
    return Pairs("made", lambda i: tile(0.5 + i / 10), lambda i: tile(i / 10), places, infos)


def test_an_epoch_has_every_pair_once_and_both_images_are_mirrored_alike(pairs):
    stream = train_pairs(pairs, PairConfig(batch_size=3), seed=1)
    corners = set()
    for _ in range(8):
        batch = next(stream)
        assert sorted(batch["index"]) == [0, 1, 2] and batch["valid"].all()
        blank = blank_batch(3, 8)
        assert {k: (v.shape, v.dtype) for k, v in blank.items()} == {k: (v.shape, v.dtype) for k, v in batch.items()}
        for low, subtracted, index in zip(batch["low_energy"], batch["subtracted"], batch["index"]):
            corner = int(np.argmax(low))
            corners.add(corner)
            assert corner == np.argmax(subtracted) and subtracted[4, 4, 0] == np.float32(index / 10)
    stream.close()
    assert corners == {0, 7, 56, 63}


def test_a_stream_resumes_under_its_own_seed_alone(pairs):
    streams = [train_pairs(pairs, PairConfig(batch_size=2), seed) for seed in (1, 1, 2)]
    for _ in range(3):
        next(streams[0])
    state = streams[0].get_state()
    streams[1].set_state(state)
    np.testing.assert_array_equal(next(streams[0])["low_energy"], next(streams[1])["low_energy"])
    with refused("seed"):
        streams[2].set_state(state)
    for stream in streams:
        stream.close()


def test_evaluation_takes_pairs_as_they_are_and_fills_the_last_batch(pairs):
    batches = list(eval_pairs(pairs, PairConfig(batch_size=2)))
    assert [b["index"].tolist() for b in batches] == [[0, 1], [2, 2]]
    assert [b["valid"].tolist() for b in batches] == [[True, True], [True, False]]
    assert all(np.argmax(image) == 63 for b in batches for image in b["low_energy"])
    (few,) = eval_pairs(pairs, PairConfig(batch_size=2), 2)
    assert few["index"].tolist() == [0, 2]


@pytest.mark.parametrize(
    "settings", [{"max_black": 1.5}, {"stride": -1}, {"vertical_flip": -1.0}, {"batch_size": 0}, {"prefetch": 0}]
)
def test_bad_settings(settings):
    with refused(where=next(iter(settings))):
        PairConfig(**settings)
