"""What an experiment refuses before its first stage, and that it leaves nothing behind; nothing is trained here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from elk_jax import experiment, files
from elk_jax.data import loader
from elk_jax.errors import UserError
from elk_jax.experiment_checks import foreign_models, training_sources
from elk_jax.synthesis import phantom
from elk_jax.tasks import detection, trained
from elk_jax.weights import store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import bridge_le_to_cem, cem_mixed, cem_real, cem_synthetic, inpaint_cem, mammo_pretrain

PATIENTS = {"train": ("A", "B"), "val": ("C",), "test": ("D",)}


@pytest.fixture
def coco(tmp_path):
    """Writes FILE.json with an image of each patient, a lesion in each: (name, patients by split, lesions) -> spec."""

    def write(name: str, patients=PATIENTS, lesions=("train", "val", "test"), category: str = "mass") -> str:
        (tmp_path / "images").mkdir(exist_ok=True)
        images, annotations = [], []
        for split, patient in ((split, patient) for split, members in patients.items() for patient in members):
            number = len(images) + 1
            cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.zeros((48, 64), np.uint8))
            entry = {"id": number, "file_name": f"{number}.png", "width": 64, "height": 48, "split": split}
            images.append(entry | ({"patient_id": patient} if patient else {}))
            if split in lesions:
                annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [8, 8, 16, 16]})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": category}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return f"coco:{tmp_path / name}.json"

    return write


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The names of the stages that ran, in order: stand-ins that leave a checkpoint and a model."""
    names: list[str] = []

    def stage(run, name):
        names.append(name)
        if run.config.stages[name].kind == "train":
            files.make_folder(run.folder / name / "checkpoints" / "2")
            files.make_folder(run.folder / name / "model")
            files.write_json(run.folder / name / "model" / "model.json", {})
        return {"kind": run.config.stages[name].kind}

    for key in experiment.STAGES:
        monkeypatch.setitem(experiment.STAGES, key, stage)
    monkeypatch.setattr(experiment.report, "write", lambda run, summaries: "nowhere")
    return names


def on_files(module=cem_synthetic, **specs: str):
    """An experiment on these sources; painted ones are given, not made."""
    config = module.get_config("tiny")
    for name, spec in specs.items():
        config.data[name].spec = spec
    painting = ("inpainter", "lesions", "lesion_quality") if "synthetic" in specs else ()
    for name in painting:
        del config.stages[name]
    return config


def assert_refused(config, folder: Path, words: str, stages=None) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=words) as error:
        experiment.run(config, folder, stages)
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before, "a refused start leaves nothing"


# ---- Patients on both sides ----------------------------------------------------------------------------------------


def test_a_patient_of_the_test_is_not_trained_on_in_another_file(ran, coco, tmp_path):
    swapped = {"train": PATIENTS["test"], "test": PATIENTS["train"], "val": PATIENTS["val"]}
    config = on_files(real=coco("real"), synthetic=coco("painted", swapped))
    words = r"patient D is in the training split of 'synthetic' and in the split 'test' of 'real'.*evaluate.*distinct"
    assert_refused(config, tmp_path / "run", words)
    config.stages.evaluate.split = "train"  # to look at training images is no mistake
    experiment.run(config, tmp_path / "run")
    assert ran == ["synthetic", "evaluate"]


def test_a_patient_of_the_validation_is_not_trained_on(ran, coco, tmp_path):
    config = on_files(real=coco("real"), synthetic=coco("painted", {"train": ("E", "C")}))
    assert_refused(config, tmp_path / "run", r"patient C is .*'val' of 'real'.*stage synthetic")
    config.data.synthetic.spec = coco("painted", {"train": ("E", "A")})  # of the training patients, as painted ones are
    experiment.run(config, tmp_path / "run")
    assert ran == ["synthetic", "evaluate"]


