"""Close-ups as batches: what is in them, and that they follow from (seed, number) alone."""

from dataclasses import replace

import numpy as np
import pytest

from elk_jax.data.batches.crops import (
    CloseupConfig,
    apart,
    blank_batch,
    cached_closeups,
    eval_closeups,
    lesion_sizes,
    train_closeups,
)
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.synthesis.closeups import fitting_lesions
from tests.refusals import refused

SIZE = 32
CONFIG = CloseupConfig(window=48, margin=0.0, batch_size=4, tissue_share=0.4, threads=1)


@pytest.fixture(scope="module")
def source():
    return open_source(SourceSpec("phantom:size=128,count=24,seed=5"), "train")


@pytest.fixture(scope="module")
def batches(source):
    stream = train_closeups(source, CONFIG, SIZE, seed=3)
    found = [next(stream) for _ in range(12)]
    stream.close()
    return found


def test_what_a_batch_holds(batches):
    for batch in batches:
        assert batch["image"].shape == batch["mask"].shape == (4, 32, 32, 1)
        assert batch["image"].dtype == batch["mask"].dtype == batch["lesion"].dtype == np.float32
        assert batch["image"].min() >= 0 and batch["image"].max() <= 1
        assert set(np.unique(batch["mask"])) == {0, 1}
        assert batch["mask"].sum((1, 2, 3)).min() > 0 and batch["valid"].all()
        blank = blank_batch(4, SIZE)
        assert {k: (v.shape, v.dtype) for k, v in blank.items()} == {k: (v.shape, v.dtype) for k, v in batch.items()}


def test_lesions_and_tissue_come_in_their_shares(batches):
    lesion = np.concatenate([batch["lesion"] for batch in batches])
    assert 0.35 < lesion.mean() < 0.85


def test_lesions_are_brighter_than_their_surroundings_and_tissue_is_not(batches):
    """Under the mask of a lesion the enhanced image is brighter than around it; under one of tissue it is not."""

    def contrast(batch, row):
        image, mask = batch["image"][row], batch["mask"][row] > 0
        return image[mask].mean() - np.median(image[~mask & (image > 0.03)])

    of = {kind: [contrast(b, r) for b in batches for r in range(4) if b["lesion"][r] == kind] for kind in (0.0, 1.0)}
    assert np.median(of[1.0]) > 0.03 > abs(np.median(of[0.0]))


def test_the_stream_resumes_where_it_was_saved(source, batches):
    stream = train_closeups(source, CONFIG, SIZE, seed=3)
    stream.set_state({**stream.get_state(), "next_batch": 7})
    again = next(stream)
    stream.close()
    for key, value in batches[7].items():
        np.testing.assert_array_equal(again[key], value)


def test_hosts_share_a_batch(source, batches):
    for process in range(2):
        stream = train_closeups(source, CONFIG, SIZE, seed=3, process_index=process, process_count=2)
        half = next(stream)
        stream.close()
        np.testing.assert_array_equal(half["image"], batches[0]["image"][2 * process : 2 * process + 2])


def test_every_lesion_comes_once_an_epoch(source):
    config = CloseupConfig(window=48, margin=0.0, batch_size=1, tissue_share=0.0)
    lesions = sum(int((info.boxes[:, 2:] - info.boxes[:, :2] < 48).all(axis=1).sum()) for info in source.infos)
    stream = train_closeups(source, config, SIZE, seed=0)
    epochs = [[int(next(stream)["index"][0]) for _ in range(lesions)] for _ in range(2)]
    stream.close()
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


@pytest.mark.parametrize("tissue_share", [0.0, 1.0])
def test_apart_an_example_shows_nothing_but_the_image_of_its_lesion(source, tissue_share):
    example, infos = apart(source, replace(CONFIG, tissue_share=tissue_share), SIZE, lesion_sizes(source, 48))
    assert len(infos) == len(fitting_lesions(source.infos, 48))
    kinds = set()
    for number in range(8):
        found = example(number, np.random.default_rng(number))
        assert source.infos[int(found["index"])] is infos[number]
        again = example(number, np.random.default_rng(number))
        assert all(np.array_equal(found[key], again[key]) for key in found)
        kinds.add(float(found["lesion"]))
    assert kinds == {1.0} if not tissue_share else 0.0 in kinds


def test_apart_a_lesion_takes_the_place_of_tissue_that_its_image_lacks(source):
    crowded = replace(source.infos[0], boxes=np.array([[40, 40, 60, 60], [0, 0, 128, 128]], np.float32))
    crowded = replace(crowded, labels=np.zeros(2, np.int32), ignore=np.array([False, True]))
    one = replace(source, infos=(crowded, *source.infos[1:]))
    example, _ = apart(one, replace(CONFIG, tissue_share=1.0), SIZE, lesion_sizes(source, 48))
    assert example(0, np.random.default_rng(0))["lesion"] == 1


def test_evaluation_repeats_itself_and_fills_its_last_batch(source):
    once, again = (list(eval_closeups(source, CONFIG, SIZE, seed=1, count=6)) for _ in range(2))
    assert [batch["valid"].tolist() for batch in once] == [[True] * 4, [True, True, False, False]]
    for a, b in zip(once, again):
        np.testing.assert_array_equal(a["image"], b["image"])
    assert all(batch["lesion"].all() for batch in once)


def test_cached_examples_come_once_an_epoch():
    examples = {"latents": np.arange(10.0).reshape(5, 2), "valid": np.ones(5, bool)}
    stream = cached_closeups(examples, CloseupConfig(batch_size=5, workers=2), "origin", seed=0)
    epochs = [next(stream)["latents"] for _ in range(2)]
    stream.close()
    assert not np.array_equal(*epochs)
    for epoch in epochs:
        np.testing.assert_array_equal(epoch[np.argsort(epoch[:, 0])], examples["latents"])


def test_impossible_settings_and_states_are_refused(source):
    with refused(4, where="images"):
        train_closeups(source, CloseupConfig(window=4, margin=0.0), SIZE, seed=0)
    with refused(2, where="tissue_share"):
        CloseupConfig(tissue_share=2)
    stream = train_closeups(source, CloseupConfig(window=120, batch_size=1, tissue_share=1.0), SIZE, seed=0)
    with refused(120, "tissue_share", where=source.name):
        next(stream)
    with refused("configuration"):
        stream.set_state({"next_batch": 0, "stream": "other"})
