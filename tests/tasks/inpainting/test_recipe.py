"""What can be set of lesion synthesis: every field on the command line, and what a painting goes back to."""

from __future__ import annotations

import dataclasses

import pytest

from configs import inpaint_cem
from configs.recipes.inpainter import inpainter
from configs.variants import experiment
from elk_jax import fields
from elk_jax.experiments.parse import parse
from elk_jax.tasks.inpainting.recipe import InpaintingRecipe, PaintSettings, PaintStage, PixelModel
from elk_jax.tasks.stages import Data, Origin
from tests.refusals import refused


@pytest.mark.parametrize("size", ["quick", "tiny", "small", "paper"])
def test_the_configuration_names_every_field(size):
    recipe = experiment("e", inpainter=inpainter(size)).inpainter.to_dict()
    built = fields.build(InpaintingRecipe, recipe, "config.inpainter")
    assert dataclasses.asdict(built) == recipe
    assert (built.model is None) == (size == "paper")


def test_a_pixel_model_has_places_of_pixels():
    config = PixelModel(size=32, patch=4, scale=0.5).config(contrast=0.25)
    assert (config.size, config.patch, config.std) == (32, 4, 0.5)
    assert (config.unet.sample_size, config.unet.in_channels, config.unet.out_channels) == (8, 65, 16)


def test_synthetic_data_come_from_an_earlier_stage():
    config = inpaint_cem.get_config("tiny")
    config.data.painted = dict(config.data.real, spec="stage:elsewhere")
    config.stages.lesions.canvases = "painted"
    with refused("'elsewhere'", "'lesions'", where="config.data.painted.spec"):
        parse(config)
    config = inpaint_cem.get_config("tiny")
    config.stages.lesions.model = "lesions"
    with refused("'lesions'", "model folder", where="config.stages.lesions.model"):
        parse(config)


def test_a_painting_goes_back_to_its_canvases_and_its_painter():
    stage = PaintStage(name="lesions", model="inpainter", canvases="healthy", share_of="real", area="medium")
    assert stage.data() == (Data("healthy", "train"), Data("real", "train"))
    assert stage.origin() == Origin(("healthy",), ("inpainter",))
    assert PaintStage(name="lesions", model="m", canvases="real").data() == (Data("real", "train"),)
    assert PaintSettings(**stage.settings()) == PaintSettings(area="medium")


def test_something_is_painted():
    with refused(0.0, where="share"):
        PaintStage(name="lesions", model="m", canvases="real", share=0.0)
    PaintStage(name="lesions", model="m", canvases="real", share=0.0, count=2)