def test_images_without_patients_count_by_their_ids(coco, tmp_path):
    unnamed = dict.fromkeys(PATIENTS, ("",))
    config = on_files(real=coco("real", unnamed), synthetic=coco("painted", {"train": ("", "")}))
    assert_refused(config, tmp_path / "run", r"patient 2 is .*'val'.*with the image's id")


def test_what_a_model_was_trained_on_before_counts(ran, coco, tmp_path):
    """Weights of an earlier stage, and canvases that lesions are painted into."""
    config = on_files(cem_mixed, real=coco("real"), synthetic=coco("painted", {"train": ("D", "E")}))
    config.stages.mixed.train_on = ("real",)
    config.stages.mixed.init_from = "synthetic"
    config.stages.evaluate.models = ("mixed",)
    assert training_sources(config, "mixed") == ["real", "synthetic"]
    assert_refused(config, tmp_path / "run", r"patient D .*'synthetic'.*mixed would be judged.*stage evaluate")

    config = cem_mixed.get_config("tiny")
    assert training_sources(config, "synthetic") == training_sources(config, "lesions") == ["real"]
    config.data.canvases = dict(config.data.real.to_dict(), spec=coco("canvases", {"train": ("C",)}))
    config.data.real.spec = coco("real")
    config.stages.lesions.canvases = "canvases"
    assert training_sources(config, "synthetic") == ["canvases", "real"]
    assert_refused(config, tmp_path / "run", r"patient C is in the training split of 'canvases'.*stage synthetic")


def test_what_a_model_from_elsewhere_was_trained_on_counts(ran, coco, tmp_path):
    model = tmp_path / "theirs"

    def trained_on(*patients: str) -> None:
        said = {"absent": [".*"], "trained": {"patients": [trained.mark(name) for name in patients]}}
        store.save_params(model, {}, said)

    config = on_files(cem_real, real=coco("real"))
    config.stages.real.init_from = str(model)
    for patient, split in (("C", "val"), ("D", "test")):
        trained_on("A", patient, "X")
        words = rf"patient {patient} is in the training data of {model} and in the split '{split}' of 'real': real "
        assert_refused(config, tmp_path / "run", words)
    trained_on("A", "X")
    experiment.run(config, tmp_path / "run")
    assert ran == ["real", "evaluate"]

    config = cem_mixed.get_config("tiny")
    config.data.real.spec = coco("real")
    config.stages.inpainter.init_from = str(model)
    assert foreign_models(config, "mixed") == foreign_models(config, "lesions") == [str(model)]
    trained_on("D")
    assert_refused(config, tmp_path / "mixed", r"patient D .*mixed would be judged.*stage evaluate")

    unnamed = on_files(cem_real, real=coco("unnamed", dict.fromkeys(PATIENTS, ("",))))
    unnamed.stages.real.init_from = str(model)
    trained_on("2", "3")  # as the images of many files are numbered
    experiment.run(unnamed, tmp_path / "unnamed")


def test_what_the_painter_of_a_given_set_was_trained_on_counts(ran, coco, tmp_path):
    painted = coco("painted")
    path = Path(painted.removeprefix("coco:"))
    content = files.read_json(path)
    files.write_json(path, content | {"info": {"learned_from": [trained.mark("D"), trained.mark("A")]}})
    config = on_files(real=coco("real"), synthetic=painted)
    words = r"patient D is in the training data of the painter of 'synthetic' and in the split 'test' of 'real'"
    assert_refused(config, tmp_path / "run", words)
    files.write_json(path, content | {"info": {"learned_from": [trained.mark("A")]}})
    experiment.run(config, tmp_path / "run")
    assert ran == ["synthetic", "evaluate"]


def test_a_finished_training_is_judged_without_its_data(ran, coco, tmp_path):
    config = on_files(real=coco("real"), synthetic=coco("painted", {"train": ("E",)}))
    experiment.run(config, tmp_path / "run")
    (tmp_path / "painted.json").unlink()
    experiment.run(config, tmp_path / "run")
    experiment.run(config, tmp_path / "run", ["evaluate"])
    assert ran == ["synthetic", "evaluate", "evaluate"]


