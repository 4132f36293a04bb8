import numpy as np
import pytest

from elk_jax.data.sources.checks import check_no_patient_in_two_splits
from elk_jax.data.sources.splits import largest_remainder, meant, split_patients
from tests.refusals import refused


@pytest.fixture
def lesions():
    rng = np.random.default_rng(0)
    return {f"P{i}": int(count) for i, count in enumerate(rng.geometric(0.3, 131))}


def test_sizes_and_strata(lesions):
    split = split_patients(lesions, {"train": 80, "val": 19, "test": 32})
    assert split.keys() == lesions.keys()
    members = {name: [lesions[p] for p in split if split[p] == name] for name in ("train", "val", "test")}
    assert [len(counts) for counts in members.values()] == [80, 19, 32]
    mean = np.mean(list(lesions.values()))
    for counts in members.values():  # an unstratified split of 19 patients strays by about 0.6 (one sigma)
        assert abs(np.mean(counts) - mean) < 0.35


def test_depends_on_seed_and_patients_only(lesions):
    shares = {"train": 0.7, "test": 0.3}
    first = split_patients(lesions, shares, seed=1)
    assert split_patients(dict(reversed(lesions.items())), shares, seed=1) == first
    assert split_patients(lesions, shares, seed=2) != first


def test_every_split_gets_a_patient():
    split = split_patients({"a": 5, "b": 1, "c": 2}, {"train": 98, "val": 1, "test": 1})
    assert sorted(split.values()) == ["test", "train", "val"]
    with refused(2, 3):
        split_patients({"a": 1, "b": 1}, {"train": 1, "val": 1, "test": 1})


@pytest.mark.parametrize("total", [1, 7, 10, 131])
def test_largest_remainder(total):
    shares = np.array([0.5, 0.3, 0.2])
    counts = largest_remainder(shares, total)
    assert counts.sum() == total
    assert (abs(counts - shares * total) < 1).all()


def test_patient_in_two_splits(make_info):
    infos = [make_info(0, [], split="train"), make_info(1, [], split=""), make_info(2, [], split="test")]
    check_no_patient_in_two_splits(infos)
    infos.append(make_info(3, [], split="val", patient_id="P0"))
    with refused("P0", "image 0 in 'train'", "image 3 in 'val'", where="data.json"):
        check_no_patient_in_two_splits(infos, "data.json")


@pytest.mark.parametrize("other", ["P_03", "p3", "3", "3.0", "003", "P 3", "P3\u200b", "\uff13"])
def test_a_patient_written_otherwise_in_another_split(make_info, other):
    infos = [make_info(10, [], split="train", patient_id="P3"), make_info(11, [], split="test", patient_id=other)]
    with refused("P3 and", other, "image 10", "image 11", where="data.json"):
        check_no_patient_in_two_splits(infos, "data.json")
    unnamed = make_info(3, [], split="test", patient_id="3")  # by its own number, which other files do not know
    check_no_patient_in_two_splits([infos[0], unnamed])
    for different in ("P33", "Q3", "P3a", "B-3"):
        check_no_patient_in_two_splits([infos[0], make_info(11, [], split="test", patient_id=different)])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("tarin", "train"), ("tran", "train"), ("traiin", "train"), ("traun", "train"), ("TRAIN", "train")),
        *(("vla", "val"), ("vaal", "val"), ("Val", "val"), ("tset", "test"), ("tes", "test"), ("tesr", "test")),
        *((name, "") for name in ("unused", "rest", "eval", "valid", "validation", "training", "test2", "testA")),
        *((name, "") for name in ("vae", "va", "external", "fold1", "", "train_small", "pretrain")),
    ],
)
def test_slips_of_the_pen_and_other_names(name, split):
    assert meant(name) == split
