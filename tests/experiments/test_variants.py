"""The variants of every experiment in configs/: well formed, and what their names promise; nothing is trained here."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import config_flags

from configs import (
    cem_ensemble,
    cem_mixed,
    cem_real,
    cem_real_dp,
    cem_synthetic,
    comoto,
    inpaint_cem,
    mammo_pretrain,
    variants,
)
from elk_jax.backbones.networks import NETWORKS
from elk_jax.detection import detectors
from elk_jax.detection.anchors import pyramid_anchors
from elk_jax.detection.boxes import iou
from elk_jax.experiments.parse import parse, plain
from elk_jax.training import optimizer
from tests.refusals import refused

CONFIGS = {
    "cem_mixed": cem_mixed,
    "cem_real": cem_real,
    "cem_synthetic": cem_synthetic,
    "inpaint_cem": inpaint_cem,
    "mammo": mammo_pretrain,
}

PLACES = sorted(Path(variants.__file__).parent.glob("*.py"))
LISTING = [path.stem for path in PLACES if re.search(r"Variants.*^def get_config", path.read_text(), re.DOTALL | re.M)]


@pytest.mark.parametrize("variant", [None, "tiny", "small", "paper", "fewshot", "paper,fewshot"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_variant_of_every_experiment_is_well_formed(name, variant):
    config = CONFIGS[name].get_config(variant)
    parse(config)
    for stage in config.stages.values():
        assert set(stage.get("train_on", ())) <= set(config.data)
    json.dumps(plain(config))


COMOTO = [None, "tiny,baselines", "small,half", "published", "faster_rcnn", "small,efficientdet", "tiny,faster_rcnn"]


@pytest.mark.parametrize("variant", COMOTO)
def test_teacher_and_student_are_one_detector(variant):
    config = comoto.get_config(variant)
    found = parse(config)
    recipe, stages = found.recipes["distill"], found.stages
    assert found.recipe_of(stages["teacher"]) is found.recipe_of(stages["student"])
    assert recipe.stride in detectors.build(recipe.model).strides and stages["student"].teacher == "teacher"
    kinds = {"faster_rcnn", "efficientdet"} & {*(variant or "").split(",")} or {"retinanet"}
    assert {recipe.model.name} == kinds and found.data["dbt"].train_share < 1
    assert (variant == "published") == (not getattr(recipe.model, "fpn", True))
    assert ("joint" in stages) == ("baselines" in (variant or "").split(","))
    with pytest.raises(ValueError, match=r"paper.*published"):
        comoto.get_config("paper")
    with pytest.raises(ValueError, match=r"published.*half"):  # whose network is its own
        comoto.get_config("half,published")
    with pytest.raises(ValueError, match=r"efficientdet.*faster_rcnn"):
        comoto.get_config("efficientdet,faster_rcnn")


def test_other_detectors_of_comoto_have_the_input_and_the_steps_of_the_retinanet():
    one, *others = (parse(comoto.get_config(kind)).recipes["distill"] for kind in ("", "faster_rcnn", "efficientdet"))
    for other in others:
        assert (other.loader.buckets, other.steps) == (one.loader.buckets, one.steps)
        assert other.model.backbone == one.model.backbone
    assert parse(comoto.get_config("faster_rcnn,lite0")).recipes["distill"].model.backbone.name == "efficientnet"


@pytest.mark.parametrize("variant", [None, "tiny", "small", "small,half", "paper", "many", "half,many", "retinanet"])
def test_a_private_detector_and_those_without_privacy_are_comparable(variant):
    found = parse(cem_real_dp.get_config(variant)).recipes
    assert found["detector"].model == found["same_layers"].model == found["private"].model
    assert found["same_layers"].optimizer.frozen == found["private"].optimizer.frozen != ()
    assert found["private"].privacy.unit == "patient"
    assert found["same_layers"].privacy is None and found["detector"].privacy is None
    with pytest.raises(ValueError, match=r"small.*many"):  # whose batches would be too small for its noise
        cem_real_dp.get_config("small,many")


@pytest.mark.parametrize("name", ["cem_mixed", "cem_real", "cem_synthetic", "mammo"])
def test_the_half_resnet50_is_that_of_the_weights_it_starts_from(name):
    """A Caffe network, as detectron2's are: colours from blue to red, strides in the first 1x1 convolutions."""
    for size in ("small", "small,retinanet", "paper", "paper,retinanet"):
        config = CONFIGS[name].get_config(f"{size},half")
        resnet = parse(config).recipes["detector"].model.backbone
        assert (resnet.depth, resnet.width, resnet.stem_width, resnet.norm) == (50, 32, 64, "frozen_bn")
        assert (resnet.stride_in_1x1, resnet.pixel_scale, resnet.pixel_mean) == (True, 255.0, (104.0, 117.0, 123.0))
        assert config.detector.loader == CONFIGS[name].get_config(size).detector.loader