def test_phantoms_of_other_seeds_are_other_patients():
    small = phantom.PhantomConfig(size=64)
    assert phantom.sample(1, 5, small).patient_id == phantom.patient_id(1, 5) == phantom.patient_id(1, 4)
    assert len({phantom.patient_id(seed, index) for seed in (1, 2) for index in (0, 4)}) == 4


# ---- Data ----------------------------------------------------------------------------------------------------------


def test_data_of_every_stage_is_looked_at_first(ran, coco, tmp_path):
    good = coco("real")
    for changes, words in {
        ("stages.evaluate.split", "tset"): r"no image in split 'tset'.*test \(1\)",
        ("data.real.where", "is_mass=true"): r"no image has the field 'is_mass'",
        ("data.real.spec", "coco:/nowhere.json"): r"/nowhere\.json",
        ("data.real.spec", ""): r"data source 'real' is not set",
        ("data.on_error", "ignore"): r"on_error is 'ignore'",
        ("stages.real.init_from", "/nowhere"): r"no model here \(/nowhere\)",
    }.items():
        config = on_files(cem_real, real=good)
        config.update_from_flattened_dict(dict([changes]))
        assert_refused(config, tmp_path / "run", words)
    words = r"no model here \(.*run/real/model\)"
    assert_refused(on_files(cem_real, real=good), tmp_path / "run", words, ["evaluate"])
    config = cem_real.get_config("tiny")
    config.stages.evaluate.split = "tset"
    assert_refused(config, tmp_path / "run", r"a phantom has no split 'tset'")
    assert not ran


def test_classes_are_those_of_the_training(coco, tmp_path):
    config = on_files(real=coco("real"), synthetic=coco("painted", {"train": ("E",)}, category="cyst"))
    assert_refused(config, tmp_path / "run", r"'synthetic' has the classes cyst, 'real' has mass.*stage synthetic")


def test_without_lesions_nothing_is_trained(ran, coco, tmp_path):
    config = on_files(cem_real, real=coco("healthy", lesions=("val", "test")))
    assert_refused(config, tmp_path / "run", r"no lesion in the images of the split 'train' \(stage real, data real\)")
    experiment.run(on_files(cem_real, real=coco("unknown", lesions=("train",))), tmp_path / "run")
    assert ran == ["real", "evaluate"]
    config = on_files(inpaint_cem, real=coco("unknown", lesions=("train",)))
    assert_refused(config, tmp_path / "painting", r"no lesion in the images of the split 'val'")


def test_what_only_the_stage_can_see_is_refused_there(coco, monkeypatch, tmp_path, capsys):
    healthy = on_files(cem_real, real="phantom:size=64,count=12,healthy_fraction=1.0")
    with pytest.raises(UserError, match=r"no lesion in the images of the split 'train' \(real\)"):
        experiment.run(healthy, tmp_path / "healthy")
    config = on_files(inpaint_cem, real=coco("real"))  # boxes of 16 px
    config.inpainter.closeups.window = 12  # with a margin of 0.15 on each side
    with pytest.raises(UserError, match=r"none of the 2 lesions has sides below 9 px"):
        experiment.run(config, tmp_path / "painting")

    def enough(*arguments):
        raise UserError("enough")

    monkeypatch.setattr(detection, "compile_predictor", enough)
    with pytest.raises(UserError, match="enough"):
        experiment.run(on_files(cem_real, real=coco("unknown", lesions=("train",))), tmp_path / "unknown")
    assert "warning: no lesion in validation" in capsys.readouterr().out


