"""What the stages of an experiment say of their data, models and patients."""

from __future__ import annotations

from elk_jax.tasks.stages import (
    CombineStage,
    Data,
    EvaluateModelsStage,
    EvaluateStage,
    Origin,
    PrivateTrainStage,
    SynthesizeStage,
    TrainStage,
)
from tests.refusals import refused

WRITERS = {"painted": "lesions"}


def test_a_training_reads_its_sources_and_the_validation_split():
    stage = TrainStage(name="mixed", task="t", train_on=("real", "painted"), validate_on="clinic")
    assert stage.data() == (Data("real", "train"), Data("painted", "train"), Data("clinic", "val"))
    assert stage.held_out() == Data("clinic", "val") and stage.evaluated(WRITERS) == ("mixed",)
    assert stage.named_models() == {} and stage.trained() == ()
    assert stage.origin() == Origin(("real", "painted"), ())


def test_initial_weights_are_an_origin_of_a_training():
    stage = TrainStage(name="mixed", task="t", train_on=("real",), validate_on="real", init_from="weights/coco")
    assert stage.named_models() == {"init_from": "weights/coco"}
    assert stage.origin() == Origin(("real",), ("weights/coco",))


def test_public_data_of_a_private_training_are_read_and_an_origin():
    stage = PrivateTrainStage(name="t", task="t", train_on=("real",), public=("painted",), validate_on="real")
    assert stage.data() == (Data("real", "train"), Data("painted", "train"), Data("real", "val"))
    assert stage.origin() == Origin(("real", "painted"), ())


def test_a_synthesis_goes_back_to_its_model():
    stage = SynthesizeStage(name="lesions", task="t", model="inpainter")
    assert stage.named_models() == {"model": "inpainter"} and stage.origin() == Origin((), ("inpainter",))
    assert stage.data() == stage.evaluated(WRITERS) == () and stage.held_out() is None
    with refused(where="model"):
        SynthesizeStage(name="lesions", task="t", model="")


def test_an_evaluation_reads_one_split():
    stage = EvaluateStage(name="evaluate", task="t", on="real")
    assert stage.data() == (stage.held_out(),) == (Data("real", "test"),)
    assert stage.trained() == stage.evaluated(WRITERS) == ()
    models = EvaluateModelsStage(name="evaluate", task="t", on="real", split="val", models=("a", "b"))
    assert models.held_out() == Data("real", "val") and models.trained() == models.evaluated(WRITERS) == ("a", "b")


def test_a_model_that_is_named_twice_is_refused_however_its_path_is_written():
    """An ensemble would count it double, and a comparison find no difference."""
    with refused("runs/a/", where="members[2]"):
        CombineStage(name="both", task="t", members=("runs/a", "runs/b", "runs/a/"), validate_on="real")
    with refused("real is named twice", where="models[1]"):
        EvaluateModelsStage(name="evaluate", task="t", on="real", models=("real", "real"))
    assert CombineStage(name="one", task="t", members=("runs/a",), validate_on="real").members == ("runs/a",)
