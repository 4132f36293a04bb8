import cv2
import numpy as np
import pytest
from scipy.fft import dctn, idctn

from elk_jax.evaluation import memorised
from elk_jax.evaluation.memorised import FLIPS, GRID, RIVALS, SHIFT, memorised_report, nearest
from tests.refusals import refused

SIDE = 48
PATIENTS = [f"P{n // 2}" for n in range(40)]


def blobs(rng: np.random.Generator, number: int, side: int = SIDE) -> np.ndarray:
    """Structures of several sizes on a shade, all different, with grey values from about 0 to 1."""
    pictures = []
    for noise in rng.normal(size=(number, side, side)):
        coarse = cv2.GaussianBlur(noise, (0, 0), side / 8)
        fine = cv2.GaussianBlur(noise, (0, 0), side / 20)
        mixed = coarse / coarse.std() + 0.5 * fine / fine.std()
        pictures.append(0.5 + 0.15 * mixed)
    return np.array(pictures, np.float32)


def moved(patch: np.ndarray, angle: float = 0.0, zoom: float = 1.0) -> np.ndarray:
    centre = (patch.shape[0] - 1) / 2
    matrix = cv2.getRotationMatrix2D((centre, centre), angle, zoom)
    return cv2.warpAffine(patch, matrix, patch.shape, borderMode=cv2.BORDER_REFLECT)


def noisy(patch: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    return np.clip(patch + np.random.default_rng(seed).normal(0, sigma, patch.shape), 0, 1)


@pytest.fixture(scope="module")
def training():
    return blobs(np.random.default_rng(0), 40)


def test_finds_what_was_copied_shifted_turned_and_regraded(training):
    copies = np.stack(
        [
            3 * training[5] + 7,
            -0.0 + training[33][:, ::-1],
            training[17][::-1] * 0.2,
            training[2][::-1, ::-1],
            training[8].T,
            np.rot90(training[21]),
            np.rot90(training[4], -1),
            training[13].T[::-1, ::-1],
            np.roll(training[39], (3, -6), axis=(0, 1)),
        ]
    )
    found = nearest(copies, training, PATIENTS)
    np.testing.assert_array_equal(found.index, [5, 33, 17, 2, 8, 21, 4, 13, 39])
    np.testing.assert_allclose(found.similarity[:-1], 1, atol=1e-5)
    assert 0.9 < found.similarity[-1] < 1, "the border of the rolled patch is another one"
    words = ["", "horizontal", "vertical", "both", "", "vertical", "horizontal", "both", ""]
    assert [FLIPS[flip] for flip in found.flip] == words
    assert found.transposed.tolist() == [False] * 4 + [True] * 4 + [False]


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: noisy(patch, 0.1),
        lambda patch: cv2.GaussianBlur(patch, (0, 0), 1),
        lambda patch: moved(patch, 3),
        lambda patch: moved(patch, -10),
        lambda patch: moved(patch, zoom=0.9),
        lambda patch: moved(patch, zoom=1.1),
        lambda patch: np.roll(patch, (2, -5), axis=(0, 1)),
        lambda patch: patch**1.5,
        lambda patch: noisy(0.15 + 0.8 * moved(patch.T, 10, 0.95), 0.05),
    ],
    ids=["noise", "blur", "turn", "more", "smaller", "larger", "shift", "gamma", "all"],
)
def test_changed_copies_are_found_and_other_patches_are_not(training, change):
    rng = np.random.default_rng(8)
    copied = [3, 11, 26]
    synthetic = np.concatenate([blobs(rng, 3), [change(np.clip(training[n], 0, 1)) for n in copied]])
    found = memorised_report(synthetic, training, PATIENTS)
    assert sorted(found["memorised"]) == [3, 4, 5] and found["nearest"][3:] == copied


@pytest.mark.parametrize("angle", [-12, -6, 6, 12])
def test_rotations_are_searched(training, angle):
    found = nearest(moved(training[9], angle)[None], training, PATIENTS)
    assert found.index[0] == 9 and found.similarity[0] > 0.9