def test_weights_and_layers_are_looked_at_first(ran, coco, tmp_path):
    """Before the inpainter of cem_mixed learns for hours, that is."""
    config = cem_mixed.get_config("tiny")
    config.data.real.spec = coco("real")
    config.stages.mixed.init_from = str(tmp_path / "theirs")
    model = dict(detection.model_config(config.detector.model, pixel_scale=1.0).__dict__)
    kernel = np.zeros((7, 7, 1, 8), np.float32)
    said = {"model": model, "absent": [r"^(rpn|fpn|box_head|backbone/res|backbone/stem/conv/norm)"]}
    store.save_params(tmp_path / "theirs", {"backbone": {"stem": {"conv": {"kernel": kernel}}}}, said)
    words = r"trained with pixel_scale 1\.0, the recipe has 255\.0 .*--config\.detector\.model\.pixel_scale=1\.0"
    assert_refused(config, tmp_path / "run", words)
    store.save_params(tmp_path / "theirs", {"backbone": {"stem": {"conv": {"kernel": kernel[..., :4]}}}}, said)
    assert_refused(config, tmp_path / "run", r"stem/conv/kernel is \(7, 7, 1, 4\) in the weights and \(7, 7, 1, 8\)")

    config.stages.mixed.init_from = ""
    config.detector.optimizer.frozen = ("backbone/stem",)
    words = r"real starts from random weights, and backbone/stem would keep them .*optimizer\.frozen.*init_from=DIR"
    assert_refused(config, tmp_path / "run", words)
    for stage in ("real", "synthetic", "mixed"):
        config.stages[stage].init_from = str(tmp_path / "theirs")
    store.save_params(tmp_path / "theirs", {}, {"absent": [".*"]})
    for key, value in (("frozen", ("backbone/stm",)), ("multipliers", (("backbone/stm", 0.1),))):
        config.detector.optimizer[key] = value
        words = rf"config\.detector: the expression 'backbone/stm' matches no parameter \(optimizer\.{key}\)"
        assert_refused(config, tmp_path / "run", words)
        config.detector.optimizer[key] = ()
    assert ran == []


def test_what_is_trained_anew_or_follows_from_the_data_is_not_looked_at_before(ran, coco, tmp_path):
    config = on_files(cem_mixed, real=coco("real"), synthetic=coco("painted", {"train": ("E",)}))
    config.stages.mixed.init_from = "real"
    folder, stem = tmp_path / "run", {"backbone": {"stem": {"conv": {"kernel": np.zeros((7, 7, 1, 4), np.float32)}}}}
    store.save_params(folder / "real" / "model", stem, {})  # of a training with other settings, which starts again
    experiment.run(config, folder)
    assert ran == ["real", "synthetic", "mixed", "evaluate"]

    theirs = detection.model_config(config.detector.model, background="first").__dict__
    logits = {"box_head": {"class_logits": {"kernel": np.zeros((32, 2), np.float32)}}}  # one class, as the recipe says
    said = {"model": theirs, "absent": [r"^(backbone|rpn|fpn|box_head/fc)"]}
    store.save_params(tmp_path / "theirs", logits, said)
    config.stages.mixed.init_from = str(tmp_path / "theirs")
    experiment.run(config, tmp_path / "other")


