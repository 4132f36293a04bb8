"""Model folders: round trip, damage, and weights put into a model that is not quite theirs."""

import dataclasses
import hashlib

import numpy as np
import pytest

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.privacy.accounting import Ledger, Phase
from elk_jax.privacy.mechanism import Statement
from elk_jax.weights import model_folder
from tests.models import save_earlier
from tests.refusals import refused

PARAMS = {
    "backbone": {"conv": {"kernel": np.arange(24, dtype="f4").reshape(2, 3, 4)[:, ::-1]}, "scale": np.float32(3)},
    "box_head": {"class_logits": {"kernel": np.ones((5, 3), "f2"), "bias": np.zeros(0, "f4")}},
}


def template(classes=3):
    return {
        "backbone": {"conv": {"kernel": np.zeros((2, 3, 4), "f8")}, "scale": np.zeros((), "f4")},
        "box_head": {"class_logits": {"kernel": np.full((5, classes), 7, "f4"), "bias": np.zeros(0, "f4")}},
    }


def test_round_trip(tmp_path):
    model_folder.save_params(tmp_path / "new" / "model", PARAMS, {"architecture": "x", "classes": ["mass"]})
    params, content = model_folder.load_params(tmp_path / "new" / "model")
    assert content.entries == {"architecture": "x", "classes": ["mass"]} and content.architecture == "x"
    before, after = model_folder.flatten(PARAMS), model_folder.flatten(params)
    assert set(before) == set(after)
    for name, leaf in before.items():
        assert after[name].dtype == np.float32 and after[name].shape == np.shape(leaf)
        np.testing.assert_array_equal(after[name], leaf)
    assert model_folder.nest(model_folder.flatten(PARAMS)).keys() == PARAMS.keys()


def test_save_twice_leaves_the_second(tmp_path):
    model_folder.save_params(tmp_path, {"a": np.zeros(2)}, {"n": 1})
    model_folder.save_params(tmp_path, {"b": np.ones(3)}, {"n": 2})
    params, content = model_folder.load_params(tmp_path)
    assert set(params) == {"b"} and content.entries == {"n": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "params.safetensors"]


def test_a_model_json_says_in_a_sentence_what_is_promised(tmp_path):
    made = [Statement(True, 2.0, 1e-5, "pld", Ledger((Phase(1.0, noise, 1),), "patient")) for noise in (2.0, 3.0)]
    trained = model_folder.Training(7, privacy=made[1], inherited=(made[0],))
    described = {"architecture": "x", "trained": dataclasses.asdict(trained)}
    model_folder.save_params(tmp_path, {}, described)
    assert files.read_object(tmp_path / model_folder.CONFIG)[model_folder.PROMISE] == trained.sentence()
    content = model_folder.read(tmp_path)
    assert content.training == trained and content.entries.keys() == described.keys()
    model_folder.save_params(tmp_path, {}, described | {"trained": dataclasses.asdict(model_folder.Training(7))})
    assert model_folder.PROMISE not in files.read_object(tmp_path / model_folder.CONFIG)


@pytest.mark.parametrize("place", [8, 100, -9, -1])  # in the header, and in the numbers
def test_parameters_that_are_not_those_of_the_description_are_refused(tmp_path, place):
    model_folder.save_params(tmp_path, PARAMS, {})
    path = tmp_path / model_folder.PARAMS
    content = bytearray(path.read_bytes())
    assert files.read_json(tmp_path / model_folder.CONFIG)[model_folder.HASH] == hashlib.sha256(content).hexdigest()
    content[place] ^= 1
    path.write_bytes(content)
    with refused("damaged", where=path):
        model_folder.load_params(tmp_path)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_refused_by_name(tmp_path, odd):
    model_folder.save_params(tmp_path, {"a": {"bias": np.zeros(2)}, "b": {"scale": np.array([1.0, odd])}}, {"n": 1})
    with refused("b/scale", "NaN", where=tmp_path / model_folder.PARAMS):
        model_folder.load_params(tmp_path)


def test_a_parameter_within_another_is_refused(tmp_path):
    save_earlier(tmp_path, {"a": np.zeros(1, "f4"), "a/b": np.zeros(1, "f4")}, {})
    with refused("a is a parameter", where=model_folder.PARAMS):
        model_folder.load_params(tmp_path)