@pytest.mark.parametrize(
    ("variant", "detector", "network", "extra"),
    [
        ("quick,retinanet", "retinanet", "resnet", 18),
        ("small,retinanet,half", "retinanet", "resnet", 50),
        ("paper,retinanet", "retinanet", "resnet", 50),
        ("quick,efficientdet", "efficientdet", "resnet", 18),
        ("small,efficientdet,lite0", "efficientdet", "efficientnet", False),
        ("paper,efficientdet", "efficientdet", "efficientnet", True),
        ("small,lite0", "faster_rcnn", "efficientnet", False),
        ("small,retinanet,swin", "retinanet", "swin", 96),
    ],
)
def test_detectors_and_their_backbones(variant, detector, network, extra):
    recipe = parse(cem_real.get_config(variant)).recipes["detector"]
    backbone = recipe.model.backbone
    assert (recipe.model.name, backbone.name) == (detector, network)
    told = {"resnet": "depth", "efficientnet": "squeeze_excite", "swin": "embed"}[network]
    assert getattr(backbone, told) == extra
    for rivals in ("half,swin", "retinanet,efficientdet"):
        with pytest.raises(ValueError, match=rivals.replace(",", ".*")):
            cem_real.get_config(f"small,{rivals}")


@pytest.mark.parametrize("size", variants.SIZES)
def test_thorough_detectors_are_tested_at_several_sizes(size):
    """In any size, beside any other word; the canvas of `small` alone is larger."""
    plain, found = (parse(cem_mixed.get_config(f"{size},half{word}")).recipes["detector"] for word in ("", ",thorough"))
    assert found.test_scales == (1.0, 0.64, 1.5) and found.test_flips == ("horizontal",) and len(found.test_same) == 3
    assert found.loader.small_share == 0.7 and found.loader.augmentation.gain > plain.loader.augmentation.gain
    assert found.loader.buckets == (((512, 352),) if size == "small" else plain.loader.buckets)
    assert (found.model, found.steps, found.optimizer) == (plain.model, plain.steps, plain.optimizer)


@pytest.mark.parametrize("variant", ["architectures", "small,half,architectures", "tiny,architectures"])
def test_an_ensemble_of_architectures_has_one_detector_of_each(variant):
    experiment = parse(cem_ensemble.get_config(variant))
    members = experiment.stages["ensemble"].members
    models = [experiment.recipe_of(experiment.stages[name]).model for name in members]
    assert [model.name for model in models] == ["faster_rcnn", *variants.KINDS]
    with pytest.raises(ValueError, match="retinanet"):
        cem_ensemble.get_config(f"{variant},retinanet")


def test_an_ensemble_of_backbones_has_one_detector_on_each():
    experiment = parse(cem_ensemble.get_config("small,lite2,thorough,half"))
    members = experiment.stages["ensemble"].members
    assert members == ("real", "lite2") and experiment.stages["evaluate"].models == (*members, "ensemble")
    recipes = [experiment.recipe_of(experiment.stages[name]) for name in members]
    for word, recipe in zip(("half", "lite2"), recipes):
        alone = parse(cem_real.get_config(f"small,thorough,{word}"))
        assert recipe == alone.recipes["detector"]
    with pytest.raises(ValueError, match=r"architectures.*half.*lite2"):
        cem_ensemble.get_config("architectures,lite2,half")
    with pytest.raises(ValueError, match=r"half.*lite2"):  # one detector has one backbone
        cem_real.get_config("half,lite2")


@lru_cache
def backbone_shapes(config):
    network = NETWORKS[config.name]
    return {"backbone": jax.eval_shape(partial(network.init, config), jax.random.key(0))["backbone"]}


@pytest.mark.parametrize("network", ["", *variants.BACKBONES])
@pytest.mark.parametrize("kind", ["", *variants.KINDS])
@pytest.mark.parametrize("size", variants.SIZES)
def test_every_backbone_has_the_layers_that_its_optimizer_names(size, kind, network):
    """All of them are of the backbone. One that starts from weights of a network is frozen in part."""
    recipe = parse(cem_real.get_config(",".join(filter(None, (size, kind, network))))).recipes["detector"]
    config = recipe.model.backbone
    assert config.dtype == ("bfloat16" if size == "paper" else "float32")
    params, frozen = backbone_shapes(replace(config, dtype="float32")), NETWORKS[config.name].frozen(config)
    optimizer.build(recipe.optimizer, optax.constant_schedule(1.0), params, frozen)
    if network:
        trained = flatten_dict(optimizer.trainable_mask(params, recipe.optimizer, frozen), sep="/")
        assert {value for name, value in trained.items() if name.endswith("/kernel")} == {False, True}


@pytest.mark.parametrize("kind", variants.KINDS)
@pytest.mark.parametrize("size", ["quick", "tiny", "small"])
def test_one_stage_detectors_have_anchors_for_a_lesion_at_any_place(size, kind):
    """Lesions of 16 px or more have an anchor that is not negative, also in the middle between anchors of a level."""
    recipe = parse(cem_real.get_config(f"{size},{kind}")).recipes["detector"]
    model = recipe.model
    assert not recipe.plan_anchors
    boxes = np.concatenate(
        pyramid_anchors((256, 384), model.strides, model.anchor_sizes, model.anchor_ratios, offset=model.anchor_offset)
    )
    halves = np.geomspace(16, 200, 30)[:, None] / 2
    for at in (124.0, 120.0, 112.0, 96.0, 64.0, 121.5):  # between anchors of P3, ..., P6; at one of all; elsewhere
        assert iou(np.concatenate([at - halves, at - halves, at + halves, at + halves], 1), boxes).max(1).min() > 0.38