# ---- Values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value",
    [
        ("detector.steps", 0),
        ("detector.steps", -1),
        ("detector.accumulate", 0),
        ("detector.log_every", 0),
        ("detector.checkpoint_every", -1),
        ("detector.eval_every", -2),
        ("detector.bootstrap", -3),
        ("detector.ema_decay", 1.0),
        ("detector.ema_decay", -0.5),
        ("detector.score_floor", 1.5),
        ("detector.choose_score_floor", float("nan")),
        ("inpainter.steps", 0),
        ("inpainter.accumulate", 0),
        ("inpainter.ema_decay", 1.0),
        ("inpainter.cached_windows", -1),
        ("inpainter.choose", "first"),
        ("stages.lesions.area", "huge"),
        ("stages.lesions.count", -1),
        ("stages.lesions.share", -1.0),
        ("stages.evaluate.criterion", "iou:x"),
        ("stages.lesions.model", ""),
        ("stages.mixed.weights", (0.5,)),
        ("stages.mixed.weights", (1.5, -0.5)),
        ("stages.mixed.weights", ("half", "half")),
        ("stages.real.weights", (0.5, 0.5)),
        ("detector.best_metric", "aufroc3"),
        ("detector.test_flips", ("diagonal",)),
        ("detector.model.depth", 77),
        ("detector.loader.batch_size", 0),
        ("detector.schedule.name", "magic"),
        ("detector.schedule.base", -1e-3),
        ("detector.schedule.warmup_steps", -1),
        ("detector.optimizer.name", "magic"),
        ("detector.optimizer.multipliers", ("backbone", 0.1)),
        ("detector.optimizer.multipliers", (("backbone", -0.1),)),
        ("detector.optimizer.frozen", ("(",)),
        ("detector.optimizer.frozen", (2,)),
        ("detector.optimizer.eps", 0.0),
        ("detector.optimizer.b2", 1.0),
        ("detector.model.dtype", "foo"),
        ("detector.loader.buckets", (384, 256)),
        ("detector.loader.buckets", ()),  # its images are jittered in a canvas
        ("detector.loader.lesion_share", 2.0),
        ("detector.loader.resize.short_sides", ("large",)),
        ("detector.loader.augmentation.crop_sides", (0.5,)),
        ("inpainter.optimizer.name", "magic"),
        ("inpainter.closeups.batch_size", 0),
        ("inpainter.closeups.workers", -1),
        ("inpainter.sampler.name", "euler"),
        ("inpainter.sampler.steps", 0),
        ("inpainter.sampler.steps", 2000),
        ("inpainter.guidance", -1.0),
        ("inpainter.noise.name", "quadratic"),
        ("inpainter.noise.steps", 1),
        ("inpainter.noise.prediction", "score"),
        ("inpainter.model.size", 30),
        ("inpainter.model.patch", 0),
        ("inpainter.model.scale", 0.0),
        ("inpainter.model.block_out_channels", (8, "16")),
        ("inpainter.model.layers_per_block", 0),
        ("inpainter.model.norm_num_groups", 3),
        ("inpainter.model.attention_head_dim", 3),
        ("inpainter.networks.dtype", "foo"),
        ("inpainter.networks.attention", "flash"),
        ("inpainter.loss.mask_outside", -1.0),
        ("inpainter.loss.min_snr_gamma", -1.0),
        ("inpainter.loss.noise_offset", float("nan")),
        ("inpainter.lora.rank", -1),
        ("inpainter.lora.targets", "("),
    ],
)
def test_values_that_cannot_be_are_named(ran, tmp_path, key, value):
    config = cem_mixed.get_config("tiny")
    config.update_from_flattened_dict({key: value})
    section, name = key.split(".")[0], key.split(".")[-1]
    assert_refused(config, tmp_path / "run", rf"(?=.*config\.{section})(?=.*{name.removeprefix('test_').rstrip('s')})")
    assert not ran


@pytest.mark.parametrize(
    "key, value",
    [
        ("model.dtype", "foo"),
        ("model.patch", 0),
        ("model.norm_num_groups", 3),
        ("model.down_block_types", ("DownBlock",)),
        ("model.answer", "noise"),
        ("sampler.steps", 2000),
        ("pairs.workers", -1),
        ("loss", "l3"),
        ("optimizer.multipliers", (("unet",),)),
    ],
)
def test_values_of_a_translator_that_cannot_be_are_named(ran, tmp_path, key, value):
    config = bridge_le_to_cem.get_config("tiny")
    config.update_from_flattened_dict({f"bridge.{key}": value})
    assert_refused(config, tmp_path / "run", rf"config\.bridge: .*{key.split('.')[-1]}")
    assert not ran


