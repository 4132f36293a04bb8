"""Whole images from tiles."""

from __future__ import annotations

import errno
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from configs import bridge_le_to_cem
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.diffusion import translator
from elk_jax.experiments.parse import parse
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.run import SKIPPED
from elk_jax.tasks.translation import predict
from elk_jax.tasks.translation.model import Greys, Translator, describe
from elk_jax.tasks.translation.predict import TranslateSettings
from elk_jax.tasks.translation.recipe import BridgeSampler
from elk_jax.weights import model_folder
from tests.refusals import refused


def identity(tiles, numbers):
    return tiles


@pytest.mark.parametrize(("height", "width"), [(40, 29), (16, 16), (9, 50)])
def test_tiles_are_blended_without_a_trace(height, width):
    image = np.random.default_rng(0).random((height, width, 1)).astype(np.float32)
    found = predict.translated(image, identity, 16, 3)
    assert found.shape == image.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, image, atol=1e-6)


def test_tiles_fade_into_each_other_and_air_stays_air():
    image = np.ones((16, 48, 1), np.float32)
    image[:, 32:] = 0
    # tiles start at 0, 8, 16, 24 and 32; the last is all air and not translated
    grey = lambda tiles, numbers: np.ones_like(tiles) * 0.2 * numbers[:, None, None, None]
    line = predict.translated(image, grey, 16, 8)[8, :, 0]
    assert (np.diff(line[:32]) >= -1e-6).all() and np.abs(np.diff(line[:32])).max() < 0.06
    assert line[0] < 0.01 and line[31] == pytest.approx(0.6, abs=0.02) and (line[40:] == 0).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained translator in a model folder."""
    settings = bridge_le_to_cem.get_config("tiny")
    settings.bridge.model.answer = "difference"  # an untrained network's clean image would be grey, whatever the noise
    config = parse(settings).recipes["bridge"].model.config()
    parts = Translator(config, BridgeSampler(2, 1.0), Greys(0.3, 0.1, 0.2, 0.05))
    folder = tmp_path_factory.mktemp("model")
    params = jax.device_get(translator.init(config, jax.random.key(0)))
    model_folder.save_params(folder, params, describe(parts))
    return folder


def translate(model, inputs, output, on_error="stop", **settings):
    return predict.translate_files(
        model=model, inputs=[str(inputs)], decoding=SourceSpec(), on_error=on_error, output=output,
        settings=TranslateSettings(**settings),
    )  # fmt: skip


def test_files_keep_their_size_and_depth(model, tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "eight.png"), rng.integers(20, 200, (40, 50), np.uint8))
    cv2.imwrite(str(tmp_path / "in" / "deep.png"), rng.integers(9000, 60000, (33, 20)).astype(np.uint16))
    run = lambda output, **settings: translate(model, tmp_path / "in", tmp_path / output, batch_size=2, **settings)
    assert run("out") == [tmp_path / "out" / "deep.png", tmp_path / "out" / "eight.png"]
    run("again"), run("other", seed=1)
    read = lambda folder, name: cv2.imread(str(tmp_path / folder / name), cv2.IMREAD_UNCHANGED)
    assert read("out", "eight.png").shape == (40, 50) and read("out", "eight.png").dtype == np.uint8
    assert read("out", "deep.png").shape == (33, 20) and read("out", "deep.png").dtype == np.uint16
    np.testing.assert_array_equal(read("out", "eight.png"), read("again", "eight.png"))
    assert (read("out", "eight.png") != read("other", "eight.png")).any()


def test_a_translation_that_ends_early_leaves_the_earlier_results(model, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "in" / f"{name}.png"), np.full((20, 20), 90, np.uint8))
    results = translate(model, tmp_path / "in", tmp_path / "out")
    before = [path.read_bytes() for path in results]
    whole, calls = predict.translated, []

    def full(*arguments):
        calls.append(0)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        return whole(*arguments)

    monkeypatch.setattr(predict, "translated", full)
    with refused("disk is full", where=tmp_path / "out"):
        translate(model, tmp_path / "in", tmp_path / "out", seed=1)
    assert [path.read_bytes() for path in results] == before
    assert sorted((tmp_path / "out").iterdir()) == results


def test_a_table_of_skipped_files_is_of_the_last_command(model, tmp_path):
    bad = tmp_path / "in" / "bad.png"
    bad.parent.mkdir()
    bad.write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "in" / "air.png"), np.zeros((16, 16), np.uint8))
    translate(model, tmp_path / "in", tmp_path / "out", on_error="skip")
    assert str(bad) in (tmp_path / "out" / SKIPPED).read_text()
    bad.unlink()
    translate(model, tmp_path / "in", tmp_path / "out", on_error="skip")
    assert not (tmp_path / "out" / SKIPPED).exists()


def test_two_files_of_one_name_are_refused(model, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "x.png"), np.full((40, 40), 90, np.uint8))
    both = [str(tmp_path / folder / "x.png") for folder in "ab"]
    with refused("x.png", where=" and ".join(both)):
        translate(model, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_frame_and_a_file_of_one_name_are_refused():
    """The result of one replaced that of the other."""
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    frames = [ImageInfo(f"a.dcm {k}", "a", 8, 8, *none, file_name="a.dcm", volume="a.dcm", slice=k) for k in (0, 1)]
    file = ImageInfo("b/a_1.png", "b", 8, 8, *none, file_name="b/a_1.png")
    assert predict._frame_names(frames) == ["a_0.png", "a_1.png"]
    with refused("a_1.png", where="a.dcm and b/a_1.png"):
        predict._frame_names([*frames, file])


def test_no_image_is_replaced_by_its_answer(model, tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.full((40, 40), 90, np.uint8))
    before = (tmp_path / "x.png").read_bytes()
    with refused("overwrite", "--output", where=tmp_path / "x.png"):
        translate(model, tmp_path, tmp_path)
    assert (tmp_path / "x.png").read_bytes() == before


def test_a_name_with_dots_is_kept_whole():
    names = [predict._answer_name(Path(name)) for name in ("a.PNG", "1.2.840.1", "1.2.840.2", "b.c.dcm")]
    assert names == ["a.png", "1.2.840.1.png", "1.2.840.2.png", "b.c.png"]
