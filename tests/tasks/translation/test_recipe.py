"""What can be set of translation: every field on the command line, and values that cannot be."""

from __future__ import annotations

import dataclasses

import pytest

from configs import bridge_le_to_cem
from configs.recipes.bridge import bridge
from configs.variants import experiment
from elk_jax import fields
from elk_jax.experiments.parse import parse
from elk_jax.tasks.translation.recipe import TranslationRecipe, TranslatorModel
from tests.refusals import refused


@pytest.mark.parametrize("size", ["quick", "tiny", "small", "paper"])
def test_the_configuration_names_every_field(size):
    recipe = experiment("e", bridge=bridge(size)).bridge.to_dict()
    assert dataclasses.asdict(fields.build(TranslationRecipe, recipe, "config.bridge")) == recipe


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.condition", "text", ["'text'", "source"]),
        ("model.answer", "noise", ["'noise'", "clean"]),
        ("model.size", 30, [30]),
        ("model.bridge.steps", 1, [1]),
        ("sampler.steps", 5000, [5000]),
        ("loss", "l3", ["'l3'", "l1"]),
        ("choose", "first", ["'first'", "last"]),
        ("pairs.max_black", 2.0, [2.0]),
        ("pairs.stride", 64, [64, 32]),
        ("validation_pairs", -1, [-1]),
    ],
)
def test_values_that_cannot_be_are_named_before_anything_is_opened(key, value, words):
    config = bridge_le_to_cem.get_config("tiny")
    config.update_from_flattened_dict({f"bridge.{key}": value})
    with refused(*words, where=f"config.bridge.{key}"):
        parse(config)


def test_published_and_other_sizes_are_valid():
    for variant in (None, "small", "paper"):
        parse(bridge_le_to_cem.get_config(variant))
    with pytest.raises(ValueError, match="fewshot"):
        bridge_le_to_cem.get_config("tiny,fewshot")


def test_the_condition_is_stacked_onto_the_noisy_image():
    for condition, channels in (("source", 32), ("none", 16)):
        config = TranslatorModel(size=32, patch=4, condition=condition).config()
        assert (config.unet.in_channels, config.unet.out_channels, config.unet.sample_size) == (channels, 16, 8)
