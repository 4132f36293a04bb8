"""The fused detector: it starts as its first trunk, reads what it says it reads, and is made of trained members."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax import fields
from elk_jax.detection import detectors, efficientdet, fused
from elk_jax.detection.fused_config import FusedConfig
from elk_jax.training.optimizer import matches
from elk_jax.weights import model_folder
from tests.detection.test_efficientdet import TINY
from tests.refusals import refused

SETTINGS = {**{name: getattr(TINY, name) for name in asdict(TINY)}, "name": "fused"}
SIDE = 64


def config(**changes) -> FusedConfig:
    return FusedConfig(**{**SETTINGS, **changes})


@cache
def members():
    """(an EfficientDet, another of other weights)."""
    member = efficientdet.detector(fused.member_config(config()))
    return tuple(jax.jit(member.init)(jax.random.key(key)) for key in (1, 2))


@cache
def batch(images: int = 2):
    """The first image of the pairs, or both."""
    shown = jax.random.uniform(jax.random.key(0), (2, SIDE, SIDE, 2))[..., :images]
    boxes = jnp.array([[[8.0, 8, 30, 28]], [[0, 0, 0, 0]]])
    return {
        "image": shown, "image_size": jnp.full((2, 2), float(SIDE)), "gt_boxes": boxes,
        "gt_valid": jnp.array([[True], [False]]), "gt_labels": jnp.zeros((2, 1), jnp.int32),
        "gt_ignore": jnp.zeros((2, 1), bool), "valid": jnp.ones(2, bool),
    }  # fmt: skip


@cache
def compiled(settings: FusedConfig):
    return jax.jit(detectors.build(settings).features)


def read(settings: FusedConfig, params, shown, rng=None):
    return compiled(settings)(params, {name: shown[name] for name in ("image", "image_size")}, rng)


@cache
def alone():
    """The levels of the first member."""
    member = efficientdet.detector(fused.member_config(config()))
    return jax.jit(member.features)(members()[0], batch(1))


@pytest.mark.parametrize("tap", ["pyramid", "backbone"])
@pytest.mark.parametrize("second", ["own", "partner"])
def test_it_starts_as_its_first_trunk_alone(tap, second):
    settings = config(tap=tap, second=second)
    params = fused.from_members(settings, *members())
    shapes = model_folder.shapes_of(detectors.build(settings).init)
    assert {name: leaf.shape for name, leaf in model_folder.flatten(params).items()} == shapes
    for level, expected in zip(read(settings, params, batch(2 if second == "partner" else 1)), alone(), strict=True):
        np.testing.assert_allclose(level, expected, rtol=1e-5, atol=1e-5)


def test_both_trunks_count_once_the_join_has_learned():
    settings = config()
    params = fused.from_members(settings, *members())
    channels = settings.channels
    kernel = jnp.concatenate([0.5 * jnp.eye(channels), 2 * jnp.eye(channels)])
    params["join"]["level0"] = {"kernel": kernel, "bias": jnp.ones(channels)}
    other = jax.jit(lambda p: fused.trunk(settings, p, batch(1), None))(members()[1])
    expected = 0.5 * alone()[0] + 2 * other[0] + 1
    np.testing.assert_allclose(read(settings, params, batch(1))[0], expected, rtol=1e-4, atol=1e-4)


def test_it_reads_the_partner_only_where_it_says_so():
    """With NaN as the partner: the third stage of the regime reads no second image."""
    blind = {**batch(), "image": batch()["image"].at[..., 1].set(jnp.nan)}
    params = fused.from_members(config(), *members())
    assert detectors.build(config()).images == detectors.build(config()).tested_images == 1
    assert all(np.isfinite(level).all() for level in read(config(), params, blind))
    both = config(second="partner")
    assert detectors.build(both).images == detectors.build(both).tested_images == 2
    assert not np.isfinite(read(both, params, blind)[0]).all()
    with refused("partner"):
        read(both, params, batch(1))


def test_a_dropped_partner_is_as_none():
    settings = config(second="partner", drop=0.5)
    found = detectors.build(settings)
    assert (found.images, found.tested_images) == (2, 1)
    params = fused.from_members(settings, *members())
    params["join"] = {name: {**one, "kernel": one["kernel"] + 1} for name, one in params["join"].items()}
    without = read(settings, params, batch(1))[0]
    whole = read(settings, params, batch())[0]
    kept = {}
    for key in range(12):
        level = read(settings, params, batch(), jax.random.key(key))[0]
        for image in range(2):
            is_kept = np.allclose(level[image], whole[image], atol=1e-4)
            assert is_kept != np.allclose(level[image], without[image], atol=1e-4)
            kept.setdefault(image, set()).add(is_kept)
    assert kept == {0: {True, False}, 1: {True, False}}


@pytest.mark.parametrize("tap", ["pyramid", "backbone"])
def test_joined_without_a_projection_what_follows_is_wider(tap):
    settings = config(join="concat", tap=tap)
    found = detectors.build(settings)
    params = found.init(jax.random.key(0))
    assert "join" not in params and set(fused.from_members(settings, *members())) == {"own", "other"}
    wide = {name: leaf.shape for name, leaf in model_folder.flatten(params).items()}
    narrow = model_folder.shapes_of(detectors.build(replace(settings, join="conv")).init)
    part = "class_head/" if tap == "pyramid" else "fpn/cell0/down5/inputs5/"
    assert any(wide[name] != shape for name, shape in narrow.items() if name.startswith(part))
    assert read(settings, params, batch(1))[0].shape[-1] == (2 if tap == "pyramid" else 1) * settings.channels
    outputs = jax.eval_shape(found.predict, params, batch(1))
    assert outputs["boxes"].shape == (2, settings.detections, 4)


def test_what_follows_the_trunks_can_be_trained_alone():
    settings = config()
    found = detectors.build(settings)
    params = fused.from_members(settings, *members())
    gradient = jax.jit(jax.grad(lambda p: found.loss(p, batch(1), jax.random.key(0))[0]))(params)
    reached = {name for name, leaf in model_folder.flatten(gradient).items() if np.abs(leaf).max() > 0}
    assert any(name.startswith("join/") for name in reached) and any(name.startswith("class_head/") for name in reached)
    names = matches(params, ("^(own|other)/",), "frozen")
    assert {name for name, frozen in model_folder.flatten(names).items() if not frozen} == {
        name for name in model_folder.flatten(params) if name.split("/")[0] in ("join", "class_head", "box_head")
    }


def test_what_an_efficientdet_keeps_is_kept_in_both_trunks():
    backbone = replace(TINY.backbone, norm="frozen_bn")
    found = detectors.build(config(backbone=backbone))
    flat = model_folder.shapes_of(found.init)
    frozen = [name for name in flat if any(re.search(pattern, name) for pattern in found.frozen)]
    for trunk in fused.TRUNKS:
        assert any(name.startswith(f"{trunk}/backbone/") for name in frozen)
    taken = found.settled_by(flat)
    assert {"activation", "backbone.depth"} & set(taken) and "activation" in found.settled_by(["other/fpn/p6/kernel"])


def test_settings_survive_the_model_folder(tmp_path):
    settings = config(second="partner", drop=0.25, tap="backbone")
    again = detectors.stored_config({"model": asdict(settings)}, tmp_path / "model.json", complete=True)
    assert again == settings and type(again) is FusedConfig
    assert type(fused.member_config(settings)).__name__ == "EfficientDetConfig"


@pytest.mark.parametrize(
    "field, value", [("second", "both"), ("tap", "heads"), ("join", "sum"), ("drop", 1.0), ("drop", 0.5)]
)
def test_an_impossible_value_is_refused_with_its_field(field, value):
    with refused(field, where=f"config.fused.model.{field}"):
        fields.build(FusedConfig, {**asdict(config()), field: value}, "config.fused.model")
