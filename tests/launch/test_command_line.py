"""The command line: help with examples, and one line with exit code 2 for every mistake. Flags: test_flags.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.scripts import ROOT, TINY, assert_one_line, start


@pytest.mark.parametrize("script", ["train", "evaluate", "predict", "import_weights", "sweep"])
def test_help_teaches(script):
    done = start(script, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python launch/{script}.py" in done.stdout and "--" in done.stdout


SCRIPTS = [
    path.stem for path in sorted((ROOT / "launch").glob("*.py")) if path.stem not in ("command_line", "source_flags")
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag_of_the_script(quick_start, script):
    text = (ROOT / "launch" / f"{script}.py").read_text()
    own = re.findall(r"(?:DEFINE_\w+|define_numbers)\(\s*\"(\w+)\"", text)
    own += ["split_shares"] * ("source_flags.define(" in text and script != "compare_sets")
    helped = re.findall(r"^  --(?:\[no\])?(\w+)", quick_start(script, "--help").stdout, re.MULTILINE)
    assert own and set(own) <= set(helped)


@pytest.mark.parametrize("script", ["train", "import_weights"])
def test_freed_memory_is_retained_before_anything_runs(quick_start, script):
    done = quick_start(script, instead="elk_jax.host_memory.keep_freed")
    assert done.stdout.startswith("[[], {}]\n")
    assert_one_line(done, "--")


@pytest.mark.parametrize("script", ["synthesize", "translate", "export_weights", "plan", "privacy", "compare_sets"])
def test_the_help_of_the_others_teaches(quick_start, script):
    done = quick_start(script, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python launch/{script}.py" in done.stdout and "--output" in done.stdout


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("synthesize", ["--workdir={}/none", "--canvases=phantom:size=128,count=12", "--count=2"]),
        ("translate", ["--workdir={}/none", "--input={}"]),
        ("export_weights", ["--model={}/none"]),
    ],
)
def test_without_a_model_there_is_one_line_and_no_folder(quick_start, tmp_path, script, arguments):
    given = [argument.format(tmp_path) for argument in arguments]
    assert_one_line(quick_start(script, *given, f"--output={tmp_path}/out"), "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, flag",
    [
        (["train"], "--config"),
        (["evaluate", "--workdir=x"], "--data"),
        (["predict", "--workdir=x", "--input=x"], "--output"),
        (["import_weights"], "--"),
        (["synthesize", "--workdir=x"], "--count"),
        (["translate", "--workdir=x"], "--input"),
        (["export_weights"], "--model"),
        (["compare_sets", "--real=phantom:size=64"], "--synthetic"),
    ],
)
def test_a_missing_flag_ends_in_one_line(arguments, flag):
    assert_one_line(start(*arguments), flag)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([TINY], ["--topology", "v5e:2x2"]),
        ([TINY, "--topology=here", "--stage=evaluate"], ["evaluate", "real"]),
        ([TINY, "--topology=here,v5e"], ["'v5e'"]),
        ([TINY, "--topology=here", "--batch=-1"], ["batch"]),
        ([TINY, "--topology=here", "--output=README.md"], ["README.md", "folder"]),
    ],
)
def test_what_cannot_be_planned_ends_before_anything_is_compiled(quick_start, arguments, words):
    done = quick_start("plan", *arguments)
    assert_one_line(done, *words)
    assert "compiling" not in done.stdout


FULL_BATCHES = ["--examples=578", "--batch_size=578", "--steps=50", "--delta=1e-4", "--unit=patient"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["--examples"]),
        (FULL_BATCHES, ["--noise_multiplier", "epsilon"]),
        ([*FULL_BATCHES, "--epsilon=-1"], ["--epsilon", "above 0"]),
        ([*FULL_BATCHES, "--epsilon=6", "--delta=0"], ["--delta"]),
        ([*FULL_BATCHES, "--epsilon=6", "--noise_multiplier=0"], ["--noise_multiplier"]),
        ([*FULL_BATCHES, "--epsilon=6", "--batch_size=600"], ["--batch_size", "578"]),
        ([*FULL_BATCHES, "--epsilon=6", "--epochs=3"], ["--steps", "epochs"]),
        ([*FULL_BATCHES, "--epsilon=1e9"], ["--epsilon"]),
        ([*FULL_BATCHES, "--epsilon=6", "--unit=breast"], ["unit", "patient"]),
        ([*FULL_BATCHES, "--epsilon=6", "--curve", "--output=privacy.png"], ["--output", ".svg"]),
    ],
)
def test_impossible_questions_about_privacy_end_in_one_line(quick_start, arguments, words):
    assert_one_line(quick_start("privacy", *arguments), *words)


def test_a_question_about_privacy_is_answered_and_drawn(quick_start, tmp_path):
    picture = tmp_path / "pictures" / "epsilon.svg"
    done = quick_start("privacy", *FULL_BATCHES, "--epsilon=6", "--curve", f"--output={picture}")
    assert done.returncode == 0, done.stderr
    assert "one patient" in done.stdout and str(picture) in done.stdout
    assert picture.read_text().startswith("<svg")
    assert list(picture.parent.iterdir()) == [picture]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--config=configs/none.py:tiny"], ["(configs/none.py)", "configs/cem_mixed.py, "]),
        (["--config=configs/base"], ["(configs/base)"]),
        (["--config=configs/cem_real.py:enormous"], ["'enormous'", "tiny"]),
        ([TINY, "--config.detector.stepps=3"], ["detector.stepps", "detector.steps"]),
        ([TINY, "--config.detectr.steps=3"], ["detectr.steps", "detector.steps"]),
        ([TINY, "--config.detector.optimizer.magic=1"], ["optimizer.magic"]),
        ([TINY, "--config.detector.steps.more=1"], ["steps.more"]),
        ([TINY, "--config.detector.steps=many"], ["many", "detector.steps"]),
        ([TINY, "--stages="], ["real, evaluate"]),
        ([TINY, "--colour=red"], ["colour"]),
        ([TINY, "stray"], ["stray"]),
    ],
)
def test_wrong_flags_end_in_one_line(quick_start, arguments, words):
    assert_one_line(quick_start("train", *arguments), *words)


@pytest.mark.parametrize("script", ["evaluate", "predict"])
@pytest.mark.parametrize(
    "argument",
    ["--bootstrap=-3", "--bootstrap=1000000", "--score_floor=1.5", "--score_floor=-1", "--threshold=2"],
)
def test_numbers_out_of_range_end_in_one_line(quick_start, script, argument):
    assert_one_line(quick_start(script, "--workdir=x", argument), argument[2:].split("=")[0])


@pytest.mark.parametrize("script", ["synthesize", "translate"])
@pytest.mark.parametrize("seed", [-1, 1 << 32, 1 << 63])
def test_seeds_beyond_32_bits_end_in_one_line(quick_start, script, seed):
    assert_one_line(quick_start(script, "--workdir=x", f"--seed={seed}"), "seed", str(seed))


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--config.detector.steps=0", ["config.detector.steps", "at least 1"]),
        ("--config.data.real.spec=coco:/nowhere/cem.json", ["/nowhere/cem.json"]),
        ("--config.data.real.spec=ftp:images", ["ftp"]),
        ("--config.detector.model.backbone.depth=77", ["model.backbone.depth", "101"]),
        ("--config.detector.optimizer.name=magic", ["magic", "adamw"]),
        ("--config.detector.loader.buckets=()", ["loader.buckets", "canvas"]),
        ("--config.detector.best_metric=aufroc3", ["aufroc3", "aufroc_3"]),
        ("--config.stages.real.init_from=/nowhere", ["(/nowhere)"]),
    ],
)
def test_wrong_values_end_in_one_line_and_leave_nothing(quick_start, tmp_path, argument, words):
    assert_one_line(quick_start("train", TINY, f"--workdir={tmp_path}", argument), *words)
    assert not (tmp_path / "real" / "checkpoints").exists() and not (tmp_path / "real" / "finished.json").exists()
    assert argument.endswith("buckets=()") or not list(tmp_path.iterdir())


def test_folders_of_another_kind_end_in_one_line(quick_start, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line(quick_start("train", TINY, f"--workdir={tmp_path / 'file' / 'run'}"), "folder")
    if Path("/proc/self").exists():
        assert_one_line(quick_start("train", TINY, "--workdir=/proc/elk"), "/proc/elk")
    done = quick_start("evaluate", f"--workdir={tmp_path}", "--data=phantom:count=8,size=64")
    assert_one_line(done, f"({tmp_path})")
    done = quick_start("predict", f"--workdir={tmp_path}", "--input=x.png", f"--output={tmp_path}")
    assert_one_line(done, f"({tmp_path})")


def test_wrong_flags_of_an_evaluation_end_in_one_line(quick_start, tmp_path):
    common = ("evaluate", f"--workdir={tmp_path}", "--data=phantom:size=64,count=12")
    assert_one_line(quick_start(*common, "--split_shares=most,some,few"), "--split_shares=most,some,few")
    assert "split_shares" not in quick_start(*common, "--split_shares=").stderr
    assert_one_line(quick_start(*common, "--where=view"), "--where", "field=value")
    assert_one_line(quick_start(*common, "--bit_depth=99"), "bit_depth", "99")


def test_the_help_names_the_variants(quick_start):
    error = quick_start("train", "--config=configs/cem_real.py:huge").stderr
    variants = re.findall(r"\w+", re.search(r"\w+(, \w+){3,}", error)[0])
    assert {"quick", "small", "fewshot"} <= set(variants)
    text = quick_start("train", "--help").stdout
    assert [name for name in variants if not re.search(rf"\b{name}\b[ :]", text)] == []


PATCHES = "phantom_patches:size=64,count=12,"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--frd=v2"], ["--frd"]),
        (["--count=1"], ["--count"]),
        (["--real_bit_depth=99"], ["real_bit_depth", "99"]),
        (["--synthetic_where=view"], ["--synthetic_where", "field=value"]),
        (["--network={}/none"], ["none"]),
        (["--inception={}/none.pth"], ["none.pth"]),
        (["--output=README.md"], ["README.md", "folder"]),
        (["--regions=masks"], ["masks", "phantom_patches"]),
        ([f"--real={PATCHES}seed=1"], ["both"]),
        (["--by_class", f"--synthetic={PATCHES}seed=1,where=x"], ["where"]),
    ],
)
def test_sets_that_cannot_be_compared_end_in_one_line(quick_start, tmp_path, arguments, words):
    given = [f"--real={PATCHES}seed=0", f"--synthetic={PATCHES}seed=1", f"--output={tmp_path}/out", "--frd=v0"]
    done = quick_start("compare_sets", *given, *(argument.format(tmp_path) for argument in arguments))
    assert_one_line(done, *words)
    assert list(tmp_path.iterdir()) == []


def test_sets_are_compared(quick_start, tmp_path):
    sources = f"--real={PATCHES}seed=0", f"--synthetic={PATCHES}seed=1"
    done = quick_start("compare_sets", *sources, "--count=5", "--regions=boxes", f"--output={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert "FRD v1" in done.stdout and f"page: {tmp_path}/out/report.html" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.json", "report.html"}


@pytest.mark.parametrize("script", ["evaluate", "predict", "translate", "compare_sets", "synthesize"])
@pytest.mark.parametrize("name", ["versions.json", "finished.json", "sweep.json", "model.json"])
def test_results_do_not_go_where_a_training_keeps_its_own(quick_start, tmp_path, script, name):
    """Its report was replaced."""
    (tmp_path / name).write_text("{}")
    sources = {
        "evaluate": ["--data=phantom:"],
        "compare_sets": ["--real=phantom:", "--synthetic=phantom:"],
        "synthesize": ["--count=1"],
    }
    given = sources.get(script, ["--input=a.png"]) + ([] if script == "compare_sets" else [f"--workdir={tmp_path}"])
    done = quick_start(script, *given, f"--output={tmp_path}")
    assert_one_line(done, f"({tmp_path})", "--output")
    assert [path.name for path in tmp_path.iterdir()] == [name]


NOTHING_THERE = {
    "evaluate": ["--data=phantom:", "--workdir=none"],
    "predict": ["--input=a.png", "--workdir=none"],
    "compare_sets": ["--real=folders:none", "--synthetic=folders:none"],
    "synthesize": ["--count=1", "--workdir=none"],
}


@pytest.mark.parametrize("script", NOTHING_THERE)
@pytest.mark.parametrize(
    ("names", "of"),
    [
        (["findings.json"], "predict"),
        (["predictions.csv"], "predict"),
        (["evaluation.json", "predictions.csv"], "evaluate"),
        (["comparison.json"], "compare_sets"),
        (["synthesis.json"], "synthesize"),
    ],
)
def test_results_do_not_go_into_a_folder_of_other_results(quick_start, tmp_path, script, names, of):
    """One page would be replaced, and the other files of both would stand side by side."""
    for name in names:
        (tmp_path / name).write_text("{}")
    done = quick_start(script, *NOTHING_THERE[script], f"--output={tmp_path}")
    assert_one_line(done, "none" if script == of else f"({tmp_path})")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize(
    ("script", "given", "told"),
    [
        ("predict", "--workdir=~/none", "{home}/none"),
        ("compare_sets", "--real=folders:~/none", "{home}/none"),
        ("train", "--config.data.real.spec=coco:~/none.json", "{home}/none.json"),
        ("predict", "--workdir=a~/none", "a~/none"),
        ("predict", "--workdir=b/~/none", "b/~/none"),
    ],
)
def test_a_path_may_begin_with_the_home_folder(quick_start, script, given, told):
    """Shells expand ~ only at the beginning of a word: results went into a folder called ~."""
    others = {
        "predict": ["--input=a.png", "--output=none"],
        "compare_sets": ["--synthetic=folders:none", "--output=none"],
        "train": ["--config=configs/cem_real.py:tiny", "--workdir=none"],
    }
    done = quick_start(script, given, *others[script])
    assert_one_line(done, told.format(home=os.path.expanduser("~")))
    assert not (ROOT / "none").exists() and not (ROOT / "~").exists()


def test_a_configuration_is_named_from_another_folder(tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "train.py"), "--config=configs/cem_real.py:tiny"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert_one_line(done, "(configs/cem_real.py)", f"give {ROOT / 'configs' / 'cem_real.py'}")


def test_a_failed_evaluation_leaves_no_folder(quick_start, tmp_path):
    common = ("evaluate", "--data=phantom:size=64,count=12", f"--output={tmp_path / 'out'}")
    assert_one_line(quick_start(*common, f"--predictions={tmp_path / 'none.json'}"), "none.json")
    (tmp_path / "theirs.json").write_text('[{"image_id": 77}]')
    assert_one_line(quick_start(*common, f"--predictions={tmp_path / 'theirs.json'}"), "theirs.json")
    assert not (tmp_path / "out").exists()


def test_inputs_of_a_prediction_are_not_split_at_commas(quick_start, tmp_path):
    (tmp_path / "model.json").write_text('{"architecture": "faster_rcnn"}')
    (tmp_path / "a,b.png").write_text("")
    inputs = [f"--input={tmp_path / name}" for name in ("a,b.png", "c,d.png")]
    done = quick_start("predict", f"--workdir={tmp_path}", *inputs, f"--output={tmp_path / 'out'}")
    assert_one_line(done, f"({tmp_path / 'c,d.png'})")
    assert not (tmp_path / "out").exists()


def test_a_quick_start_is_a_start(quick_start):
    """The shared process behaves like a new one: flags of one start do not affect the next."""
    helped = quick_start("train", "--help")
    assert (helped.returncode, helped.stdout) == (0, start("train", "--help").stdout)
    assert quick_start("train", TINY, "stray").stderr == start("train", TINY, "stray").stderr
    assert quick_start("train").stderr == start("train").stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--over=detector.stepz=1,2"], ["--over=detector.stepz=1", "detector.steps"]),
        (["--over=detector.steps=1,x"], ["--over=detector.steps=x"]),
        (["--over=detector.steps=1,0"], ["config.detector.steps", "steps=0"]),
        (["--over=detector.steps=1,2", "--list=rows.json"], ["--list"]),
        (["--list=no_such_rows.json"], ["no_such_rows.json"]),
        (["--over=detector.steps=1,2", "--against=steps=3"], ["--against=steps=3", "steps=2"]),
        (["--seeds=0"], ["--seeds"]),
        (["--jobs=0"], ["--jobs"]),
        (["--run=steps=1/seed-42"], ["--run", "cem_real/seed-42"]),
    ],
)
def test_a_sweep_that_cannot_be_ends_before_anything_runs(quick_start, tmp_path, arguments, words):
    folder = tmp_path / "sweep"
    done = quick_start("sweep", "--config=configs/cem_real.py:tiny", f"--workdir={folder}", *arguments)
    assert_one_line(done, *words)
    assert not folder.exists()


OF_TINY = ("--config=configs/private_swin.py:tiny", "--config.first.steps=5", "--workdir=none")


@pytest.mark.parametrize(
    "row, words",
    [
        ({"config": "configs/nothing.py:tiny"}, ["no such configuration", "configs/nothing.py"]),
        ({"config": "configs/mcgan.py:huge"}, ["huge", "configs/mcgan.py:huge"]),
        # that of the sweep has the key of --config.first.steps, that of the row has not, and takes no harm
        ({"config": "configs/private_swin.py:tiny,nothing", "overrides": {"first.steps": 3}}, ["'first.steps'", "row"]),
    ],
)
def test_configurations_of_rows_that_cannot_be_end_in_one_line(quick_start, tmp_path, row, words):
    (tmp_path / "rows.json").write_text(json.dumps([{"name": "own", **row}]))
    assert_one_line(quick_start("sweep", *OF_TINY, f"--list={tmp_path / 'rows.json'}"), *words)
