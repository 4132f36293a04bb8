"""Every flag of a script arrives where it is used: at the function of the task to which the model belongs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.detection.evaluate import EvaluateSettings
from elk_jax.tasks.translation.predict import TranslateSettings
from tests.launch.scripts import assert_one_line


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(architecture) -> a folder that looks like that of a model until it is read."""

    def write(architecture: str) -> Path:
        folder = tmp_path_factory.mktemp("model")
        (folder / "model.json").write_text(json.dumps({"architecture": architecture}))
        return folder

    return write


SOURCE = {
    "--split_shares=0.7,0.15,0.15": ("split_shares", [0.7, 0.15, 0.15]),
    "--partner=other": ("partner", "other"),
    "--shuffled_partners": ("shuffled_partners", True),
    "--slices=near:2": ("slices", "near:2"),
    "--bit_depth=12": ("bit_depth", 12),
    r"--patient_pattern=P_(\d+)": ("patient_pattern", r"P_(\d+)"),
    "--where=view=MLO": ("where", "view=MLO"),
    "--clean_boxes": ("clean_boxes", True),
    "--ignore_over=0.25": ("ignore_over", 0.25),
}


def written(spec: SourceSpec) -> dict:
    """As JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(spec)))


GIVEN = written(SourceSpec("coco:a.json")) | dict(SOURCE.values())
EVALUATE = {
    "--data=coco:a.json": ("data", GIVEN),
    "--split=other": ("split", "other"),
    "--on_error=skip": ("on_error", "skip"),
    "--output=out": ("output", "out"),
}
EVALUATE_SETTINGS = {
    "--against=before": ("against", "before"),
    "--criterion=centre_in_box": ("criterion", "centre_in_box"),
    "--score_floor=0.5": ("score_floor", 0.5),
    "--all_images": ("all_images", True),
    "--bootstrap=5": ("bootstrap", 5),
    "--flips=horizontal,both": ("flips", ["horizontal", "both"]),
    "--scales=1,0.8": ("scales", [1.0, 0.8]),
    "--metric=dbtex": ("metric", "dbtex"),
    "--volume_rule=comoto": ("volume_rule", "comoto"),
    "--by_slice": ("by_slice", True),
}
PREDICT = {
    "--input=a,b.png": ("inputs", ["a,b.png"]),
    "--output=out": ("output", "out"),
    "--bit_depth=12": ("decoding", written(SourceSpec(bit_depth=12))),
    "--on_error=skip": ("on_error", "skip"),
}
PREDICT_SETTINGS = {
    "--threshold=0.25": ("threshold", 0.25),
    "--score_floor=0.5": ("score_floor", 0.5),
    "--nopictures": ("pictures", False),
    "--volumes": ("volumes", True),
    "--volume_rule=comoto": ("volume_rule", "comoto"),
}
SYNTHESIZE = {
    "--canvases=coco:a.json": ("canvases", GIVEN),
    "--split=other": ("split", "other"),
    "--on_error=skip": ("on_error", "skip"),
    "--count=7": ("count", 7),
    "--output=out": ("output", "out"),
    "--seed=3": ("seed", 3),
}
SYNTHESIZE_SETTINGS = {
    "--area=medium": ("area", "medium"),
    "--batch_size=2": ("batch_size", 2),
    "--lesion_free": ("lesion_free", True),
    "--whole_window": ("whole_window", True),
    "--nograin": ("grain", False),
}
TRANSLATE_SETTINGS = {"--seed=3": ("seed", 3), "--batch_size=2": ("batch_size", 2)}
OF_OTHERS = {"synthesize": ("--classes", "--guidance", "--sampler_steps")}
"""Flags of a script that models of another task take."""
TRANSLATE = "elk_jax.tasks.translation.predict.translate_files"


@pytest.mark.parametrize(
    "script, architecture, function, flags, settings, of_source, others",
    [
        (
            "evaluate", "faster_rcnn", "detection.evaluate", EVALUATE, EVALUATE_SETTINGS, SOURCE, {"predictions": ""}
        ),
        ("predict", "faster_rcnn", "detection.predict", PREDICT, PREDICT_SETTINGS, (), {}),
        ("synthesize", "inpainter", "inpainting.synthesize", SYNTHESIZE, SYNTHESIZE_SETTINGS, SOURCE, {}),
        ("translate", "translator", TRANSLATE, PREDICT, TRANSLATE_SETTINGS, (), {}),
    ],
)  # fmt: skip
def test_every_flag_arrives(quick_start, model, script, architecture, function, flags, settings, of_source, others):
    """others: settings whose flags are given in another test."""
    folder = model(architecture)
    done = quick_start(script, f"--workdir={folder}", *flags, *settings, *of_source, instead=function)
    assert done.returncode == 0, done.stderr
    expected = {**dict(flags.values()), "model": str(folder), "settings": dict(settings.values()) | others}
    assert json.loads(done.stdout) == [[], expected]
    for flag in re.findall(r"^  --(?:\[no\])?(\w+)", quick_start(script, "--help").stdout, re.MULTILINE):
        given = [
            *OF_OTHERS.get(script, ()),
            *flags,
            *settings,
            *of_source,
            "--workdir",
            "--stage",
            *(f"--{name}" for name in others),
        ]
        assert any(re.match(rf"--(no)?{flag}\b", one) for one in given), flag


def test_a_generator_takes_no_canvases(quick_start, model):
    own = ("--batch_size=2", "--classes=benign", "--guidance=2", "--sampler_steps=9")
    folder, given = model("gan"), ("--count=7", "--output=out", "--seed=3", *own)
    done = quick_start("synthesize", f"--workdir={folder}", *given, instead="generation.synthesize")
    settings = {"batch_size": 2, "classes": ["benign"], "guidance": 2.0, "sampler_steps": 9}
    expected = {"model": str(folder), "count": 7, "output": "out", "seed": 3, "settings": settings}
    assert json.loads(done.stdout) == [[], expected], done.stderr
    for other in ("--area=medium", "--canvases=coco:a.json", "--split=val", "--on_error=skip"):
        assert_one_line(quick_start("synthesize", f"--workdir={folder}", *given, other), other.partition("=")[0])
    painter = quick_start("synthesize", f"--workdir={model('inpainter')}", "--count=7", "--output=out")
    assert_one_line(painter, "--canvases")


def test_predictions_are_evaluated_without_a_model(quick_start):
    done = quick_start("evaluate", "--predictions=theirs.json", *EVALUATE, *SOURCE, instead="detection.evaluate")
    ((), found) = json.loads(done.stdout)
    assert found["model"] is None and found["settings"]["predictions"] == "theirs.json"
    assert {name: found[name] for name, _ in EVALUATE.values()} == dict(EVALUATE.values())
    assert_one_line(
        quick_start("evaluate", "--predictions=theirs.json", *EVALUATE, "--stage=real"), "(--stage)", "real"
    )


def test_flags_that_are_not_given_are_the_defaults_of_the_task(quick_start, model):
    done = quick_start("evaluate", f"--workdir={model('faster_rcnn')}", "--data=a.json", instead="detection.evaluate")
    (_, found) = json.loads(done.stdout)
    assert found["settings"] == json.loads(json.dumps(dataclasses.asdict(EvaluateSettings())))
    assert found["output"].endswith("/evaluation-test")


def test_the_stage_of_a_run_is_chosen(quick_start, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"stages": {"painter": {}, "bridge": {}, "later": {}}}))
    for stage, architecture in (("painter", "inpainter"), ("bridge", "translator"), ("later", "translator")):
        (tmp_path / stage / "model").mkdir(parents=True)
        (tmp_path / stage / "model" / "model.json").write_text(json.dumps({"architecture": architecture}))
    for given, stage in (([], "later"), (["--stage=bridge"], "bridge")):
        done = quick_start("translate", f"--workdir={tmp_path}", *given, *PREDICT, instead=TRANSLATE)
        assert json.loads(done.stdout)[1]["model"] == str(tmp_path / stage / "model"), done.stderr
    assert_one_line(quick_start("translate", f"--workdir={tmp_path}", "--stage=painter", *PREDICT), "painter", "later")


def test_predict_takes_the_models_of_every_task_that_predicts(quick_start, model):
    folder = model("translator")
    done = quick_start("predict", f"--workdir={folder}", *PREDICT, instead="translation.predict")
    defaults = dataclasses.asdict(TranslateSettings())
    assert json.loads(done.stdout) == [[], {**dict(PREDICT.values()), "model": str(folder), "settings": defaults}]
    assert_one_line(quick_start("predict", f"--workdir={folder}", *PREDICT, "--threshold=0.5"), "(--threshold)")


@pytest.mark.parametrize(
    "script, arguments", [("evaluate", ["--data=a.json"]), ("predict", PREDICT), ("translate", PREDICT)]
)
def test_a_model_of_another_task_ends_in_one_line(quick_start, model, script, arguments):
    folder = model("inpainter")
    assert_one_line(quick_start(script, f"--workdir={folder}", *arguments), "'inpainter'", f"({folder})")


def test_a_setting_out_of_range_names_its_flag(quick_start, model):
    flags = (f"--workdir={model('faster_rcnn')}", "--data=a.json", "--flips=diagonal")
    assert_one_line(quick_start("evaluate", *flags), "(--flips)", "diagonal")
    assert_one_line(quick_start("evaluate", *flags[:2], "--scales=1,9"), "--scales", "from 0.25 to 4")
    assert_one_line(quick_start("evaluate", *flags[:2], "--scales=half"), "--scales=half", "numbers")


def test_the_flags_of_weights_arrive(quick_start, model):
    common, module = ("--input=theirs", "--output=ours"), "elk_jax.weights.stable_diffusion"
    given = ("--format=diffusers", "--inpainting", "--variant=fp16", "--ignore=a", "--ignore=b", "--names")
    done = quick_start("import_weights", *common, *given, instead=f"{module}.import_folder")
    settings = {"inpainting": True, "variant": "fp16", "ignore": ["a", "b"], "names": True}
    assert json.loads(done.stdout) == [["theirs", "ours"], settings]
    ours = model("inpainter")
    given = (f"--model={ours}", "--output=theirs", "--dtype=float16")
    done = quick_start("export_weights", *given, instead=f"{module}.export_folder")
    assert json.loads(done.stdout) == [[str(ours), "theirs", "float16"], {}], done.stderr
    assert_one_line(quick_start("export_weights", *given, "--model_id=00101_MCGAN_MASSES"), "(--model_id)")


def test_a_detector_is_exported_as_it_is(quick_start, model):
    given = (f"--model={model('retinanet')}", "--output=theirs")
    assert_one_line(quick_start("export_weights", *given), "no model")  # it is read
    assert_one_line(quick_start("export_weights", *given, "--dtype=float16"), "(--dtype)", "detector")
    assert_one_line(quick_start("export_weights", *given, "--model_id=00101_MCGAN_MASSES"), "(--model_id)", "detector")
    assert_one_line(quick_start("export_weights", *given, "--format=onnx"), "(--format)", "torchvision, effdet")
    assert_one_line(quick_start("export_weights", *given, "--format=effdet"), "(--name)")
    assert_one_line(quick_start("export_weights", *given, "--format=torchvision", "--name=a"), "(--name)")
    for written in (["--format=torchvision"], ["--format=effdet", "--name=tf_efficientdet_d0"]):
        assert_one_line(quick_start("export_weights", *given, *written), "no model")  # it is read


@pytest.mark.parametrize("flag", ["--format=torchvision", "--name=tf_efficientdet_d0"])
def test_flags_of_detectors_are_not_for_other_models(quick_start, model, flag):
    for kind in ("gan", "inpainter"):
        given = (f"--model={model(kind)}", "--output=theirs", flag)
        assert_one_line(quick_start("export_weights", *given), f"({flag.partition('=')[0]})")


def test_what_has_no_export_is_named(quick_start, model):
    done = quick_start("export_weights", f"--model={model('translator')}", "--output=theirs")
    assert_one_line(done, "translator", "detector", "Stable Diffusion")


def test_a_generator_is_exported_with_an_id(quick_start, model):
    given = (f"--model={model('gan')}", "--output=theirs")
    assert_one_line(quick_start("export_weights", *given), "--model_id")
    assert_one_line(quick_start("export_weights", *given, "--model_id=00101_X", "--dtype=float16"), "(--dtype)")
    done = quick_start("export_weights", *given, "--model_id=00101_MCGAN_MASSES")
    assert_one_line(done, "no model")  # it is read
