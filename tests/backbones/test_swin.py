"""Swin transformers: sizes, windows, dropped branches. Their values: tests/weights/test_swin.py."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import comoto
from elk_jax.backbones import swin
from elk_jax.backbones.pixels import normalise
from elk_jax.backbones.swin import Classifier, MonaiSwinConfig, Swin, SwinConfig
from elk_jax.detection import detectors
from elk_jax.experiments.parse import parse
from elk_jax.weights import model_folder
from tests.golden import seeded
from tests.refusals import refused

SMALL = {
    "num_classes": 2, "hidden": 6, "embed": 8, "depths": (1, 2, 1, 1), "heads": (1, 2, 2, 4), "window": 3,
    "drop_path": 0.5,
}  # fmt: skip
CONFIG = SwinConfig(**SMALL)
RUN = jax.jit(Classifier(CONFIG).apply)
IMAGES = np.random.default_rng(0).normal(size=(2, 50, 36, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return {"params": swin.init(CONFIG, jax.random.key(0))}


@pytest.mark.parametrize(
    "variant, changes, count",  # torchvision's num_params; with 2 classes by hand: 768 * 998 + 998 fewer
    [("tiny", {}, 28_288_354), ("tiny", {"num_classes": 2}, 27_520_892), ("small", {}, 49_606_258),
     ("base", {}, 87_768_224)],
)  # fmt: skip
def test_parameter_counts(variant, changes, count):
    shapes = model_folder.shapes_of(partial(swin.init, swin.named(variant, **changes)))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count


@pytest.mark.parametrize("size", [(224, 224), (50, 36), (3, 1)])
def test_stages_of_any_size(size):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    stages, _ = jax.eval_shape(Swin(CONFIG).init_with_output, jax.random.key(0), image)
    wanted = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)]
    assert [stage.shape for stage in stages] == [(1, *hw, 8 * 2**i) for i, hw in enumerate(wanted)]


MONAI = {
    "embed": 6, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 4), "window": 3,
    "num_classes": 0,
}  # fmt: skip


def test_the_maps_of_monai_are_those_of_its_swin_transformer():
    """`tests/golden/make_monai_swin.py`, which seeds the same parameters by their names."""
    config, images = MonaiSwinConfig(**MONAI), seeded.uniform("monai images", (2, 128, 160, 3), -1, 1)
    shapes = model_folder.flatten(jax.eval_shape(partial(swin.init, config), jax.random.key(0))["backbone"])
    params = model_folder.nest({name: seeded.parameter(name, leaf.shape) for name, leaf in shapes.items()})
    maps = jax.jit(Swin(config).apply)({"params": params}, images)
    wanted = np.load(Path(seeded.__file__).parent / "monai_swin.npz")
    assert len(maps) == len(wanted.files) == 4 and not any("patches_norm" in name for name in params)
    for own, name in zip(maps, wanted.files):
        np.testing.assert_allclose(own[:, :, ::7], wanted[name], rtol=1e-4, atol=2e-5, err_msg=name)


def test_the_last_map_of_monai_can_be_the_only_one_of_a_detector():
    detector = detectors.build(parse(comoto.get_config("published,swin")).recipes["distill"].model)
    shapes = model_folder.shapes_of(detector.init)
    count = lambda part: sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith(part))
    assert (
        detector.strides == (32,) and count("class_head") + count("box_head") == 24_359_130
    )  # published: 24.4 million
    stages = [re.findall(r"res(\d)|merge(\d)", name) for name in swin.frozen(MonaiSwinConfig(**MONAI, frozen_stages=2))]
    assert stages == [[], [("2", ""), ("", "3")]]


def test_windows_split_and_join():
    x = jnp.arange(2 * 6 * 9 * 1.0).reshape(2, 6, 9, 1)
    windows = swin.split_windows(x, 3)
    assert windows[0, 1, :, 0].tolist() == [3, 4, 5, 12, 13, 14, 21, 22, 23]
    assert np.array_equal(swin.join_windows(windows, (6, 9)), x)


def test_neighbours_of_a_shifted_map():
    """A row of six tokens in windows of three, shifted by one: 1 2 3 | 4 5 0."""
    found = swin.neighbours((3, 6), 3, (0, 1)).reshape(2, 3, 3, 3, 3)[:, 0, :, 0]
    assert found[0].all() and found[1].tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_relative_positions_by_hand():
    assert swin.relative_positions(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_branches_are_dropped_with_a_key_alone(params):
    key = jax.random.key(1)
    dropped = RUN(params, IMAGES, key)
    assert np.array_equal(dropped, RUN(params, IMAGES, key))
    assert not np.allclose(dropped, RUN(params, IMAGES))
    kept = swin.drop_path(jnp.ones((20_000, 2)), key, 0.25)
    assert kept.mean() == pytest.approx(1, abs=0.02)
    assert set(np.unique(kept).round(4)) == {0, np.float32(1.3333)}
    assert (kept[:, 0] == kept[:, 1]).all()  # of an image the whole branch


def test_what_is_frozen_drops_nothing_and_is_named(params):
    config = SwinConfig(**SMALL, frozen_stages=5)
    found = jax.jit(Classifier(config).apply)(params, IMAGES, jax.random.key(1))
    np.testing.assert_allclose(found, RUN(params, IMAGES), rtol=1e-5)
    names = model_folder.flatten(params["params"])
    for stages, left in ((0, {"patches", "res3", "res5"}), (3, {"merge4", "res4", "res5"}), (5, set())):
        patterns = swin.frozen(SwinConfig(**SMALL, frozen_stages=stages))
        trained = {name.split("/")[1].split("_")[0] for name in names if name.startswith("backbone/")} - {
            name.split("/")[1].split("_")[0] for name in names for pattern in patterns if re.search(pattern, name)
        }
        assert left <= trained and bool(trained) == bool(left)
        assert not any(re.search(pattern, "classifier/kernel") for pattern in patterns)


def test_gradients_of_examples_sum_to_that_of_the_batch(params):
    """Also with dropped branches, where each example has its own key, and with recomputed activations."""
    keys = jax.random.split(jax.random.key(2), 2)

    def loss(params, image, key, config=CONFIG):
        return (Classifier(config).apply(params, image[None], key) ** 2).sum()

    one = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, IMAGES, keys)
    remat = SwinConfig(**SMALL, remat=True)
    whole = jax.jit(jax.grad(lambda p: sum(loss(p, IMAGES[i], keys[i], remat) for i in (0, 1))))(params)
    assert all(
        np.allclose(a.sum(0), b, atol=1e-5 * np.abs(b).max())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(whole))
    )


def test_grey_images_are_repeated_over_the_channels():
    grey = np.random.default_rng(1).random((1, 16, 16, 1), np.float32)
    run = partial(normalise, mean=CONFIG.pixel_mean, std=CONFIG.pixel_std)
    assert np.array_equal(run(grey), run(np.repeat(grey, 3, -1)))
    one = SwinConfig(**SMALL, pixel_mean=(0.5,), pixel_std=(0.25,), dtype="bfloat16")
    shapes = jax.eval_shape(partial(swin.init, one), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    assert jax.eval_shape(partial(swin.features, one), shapes, grey)[0].dtype == jnp.bfloat16
    assert jax.eval_shape(partial(swin.logits, one), shapes, grey).dtype == jnp.float32
    with refused("2 channels"):
        run(np.repeat(grey, 2, -1))


@pytest.mark.parametrize(
    "changes, where",
    [({"depths": (1, 1)}, "depths"), ({"heads": (1, 3, 2, 4)}, "heads"), ({"pixel_std": (1.0,)}, "pixel_std"),
     ({"drop_path": 1.0}, "drop_path"), ({"window": 0}, "window")],
)  # fmt: skip
def test_impossible_settings(changes, where):
    with refused(where=where):
        SwinConfig(**{**SMALL, **changes})


def test_an_unknown_variant():
    with refused("large", "tiny"):
        swin.named("large")
