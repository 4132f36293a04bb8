"""A generator as a package of medigan: loaded as medigan loads one, and drawn from with NumPy as with JAX."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from elk_jax.data.sources.coco import SYNTHETIC, behind_folder
from elk_jax.gan import networks
from elk_jax.gan.networks import GanConfig
from elk_jax.privacy.accounting import Ledger, Phase
from elk_jax.privacy.mechanism import Statement
from elk_jax.weights import medigan, medigan_package
from elk_jax.weights.model_folder import Training
from tests.refusals import refused

MODEL_ID, CLASSES = "00101_MCGAN_TEST", ("benign", "malignant")
SMALL = {"size": 16, "noise": 6, "embedding": 3, "generator_width": 4, "discriminator_width": 4}


def config_of(upsampling="transposed", **changes):
    return GanConfig(**SMALL, upsampling=upsampling, **changes)


@pytest.fixture(scope="module", params=["transposed", "resize"])
def exported(request, tmp_path_factory):
    """(folder, config, params)"""
    folder, config = tmp_path_factory.mktemp("medigan") / "exported", config_of(request.param)
    params = jax.device_get(networks.init_generator(config, jax.random.key(0)))
    medigan.export_folder(params, config, CLASSES, folder, MODEL_ID)
    return folder, config, params


def as_medigan_loads(folder, monkeypatch):
    """(generate with its keyword arguments but `save_images` and below, as medigan 1.0.0 prepares them)."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name == "models" or name.startswith("models.")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    execution = json.loads(Path("config/global.json").read_text())[MODEL_ID]["execution"]
    name, method = execution["package_name"], execution["generate_method"]
    weights = f"models/{MODEL_ID}/{name}/{execution['model_name']}{execution['extension']}"
    assert Path(weights).is_file() and Path(execution["package_link"]).is_dir()
    package = importlib.import_module(f"models.{MODEL_ID}.{name}")
    assert set(method["args"]["base"]) == {"model_file", "num_samples", "output_path", "save_images"}

    def generate(**given):
        return getattr(package, method["name"])(**method["args"]["custom"] | {"model_file": weights} | given)

    return generate


def test_arrays_are_those_of_the_generator(exported):
    folder, config, params = exported
    weights, settings = medigan_package.load(folder / "models" / MODEL_ID / "generator" / "generator.npz")
    assert settings["classes"] == list(CLASSES)
    noise = np.random.default_rng(0).standard_normal((5, 6), np.float32)
    labels = np.array([0, 1, 1, 0, 1])
    ours = networks.to_grey(networks.generate(config, params, noise, labels))[..., 0]
    np.testing.assert_allclose(medigan_package.draw(weights, settings, noise, labels), ours, atol=1e-5)


def test_medigan_finds_the_package_and_draws(exported, tmp_path, monkeypatch):
    generate = as_medigan_loads(exported[0], monkeypatch)
    drawn = generate(num_samples=20, output_path=str(tmp_path), save_images=False)
    assert len(drawn) == 20 and {one.shape for one in drawn} == {(16, 16)} and drawn[0].dtype == np.uint8
    assert (drawn[0] != drawn[1]).any() and not list(tmp_path.iterdir())
    assert generate(num_samples=20, output_path=f"{tmp_path}/", save_images=True, condition="malignant", seed=3) is None
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{number:06d}_malignant.png" for number in range(20)]
    again = generate(num_samples=20, output_path=None, save_images=False, condition=1, seed=3)
    for name, picture in zip(names, again):
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED), picture)


def test_the_last_batch_of_medigan_may_be_empty(exported, tmp_path, monkeypatch):
    generate = as_medigan_loads(exported[0], monkeypatch)
    assert generate(num_samples=0, output_path=str(tmp_path), save_images=True) is None
    assert generate(num_samples=0, output_path=None, save_images=False) == []


@pytest.mark.parametrize("condition", ["normal", 2, -1, True])
def test_a_class_that_there_is_not_is_refused(exported, monkeypatch, condition):
    generate = as_medigan_loads(exported[0], monkeypatch)
    with pytest.raises(ValueError, match=r"benign, malignant"):
        generate(num_samples=1, output_path=None, save_images=False, condition=condition)