def test_a_seed_is_not_negative(tmp_path):
    config = cem_real.get_config("tiny")
    config.seed = -1
    assert_refused(config, tmp_path / "run", r"seed is -1 \(config\.seed\)")


def test_every_stage_has_its_own_weights(coco, monkeypatch, tmp_path):
    """The recipe serves stages of one source and of two; what it says of a mix itself is refused."""
    seen = []

    def enough(source, config, *arguments):
        seen.append(config.weights)
        raise UserError("enough")

    monkeypatch.setattr(loader, "train_batches", enough)
    config = on_files(cem_mixed, real=coco("real"), synthetic=coco("painted", {"train": ("E",)}))
    config.stages.mixed.weights = (0.25, 0.75)
    for name in ("real", "mixed"):
        with pytest.raises(UserError, match="enough"):
            experiment.run(config, tmp_path / name, [name])
    assert seen == [(), (0.25, 0.75)]
    with config.unlocked():
        config.detector.loader.weights = (0.25, 0.75)
    assert_refused(config, tmp_path / "old", r"config\.detector: .*loader\.weights.*config\.stages\.NAME\.weights")


def test_limits_are_allowed():
    config = cem_mixed.get_config("tiny")
    for recipe in (config.detector, config.inpainter):
        recipe.update(steps=1, accumulate=1, log_every=1, checkpoint_every=0, eval_every=0, ema_decay=0.0)
    config.detector.update(bootstrap=0, score_floor=0.0, choose_score_floor=1.0)
    config.stages.lesions.update(share=0.0, count=3)
    experiment.check(config)


def test_some_stage_is_named(tmp_path):
    assert_refused(cem_real.get_config("tiny"), tmp_path / "run", r"no stage to run \(--stages=\).*real, evaluate", [])


# ---- Run folders ---------------------------------------------------------------------------------------------------


def test_the_folder_of_another_experiment_is_left_alone(ran, tmp_path):
    experiment.run(cem_real.get_config("tiny"), tmp_path / "run")
    assert_refused(
        mammo_pretrain.get_config("tiny"),
        tmp_path / "run",
        r"the folder of the experiment cem_real, not of mammo_pretrain \(.*run\)\. name another --workdir",
    )
    assert files.read_json(tmp_path / "run" / "config.json")["name"] == "cem_real"
    assert_refused(cem_real.get_config("tiny"), tmp_path / "run" / "real", r"of something else, not of cem_real")


def test_settings_bind_from_the_first_checkpoint_on(ran, monkeypatch, tmp_path):
    config, folder = cem_real.get_config("tiny"), tmp_path / "run"
    config.detector.best_metric = "aufroc3"
    assert_refused(config, folder, "aufroc3")

    def failing(run, name):
        raise UserError("the model is too large")

    config.detector.best_metric = "aufroc_3"
    with monkeypatch.context() as patch:
        patch.setitem(experiment.STAGES, ("train", "detection"), failing)
        with pytest.raises(UserError, match="too large"):
            experiment.run(config, folder)
    config.detector.steps = 6
    experiment.run(config, folder)
    assert ran == ["real", "evaluate"] and files.read_json(folder / "real" / "config.json")["recipe"]["steps"] == 6
    config.detector.steps = 8
    (folder / "real" / "finished.json").unlink()
    assert_refused(config, folder, r"recipe\.steps was 6 and is 8")
    shutil.rmtree(folder / "real" / "checkpoints")
    experiment.run(config, folder)
    assert ran[2:] == ["real", "evaluate"] and files.read_json(folder / "config.json")["detector"]["steps"] == 8


def test_a_source_that_is_given_is_read(coco, tmp_path):
    config = inpaint_cem.get_config("tiny")
    config.data.canvases.spec = coco("healthy")
    words = r"no stage reads the data source 'canvases'.*config.data.canvases.spec.*lesions.canvases=canvases"
    assert_refused(config, tmp_path / "run", words)
    config.stages.lesions.canvases = "canvases"
    experiment.check(config)