@pytest.mark.parametrize("name", LISTING)
def test_a_configuration_that_lists_its_variants_lists_all(name, monkeypatch):
    known, parsed = [], variants.parse

    def parse_words(variant, extras=variants.DETECTOR_EXTRAS, *others, **more):
        known.extend(extras)
        return parsed(variant, extras, *others, **more)

    monkeypatch.setattr(variants, "parse", parse_words)
    module = importlib.import_module(f"configs.{name}")
    module.get_config()
    listed = module.__doc__[module.__doc__.index("Variants") :]
    if "as in configs/cem_real.py" in listed:
        listed += " ".join(variants.DETECTOR_EXTRAS)
    assert not set(known) - set(re.findall(r"\w+", listed))


def test_an_unknown_variant_is_refused():
    for variant, words in (("huge", "huge.*quick"), ("tiny,paper", "tiny.*paper"), ("medium", "medium")):
        with pytest.raises(ValueError, match=words):
            cem_real.get_config(variant)


def test_variants_of_the_painted_lesions():
    for variant, share, area in (("tiny", 1, "free"), ("tiny,double", 2, "free"), ("medium,fewshot", 1, "medium")):
        config = cem_mixed.get_config(variant)
        assert (config.stages.lesions.share, config.stages.lesions.area) == (share, area)
    assert (config.data.real.patients, config.stages.lesions.canvases, config.stages.lesions.count) == (
        3,
        "canvases",
        240,
    )
    assert cem_mixed.get_config("double").stages.lesions.count == 480


def test_the_embedded_data_of_painted_lesions_are_scarce():
    """Few patients with lesions in quick alone; others paint into the images themselves, by their number of lesions."""
    scarce = cem_mixed.get_config()
    assert scarce == cem_mixed.get_config("fewshot") and "healthy_fraction=1.0" in scarce.data.canvases.spec
    assert scarce.stages.mixed.weights == (0.8, 0.2)
    for size in ("tiny", "small", "paper"):
        config = cem_mixed.get_config(size)
        assert (config.data.real.patients, config.data.canvases.spec, config.stages.mixed.weights) == (0, "", ())
        assert (config.stages.lesions.canvases, config.stages.lesions.count) == ("real", 0)


def test_the_paper_variant_is_the_published_recipe():
    recipe = cem_real.get_config("paper").detector
    assert (recipe.steps, recipe.loader.batch_size, recipe.schedule.base) == (3000, 2, 2.5e-4)
    resnet = recipe.model.backbone
    assert (resnet.depth, resnet.norm, resnet.stride_in_1x1, resnet.dtype) == (101, "frozen_bn", True, "bfloat16")
    assert recipe.model.anchor_sizes == ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)) and not recipe.plan_anchors
    assert recipe.optimizer.frozen == ("backbone/stem", "backbone/res2")
    (spared,) = recipe.optimizer.no_decay  # detectron2 spares norms alone from weight decay
    assert re.search(spared, "fpn/output2/norm/bias") and not re.search(spared, "fpn/output2/bias")
    assert recipe.loader.resize.short_sides == (640, 672, 704, 736, 768, 800)


def test_wrong_references_are_named():
    config = cem_real.get_config("tiny")
    with refused("'train'", "cem_real", "real, evaluate", where="--stages=train"):
        parse(config, ["train"])
    config.stages.real.train_on = ("imaginary",)
    with refused("'imaginary'", where="config.stages.real"):
        parse(config)


@pytest.mark.parametrize(
    "key, value",
    [
        ("detector.loader.lesion_share", None),
        ("detector.loader.lesion_share", 0.25),
        ("detector.schedule.warmup_steps", 0.1),
        ("inpainter.sampler.lambda_min", None),
        ("inpainter.model.attention_head_dim", (2,)),
    ],
)
def test_a_key_of_several_types_takes_each_on_the_command_line(key, value):
    config = cem_mixed.get_config("tiny")
    values = flags.FlagValues()
    arguments = ["train", f"--config.{key}={value}"]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    values(arguments)
    config = values.config
    section, name = config, key.split(".")
    for part in name[:-1]:
        section = section[part]
    assert section[name[-1]] == value
    parse(config)


def test_an_impossible_value_of_such_a_key_is_refused():
    config = cem_mixed.get_config("tiny")
    config.detector.loader.lesion_share = "half"
    with refused("'half'", where="config.detector.loader.lesion_share"):
        parse(config)


def test_the_canvases_of_a_published_efficientdet_are_whole_cells_of_its_coarsest_level():
    loader = cem_real.get_config("paper,efficientdet").detector.loader
    short, long = max(loader.resize.short_sides), loader.resize.max_long_side
    assert all(side % 128 == 0 for canvas in loader.buckets for side in canvas)
    assert any(height >= long and width >= short for height, width in loader.buckets), "an upright mammogram"
