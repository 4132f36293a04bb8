"""Detectors as programs: what they answer, what runs them, and what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import cem_real
from configs.recipes.detector import detector as recipe_of
from elk_jax import fields
from elk_jax.backbones import efficientnet, resnet
from elk_jax.data.augment import Resize
from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.detection import detectors, efficientdet_config, fused
from elk_jax.detection.retinanet import RetinaNetConfig, torchvision
from elk_jax.evaluation.operating import Choice, ChosenOn, OperatingPoint
from elk_jax.experiments.parse import parse
from elk_jax.output import Console
from elk_jax.tasks.detection import export, model
from elk_jax.tasks.detection.recipe import DetectionRecipe
from elk_jax.weights import model_folder
from elk_jax.weights.detectors import parameter_shapes
from elk_jax.weights.reading import read_tensors
from tests.detection.test_fused import config as fused_config
from tests.detection.test_fused import members
from tests.refusals import refused
from tests.weights.test_renamed import numbered

CANVAS, OTHER = (96, 64), (64, 96)
LOADER = LoaderConfig(resize=Resize(jitter=(1.0, 1.0)), buckets=(CANVAS, OTHER))
CHOICE = Choice((OperatingPoint(1.0, 0.4, sensitivity=0.5),), ChosenOn("validation", 9, 20, 30, 40))
PROGRAMS = export.ExportSettings()
ALONE = """
import json, sys, jax, numpy as np
with open(sys.argv[1], "rb") as file, np.load(sys.argv[2]) as given:
    found = jax.export.deserialize(file.read()).call(given["image"], given["image_size"])
