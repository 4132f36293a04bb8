from collections import Counter

import numpy as np
import pytest

from elk_jax.data.augment import Augmentation, Resize
from elk_jax.data.batches import plan
from elk_jax.errors import UserError

PLAIN = Augmentation()


@pytest.fixture
def infos(make_info):
    """10 portrait images with lesions, 7 without, 4 landscape with; parts 0 and 1 of a mix."""
    box = [[5, 5, 20, 20]]
    made = [make_info(n, box, 48, 64, meta={"mix_part": n % 2, "mix_origin": f"part {n % 2}"}) for n in range(10)]
    made += [make_info(n, [], 48, 64, meta={"mix_part": 0, "mix_origin": "part 0"}) for n in range(10, 17)]
    made += [make_info(n, box, 64, 48, meta={"mix_part": 1, "mix_origin": "part 1"}) for n in range(17, 21)]
    return made


def draws(strata, batch_size, epochs, seed=0):
    batches = [b for epoch in range(epochs) for b in plan.epoch_batches(strata, batch_size, seed, epoch)]
    return batches, Counter(int(p) for batch in batches for p in batch.positions)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 32])
def test_every_record_is_drawn_equally_often(infos, batch_size):
    buckets = np.array([0] * 17 + [1] * 4)
    strata = plan.plan_strata(infos, buckets, batch_size)
    batches, counts = draws(strata, batch_size, epochs=30)
    assert len(batches) == 30 * plan.batches_per_epoch(strata, batch_size)
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
    strata = plan.plan_strata(infos, np.array([0] * 17 + [1] * 4), 3)
    slots = np.concatenate([batch.slots for batch in plan.epoch_batches(strata, 3, 0, 5)])
    assert sorted(slots) == list(range(len(slots)))


def test_pure_function_of_seed_and_epoch(infos):
    strata = plan.plan_strata(infos, np.zeros(21, int), 4)

    def order(seed, epoch):
        return np.concatenate(
            [batch.positions for batch in plan.epoch_batches(strata, 4, seed, epoch)]
        ).tolist()

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(1, 4) and order(1, 3) != order(2, 3)


def test_buckets_alternate_in_another_order_in_every_epoch(infos):
    strata = plan.plan_strata(infos, np.array([0] * 17 + [1] * 4), 1)
    orders = {tuple(batch.bucket for batch in plan.epoch_batches(strata, 1, 0, epoch)) for epoch in range(6)}
    assert len(orders) > 1 and all(sorted(order) == [0] * 17 + [1] * 4 for order in orders)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 1.0])
def test_lesion_share(infos, share):
    strata = plan.plan_strata(infos, np.zeros(21, int), 1, lesion_share=share)
    _, counts = draws(strata, 1, epochs=20)
    part_0 = {p: n for p, n in counts.items() if infos[p].meta["mix_part"] == 0}
    shown = sum(n for p, n in part_0.items() if len(infos[p].boxes)) / sum(part_0.values())
    assert shown == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0, 2), (0.1, 0.9)])
def test_mixing_weights(infos, weights):
    strata = plan.plan_strata(infos, np.array([0] * 17 + [1] * 4), 1, weights=weights)
    _, counts = draws(strata, 1, epochs=20)
    first = sum(n for p, n in counts.items() if infos[p].meta["mix_part"] == 0) / sum(counts.values())
    assert first == pytest.approx(weights[0] / sum(weights), abs=0.05)


def test_ignore_boxes_are_no_lesions(make_info):
    infos = [make_info(0, [[0, 0, 9, 9]], ignore=[True]), make_info(1, [[0, 0, 9, 9]])]
    strata = plan.plan_strata(infos, np.zeros(2, int), 1, lesion_share=1.0)
    assert set(draws(strata, 1, 3)[1]) == {1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weights": (1,)}, "1 mixing weights"),
        ({"weights": (0, 0)}, "not all 0"),
        ({"weights": (1, -1)}, ">= 0"),
        ({"lesion_share": 1.5}, "lesion_share is 1.5"),
    ],
)
def test_bad_plans(infos, arguments, words):
    with pytest.raises(UserError, match=words):
        plan.plan_strata(infos, np.zeros(21, int), 2, **arguments)


def test_no_image():
    with pytest.raises(UserError, match="no image to train on"):
        plan.plan_strata([], np.zeros(0, int), 2)


def test_buckets(infos):
    canvases = [(128, 128), (96, 128), (128, 96)]
    resize = Resize((60, 90), 120)
    chosen = plan.assign_buckets(infos, canvases, resize, PLAIN)
    assert [canvases[b] for b in chosen] == [(128, 96)] * 17 + [(96, 128)] * 4
    turned = plan.assign_buckets(infos, canvases, resize, Augmentation(rotate90=0.5))
    assert {canvases[b] for b in turned} == {(128, 128)}
    assert plan.choose_buckets(infos, resize, PLAIN) == ((128, 128),)
    assert plan.choose_buckets(infos[:17], resize, PLAIN) == ((128, 96),)
    with pytest.raises(UserError, match=r"no canvas is given.*loader\.buckets"):
        plan.choose_buckets(infos, Resize(short_sides=(), jitter=(0.5, 2.0)), PLAIN)
    with pytest.raises(UserError, match=r"image 17 becomes 90 x 120 px.*fits no bucket"):
        plan.assign_buckets(infos, [(128, 96)], resize, PLAIN)


def test_buckets_with_jitter_go_by_form(infos):
    canvases = [(64, 64), (64, 48), (48, 64)]
    chosen = plan.assign_buckets(infos, canvases, Resize(jitter=(0.5, 2.0)), PLAIN)
    assert [canvases[b] for b in chosen] == [(64, 48)] * 17 + [(48, 64)] * 4


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_ordered_batches(batch_size):
    buckets = np.array([0, 1, 0, 0, 1, 0, 0])
    batches = plan.ordered_batches(buckets, batch_size)
    shown = [int(p) for batch in batches for p in batch.positions[batch.valid]]
    assert shown == [0, 2, 3, 5, 6, 1, 4]
    assert all(len(batch.positions) == batch_size for batch in batches)
    assert all((buckets[batch.positions] == batch.bucket).all() for batch in batches)


def test_fields_of_the_users_own_do_not_look_like_a_mix(make_info):
    infos = [make_info(n, [[5, 5, 20, 20]], 48, 64, meta={"part": "left", "origin": "here"}) for n in range(4)]
    strata = plan.plan_strata(infos, np.zeros(4, int), 2)
    assert [stratum.draws for stratum in strata] == [4]


def test_describe(infos):
    strata = plan.plan_strata(infos, np.zeros(21, int), 1)
    assert plan.describe(strata, infos) == {
        "part 0 without lesion": 7,
        "part 0 with lesion": 5,
        "part 1 with lesion": 9,
    }
