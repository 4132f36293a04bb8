"""The settings of a private head, and the experiment that has them."""

from __future__ import annotations

import json

import pytest

from configs import private_head
from elk_jax.experiments.parse import parse, plain
from elk_jax.fields import build
from elk_jax.tasks.classification.recipe import FitHeadStage, HeadRecipe, Search
from elk_jax.tasks.frozen import NetworkFeatures, ScatteringFeatures
from elk_jax.tasks.stages import Data
from tests.refusals import refused


@pytest.mark.parametrize("variant", [None, "tiny", "small", "paper,image"])
def test_every_variant_is_well_formed(variant):
    config = private_head.get_config(variant)
    experiment = parse(config)
    assert json.dumps(plain(config))
    heads = [stage for stage in experiment.stages.values() if isinstance(stage, FitHeadStage)]
    assert [head.epsilon for head in heads] == [0, 60, 6, 1]
    assert {head.unit for head in heads} == {"image" if variant == "paper,image" else "patient"}
    assert heads[0].data() == (Data("patches", "train"), Data("patches", "val"), Data("public", ""))


def test_features_without_weights_are_not_tried():
    features = {"waves": ScatteringFeatures(), "net": NetworkFeatures()}
    search = Search(features=("waves", "net", "waves+net"))
    without = HeadRecipe(features=features, search=search)
    assert without.combinations() == [("waves",)] and list(without.used()) == ["waves"]
    weights = HeadRecipe(features=features | {"net": NetworkFeatures(weights="w")}, search=search)
    assert weights.combinations() == [("waves",), ("net",), ("waves", "net")]


@pytest.mark.parametrize(
    "settings, where, words",
    [
        ({"features": {"a": {"name": "wavelets"}}}, "head.features.a.name", ["scattering, network"]),
        ({"features": {"a": {"name": "scattering", "orientations": 3}}}, "head.features.a.orientations", ["even"]),
        ({"search": {"name": "linear", "features": ("scattering+nets",)}}, "head.search.features", ["nets"]),
        ({"search": {"name": "kernel", "widths": ()}}, "head.search.widths", ["at least one"]),
        ({"draws": 0}, "head.draws", ["at least 1"]),
        ({"centre": (0.5, 1.5)}, "head.centre", ["to 1"]),
    ],
)
def test_impossible_settings_are_named(settings, where, words):
    with refused(*words, where=where):
        build(HeadRecipe, settings, "head")