def test_folders_that_are_not_models(tmp_path):
    for load in (model_folder.load_params, model_folder.architecture_of):
        with pytest.raises(UserError) as error:
            load(tmp_path / "absent")
        assert error.value.where == str(tmp_path / "absent") and model_folder.CONFIG in error.value.todo
    model_folder.save_params(tmp_path, PARAMS, {})
    whole = (tmp_path / model_folder.PARAMS).read_bytes()
    (tmp_path / model_folder.PARAMS).write_bytes(whole[:-3])
    with pytest.raises(UserError) as error:
        model_folder.load_params(tmp_path)
    assert model_folder.PARAMS in error.value.where
    (tmp_path / model_folder.PARAMS).write_bytes(whole)
    (tmp_path / model_folder.CONFIG).write_text("[]")
    with pytest.raises(UserError) as error:
        model_folder.load_params(tmp_path)
    assert model_folder.CONFIG in error.value.where
    (tmp_path / model_folder.CONFIG).unlink()  # what an interrupted save leaves
    with pytest.raises(UserError) as error:
        model_folder.load_params(tmp_path)
    assert error.value.where == str(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        model_folder.save_params(tmp_path / "file", PARAMS, {})
    assert "file" in error.value.where


# ---- Which model ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run folder of four stages, of which three have trained models of two architectures."""
    files.write_json(tmp_path / "config.json", {"stages": {"a": {}, "b": {}, "c": {}, "d": {}}})
    for stage, architecture in (("a", "detector"), ("b", "painter"), ("c", "detector")):
        described = {"architecture": architecture, "trained": dataclasses.asdict(model_folder.Training(7))}
        model_folder.save_params(tmp_path / stage / "model", {}, described)
    return tmp_path


def test_a_model_is_found_by_its_run_and_stage(run):
    assert model_folder.find(run, None, ("detector",), "a model") == run / "c" / "model"
    assert model_folder.find(run, None, ("painter",), "a model") == run / "b" / "model"
    assert model_folder.find(run, None, ("other", "painter"), "a model") == run / "b" / "model"
    assert model_folder.find(run, "a", ("detector",), "a model") == run / "a" / "model"
    for folder in (run / "a", run / "a" / "model"):
        assert model_folder.find(folder, None, ("detector",), "a model") == run / "a" / "model"
    assert model_folder.architecture_of(run / "b" / "model") == "painter"


@pytest.mark.parametrize(
    "folder, stage, kind, words",
    [
        ("", "b", "detector", ["'b'", "a, c"]),
        ("", "d", "detector", ["'d'", "a, c"]),
        ("", None, "translator", ["translator", "launch/train.py"]),
        ("a", "a", "detector", ["'a'", "--stage"]),
        ("d", None, "detector", ["run folder", "launch/train.py"]),
    ],
)
def test_a_model_that_is_not_there_is_refused(run, folder, stage, kind, words):
    with pytest.raises(UserError) as error:
        model_folder.find(run / folder, stage, (kind,), f"a {kind}")
    assert error.value.where.startswith(str(run / folder))
    for word in words:
        assert word in error.value.what + error.value.todo


def test_a_model_knows_the_step_of_its_weights(run):
    assert model_folder.kept_step(run / "a" / "model", 3) == 7
    assert model_folder.kept_step(run / "d" / "model", 3) == 3


@dataclasses.dataclass(frozen=True)
class Model:
    mean: tuple[float, ...] = (1.0,)
    scale: float = 2.0
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Other:
    scale: float = 5.0
    flip: bool = False


def test_weights_are_not_trained_under_other_settings(tmp_path):
    model_folder.check_same(Model(size=4), Model(), ("mean", "scale"), tmp_path, "painter.model")
    model_folder.check_same(Other(), Model(), ("mean", "flip"), tmp_path, "painter.model")  # no field in common
    with pytest.raises(UserError) as error:
        before = Model(mean=(4.0, 5.0), scale=1.0)
        model_folder.check_same(before, Model(), ("mean", "scale", "size"), tmp_path, "painter.model")
    assert error.value.where == str(tmp_path) and "mean (4.0, 5.0)" in error.value.what
    assert error.value.todo == "set --config.painter.model.mean='(4.0, 5.0)' --config.painter.model.scale=1.0"
    with pytest.raises(UserError) as error:
        model_folder.check_same(Other(), Model(), ("scale",), tmp_path, "painter.model")
    assert error.value.todo == "set --config.painter.model.scale=5.0"


# ---- Weights into a model ------------------------------------------------------------------------------------------


def test_restore_takes_the_templates_types():
    params = model_folder.restore_into(template(), PARAMS)
    assert params["backbone"]["conv"]["kernel"].dtype == np.float64
    np.testing.assert_array_equal(params["backbone"]["conv"]["kernel"], PARAMS["backbone"]["conv"]["kernel"])
    assert params["backbone"]["scale"].shape == ()


@pytest.mark.parametrize(
    "loaded, parts",
    [
        ({"backbone": PARAMS["backbone"]}, ["lack", "box_head/class_logits/kernel (5, 3)", "bias (0,)"]),
        ({**PARAMS, "extra": np.zeros(2)}, ["no place for extra (2,)"]),
        ({**PARAMS, "backbone": {**PARAMS["backbone"], "scale": np.zeros(2)}}, ["backbone/scale is (2,)", "() in the"]),
    ],
)
def test_restore_names_tensors_and_shapes(loaded, parts):
    with pytest.raises(UserError) as error:
        model_folder.restore_into(template(), loaded)
    for part in parts:
        assert part in str(error.value)


def test_drop_keeps_what_fits_and_starts_the_rest_afresh():
    drop = ["class_logits/"]
    same = model_folder.restore_into(template(3), PARAMS, drop)
    np.testing.assert_array_equal(same["box_head"]["class_logits"]["kernel"], 1)
    with pytest.raises(UserError) as error:
        model_folder.restore_into(template(2), PARAMS)
    assert "(5, 3)" in error.value.what and "(5, 2)" in error.value.what
    other = model_folder.restore_into(template(2), PARAMS, drop)
    np.testing.assert_array_equal(other["box_head"]["class_logits"]["kernel"], np.full((5, 2), 7))
    backbone = model_folder.restore_into(template(2), {"backbone": PARAMS["backbone"]}, ["^box_head/"])
    np.testing.assert_array_equal(backbone["box_head"]["class_logits"]["kernel"], np.full((5, 2), 7))
    with refused("'('", where="drop"):
        model_folder.restore_into(template(2), PARAMS, ["("])


@pytest.mark.parametrize(
    "shapes, words",
    [
        ({"a/b": (2,), "c": ()}, ["lack", "c ()"]),
        ({}, ["no place", "a/b (2,)"]),
        ({"a/b": (3,)}, ["a/b", "(2,)", "(3,)"]),
    ],
)
def test_parameters_of_another_model_than_the_described_are_refused(shapes, words):
    params = {"a": {"b": np.zeros(2, "f4")}}
    model_folder.check_fits(params, model_folder.shapes_of(lambda rng: params), "here")
    with refused(*words, model_folder.CONFIG, where="here"):
        model_folder.check_fits(params, shapes, "here")