def test_a_noisy_copy_is_found_although_others_are_more_alike():
    """Similarity alone would miss it: patches of two patients are nearly the same, and more alike than a noisy copy."""
    training = blobs(np.random.default_rng(4), 40)
    training[1] = noisy(training[20], 0.02, 1)
    copy = noisy(training[9], 0.15, 2)
    found = nearest(copy[None], training, PATIENTS)
    among = nearest(training, training, PATIENTS, PATIENTS)
    assert found.index[0] == 9 and found.similarity[0] < among.similarity.max()
    assert found.margin[0] > np.delete(among.margin, [1, 20]).max()


def test_brightness_contrast_and_size_do_not_matter(training):
    one = nearest(training[:6], training[6:], PATIENTS[6:])
    regraded = nearest(0.01 * training[:6] - 5, 300 * training[6:], PATIENTS[6:])
    np.testing.assert_array_equal(regraded.index, one.index)
    np.testing.assert_allclose(regraded.similarity, one.similarity, atol=1e-4)
    np.testing.assert_allclose(regraded.margin, one.margin, atol=1e-4)
    large = training[7:9].repeat(3, 1).repeat(3, 2)
    found = nearest(large, training, PATIENTS)
    np.testing.assert_array_equal(found.index, [7, 8])
    assert (found.similarity > 0.99).all()
    small = np.array([cv2.resize(patch, (20, 20), interpolation=cv2.INTER_AREA) for patch in training[7:9]])
    np.testing.assert_array_equal(nearest(small, training, PATIENTS).index, [7, 8])


def long_waves(window: np.ndarray) -> np.ndarray:
    """A window [s, s] without its finer waves, flat."""
    waves = dctn(window, norm="ortho")
    waves[memorised.WAVES :], waves[:, memorised.WAVES :] = 0, 0
    return idctn(waves, norm="ortho").ravel()


def test_equals_the_slow_way(training):
    queries, keys, patients = training[:2], training[2:16], PATIENTS[2:16]
    found = nearest(queries, keys, patients)
    maps, inner, places = memorised._maps(keys.astype(float)), GRID - 2 * SHIFT, range(2 * SHIFT + 1)
    for k, query in enumerate(queries.astype(float)):
        rows = [
            long_waves(np.rot90(view, turn))
            for angle in memorised.ANGLES
            for centre in [memorised._maps(memorised._rotated(query[None], angle))[0, SHIFT:-SHIFT, SHIFT:-SHIFT]]
            for view in (centre, centre.T)
            for turn in range(4)
        ]
        similar = []
        for key in maps:
            columns = [long_waves(key[y : y + inner, x : x + inner]) for y in places for x in places]
            similar.append(np.corrcoef(rows, columns)[: len(rows), len(rows) :].max())
        best = int(np.argmax(similar))
        others = sorted((s for s, patient in zip(similar, patients) if patient != patients[best]), reverse=True)
        assert found.index[k] == best and found.similarity[k] == pytest.approx(similar[best], abs=1e-5)
        assert found.margin[k] == pytest.approx(similar[best] - np.mean(others[:RIVALS]), abs=1e-5)


def test_a_map_has_no_shade_and_even_contrast():
    """The left half has a third of the contrast of the right half, and a shade lies over both."""
    y, x = np.mgrid[:64, :64]
    waves = np.sin(2 * np.pi * x / 10) * np.sin(2 * np.pi * y / 10)
    (found,) = memorised._maps((np.where(x < 32, 1 / 3, 1) * waves + 0.05 * x + 0.02 * y)[None])
    left, right = found[6:26, 2:7], found[6:26, 22:27]  # a wave is 5 pixels of a map
    assert left.std() == pytest.approx(right.std(), rel=0.15)
    assert abs(left.mean()) < 0.1 * left.std() and abs(right.mean()) < 0.1 * right.std()


def test_own_group_is_not_compared_and_rivals_are_of_other_patients(training):
    found = nearest(training, training, PATIENTS, PATIENTS)
    assert all(PATIENTS[index] != PATIENTS[n] for n, index in enumerate(found.index))
    assert found.similarity.max() < 0.95
    alone = nearest(training[:3], training[:3], ["P"] * 3, ["P"] * 3)
    assert (alone.index == -1).all() and (alone.similarity == 0).all() and np.isnan(alone.margin).all()
    twice = np.concatenate([training[:10], training[:1]])  # a second image of the first patient's lesion
    patients = [*PATIENTS[:10], PATIENTS[0]]
    margin = nearest(training[:1], twice, patients).margin[0]
    assert margin == pytest.approx(nearest(training[:1], training[:10], PATIENTS[:10]).margin[0], abs=1e-5)


