"""The stream of batches: contents, resume, hosts, workers, errors on the way."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from elk_jax.data.augment import Augmentation, Resize
from elk_jax.data.batches.detection import (
    LEARNED,
    LoaderConfig,
    augmented,
    blank_batch,
    eval_batches,
    find_max_boxes,
    train_batches,
)
from elk_jax.data.sources.source import concatenate
from tests.refusals import refused

CONFIG = LoaderConfig(
    batch_size=4,
    resize=Resize((40, 48), 64),
    augmentation=Augmentation(horizontal_flip=0.5, vertical_flip=0.5, crop=0.5, gain=0.1, noise=0.01, copy_paste=0.3),
    buckets=((64, 64), (48, 64)),
    lesion_share=None,
)


@pytest.fixture
def source(make_source, make_info):
    landscape = [make_info(n, [[5, 5, 20, 20]] * (n % 3)) for n in range(9)]
    portrait = [make_info(n, [[5, 5, 20, 20]], 48, 64) for n in range(9, 14)]
    return make_source(landscape + portrait)


def take(stream, count):
    return list(itertools.islice(stream, count))


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        for key in one:
            assert np.array_equal(one[key], other[key]), key


def test_batches_follow_the_schema(source):
    stream = train_batches(source, CONFIG, seed=0)
    assert (stream.max_boxes, stream.canvases) == (8, ((64, 64), (48, 64)))
    for batch in take(stream, 12):
        height, width = batch["image"].shape[1:3]
        assert (height, width) in CONFIG.buckets
        expected = {
            "image": ((height, width, 1), "float32"),
            "image_size": ((2,), "float32"),
            "gt_boxes": ((8, 4), "float32"),
            "gt_labels": ((8,), "int32"),
            "gt_valid": ((8,), "bool"),
            "gt_ignore": ((8,), "bool"),
            "scale": ((2,), "float32"),
            "index": ((), "int32"),
            "source": ((), "int32"),
            "valid": ((), "bool"),
        }
        assert {key: (value.shape[1:], str(value.dtype)) for key, value in batch.items()} == expected
        assert {len(value) for value in batch.values()} == {4}
        blank = blank_batch(4, (height, width), 8)
        assert {key: (value.shape[1:], str(value.dtype)) for key, value in blank.items()} == expected
        assert blank["valid"].all() and (blank["image_size"] == (height, width)).all()
        assert batch["valid"].all() and not (batch["gt_ignore"] & ~batch["gt_valid"]).any()
        for row in range(4):
            h, w = batch["image_size"][row].astype(int)
            assert not batch["image"][row, h:].any() and not batch["image"][row, :, w:].any()
            assert (batch["gt_boxes"][row] <= [w, h, w, h]).all()
            assert not batch["gt_boxes"][row][~batch["gt_valid"][row]].any()


def test_resume_repeats_the_stream(source):
    whole = take(train_batches(source, CONFIG, seed=5), 14)  # more than an epoch
    for stop in (0, 1, 5, 13):
        first = train_batches(source, CONFIG, seed=5)
        take(first, stop)
        state = json.loads(json.dumps(first.get_state()))
        second = train_batches(source, CONFIG, seed=5)
        take(second, 2)
        second.set_state(state)
        assert second.get_state() == state
        assert_same(take(second, 14 - stop), whole[stop:])


def test_reading_ahead_changes_nothing(source):
    expected = take(train_batches(source, CONFIG, seed=1), 6)
    for threads, prefetch in ((1, 1), (4, 16)):
        config = replace(CONFIG, threads=threads, prefetch=prefetch)
        assert_same(take(train_batches(source, config, seed=1), 6), expected)


def test_seeds_and_epochs_differ(source):
    one, other = (take(train_batches(source, CONFIG, seed), 4) for seed in (1, 2))
    assert any(not np.array_equal(a["index"], b["index"]) for a, b in zip(one, other))
    still = replace(CONFIG, batch_size=14, buckets=((64, 64),))
    first, second = take(train_batches(source, still, seed=1), 2)
    assert sorted(first["index"]) == sorted(second["index"]) == list(range(14))
    assert not np.array_equal(first["index"], second["index"])
    place = {index: row for row, index in enumerate(second["index"])}
    pairs = [(first["image"][row], second["image"][place[index]]) for row, index in enumerate(first["index"])]
    assert not all(np.array_equal(a, b) for a, b in pairs)  # another draw in every epoch


def test_every_example_has_its_own_randomness(make_source, make_info):
    """Of equal images no two examples are equal: not within a batch, nor between batches, nor between epochs."""
    source = make_source([make_info(n, []) for n in range(6)])
    source = replace(source, read=lambda position: np.full((48, 64, 1), 0.5, np.float32))
    config = LoaderConfig(batch_size=2, resize=Resize((48,)), augmentation=Augmentation(noise=0.1), buckets=())
    batches = take(train_batches(source, config, seed=0), 9)  # three epochs
    assert len({image.tobytes() for batch in batches for image in batch["image"]}) == 18


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_are_one(source, hosts):
    whole = take(train_batches(source, CONFIG, seed=3), 5)
    parts = [take(train_batches(source, CONFIG, 3, host, hosts), 5) for host in range(hosts)]
    joined = [{key: np.concatenate([part[i][key] for part in parts]) for key in whole[0]} for i in range(5)]
    assert_same(joined, whole)
    whole = list(eval_batches(source, CONFIG))
    parts = [list(eval_batches(source, CONFIG, host, hosts)) for host in range(hosts)]
    joined = [{key: np.concatenate([part[i][key] for part in parts]) for key in whole[0]} for i in range(len(whole))]
    assert_same(joined, whole)


def test_state_of_one_host_serves_another_number_of_hosts(source):
    stream = train_batches(source, CONFIG, 3)
    take(stream, 3)
    half = train_batches(source, CONFIG, 3, 1, 2)
    half.set_state(stream.get_state())
    assert np.array_equal(next(half)["index"], next(stream)["index"][2:])


def test_a_state_is_refused_where_anything_in_the_batches_would_be_another(source):
    state = train_batches(source, CONFIG, 3).get_state()
    lesion = next(i for i, info in enumerate(source.infos) if len(info.boxes))
    old = source.infos[lesion]

    def changed(**fields):
        infos = (*source.infos[:lesion], replace(old, **fields), *source.infos[lesion + 1 :])
        return replace(source, infos=infos)

    others = [
        changed(boxes=old.boxes + 1),
        changed(labels=old.labels + 1),
        changed(ignore=~old.ignore),
        replace(source, classes=("mass",)),
    ]
    for other in others:
        with refused("data"):
            train_batches(other, CONFIG, 3).set_state(state)
    with refused("seed"):
        train_batches(source, CONFIG, 4).set_state(state)
    train_batches(changed(), replace(CONFIG, threads=1), 3).set_state(state)


def test_worker_processes_give_the_same_batches(coco_folder):
    from elk_jax.data.sources.open import open_source
    from elk_jax.data.sources.spec import SourceSpec

    source = open_source(SourceSpec(f"coco:{coco_folder()}"))
    config = replace(CONFIG, batch_size=2)
    expected = take(train_batches(source, config, seed=1), 5)
    stream = train_batches(source, replace(config, workers=2), seed=1)
    assert_same(take(stream, 5), expected)


def test_eval_batches(source, make_record):
    batches = list(eval_batches(source, CONFIG))
    shown = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    assert sorted(shown) == list(range(14))
    assert [int(batch["valid"].sum()) for batch in batches] == [4, 1, 4, 4, 1]  # 5 portrait, 9 landscape
    for batch in batches:
        for row in np.flatnonzero(batch["valid"]):
            info = source.infos[batch["index"][row]]
            count = int(batch["gt_valid"][row].sum())
            back = batch["gt_boxes"][row, :count] / np.tile(batch["scale"][row], 2)
            np.testing.assert_allclose(back, info.boxes, rtol=1e-5)
    assert_same(list(eval_batches(source, CONFIG)), batches)


def test_mixed_sources(make_source, make_info):
    real = make_source([make_info(n, [[5, 5, 20, 20]]) for n in range(4)], "real")
    synthetic = make_source([make_info(n, [[5, 5, 20, 20]]) for n in range(20, 32)], "synthetic")
    mixed = concatenate([real, synthetic])
    config = replace(CONFIG, buckets=((64, 64),))
    stream = train_batches(mixed, config, 0, weights=(0.5, 0.5))
    batches = take(stream, 8)
    index, origin = (np.concatenate([batch[key] for batch in batches]) for key in ("index", "source"))
    assert (index < 4).mean() == pytest.approx(0.5) and np.array_equal(origin, index >= 4)
    assert stream.draws_per_epoch == {"real with lesion": 8, "synthetic with lesion": 8}
    with refused("configuration"):
        train_batches(mixed, config, 0, weights=(0.4, 0.6)).set_state(stream.get_state())


def test_max_boxes(source, make_info):
    infos = [make_info(0, [[0, 0, 2, 2]] * 3), make_info(1, [[0, 0, 2, 2]] * 9), make_info(2, [])]
    assert find_max_boxes(infos) == 16
    assert find_max_boxes(infos, pasted=8) == 24
    assert find_max_boxes(infos[2:]) == 8
    assert find_max_boxes(infos, 9) == 9
    with refused("image 1", 9, 8, where=infos[1].file_name):
        find_max_boxes(infos, 8)
    with refused(4, 2, 3, "max_boxes"):
        train_batches(source, replace(CONFIG, max_boxes=3), 0)


def test_bad_settings(source):
    for change in (
        {"batch_size": 0},
        {"prefetch": 0},
        {"threads": 0},
        {"buckets": ((0, 5),)},
        {"max_boxes": -1},
        {"lesion_share": 1.5},
        {"buckets": (), "resize": Resize(jitter=(1.0, 1.0))},
    ):
        with refused(where=next(iter(change))):
            replace(CONFIG, **change)
    with refused(CONFIG.batch_size, 3, where="batch_size"):
        train_batches(source, CONFIG, 0, 0, 3)
    with refused("(32, 32)", where=source.infos[0].file_name):
        train_batches(source, replace(CONFIG, buckets=((32, 32),)), 0)


def test_state_of_another_stream_is_refused(source):
    state = train_batches(source, CONFIG, seed=0).get_state()
    faster = replace(CONFIG, threads=7, prefetch=1, workers=1)
    train_batches(source, faster, seed=0).set_state(state)
    for other in (
        train_batches(source, CONFIG, seed=1),
        train_batches(source, replace(CONFIG, batch_size=2), seed=0),
        train_batches(replace(source, infos=source.infos[1:]), CONFIG, seed=0),
    ):
        with refused("data"):
            other.set_state(state)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_ends_in_one_line(coco_folder, tmp_path, workers):
    from elk_jax.data.sources.open import open_source
    from elk_jax.data.sources.spec import SourceSpec

    source = open_source(SourceSpec(f"coco:{coco_folder()}"))
    file = tmp_path / "images" / "3.png"
    file.write_bytes(file.read_bytes()[:600])
    stream = train_batches(source, replace(CONFIG, workers=workers), seed=0)
    with refused("truncated", where="3.png"):
        take(stream, 4)
    if not workers:
        with refused("truncated", where="3.png"):
            list(eval_batches(source, CONFIG))


def test_a_closed_stream_can_be_read_on(source):
    expected = take(train_batches(source, CONFIG, seed=0), 4)
    stream = train_batches(source, CONFIG, seed=0)
    first = take(stream, 2)
    stream.close()
    stream.close()
    assert_same(first + take(stream, 2), expected)


def test_an_example_on_its_own_follows_from_its_random_numbers(source):
    """As private trainings draw them; of the shapes of a batch's rows, whatever is in it."""
    config = replace(CONFIG, buckets=((64, 64),), max_boxes=8, augmentation=Augmentation(horizontal_flip=0.5))
    example = augmented(source, config)
    empty, lesions = (example(n, np.random.default_rng(n)) for n in (0, 2))
    assert tuple(empty) == LEARNED and empty["gt_valid"].sum() == 0 and lesions["gt_valid"].sum() == 2
    for name in LEARNED:
        assert empty[name].shape == lesions[name].shape == blank_batch(1, (64, 64), 8)[name].shape[1:]
    assert_same([lesions], [example(2, np.random.default_rng(2))])
    with refused("boxes", "max_boxes"):
        augmented(source, replace(config, max_boxes=1))
    with refused("fits no bucket"):
        augmented(source, replace(config, buckets=((32, 32),)))