assert not any(name.startswith("elk_jax") for name in sys.modules)
print(json.dumps([np.asarray(one).tolist() for one in found]))
"""


def detector_of(kind):
    recipe = recipe_of("tiny", frozenset({kind} - {"faster_rcnn"}))
    built = fields.build(DetectionRecipe, {"model": recipe["model"]}, "recipe")
    return detectors.build(replace(built.model, score_floor=0.0))


def save(folder, kind, loader=LOADER):
    detector = detector_of(kind)
    params = jax.jit(detector.init)(jax.random.key(0))
    description = model.describe(detector, ("lesion",), loader, True, ("horizontal",), CHOICE)
    model_folder.save_params(folder, jax.device_get(params), description)
    return detector, params


@pytest.fixture
def batch():
    """Two images of a canvas, one of which fills half of it."""
    image = np.random.default_rng(0).random((2, *CANVAS, 1), np.float32)
    image[1, CANVAS[0] // 2 :] = 0
    return {"image": image, "image_size": np.array([CANVAS, (CANVAS[0] // 2, CANVAS[1])], np.float32)}


@pytest.mark.parametrize("kind", ["faster_rcnn", "efficientdet"])
def test_a_program_answers_as_the_detector(kind, batch, tmp_path):
    detector, params = save(tmp_path / "model", kind)
    exported = export.program(model.load_one(tmp_path / "model"), CANVAS)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    found = jax.export.deserialize(exported.serialize()).call(batch["image"], batch["image_size"])
    wanted = jax.jit(detector.predict)(params, {**batch, "valid": np.ones(2, bool)})
    assert wanted["valid"].any(1).all()
    for name, own in zip(export.OUTPUTS, found, strict=True):
        np.testing.assert_allclose(own, wanted[name], rtol=1e-5, atol=1e-4, err_msg=name)


def test_a_folder_runs_without_elk_jax(batch, tmp_path):
    detector, params = save(tmp_path / "model", "retinanet")
    folder = tmp_path / "exported"
    export.export_folder(tmp_path / "model", folder, PROGRAMS, console=Console(quiet=True))
    about = json.loads((folder / export.SETTINGS).read_text())
    assert about["programs"] == {
        f"detector_{height}x{width}.bin": {"image": ["b", height, width, 1], "image_size": ["b", 2]}
        for height, width in (CANVAS, OTHER)
    }
    assert about["classes"] == ["lesion"] and about["input"]["crop_to_breast"] is True
    assert about["thresholds"]["points"][0]["threshold"] == 0.4 and about["outputs"] == list(export.OUTPUTS)
    assert about["thresholds"]["of_the_fused_boxes_of"] == ["image", "horizontal"]
    assert about["thresholds"]["chosen_on"]["patients"] == 9
    np.savez(tmp_path / "batch.npz", image=batch["image"][:1], image_size=batch["image_size"][:1])
    program = folder / "detector_{}x{}.bin".format(*CANVAS)
    command = [sys.executable, "-c", ALONE, str(program), str(tmp_path / "batch.npz")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one = {name: value[:1] for name, value in batch.items()} | {"valid": np.ones(1, bool)}
    wanted = jax.jit(detector.predict)(params, one)
    for name, own in zip(export.OUTPUTS, json.loads(done.stdout), strict=True):
        np.testing.assert_allclose(own, wanted[name], rtol=1e-5, atol=1e-4, err_msg=name)


def test_the_members_of_an_ensemble_have_folders_of_their_own(tmp_path, monkeypatch):
    """Each as if it were exported alone, and how their boxes are fused."""
    monkeypatch.setattr(
        export, "program", lambda member, canvas: SimpleNamespace(serialize=lambda: weights_of(member), in_avals=())
    )
    kinds = {"member_1": "retinanet", "member_2": "efficientdet"}
    alone = {}
    for name, kind in kinds.items():
        save(tmp_path / kind, kind)
        export.export_folder(tmp_path / kind, tmp_path / f"{kind}_alone", PROGRAMS, console=Console(quiet=True))
        alone[name] = {path.name: path.read_bytes() for path in (tmp_path / f"{kind}_alone").iterdir()}
    trained = [model.load_one(tmp_path / kind) for kind in kinds.values()]
    points = (OperatingPoint(1.0, 0.2, sensitivity=0.5),)
    description = model.EnsembleDescription(
        architecture=model.ENSEMBLE,
        classes=("lesion",),
        members=tuple(asdict(one.description) for one in trained),
        hashes=("", ""),
        scales=(1.0, 2.0),
        weights=(2.0, 1.0),
        same=0.4,
        operating_points=points,
        chosen_on=ChosenOn("validation", 7, 20, 30, 40),
        score_floor=0.02,
    )
    model.save_ensemble(tmp_path / "both", [one.params for one in trained], description)
    printed = io.StringIO()
    export.export_folder(tmp_path / "both", tmp_path / "exported", PROGRAMS, Console(file=printed, width=1000))
    for name, files_alone in alone.items():
        assert {path.name: path.read_bytes() for path in (tmp_path / "exported" / name).iterdir()} == files_alone
    assert alone["member_1"] != alone["member_2"]
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {*kinds, export.SETTINGS}
    about = json.loads((tmp_path / "exported" / export.SETTINGS).read_text())
    assert about["members"] == list(kinds) and about["classes"] == ["lesion"]
    assert about["fusion"] == {
        "method": "weighted boxes",
        "iou": 0.4,
        "weights": [2.0, 1.0],
        "scales": [1.0, 2.0],
        "score_floor": 0.02,
    }
    assert about["thresholds"]["points"][0]["threshold"] == 0.2 and about["thresholds"]["chosen_on"]["patients"] == 7
    assert about["thresholds"]["of_the_fused_boxes_of"] == list(kinds)
    *wrote, note = printed.getvalue().splitlines()
    assert wrote[-1] == f"wrote {tmp_path / 'exported' / export.SETTINGS}" and len(wrote) == 7
    assert note.startswith("note:") and "2 members" in note
    first, second = description.members
    uneven = replace(description, members=(first, second | {"input": second["input"] | {"buckets": ()}}))
    model.save_ensemble(tmp_path / "both", [one.params for one in trained], uneven)
    with refused("canvas", where="model.json, member_2: input.buckets"):
        export.export_folder(tmp_path / "both", tmp_path / "none", PROGRAMS, Console(quiet=True))
    assert not (tmp_path / "none").exists()


def weights_of(member):
    """Some bytes that tell the parameters of a detector."""
    return np.asarray(jax.tree.leaves(member.params)[-1]).tobytes()


def test_a_detector_of_pairs_takes_both_images():
    config = fused_config(second="partner")
    trained = model.Trained(detectors.build(config), fused.from_members(config, *members()), None)
    exported = export.program(trained, CANVAS, ("cpu",))
    assert exported.in_avals[0].shape[1:] == (*CANVAS, 2)


# ---- In the names of other libraries ---------------------------------------------------------------------------------


def exported(config, tmp_path, settings, loader=LOADER, flips=()):
    """(detector.json, tensors, what was printed) of an export of a detector with `numbered` parameters, and these."""
    detector, params = detectors.build(config), numbered(parameter_shapes(config))
    description = model.describe(detector, ("lesion",), loader, True, flips, CHOICE)
    model_folder.save_params(tmp_path / "model", params, description)
    printed = io.StringIO()
    export.export_folder(tmp_path / "model", tmp_path / "exported", settings, Console(file=printed, width=1000))
    folder = tmp_path / "exported"
    assert {path.name for path in folder.iterdir()} == {export.SETTINGS, export.TENSORS}
    about = json.loads((folder / export.SETTINGS).read_text())
    return about, read_tensors(folder / export.TENSORS), printed.getvalue(), params


def test_a_state_dict_for_torchvision(tmp_path):
    network = resnet.ResNetConfig(depth=18, num_classes=0)
    config = RetinaNetConfig(backbone=network, fpn_channels=8, head_convs=1)
    settings = export.ExportSettings("torchvision")
    about, tensors, printed, params = exported(config, tmp_path, settings, flips=("horizontal",))
    kernel = params["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(tensors["backbone.body.conv1.weight"], kernel.transpose(3, 2, 0, 1))
    assert about["class"] == "RetinaNet" and about["classes"] == ["lesion"] and about["first_label"] == 0
    assert about["thresholds"]["points"][0]["threshold"] == 0.4 and about["input"]["buckets"] == [[96, 64], [64, 96]]
    assert "min_size" not in about["arguments"]
    notes = [line for line in printed.splitlines() if line.startswith("note:")]
    assert ["mirrored" in notes[0], "96x64, 64x96 px" in notes[1], "resize" in notes[2]] == [True] * 3
    assert printed.index(export.TENSORS) < printed.index(export.SETTINGS) < printed.index("note:")


@pytest.mark.parametrize("variant", ["small", "small,half", "paper"])
def test_the_faster_rcnn_of_the_recipes_is_that_of_detectron2(variant, tmp_path):
    recipe = parse(cem_real.get_config(variant)).recipes["detector"]
    about, tensors, printed, params = exported(
        recipe.model, tmp_path, export.ExportSettings("detectron2"), recipe.test_loader()
    )
    kernel = params["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(tensors["backbone.bottom_up.stem.conv1.weight"], kernel.transpose(3, 2, 0, 1))
    assert about["config"]["MODEL.RESNETS.DEPTH"] == recipe.model.backbone.depth and about["classes"] == ["lesion"]
    assert ("padded" in printed) == any(side % 32 for canvas in recipe.loader.buckets for side in canvas)


@pytest.mark.parametrize("kind, settings, key, name", [
    ("retinanet", export.ExportSettings("torchvision"), "constructor", "retinanet_resnet50_fpn_v2"),
    ("efficientdet", export.ExportSettings("effdet", "tf_efficientdet_d0"), "name", "tf_efficientdet_d0"),
])  # fmt: skip
def test_the_published_recipes_of_one_stage_are_those_of_the_libraries(kind, settings, key, name, tmp_path):
    recipe = parse(cem_real.get_config(f"paper,{kind}")).recipes["detector"]
    about, _, printed, _ = exported(recipe.model, tmp_path, settings, recipe.test_loader())
    assert about[key] == name and "padded" not in printed


def test_a_state_dict_for_effdet(tmp_path):
    network = efficientnet.named("b0", head=False, num_classes=0, norm="affine_bn")
    config = efficientdet_config.named("d0", backbone=network, norm="affine_bn", cells=1, head_convs=1)
    settings = export.ExportSettings("effdet", "tf_efficientdet_d0")
    about, tensors, _, params = exported(config, tmp_path, settings)
    assert about["config"]["image_size"] == [128, 128], "all canvases lie in it, and all strides divide it"
    bias = params["class_head"]["logits"]["pointwise"]["bias"]
    np.testing.assert_array_equal(tensors["class_net.predict.conv_pw.bias"], bias)


@pytest.mark.parametrize(
    ("resize", "arguments"),
    [
        (Resize(short_sides=(600, 800), max_long_side=1333), {"min_size": 800, "max_size": 1333}),
        (Resize(short_sides=(800,)), {"min_size": 800, "max_size": 1_000_000}),
        (Resize(short_sides=(100,), stretch=(400, 200)), {"fixed_size": [100, 200]}),  # width, height
        (Resize(jitter=(1.0, 1.0)), {}),
    ],
)
def test_torchvision_leaves_images_of_the_right_size_as_they_are(resize, arguments):
    assert export.torchvision_resizing(resize) == arguments


def test_even_canvases_of_whole_pixel_anchors_need_no_note(tmp_path):
    network = resnet.ResNetConfig(depth=18, num_classes=0)
    config = torchvision(backbone=network, fpn_channels=8, head_convs=1)
    loader = LoaderConfig(resize=Resize(short_sides=(64,), jitter=()), buckets=(CANVAS,))
    trained = model.Trained(detectors.build(config), {}, model.describe(
        detectors.build(config), ("lesion",), loader, True, (), CHOICE))  # fmt: skip
    assert export.notes(trained, export.ExportSettings("torchvision")) == []


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"format": "onnx"}, "format"),
        ({"format": "effdet"}, "name"),
        ({"format": "torchvision", "name": "a"}, "name"),
        ({"name": "a"}, "name"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, where):
    with refused(where=where):
        export.ExportSettings(**settings)


def test_what_torchvision_cannot_build_is_not_written(tmp_path):
    save(tmp_path / "model", "faster_rcnn")
    with refused("backbone.width=64", where="model.json: model.backbone.width"):
        export.export_folder(tmp_path / "model", tmp_path / "new", export.ExportSettings("torchvision"))
    assert not (tmp_path / "new").exists()


# ---- Refused ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """The folder of a model that says little and is exported at once."""
    save(tmp_path / "model", "retinanet", LoaderConfig(resize=LOADER.resize, buckets=(CANVAS,)))
    return tmp_path / "model"


def test_what_is_there_is_not_written_over(small, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with refused("not empty", where=tmp_path / "full"):
        export.export_folder(small, tmp_path / "full", PROGRAMS)
    with refused("a file, not a folder", where=tmp_path / "full" / "mine"):
        export.export_folder(small, tmp_path / "full" / "mine", PROGRAMS)


def test_after_an_error_nothing_is_written(small, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "no space")

    monkeypatch.setattr(export, "program", lambda *_: SimpleNamespace(serialize=lambda: b"whole", in_avals=()))
    monkeypatch.setattr(export.files, "write_json", fails)
    with refused("disk is full", where=tmp_path / "new"):
        export.export_folder(small, tmp_path / "new", PROGRAMS, console=Console(quiet=True))
    assert not (tmp_path / "new").exists()


def test_a_detector_that_looks_at_several_sizes_is_exported_at_the_size_of_training(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "program", lambda *_: SimpleNamespace(serialize=lambda: b"whole", in_avals=()))
    detector = detector_of("retinanet")
    description = model.describe(detector, ("lesion",), LOADER, True, (), CHOICE, scales=(1.0, 2.0))
    model_folder.save_params(tmp_path / "model", detector.init(jax.random.key(0)), description)
    printed = io.StringIO()
    export.export_folder(tmp_path / "model", tmp_path / "new", PROGRAMS, Console(file=printed, width=1000))
    about = json.loads((tmp_path / "new" / export.SETTINGS).read_text())
    sizes = [name.removeprefix("detector_").removesuffix(".bin") for name in about["programs"]]
    assert sizes == ["96x64", "64x96"] and about["thresholds"]["at_scales"] == [1.0, 2.0]
    (note,) = [line for line in printed.getvalue().splitlines() if line.startswith("note:")]
    assert "1 and 2 times" in note


def test_a_detector_without_a_canvas_is_refused(tmp_path):
    save(tmp_path / "model", "retinanet", LoaderConfig(resize=Resize(short_sides=(64,), jitter=()), buckets=()))
    with refused("canvas", where="model.json: input.buckets"):
        export.export_folder(tmp_path / "model", tmp_path / "new", PROGRAMS)
    assert not (tmp_path / "new").exists()


def test_weights_that_are_not_those_of_the_settings_are_refused(tmp_path):
    detector = detector_of("retinanet")
    description = model.describe(detector, ("lesion",), LOADER, True, (), CHOICE)
    model_folder.save_params(tmp_path / "other", {"backbone": np.ones(2, np.float32)}, description)
    with refused(where=tmp_path / "other"):
        export.export_folder(tmp_path / "other", tmp_path / "new", PROGRAMS)
    assert not (tmp_path / "new").exists()