def test_a_single_patient_leaves_no_margin(training):
    found = nearest(training[2:3], training[2:3], ["P"])
    assert found.index[0] == 0 and found.similarity[0] == pytest.approx(1, abs=1e-5) and np.isnan(found.margin[0])


@pytest.mark.parametrize("value", [0.0, 0.4, 255.0, 1e-8])
def test_even_patches_are_like_nothing(training, value):
    rounded = value * (1 + 3e-8 * np.random.default_rng(0).choice([-1, 1], (1, SIDE, SIDE)))  # as float32 rounds
    found = nearest(rounded, training, PATIENTS)
    assert found.similarity[0] == 0 and found.margin[0] == 0
    with_even = np.concatenate([np.full((1, SIDE, SIDE), value, np.float32), training])
    assert 0 not in nearest(training[:4], with_even, ["even", *PATIENTS]).index


def test_no_patches(training):
    none = nearest(training[:2], training[:0], [])
    assert none.index.tolist() == [-1, -1] and none.similarity.tolist() == [0, 0] and np.isnan(none.margin).all()
    assert len(nearest(training[:0], training, PATIENTS).index) == 0
    empty = memorised_report(training[:0], training[:6], PATIENTS[:6])
    assert empty["memorised"] == [] and empty["share"] is None and empty["expected"] == 0


def test_pixels_that_are_not_finite_are_refused(training):
    broken = training[:3].copy()
    broken[1, 2, 3] = np.nan
    with refused("patch 1", where="patches"):
        nearest(broken, training, PATIENTS)
    with refused("patch 1", where="training patches"):
        nearest(training, broken, PATIENTS[:3])


def test_report(training):
    rng = np.random.default_rng(3)
    synthetic = np.concatenate([blobs(rng, 4), noisy(training[11], 0.1)[None], training[30][None]])
    found = memorised_report(synthetic, training, PATIENTS)
    assert found["memorised"] == [5, 4] and found["share"] == pytest.approx(2 / 6)
    assert found["nearest"][4:] == [11, 30] and found["similarity"][5] == pytest.approx(1, abs=1e-5)
    among = nearest(training, training, PATIENTS, PATIENTS)
    assert found["threshold"] == pytest.approx(among.margin.max(), abs=1e-5) and found["real"] < 0.9
    assert found["rate"] == pytest.approx(1 / 41) and found["expected"] == pytest.approx(6 / 41)
    for patients in (["P"] * 40, ["P", "Q"] * 20):
        unknown = memorised_report(synthetic, training, patients)
        assert unknown["threshold"] is unknown["rate"] is unknown["expected"] is None
        assert unknown["memorised"] == [] and unknown["share"] is None
    assert unknown["margin"][5] == pytest.approx(
        1 - np.mean(sorted(similarities(synthetic[5], training[1::2]))[-10:]), abs=1e-5
    )


def similarities(patch: np.ndarray, training: np.ndarray) -> list[float]:
    return [nearest(patch[None], one[None], ["P"]).similarity[0] for one in training]


def test_of_many_training_patches_some_outliers_do_not_raise_the_threshold(monkeypatch, training):
    """5 of 1,000 margins may be above it: twins under two patients' names among them."""
    margins = np.linspace(0, 0.1, 999)
    margins[[10, 20]] = 0.6
    among = memorised.Nearest(margins, margins, np.zeros(999, int), np.zeros(999, int), np.zeros(999, bool))
    monkeypatch.setattr(memorised, "nearest", lambda *given, **how: among)
    found = memorised_report(np.zeros((999, 2, 2)), np.zeros((999, 2, 2)), ["P"] * 999)
    assert found["threshold"] == sorted(margins)[-5] < 0.1 and found["rate"] == 0.005
    assert len(found["memorised"]) == 4 and found["memorised"][:2] == [10, 20]


def test_progress_counts_the_patches_and_changes_nothing(training):
    patches, patients, seen = training[:6], PATIENTS[:6], []

    def bar(results, total):
        for number, result in enumerate(results, 1):
            seen.append((number, total))
            yield result

    whole = nearest(patches, patches, patients)
    shown = nearest(patches, patches, patients, progress=bar)
    assert seen == [(number, len(patches)) for number in range(1, len(patches) + 1)]
    np.testing.assert_array_equal(shown.similarity, whole.similarity)
