import numpy as np
import pytest
from scipy.linalg import sqrtm

from elk_jax.evaluation import frechet
from tests.refusals import refused


def textbook(a, b):
    """With the matrix square root of the definition."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(sqrtm(first @ second))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)


@pytest.mark.parametrize("n, m", [(60, 45), (40, 12), (9, 8)])  # above, around and below the number of features
def test_equals_the_definition(n, m):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, 12))
    a, b = rng.normal(size=(n, 12)) @ mixing, rng.normal(size=(m, 12)) * 2 + 1
    assert frechet.frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-5)


def test_by_hand():
    one = np.array([[-1.0], [1.0]]) / np.sqrt(2)  # mean 0, variance 1
    assert frechet.frechet_distance(one, one * 3 + 4) == pytest.approx(4**2 + (3 - 1) ** 2)


def test_a_set_has_no_distance_to_itself_even_with_singular_covariances():
    rng = np.random.default_rng(0)
    few = rng.normal(size=(6, 200)) * 1e3
    assert frechet.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet.frechet_distance(few, few[::-1]) == pytest.approx(0, abs=1e-6)
    same = np.ones((5, 3))
    assert frechet.frechet_distance(same, same) == 0
    assert frechet.frechet_distance(few, few + 2) == pytest.approx(800)


def test_turning_both_sets_changes_nothing():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 5)), rng.normal(size=(20, 5)) * [1, 2, 3, 4, 5]
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert frechet.frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet.frechet_distance(a, b))
    assert frechet.frechet_distance(b, a) == pytest.approx(frechet.frechet_distance(a, b))


def test_kernel_distance_is_unbiased():
    """Two samples of one distribution: the mean over draws is 0 within its error; the Frechet distance's is not."""
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(12, 4)), rng.normal(size=(9, 4))) for _ in range(400)]
    kernel = np.array([frechet.kernel_distance(a, b) for a, b in draws])
    assert abs(kernel.mean()) < 3 * kernel.std() / 20
    assert np.mean([frechet.frechet_distance(a, b) for a, b in draws]) > 0.5
    a, b = draws[0]
    assert frechet.kernel_distance(a, b + 1) > kernel.max()


def test_kernel_distance_in_parts_is_that_of_the_whole_table(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(11, 5)), rng.normal(size=(8, 5))
    whole = frechet.kernel_distance(a, b)
    sizes = []
    monkeypatch.setattr(frechet.np, "trace", lambda part, **how: sizes.append(part.shape) or part.diagonal(**how).sum())
    monkeypatch.setattr(frechet, "ROWS", 3)
    assert frechet.kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)
    assert {rows for rows, _ in sizes} == {3, 2} and len(sizes) == 4 + 3 + 4


def test_kernel_distance_by_hand():
    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    # within a: (0*1+1)^3 = 1; within b: (6+1)^3 = 343; between: mean of 1, 1, 27, 64
    assert frechet.kernel_distance(a, b) == pytest.approx(1 + 343 - 2 * 93 / 4)


def test_compare_sets_gives_a_fair_yardstick():
    rng = np.random.default_rng(0)
    real, patients = rng.normal(size=(80, 6)), [f"P{n // 2}" for n in range(80)]
    good = frechet.compare_sets(real, rng.normal(size=(200, 6)), patients)
    bad = frechet.compare_sets(real, rng.normal(size=(30, 6)) + 1, patients)
    assert good["real_to_real"] == pytest.approx(good["synthetic_to_real"], rel=0.5)
    assert bad["synthetic_to_real"] > 4 * bad["real_to_real"]
    assert (good["real"], good["synthetic"], good["half"], bad["half"]) == (80, 200, 40, 30)
    assert frechet.compare_sets(real, real[:30] + 1, patients) == frechet.compare_sets(real, real[:30] + 1, patients)
    alone = frechet.compare_sets(real, real, ["P"] * 80)
    assert alone["real_to_real"] is None and alone["synthetic_to_real"] is None and alone["distance"] < 1e-9


def test_refusals():
    ok = np.random.default_rng(0).normal(size=(5, 3))
    for bad in (ok[:1], ok[0]):
        with refused("two images", where="features"):
            frechet.frechet_distance(ok, bad)
    with refused("NaN", where="features"):
        frechet.frechet_distance(ok, ok * np.nan)
    for distance in (frechet.frechet_distance, frechet.kernel_distance):
        with refused(3, 2, where="features"):
            distance(ok, ok[:, :2])
    with refused(5, 1, where="images"):
        frechet.kernel_distance(ok, ok[:1])
    with pytest.raises(ValueError, match="4 patients"):
        frechet.compare_sets(ok, ok, ["P"] * 4)


def test_draws_share_no_patient():
    patients = [f"P{k // 3}" for k in range(40)]
    drawn = frechet.draws(patients, 12, seed=1, most=15)
    assert len(drawn) == frechet.SPLITS
    for draw in drawn:
        assert len(draw.one) == len(draw.other) == len(draw.synthetic) == 12
        assert not {patients[k] for k in draw.one} & {patients[k] for k in draw.other}
        assert len(set(draw.synthetic.tolist())) == 12 and draw.synthetic.max() < 12
    assert all(len(draw.one) == 5 for draw in frechet.draws(patients, 12, most=5))
    assert frechet.draws(["P"] * 9, 12) == [] and frechet.draws(patients, 1) == []
