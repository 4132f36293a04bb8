"""What a comparison of lesions reads, and whose patients it is about."""

from __future__ import annotations

from dataclasses import replace

from elk_jax.tasks.lesion_quality.recipe import LesionQualityStage
from elk_jax.tasks.stages import Data

STAGE = LesionQualityStage(name="quality", on="real", synthetic="painted")


def test_it_reads_both_sources():
    assert STAGE.data() == (Data("real", "train"), Data("painted", "train"))
    test = LesionQualityStage(name="quality", on="real", split="test", synthetic="painted")
    assert test.data() == (Data("real", "test"), Data("real", "train"), Data("painted", "train"))
    assert test.held_out() == Data("real", "test")
    assert replace(test, repeated=False).data() == (Data("real", "test"), Data("painted", "train"))
    assert replace(STAGE, synthetic_split="").data() == (Data("real", "train"), Data("painted", ""))


def test_what_is_evaluated_is_the_stage_that_painted():
    assert STAGE.evaluated({"painted": "lesions"}) == ("lesions",)
    assert STAGE.evaluated({}) == () and STAGE.trained() == (), "images of elsewhere"


def test_features_of_a_detector_are_of_a_model():
    assert STAGE.named_models() == {}
    stage = LesionQualityStage(name="quality", on="real", synthetic="painted", features="real")
    assert stage.named_models() == {"features": "real"} and stage.origin().models == ()
