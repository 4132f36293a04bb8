"""Distillation losses against values worked out by hand, by NumPy loops, and by their properties."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from elk_jax.distillation import fgd, lesions, maps
from elk_jax.distillation.points import Points

T = 2.0


def some(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


def points(values, present=None):
    values = jnp.asarray(values, jnp.float32)
    return Points(values, jnp.ones(len(values), bool) if present is None else jnp.array(present))


# ---- Of points -------------------------------------------------------------------------------------------------------


def test_lskd_by_hand():
    """One channel, two points: t = (0, ln 4) at T 2 -> (1/3, 2/3); s = (0, 0) -> (1/2, 1/2)."""
    teacher, student = points([[[0.0], [np.log(4)]]]), points(np.zeros((3, 2, 1)))
    expected = T**2 * (1 / 3 * np.log(2 / 3) + 2 / 3 * np.log(4 / 3))
    assert lesions.lskd(teacher, student, lesions.identity_map(2), T) == pytest.approx(expected, rel=1e-6)
    swap = {"kernel": jnp.array([[0.0, 1], [1, 0]])}
    swap["bias"] = jnp.array([np.log(4), 0.0])  # of s = (ln 16, 0) the map gives (ln 4, ln 16) = t + ln 4
    assert lesions.lskd(teacher, points([[[np.log(16)], [0.0]]]), swap, T) == pytest.approx(0, abs=1e-6)


def test_lskd_compares_means_over_the_images_with_lesions():
    t, s = some(0, 3, 5, 4), some(1, 4, 5, 4)
    present = [True, False, True, True]
    learned = lesions.init_map(jax.random.key(2), 5)
    mean_t, mean_s = np.asarray(t).mean(0).T, np.asarray(s)[[0, 2, 3]].mean(0).T
    mapped = mean_s @ np.asarray(learned["kernel"]) + np.asarray(learned["bias"])
    p, q = scipy.special.softmax(mean_t / T, 1), scipy.special.softmax(mapped / T, 1)
    expected = T**2 * np.mean([scipy.stats.entropy(a, b) for a, b in zip(p, q)])
    assert lesions.lskd(points(t), points(s, present), learned, T) == pytest.approx(expected, rel=1e-5)
    one = lesions.lskd(points(some(3, 2, 1, 4)), points(some(4, 2, 1, 4)), lesions.init_map(jax.random.key(0), 1), T)
    assert one == pytest.approx(0, abs=1e-6)  # one point
    assert np.abs(learned["kernel"]).max() <= 5**-0.5


def test_deviations_by_hand():
    """Channels (0, 2) and (5, 11): deviations -1, 1 and -3, 3, mean square 5."""
    found = lesions.deviations(jnp.array([[0.0, 2], [5, 11]]))
    np.testing.assert_allclose(found, np.array([[-1, 1], [-3, 3]]) / 5**0.5, rtol=1e-6)
    alike = jnp.array([[4.0, 4], [7, 7]])
    assert np.all(lesions.deviations(alike) == 0)
    assert np.isfinite(jax.grad(lambda x: lesions.deviations(x).sum())(alike)).all()


@pytest.mark.parametrize(("factor", "shift"), [(0.5, 0.0), (1.0, 5.0), (8.0, -2.0)])
def test_without_normalisation_the_loss_grows_with_the_square_of_the_scale_of_features(factor, shift):
    """L = C^-1 sum_c (1/2) mean_p (t - s)^2 of centred t and s, where these are small against T."""
    t, s = some(0, 3, 9, 4), some(1, 4, 9, 4)
    identity, big = lesions.identity_map(9), 60.0
    plain, normal = (
        [
            float(lesions.lskd(points(a), points(b), identity, big, normalised))
            for a, b in ((t, s), (factor * t + shift, factor * s))
        ]
        for normalised in (False, True)
    )
    centred = [np.asarray(x).mean(0).T - np.asarray(x).mean(0).mean(0)[:, None] for x in (t, s)]
    assert plain[0] == pytest.approx(((centred[0] - centred[1]) ** 2).mean() / 2, rel=0.02)
    assert plain[1] == pytest.approx(factor**2 * plain[0], rel=0.05)
    r = np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1]
    assert normal == pytest.approx([1 - r, 1 - r], rel=0.02)


def test_image_level_compares_all_cells_of_the_mean_maps():
    """The cells of a map, row by row, of the mean of the images that count; the published layer maps them together."""
    t, s = np.asarray(some(0, 2, 2, 3, 4)), np.asarray(some(1, 3, 2, 3, 4))
    learned = lesions.init_map(jax.random.key(2), 6)
    of_channels = lambda x: np.array([[x[:, y, z, c].mean() for y in range(2) for z in range(3)] for c in range(4)])
    mapped = of_channels(s[[0, 2]]) @ np.asarray(learned["kernel"]) + np.asarray(learned["bias"])
    p, q = scipy.special.softmax(of_channels(t) / T, 1), scipy.special.softmax(mapped / T, 1)
    expected = T**2 * np.mean([scipy.stats.entropy(a, b) for a, b in zip(p, q)])
    counts = jnp.ones(2, bool), jnp.array([True, False, True])
    assert lesions.image_level(jnp.asarray(t), jnp.asarray(s), learned, T, *counts) == pytest.approx(expected, rel=1e-5)


def test_impa_by_hand():
    """P_1 = (1, 0), P_2 = (0, 2), N_1 = (1, 0), N_2 = (-1, 0): cosines of pairs 1, 0, 0, 1; of others 1, -1, 0, 0."""
    own, beside = points([[[1.0, 0]], [[0.0, 2]]]), points([[[1.0, 0]], [[-1.0, 0]]])
    assert [float(x) for x in lesions.impa(own, beside)] == pytest.approx([2 / 4, 1 / 4])
    absent = own._replace(present=jnp.array([True, False]))
    assert [float(x) for x in lesions.impa(absent, beside)] == pytest.approx([0, 1 / 2])


def test_classwise_by_hand():
    """One class: mean logits of lesions ln 9 -> (0.9, 0.1) against ln 1 -> (0.5, 0.5); backgrounds alike."""
    t, s = jnp.array([[[np.log(3)], [np.log(27)], [0.0], [99.0]]]), jnp.zeros((1, 4, 1))
    classes = jnp.array([[0, 0, 1, -1]])
    p, q = (0.9, 0.1), (0.5, 0.5)
    expected = (scipy.stats.entropy(p, q) + scipy.stats.entropy(q, p)) / 2 / 2
    assert lesions.classwise(t, classes, s, classes, 1.0) == pytest.approx(expected, rel=1e-5)
    without = jnp.array([[1, 1, 1, -1]])
    background = lesions.classwise(t[:, 2:], without[:, 2:], s, without, 1.0)
    assert background == pytest.approx(0, abs=1e-7)  # the class that one batch lacks does not count


def test_the_hardest_negatives():
    found = lesions.hardest(jnp.array([3.0, 9, 1, 2]), jnp.array([True, False, True, True]), 2)
    assert found.tolist() == [True, False, False, True]
    assert lesions.hardest(jnp.ones(3), jnp.array([False, True, False]), 3).tolist() == [False, True, False]


# ---- Of maps ---------------------------------------------------------------------------------------------------------


def test_normalised_mse_is_one_minus_pearson():
    t, s = np.asarray(some(0, 2, 3, 4, 5)), np.asarray(some(1, 2, 3, 4, 5))
    weights = np.ones((2, 3, 4), np.float32)
    weights[1, 2] = 0
    r = [scipy.stats.pearsonr(t[..., c][weights > 0], s[..., c][weights > 0])[0] for c in range(5)]
    assert maps.normalised_mse(t, 7 * s - 3, weights) == pytest.approx(1 - np.mean(r), rel=1e-4)
    assert maps.correlation(t, 7 * s - 3, weights) == pytest.approx(np.mean(r), rel=1e-4)
    assert maps.normalised_mse(t, t, weights) == pytest.approx(0, abs=1e-9)


def test_sigmoid_l2_by_hand():
    t, s = jnp.zeros((1, 1, 2, 1)), jnp.array([[[[np.log(3)], [100.0]]]])
    assert maps.sigmoid_l2(t, s, jnp.array([[[1.0, 0.0]]])) == pytest.approx(0.25**2)


def test_cwd_by_hand():
    t, s = np.asarray(some(0, 2, 3, 2, 4)), np.asarray(some(1, 2, 3, 2, 4))
    p, q = (scipy.special.softmax(x.reshape(2, 6, 4) / T, 1) for x in (t, s))
    expected = T**2 * scipy.stats.entropy(p, q, axis=1).mean()
    assert maps.cwd(t, s, jnp.ones((2, 3, 2)), T) == pytest.approx(expected, rel=1e-5)
    half = jnp.ones((2, 3, 2)).at[1].set(0)
    assert maps.cwd(t, s, half, T) == pytest.approx(T**2 * scipy.stats.entropy(p[:1], q[:1], axis=1).mean(), rel=1e-5)


# ---- Focal and global ------------------------------------------------------------------------------------------------


def published_fgd(t, s, boxes, canvas, temperature):
    """The focal part as loops over one image, after the published formulas."""
    h, w, channels = t.shape
    attend = lambda x: (h * w * scipy.special.softmax(np.abs(x).mean(-1) / temperature),
                        channels * scipy.special.softmax(np.abs(x).mean((0, 1)) / temperature))  # fmt: skip
    inside, free = np.zeros((h, w)), np.ones((h, w))
    for x0, y0, x1, y1 in boxes * ([w / canvas[1], h / canvas[0]] * 2):
        rows, columns = slice(int(y0), int(np.ceil(y1))), slice(int(x0), int(np.ceil(x1)))
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        inside[rows, columns] = np.maximum(inside[rows, columns], 1 / area)
        free[rows, columns] = 0
    (cells, of_channels), own = attend(t), attend(s)
    weighted = (cells[..., None] * of_channels * (t - s) ** 2).sum(-1)
    scale = fgd.PUBLISHED_CANVAS / canvas[0] / canvas[1]
    attentions = scale * np.abs(cells - own[0]).sum() + np.abs(of_channels - own[1]).sum()
    return (weighted * inside).sum(), (weighted * free / free.sum()).sum(), attentions


def test_fgd_against_loops():
    t, s = np.asarray(some(0, 2, 4, 6, 3)), np.asarray(some(1, 2, 4, 6, 3))
    boxes = np.array([[[8, 8, 40, 30], [8, 8, 16, 16], [0, 0, 9, 9]]] * 2, float)
    valid = jnp.array([[True, True, False]] * 2)
    relations = {"teacher": fgd.init_relation(jax.random.key(0), 3), "student": fgd.init_relation(jax.random.key(1), 3)}
    call = partial(fgd.of_level, t, s, boxes, valid, relations=relations, canvas=(32, 48))
    found, weights = call(counts=jnp.ones(2, bool)), fgd.Weights()
    expected = np.array([published_fgd(t[i], s[i], boxes[i][:2], (32, 48), 0.5) for i in range(2)])
    for name, factor, value in zip(("inside", "outside", "attention"), (weights.alpha, weights.beta, weights.gamma),
                                   expected.mean(0)):  # fmt: skip
        assert found[name] == pytest.approx(factor * value, rel=1e-4), name
    scale = fgd.PUBLISHED_CANVAS / (32 * 48)
    assert found["relation"] == pytest.approx(weights.relation * scale * ((t - s) ** 2).sum() / 2, rel=1e-4)
    cells = jnp.zeros((2, 4, 6)).at[:, :, :4].set(1)  # the images' left parts alone
    part = fgd.of_level(t[:, :, :4], s[:, :, :4], boxes, valid, jnp.ones(2, bool), relations, (32, 32))
    masked = call(counts=jnp.ones(2, bool), cells=cells)
    for name in ("inside", "outside"):
        assert masked[name] == pytest.approx(float(part[name]), rel=1e-4), name
    learned = {who: {**one, "expand": some(k, *one["expand"].shape)} for k, (who, one) in enumerate(relations.items())}
    elsewhere = t + 5 * (1 - np.asarray(cells))[..., None]
    terms = [
        fgd.of_level(x, s, boxes, valid, jnp.ones(2, bool), learned, (32, 48), cells=cells) for x in (t, elsewhere)
    ]
    for name, value in terms[0].items():
        assert terms[1][name] == pytest.approx(float(value), rel=1e-5), f"{name} reads cells that do not count"
    one = call(counts=jnp.array([True, False]))
    assert one["inside"] == pytest.approx(weights.alpha * expected[0, 0], rel=1e-4)
    assert all(value == 0 for value in call(counts=jnp.zeros(2, bool)).values())


def published_relation(params, x):
    """A GcBlock of one image [h, w, C]: softmax pooling, a layer, LayerNorm, ReLU, a layer, added to every cell."""
    one = {name: np.asarray(value, float) for name, value in params.items()}
    cells = x.reshape(-1, x.shape[-1])
    context = scipy.special.softmax(cells @ one["pool"]) @ cells
    hidden = context @ one["squeeze"] + one["squeeze_bias"]
    normal = (hidden - hidden.mean()) / np.sqrt(((hidden - hidden.mean()) ** 2).mean() + 1e-5)
    return x + np.maximum(normal * one["scale"] + one["shift"], 0) @ one["expand"] + one["expand_bias"]


def test_the_relations_of_fgd_against_loops():
    t, s = np.asarray(some(0, 2, 4, 6, 6)), np.asarray(some(1, 2, 4, 6, 6))
    start = fgd.init_relation(jax.random.key(0), 6)
    learned = {
        who: {name: some(10 * place + k, *value.shape) for k, (name, value) in enumerate(start.items())}
        for place, who in enumerate(("teacher", "student"))
    }
    found = fgd.of_level(t, s, jnp.zeros((2, 1, 4)), jnp.zeros((2, 1), bool), jnp.ones(2, bool), learned, (32, 48))
    differ = [
        published_relation(learned["teacher"], a) - published_relation(learned["student"], b) for a, b in zip(t, s)
    ]
    expected = np.mean([(one**2).sum() for one in differ]) * fgd.PUBLISHED_CANVAS / (32 * 48)
    assert found["relation"] == pytest.approx(fgd.Weights().relation * expected, rel=1e-4)


def test_images_may_be_displaced_by_the_tolerance():
    t, weights = some(0, 2, 6, 7, 3), jnp.ones((2, 6, 7)).at[:, 0].set(0).at[:, -1].set(0).at[:, :, -1].set(0)
    moved = jnp.roll(t, (1, -1), (1, 2))
    inside = jnp.zeros_like(weights).at[:, 2:5, :5].set(1)  # where the moved cell still has a weight
    assert maps.least_of_shifts(t, moved, inside, 0) > 1
    found = jnp.where(inside[..., None] > 0, moved, some(1, 2, 6, 7, 3))
    assert maps.least_of_shifts(t, found, weights, 1) < maps.least_of_shifts(t, found, weights, 0)
    assert maps.least_of_shifts(t, t, weights, 2) == 0
    expected, (w, a, b) = [], (np.asarray(weights), np.asarray(t), np.asarray(some(1, 2, 6, 7, 3)))
    for i, y, x in zip(*np.nonzero(w)):
        near = [(v, u) for v in range(max(y - 1, 0), min(y + 2, 6)) for u in range(max(x - 1, 0), min(x + 2, 7))]
        expected.append(min(((a[i, v, u] - b[i, y, x]) ** 2).mean() for v, u in near if w[i, v, u] > 0))
    assert maps.least_of_shifts(t, some(1, 2, 6, 7, 3), weights, 1) == pytest.approx(np.mean(expected), rel=1e-5)


def test_contrastive_is_the_cross_entropy_of_the_own_partner():
    t, s = np.asarray(some(0, 3, 2, 2, 4)), np.asarray(some(1, 3, 2, 2, 4))
    weights = np.array([[[1, 0], [1, 1]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]], float)
    projections = {name: np.asarray(some(k, 4, 5)) for name, k in (("teacher", 2), ("student", 3))}

    def directions(x, name):
        pooled = [(x[i] * weights[i][..., None]).sum((0, 1)) / weights[i].sum() for i in range(2)]
        y = np.array(pooled) @ projections[name]
        return y / np.linalg.norm(y, axis=1, keepdims=True)

    logits = directions(s, "student") @ directions(t, "teacher").T / 0.1
    expected = -np.diagonal(scipy.special.log_softmax(logits, axis=1)).mean()
    found = maps.contrastive(*map(jnp.asarray, (t, s, weights)), projections, 0.1)
    assert found == pytest.approx(expected, rel=1e-4)
    alone = maps.contrastive(*(jnp.asarray(x[:1]) for x in (t, s, weights)), projections, 0.1)
    assert alone == pytest.approx(0, abs=1e-6)


# ---- Gradients -------------------------------------------------------------------------------------------------------


def of_points(loss):
    return lambda t, s, there: loss(points(t.reshape(2, 6, 3), there), points(s.reshape(2, 6, 3), there))


LOSSES = {
    "lskd": of_points(lambda t, s: lesions.lskd(t, s, lesions.identity_map(6), T)),
    "impa": of_points(lambda t, s: sum(lesions.impa(s, t))),
    "image": lambda t, s, there: lesions.image_level(t, s, lesions.identity_map(6), T, there, there),
    "mse": lambda t, s, there: maps.normalised_mse(t, s, jnp.ones((2, 2, 3)) * there[:, None, None]),
    "sigmoid": lambda t, s, there: maps.sigmoid_l2(t, s, jnp.ones((2, 2, 3)) * there[:, None, None]),
    "shifted": lambda t, s, there: maps.normalised_mse(t, s, jnp.ones((2, 2, 3)) * there[:, None, None], 1),
    "contrastive": lambda t, s, there: maps.contrastive(t, s, jnp.ones((2, 2, 3)) * there[:, None, None], {
        name: jnp.eye(3) for name in ("teacher", "student")}, 0.1),
    "cwd": lambda t, s, there: maps.cwd(t, s, jnp.ones((2, 2, 3)) * there[:, None, None]),
    "fgd": lambda t, s, there: sum(fgd.of_level(t, s, jnp.array([[[4.0, 4, 4.5, 4.5]]] * 2), there[:, None], there, {
        name: fgd.init_relation(jax.random.key(0), 3) for name in ("teacher", "student")}, (16, 24)).values()),
    "classwise": lambda t, s, there: lesions.classwise(
        t.reshape(2, 6, 3), jnp.where(there[:, None], 0, -1) + jnp.zeros((2, 6), int),
        s.reshape(2, 6, 3), jnp.where(there[:, None], 0, -1) + jnp.zeros((2, 6), int), T),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_and_nothing_is_learned_from_nothing(name):
    loss = jax.jit(jax.value_and_grad(LOSSES[name], argnums=(0, 1)))
    t, s = some(0, 2, 2, 3, 3), some(1, 2, 2, 3, 3)
    value, (to_teacher, to_student) = loss(t, s, jnp.array([True, True]))
    assert value > 0 and np.isfinite(to_student).all() and np.abs(to_student).max() > 0
    if name != "impa":  # of one network
        assert not np.asarray(to_teacher).any()
    value, (_, gradient) = loss(t, s, jnp.array([False, False]))
    assert value == 0 and not np.asarray(gradient).any()
    for constant in (jnp.zeros_like(s), jnp.ones_like(s)):
        value, (_, gradient) = loss(constant, constant, jnp.array([True, False]))
        assert np.isfinite(value) and np.isfinite(gradient).all()