def test_files_need_a_folder(exported, monkeypatch):
    generate = as_medigan_loads(exported[0], monkeypatch)
    with pytest.raises(ValueError, match="output_path"):
        generate(num_samples=1, output_path=None, save_images=True)


def test_the_package_needs_numpy_alone(exported):
    folder, *_ = exported
    source = (folder / "models" / MODEL_ID / "generator" / "__init__.py").read_text()
    imported = {name.name.partition(".")[0] for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Import) for name in node.names}  # fmt: skip
    imported |= {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"json", "struct", "zlib", "pathlib", "numpy"}
    code = f"import importlib; m = importlib.import_module('models.{MODEL_ID}.generator'); print(len(m.generate("
    code += f"'models/{MODEL_ID}/generator/generator.npz', 3, save_images=False)))"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr


def said_of(folder):
    """(privacy, description) of the exported entry."""
    found = json.loads((folder / "config" / "global.json").read_text())[MODEL_ID]
    return found["selection"]["privacy"], found["description"]


def test_the_entry_says_whom_the_generator_has_seen_and_what_protects_them(exported, tmp_path):
    """As a COCO file of drawn patches does; the hashes and ledgers are read back from one."""
    folder, config, params = exported
    privacy, description = said_of(folder)
    assert "Not private" in privacy and not {"seen_patients", "promises"} & description.keys()
    ledger = Ledger((Phase(0.1, 2.0, 5),), "patient")
    promise = Statement(True, 3.0, 1e-4, "rdp", ledger, identity="a" * 32)
    for name, trained in (
        ("open", Training(1, ("a",), "", ("h1", "h2"))),
        ("own", Training(1, ("a",), privacy=promise)),
    ):
        medigan.export_folder(params, config, CLASSES, tmp_path / name, MODEL_ID, trained)
        privacy, description = said_of(tmp_path / name)
        info = {key: description[key] for key in ("seen_patients", "promises") if key in description}
        coco = {"info": info, "images": [], "annotations": [], "categories": []}
        (tmp_path / name / SYNTHETIC).write_text(json.dumps(coco))
        behind = behind_folder(tmp_path / name / "images")
        assert behind.seen_patients == set(trained.patients) and behind.promises == trained.promises
        assert privacy.startswith("Not private") if name == "open" else privacy == promise.sentence()


@pytest.mark.parametrize("norm", ["none", "pixel"])
def test_one_class_and_other_norms(tmp_path, norm):
    config = config_of(classes=1, generator_norm=norm)
    params = jax.device_get(networks.init_generator(config, jax.random.key(0)))
    medigan.export_folder(params, config, ("mass",), tmp_path / "out", MODEL_ID)
    weights, settings = medigan_package.load(tmp_path / "out" / "models" / MODEL_ID / "generator" / "generator.npz")
    noise = np.ones((2, 6), np.float32)
    ours = networks.to_grey(networks.generate(config, params, noise, np.zeros(2, np.int32)))[..., 0]
    np.testing.assert_allclose(medigan_package.draw(weights, settings, noise, np.zeros(2, int)), ours, atol=1e-5)


@pytest.mark.parametrize("model_id", ["1_MCGAN_MASSES", "00101_MCGAN", "00101_" + "X" * 25, "00101-MCGAN/MASSES"])
def test_an_id_that_medigan_does_not_take_is_refused(tmp_path, model_id):
    with refused("not a valid medigan id", 13, 30, where="model_id"):
        medigan.export_folder({}, config_of(), CLASSES, tmp_path / "out", model_id)


def test_a_folder_with_something_in_it_is_refused(exported):
    folder, config, params = exported
    with refused("not empty", where=folder):
        medigan.export_folder(params, config, CLASSES, folder, MODEL_ID)
    with refused("a file, not a folder"):
        medigan.export_folder(params, config, CLASSES, folder / "config" / "global.json", MODEL_ID)
