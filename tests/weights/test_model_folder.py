"""Model folders: round trip, damage, and weights put into a model that is not quite theirs."""

import numpy as np
import pytest

from elk_jax.errors import UserError
from elk_jax.weights import model_folder as store

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
    store.save_params(tmp_path / "new" / "model", PARAMS, {"architecture": "x", "classes": ["mass"]})
    params, config = store.load_params(tmp_path / "new" / "model")
    assert config == {"architecture": "x", "classes": ["mass"]}
    before, after = store.flatten(PARAMS), store.flatten(params)
    assert set(before) == set(after)
    for name, leaf in before.items():
        assert after[name].dtype == np.float32 and after[name].shape == np.shape(leaf)
        np.testing.assert_array_equal(after[name], leaf)
    assert store.nest(store.flatten(PARAMS)).keys() == PARAMS.keys()


def test_save_twice_leaves_the_second(tmp_path):
    store.save_params(tmp_path, {"a": np.zeros(2)}, {"n": 1})
    store.save_params(tmp_path, {"b": np.ones(3)}, {"n": 2})
    params, config = store.load_params(tmp_path)
    assert set(params) == {"b"} and config == {"n": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "params.safetensors"]


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no model here"):
        store.load_params(tmp_path / "absent")
    store.save_params(tmp_path, PARAMS, {})
    whole = (tmp_path / store.PARAMS).read_bytes()
    (tmp_path / store.PARAMS).write_bytes(whole[:-3])
    with pytest.raises(UserError, match="broken safetensors"):
        store.load_params(tmp_path)
    (tmp_path / store.PARAMS).write_bytes(whole)
    (tmp_path / store.CONFIG).write_text("[]")
    with pytest.raises(UserError, match="description"):
        store.load_params(tmp_path)
    (tmp_path / store.CONFIG).unlink()  # what an interrupted save leaves
    with pytest.raises(UserError, match="no model here"):
        store.load_params(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="folder"):
        store.save_params(tmp_path / "file", PARAMS, {})


def test_restore_takes_the_templates_types():
    params = store.restore_into(template(), PARAMS)
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
        store.restore_into(template(), loaded)
    for part in parts:
        assert part in str(error.value)


def test_drop_keeps_what_fits_and_starts_the_rest_afresh():
    drop = ["class_logits/"]
    same = store.restore_into(template(3), PARAMS, drop)
    np.testing.assert_array_equal(same["box_head"]["class_logits"]["kernel"], 1)
    with pytest.raises(UserError, match=r"\(5, 3\) in the weights and \(5, 2\) in the model"):
        store.restore_into(template(2), PARAMS)
    other = store.restore_into(template(2), PARAMS, drop)
    np.testing.assert_array_equal(other["box_head"]["class_logits"]["kernel"], np.full((5, 2), 7))
    backbone = store.restore_into(template(2), {"backbone": PARAMS["backbone"]}, ["^box_head/"])
    np.testing.assert_array_equal(backbone["box_head"]["class_logits"]["kernel"], np.full((5, 2), 7))
    with pytest.raises(UserError, match="regular expression"):
        store.restore_into(template(2), PARAMS, ["("])
