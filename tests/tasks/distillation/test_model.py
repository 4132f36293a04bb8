"""Every mode as the loss of a student: what it adds, that it can be learned, and what it does without lesions."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import comoto
from elk_jax.backbones import resnet
from elk_jax.detection import detectors, faster_rcnn_config
from elk_jax.detection.detector import Anchored
from elk_jax.detection.retinanet_config import RetinaNetConfig, plain
from elk_jax.distillation import lesions
from elk_jax.experiments.parse import parse
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks.detection.recipe import FIT
from elk_jax.tasks.distillation import model
from elk_jax.tasks.distillation.model import LEARNED, MODES, aligning, learning, of_detector
from elk_jax.tasks.distillation.recipe import DistillationRecipe
from elk_jax.weights.model_folder import flatten
from tests.detection import toy_detector
from tests.refusals import refused

SIDE = 32
CONFIG = toy_detector.ToyConfig(width=4)


def detector():
    """The toy, whose cells are its anchors."""
    toy = toy_detector.detector(CONFIG)

    def anchored(outputs, canvas):
        y, x = np.mgrid[0 : SIDE // 8, 0 : SIDE // 8].reshape(2, -1, 1) * 8.0
        return Anchored(*outputs, np.concatenate([x, y, x + 8, y + 8], 1))

    return replace(toy, anchored=anchored)


def some_batch(seed: int, lesions: bool = True):
    boxes = jnp.array([[[4.0, 4, 16, 20], [20, 20, 22, 21]], [[8, 2, 24, 30], [0, 0, 0, 0]]])
    valid = jnp.array([[True, True], [True, False]]) & lesions
    return {
        "image": jax.random.uniform(jax.random.key(seed), (2, SIDE, SIDE, 1)),
        "image_size": jnp.full((2, 2), float(SIDE)),
        "gt_boxes": boxes, "gt_valid": valid, "gt_labels": jnp.zeros((2, 2), jnp.int32),
        "gt_ignore": jnp.zeros((2, 2), bool), "valid": jnp.ones(2, bool),
    }  # fmt: skip


@cache
def student(mode: str, stages: int = 1):
    recipe = DistillationRecipe(model=CONFIG, mode=mode, stride=8)
    own = replace(detector(), stages=stages)
    return learning(own, own, jax.jit(own.init)(jax.random.key(7)), recipe, (SIDE, SIDE))


def both(distilled: bool = True, lesions: bool = True):
    return {**some_batch(0, lesions), "distilled": jnp.full(2, distilled), "beside": some_batch(1, lesions)}


@cache
def compiled(found):
    call = lambda p, batch: found.loss(p, found.constants, batch, jax.random.key(0), jax.vmap)
    return jax.jit(jax.value_and_grad(call, has_aux=True))


def measure(found, params, batch):
    (value, terms), gradient = compiled(found)(params, batch)
    return value, terms, gradient


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_adds_its_weighted_loss_and_reaches_the_backbone(mode):
    found = student(mode)
    params = jax.jit(found.init)(jax.random.key(1))
    value, terms, gradient = measure(found, params, both())
    factor = MODES[mode].weight
    assert terms["loss_distillation"] > 0 and np.isfinite(list(terms.values())).all()
    assert value == pytest.approx(float(terms["loss_detection"] + factor * terms["loss_distillation"]), rel=1e-5)
    before = measure(found, params, both(distilled=False))
    assert before[0] == pytest.approx(float(terms["loss_detection"]), rel=1e-6)
    reached = jax.tree.map(lambda a, b: np.abs(a - b).max(), of_detector(gradient), of_detector(before[2]))
    assert reached["backbone_0"]["kernel"] > 0
    assert bool(jax.tree.leaves(params.get(LEARNED, {}))) == (
        mode in ("lesion", "image", "fgd", "contrastive", "hints")
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("mode", ["classwise", "outputs"])
def test_the_gradient_is_the_sum_of_those_of_both_losses(mode):
    found = student(mode)
    params = jax.jit(found.init)(jax.random.key(1))

    def one(name):
        call = lambda p: found.loss(p, found.constants, both(), jax.random.key(0), jax.vmap)[1][name]
        return jax.jit(jax.grad(call))(params)

    wanted = jax.tree.map(lambda a, b: a + MODES[mode].weight * b, one("loss_detection"), one("loss_distillation"))
    gradient = measure(found, params, both())[2]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), gradient, wanted)
    assert all(np.abs(gradient[name]["kernel"]).max() > 1e-3 for name in ("classes", "sides"))


NETWORK = resnet.ResNetConfig(num_classes=0, depth=18, width=8, norm="none")
SMALL = {"backbone": NETWORK, "fpn_channels": 8}
REAL = (
    RetinaNetConfig(num_classes=3, background="first", **SMALL),
    faster_rcnn_config.detectron2(num_classes=3, box_fc_width=8, **SMALL),
)


@pytest.mark.parametrize("config", REAL, ids=lambda one: one.name)
def test_two_losses_of_the_outputs_share_one_backward_pass(config):
    """A step has the convolutions of the student's own step, and those of the teacher's outputs, or fewer."""
    own = detectors.build(config)
    shapes = jax.eval_shape(own.init, jax.random.key(0))
    image = {"image": jnp.zeros((2, 64, 64, 3)), "image_size": jnp.full((2, 2), 64.0)}
    batch = {**both(), **image, "beside": {**both()["beside"], **image}}

    def convolutions(call, *arguments):
        return jax.jit(call).lower(*arguments).as_text().count("stablehlo.convolution")

    def of_step(loss):
        return convolutions(jax.grad(lambda p, batch: loss(p, batch)[0]), shapes, batch)

    teacher = convolutions(lambda p, batch: own.outputs(p, own.features(p, batch)), shapes, image)
    alone = of_step(lambda p, batch: own.loss(p, batch, jax.random.key(0)))
    for mode in ("classwise", "outputs"):
        found = learning(own, own, shapes, DistillationRecipe(model=config, mode=mode), (64, 64))
        constants = {"teacher": jax.tree.map(lambda one: jnp.zeros(one.shape), shapes)}
        step = of_step(lambda p, b, found=found, c=constants: found.loss(p, c, b, jax.random.key(0), jax.vmap))
        assert step <= alone + teacher, mode


def test_a_detector_of_two_stages_is_taught_with_the_constants_that_are_published_for_it():
    """PKD: 6 in place of 10. FGD: a twentieth, but a tenth of the attentions and of the relation."""
    for mode, factor, shares in (("pkd", 0.6, {}), ("fgd", 1, {"inside": 20, "outside": 20, "attention": 10})):
        one, two = (student(mode, stages) for stages in (1, 2))
        params = jax.jit(one.init)(jax.random.key(1))
        (value, terms, _), (own_value, own_terms, _) = (measure(found, params, both()) for found in (one, two))
        for name, share in shares.items():
            assert own_terms[f"fgd_{name}"] == pytest.approx(float(terms[f"fgd_{name}"]) / share, rel=1e-4)
        taught, own = value - terms["loss_detection"], own_value - own_terms["loss_detection"]
        if mode == "pkd":
            assert own == pytest.approx(float(factor * taught), rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_images_without_a_lesion_and_padding_give_finite_gradients(mode):
    found = student(mode)
    params = jax.jit(found.init)(jax.random.key(1))
    for batch in (both(lesions=False), jax.tree.map(jnp.zeros_like, both())):
        _, terms, gradient = measure(found, params, batch)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((terms, gradient)))
        if mode == "lesion":
            assert terms["loss_distillation"] == 0


@pytest.mark.parametrize("mode", ["pkd", "fgd", "cwd", "mse", "sigmoid_l2", "outputs"])
def test_on_the_same_images_a_student_that_is_its_teacher_has_nothing_to_learn(mode):
    found = student(mode)
    params = {**jax.jit(found.init)(jax.random.key(1)), **found.constants["teacher"]}
    _, terms, _ = measure(found, params, both())
    assert terms["loss_distillation"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("mode", "kept"), [("mse", True), ("outputs", False)])
def test_without_detection_the_heads_stay_but_where_outputs_are_learned(mode, kept):
    metric = "similarity" if mode == "mse" else "mean_sensitivity"
    recipe = DistillationRecipe(model=CONFIG, mode=mode, detection_weight=0.0, best_metric=metric)
    own = detector()
    found = learning(own, own, jax.eval_shape(own.init, jax.random.key(0)), recipe, (SIDE, SIDE))
    names = [name for name in flatten(jax.eval_shape(own.init, jax.random.key(0))) if not name.startswith("backbone")]
    frozen = [any(re.search(pattern, name) for pattern in found.frozen) for name in names]
    assert names and frozen == [kept] * len(names)


def test_likeness_of_hints_is_that_of_the_maps_that_the_regressor_makes():
    """A student with the maps of its teacher, channels swapped: the regressor swaps them back."""
    own, batch = detector(), some_batch(0)
    batch = {**batch, "image": jnp.tile(batch["image"], 2), "patient": jnp.arange(2)}
    recipe = DistillationRecipe(model=CONFIG, mode="hints")
    weights = jax.jit(own.init)(jax.random.key(7))
    channels = own.features(weights, some_batch(0))[0].shape[-1]
    swap = {"level0": {"kernel": jnp.eye(channels)[::-1], "bias": jnp.zeros(channels)}}

    def similarity(learned):
        sums = model.likeness_of_batch(own, own, recipe, {**weights, LEARNED: learned}, weights, batch)
        return model.likeness_metrics(sums)["similarity"]

    same = {"level0": {"kernel": jnp.eye(channels), "bias": jnp.zeros(channels)}}
    assert similarity(same) == pytest.approx(1, abs=1e-4) and similarity(swap) < 0.99


def test_a_teacher_aligns_its_lesions():
    recipe = DistillationRecipe(model=CONFIG, stride=8, points=4, align_weight=3.0)
    found = aligning(detector(), recipe)
    params = jax.jit(found.init)(jax.random.key(0))
    value, terms, gradient = measure(found, params, some_batch(0))
    own = jax.jit(detector().loss)(params, some_batch(0), jax.random.key(0))[0]
    added = 3 * (terms["align_pull"] + terms["align_push"])
    assert added > 0 and value == pytest.approx(float(own + added), rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    black = {**some_batch(0), "image": jnp.zeros((2, SIDE, SIDE, 1))}  # no cell of a breast to draw from
    assert measure(found, params, black)[1]["align_push"] == 0
    anywhere = aligning(detector(), replace(recipe, negatives="anywhere", sampling="cell"))
    assert np.isfinite(measure(anywhere, params, black)[0])
    small = {**some_batch(0), "image": jnp.zeros((2, 16, 16, 1))}
    with refused(9, "2 x 2", where="stride"):
        jax.eval_shape(
            partial(aligning(detector(), replace(recipe, points=9)).loss, map_images=jax.vmap),
            params,
            {},
            small,
            jax.random.key(0),
        )


def test_anchors_of_lesions_and_the_hardest_of_background(monkeypatch):
    monkeypatch.setattr(model, "HARD_NEGATIVES", 3)
    own = detector()
    params, batch = own.init(jax.random.key(0)), some_batch(0)
    batch["gt_boxes"] = jnp.zeros((2, 2, 4)).at[0, 0].set(jnp.array([8.0, 8, 16, 16]))
    batch["gt_valid"] = jnp.zeros((2, 2), bool).at[0, 0].set(True)
    pyramid = own.features(params, batch)
    side = model.Side(own, pyramid, batch, own.strides, own.outputs(params, pyramid))
    logits, classes = model.anchor_classes(side, jax.vmap)
    assert np.flatnonzero(classes[0] == 0).tolist() == [5] and (classes == 1).sum(1).tolist() == [3, 3]
    hard = np.asarray(logits[1, :, 0])[np.asarray(classes[1] == 1)]
    assert hard.min() >= np.sort(logits[1, :, 0])[-3]


def test_the_detectors_of_the_table_give_logits_of_their_anchors():
    for config, classes in zip(REAL, (3, 1)):
        one = detectors.build(config)
        batch = {"image": jnp.zeros((2, 64, 64, 3)), "image_size": jnp.full((2, 2), 64.0)}
        counts = []

        def call(params, one=one, batch=batch, counts=counts):
            logits, boxes, anchors = one.anchored(one.outputs(params, one.features(params, batch)), (64, 64))
            counts.append(anchors.shape)
            assert boxes.shape == (2, *anchors.shape)
            return logits

        logits = jax.eval_shape(call, jax.eval_shape(one.init, jax.random.key(0)))
        assert counts == [(logits.shape[1], 4)] and logits.shape[::2] == (2, classes)


def test_published_points_lie_in_the_frame_of_the_stretched_image():
    """A box at (488, 976) to (590, 1170) of 1024 x 2048 px: r = 21 / 1024 gives the cells 10, 20, 12 and 23; in the
    canvas of 672 px, which is 666 px of the image and padding, r = 21 / 672 would give 9, 19, 11 and 23."""
    one = detectors.build(plain(backbone=resnet.ResNetConfig(num_classes=0, depth=18, width=8, norm="none")))
    box = np.array([488.0, 976, 590, 1170]) * np.tile([666 / 1024, 1333 / 2048], 2)
    batch = {
        "image": jnp.zeros((1, 1344, 672, 1)), "image_size": jnp.array([[1333.0, 666]]),
        "gt_boxes": jnp.asarray(box, jnp.float32)[None, None], "gt_valid": jnp.ones((1, 1), bool),
        "gt_ignore": jnp.zeros((1, 1), bool), "valid": jnp.ones(1, bool),
    }  # fmt: skip
    level = jnp.stack(jnp.meshgrid(jnp.arange(42.0), jnp.arange(21.0), indexing="ij")[::-1], -1)[None]
    side = model.Side(one, (level,), batch, (32,))
    recipe = parse(comoto.get_config("published")).recipes["distill"]
    found = model.lesion_points(side, recipe).values[0]
    assert found[:4].tolist() == [[10, 20], [12, 20], [10, 23], [12, 23]] and found[4].tolist() == [11, 21]
    whole = replace(recipe, loader=replace(recipe.loader, resize=FIT))
    assert model.lesion_points(side, whole).values[0, 0].tolist() == [9, 19]
    bare = replace(recipe, sampling="bilinear")
    np.testing.assert_allclose(model.lesion_points(side, bare).values[0, 0], box[:2] / 32 - 0.5, rtol=1e-4)


def test_a_private_recipe_is_refused():
    with refused(where="privacy"):
        DistillationRecipe(model=CONFIG, privacy=Privacy(epsilon=8.0, delta=1e-5))


def test_what_is_wrong_with_maps_that_were_learned_is_said():
    good = {"similarity_gap": 0.3, "spread": 0.8}
    assert model.likeness_warnings({"similarity_gap": 0.1}, good) == [] == model.likeness_warnings({}, {})
    (nothing,) = model.likeness_warnings({"similarity_gap": 0.3}, good)
    assert "0.300" in nothing
    (collapsed,) = model.likeness_warnings({}, {**good, "spread": 0.05})
    assert "collapsed" in collapsed and "0.050" in collapsed


def test_a_student_of_pairs_sees_the_first_image_and_its_teacher_the_second():
    recipe = DistillationRecipe(model=CONFIG, mode="mse", detection_weight=0.0, best_metric="similarity")
    own = detector()
    weights = jax.jit(own.init)(jax.random.key(7))
    found = learning(own, own, weights, recipe, (SIDE, SIDE), partner=True)
    params = jax.jit(own.init)(jax.random.key(1))
    seen = {}
    for blind in (None, 0, 1):
        image = jnp.concatenate([some_batch(0)["image"], some_batch(1)["image"]], -1)
        image = image if blind is None else image.at[..., blind].set(0.5)
        batch = {**some_batch(0), "image": image, "distilled": jnp.ones(2, bool), "patient": jnp.arange(2)}
        value, gradient = compiled(found)(params, batch)[0][0], compiled(found)(params, batch)[1]
        level, _ = model.likeness_of_batch(own, own, recipe, params, weights, batch)[0]
        channels = len(level.total) // 2
        seen[blind] = value, np.asarray(level.total[:channels]), np.asarray(level.total[channels:]), gradient
    assert not np.allclose(seen[None][0], seen[0][0]) and not np.allclose(seen[None][0], seen[1][0])
    assert np.array_equal(seen[None][1], seen[0][1]) and not np.allclose(seen[None][1], seen[1][1]), "the teacher: 1"
    assert np.array_equal(seen[None][2], seen[1][2]) and not np.allclose(seen[None][2], seen[0][2]), "the student: 0"


LEVELS = (32, 16, 8, 4, 2)
"""Sides of the maps of a pyramid of five levels, as of P3 to P7."""


def of_maps(seed: int, batch) -> model.Side:
    """A side with random maps of five levels."""
    drawn = jax.random.normal(jax.random.key(seed), (2, sum(side * side for side in LEVELS), 3))
    split = np.cumsum([side * side for side in LEVELS])[:-1]
    maps = tuple(one.reshape(2, side, side, 3) for one, side in zip(jnp.split(drawn, split, axis=1), LEVELS))
    return model.Side(detector(), maps, batch, tuple(SIDE // side for side in LEVELS))


def changed(side: model.Side, level: int, where=slice(None)) -> model.Side:
    maps = list(side.pyramid)
    maps[level] = maps[level].at[:, where].multiply(-2.0)
    return side._replace(pyramid=tuple(maps))


@pytest.mark.parametrize(("mode", "coarsest_counts"), [("pkd", False), ("cwd", True), ("mse", True)])
def test_pkd_compares_the_four_finest_levels_and_other_losses_all(mode, coarsest_counts):
    recipe, batch = DistillationRecipe(model=CONFIG, mode=mode), some_batch(0)
    teacher, student = of_maps(1, batch), of_maps(2, batch)
    measured = lambda side: float(MODES[mode].loss(side, student, {}, recipe, jax.vmap)[0])
    for level in range(4):
        assert measured(changed(teacher, level)) != pytest.approx(measured(teacher), rel=1e-4)
    assert (measured(changed(teacher, 4)) != pytest.approx(measured(teacher), rel=1e-4)) == coarsest_counts


@pytest.mark.parametrize("mode", ["mse", "sigmoid_l2", "pkd", "cwd"])
def test_what_maps_say_of_air_does_not_count(mode):
    """The upper half of the images is air. (FGD weighs lesions and what is around them.)"""
    recipe, batch = DistillationRecipe(model=CONFIG, mode=mode), some_batch(0)
    batch["image"] = batch["image"].clip(0.1).at[:, : SIDE // 2].set(0)
    teacher, student = of_maps(1, batch), of_maps(2, batch)

    def measured(where):
        side = teacher
        for level, size in enumerate(LEVELS[:4]):
            side = changed(side, level, where(size))
        return float(MODES[mode].loss(side, student, {}, recipe, jax.vmap)[0])

    unchanged = measured(lambda size: slice(0, 0))
    assert measured(lambda size: slice(0, size // 2)) == pytest.approx(unchanged, rel=1e-5)
    assert measured(lambda size: slice(size // 2, size)) != pytest.approx(unchanged, rel=1e-3)


def test_settings_of_a_loss_reach_it():
    """The weight in place of the mode's; the temperature and the confidence inside of it."""
    params = jax.jit(student("lesion").init)(jax.random.key(1))
    own = detector()

    def terms(mode, **settings):
        recipe = DistillationRecipe(model=CONFIG, mode=mode, stride=8, **settings)
        found = learning(own, own, student(mode).constants["teacher"], recipe, (SIDE, SIDE))
        value, more = jax.jit(lambda p, batch: found.loss(p, found.constants, batch, jax.random.key(0), jax.vmap))(
            {**params, **({LEARNED: params[LEARNED]} if mode == "lesion" else {})}, both()
        )
        return float(value - more["loss_detection"]), float(more["loss_distillation"])

    published, distilled = terms("lesion")
    assert published == pytest.approx(MODES["lesion"].weight * distilled, rel=1e-4)
    assert terms("lesion", weight=0.25) == pytest.approx((0.25 * distilled, distilled), rel=1e-4)
    batch, weights = both(), student("lesion").constants["teacher"]
    sides = [
        model.Side(own, own.features(one, seen), seen, own.strides)
        for one, seen in ((weights, batch["beside"]), (of_detector(params), batch))
    ]
    recipe = DistillationRecipe(model=CONFIG, mode="lesion", stride=8)
    read = [model.lesion_points(side, recipe) for side in sides]
    for temperature in (1.0, 16.0):
        expected = lesions.lskd(*read, params[LEARNED], temperature, recipe.normalised)
        assert terms("lesion", temperature=temperature)[1] == pytest.approx(float(expected), rel=1e-4)
    everywhere, nowhere = (terms("outputs", confidence=value)[1] for value in (1e-6, 1.0))
    assert everywhere > nowhere > 0, "boxes are compared where the teacher is confident, classes everywhere"


def test_a_teacher_is_aligned_on_the_maps_that_its_students_read():
    """Of the tap 'backbone' alignment does not reach the pyramid."""
    network = resnet.ResNetConfig(num_classes=0, depth=18, width=8, norm="none", pixel_mean=(0.5,), pixel_std=(0.25,))
    config = RetinaNetConfig(backbone=network, fpn_channels=8, head_convs=1)
    own, batch = detectors.build(config), {**some_batch(0), "image_size": jnp.full((2, 2), float(SIDE))}
    params = jax.jit(own.init)(jax.random.key(0))

    def reached(tap, weight):
        recipe = DistillationRecipe(model=config, stride=16, points=4, align_weight=weight, tap=tap)
        loss = partial(aligning(own, recipe).loss, map_images=jax.vmap)
        return flatten(jax.jit(jax.grad(lambda p: loss(p, {}, batch, jax.random.key(0))[0]))(params))

    for tap in ("pyramid", "backbone"):
        with_it, without = reached(tap, 1.0), reached(tap, 0.0)
        moved = {name.split("/")[0] for name in with_it if not np.allclose(with_it[name], without[name], atol=1e-7)}
        assert moved == ({"backbone", "fpn"} if tap == "pyramid" else {"backbone"})
