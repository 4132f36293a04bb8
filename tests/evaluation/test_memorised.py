import numpy as np
import pytest

from elk_jax.evaluation.memorised import FLIPS, memorised_report, nearest


def blobs(rng: np.random.Generator, number: int, side: int = 32) -> np.ndarray:
    """Smooth random pictures, all different."""
    y, x = np.mgrid[:side, :side] / side
    waves = rng.normal(size=(number, 6, 3))
    return np.array(
        [sum(a * np.sin(9 * (b * x + c * y) + a) for a, b, c in wave) for wave in waves], np.float32
    ) + rng.normal(0, 0.1, (number, side, side)).astype(np.float32)


@pytest.fixture(scope="module")
def training():
    return blobs(np.random.default_rng(0), 40)


def test_finds_what_was_copied_shifted_turned_and_regraded(training):
    copies = np.stack(
        [
            3 * training[5] + 7,
            -0.0 + training[33][:, ::-1],
            training[17][::-1] * 0.2,
            np.roll(training[39], (2, -3), axis=(0, 1)),
            training[2][::-1, ::-1],
            training[8].T,
            np.rot90(training[21]),
            np.rot90(training[4], -1),
            training[13].T[::-1, ::-1],
        ]
    )
    found = nearest(copies, training)
    np.testing.assert_array_equal(found.index, [5, 33, 17, 39, 2, 8, 21, 4, 13])
    np.testing.assert_allclose(found.similarity, 1, atol=1e-5)
    words = ["", "horizontal", "vertical", "", "both", "", "vertical", "horizontal", "both"]
    assert [FLIPS[flip] for flip in found.flip] == words
    assert found.transposed.tolist() == [False] * 5 + [True] * 4


def test_equals_the_slow_way(training):
    queries = blobs(np.random.default_rng(1), 3, side=12)
    found = nearest(queries, blobs(np.random.default_rng(2), 5, side=12), side=12, shift=2)
    keys = blobs(np.random.default_rng(2), 5, side=12)
    for k, query in enumerate(queries):
        inner = query[2:10, 2:10]
        slow = [
            np.corrcoef(turned.ravel(), key[y : y + 8, x : x + 8].ravel())[0, 1]
            for key in keys
            for turned in (np.rot90(view, turn) for view in (inner, inner.T) for turn in range(4))
            for y in range(5)
            for x in range(5)
        ]
        assert found.similarity[k] == pytest.approx(max(slow), abs=1e-5)
        assert found.index[k] == np.argmax(slow) // 200


def test_larger_patches_are_reduced(training):
    large = training.repeat(3, 1).repeat(3, 2)
    found = nearest(large[7:9], training)
    np.testing.assert_array_equal(found.index, [7, 8])
    np.testing.assert_allclose(found.similarity, 1, atol=1e-5)


def test_own_group_is_not_compared(training):
    patients = [f"P{n // 2}" for n in range(40)]
    found = nearest(training, training, patients, patients)
    assert all(patients[index] != patients[n] for n, index in enumerate(found.index))
    assert found.similarity.max() < 0.999
    alone = nearest(training[:3], training[:3], ["P"] * 3, ["P"] * 3)
    assert (alone.index == -1).all() and (alone.similarity == 0).all()


def test_even_patches_are_like_nothing(training):
    found = nearest(np.full((1, 32, 32), 0.4), training)
    assert found.similarity[0] == 0
    assert nearest(training[:2], training[:0]).index.tolist() == [-1, -1]
    assert len(nearest(training[:0], training).index) == 0
    with pytest.raises(ValueError, match="shift"):
        nearest(training, training, side=8, shift=4)


def test_report(training):
    rng = np.random.default_rng(3)
    patients = [f"P{n // 2}" for n in range(40)]
    noisy = training[11] + rng.normal(0, 0.05, (32, 32)).astype(np.float32)
    synthetic = np.concatenate([blobs(rng, 4), noisy[None], training[30][None]])
    found = memorised_report(synthetic, training, patients)
    assert found["memorised"] == [5, 4] and found["share"] == pytest.approx(2 / 6)
    assert found["nearest"][4:] == [11, 30] and found["similarity"][5] == pytest.approx(1, abs=1e-5)
    assert found["real"] <= found["threshold"] < found["similarity"][4]
    unknown = memorised_report(synthetic, training, ["P"] * 40)
    assert unknown["threshold"] is None and unknown["memorised"] == [] and unknown["share"] is None
