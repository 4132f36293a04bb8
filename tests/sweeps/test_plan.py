"""The runs of a sweep: checked before any of them runs, in folders of one sweep, with what they have in common."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from elk_jax import files
from elk_jax.experiments import resume
from elk_jax.experiments.parse import plain
from elk_jax.features import store
from elk_jax.sweeps import plan as plans
from elk_jax.sweeps.plan import plan
from elk_jax.sweeps.settings import Row
from elk_jax.tasks import TASKS
from elk_jax.tasks.run import Run
from tests.experiments import toy_task
from tests.refusals import refused

STEPS = (Row("few", {"toy.steps": 10}), Row("many", {"toy.steps": 40}))
THRESHOLDS = (Row("low", {"stages.evaluate.threshold": 0.4}), Row("high", {"stages.evaluate.threshold": 0.6}))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", toy_task.TASK)


def planned(folder, rows=STEPS, seeds=2, **changes):
    config = toy_task.get_config()
    config.update_from_flattened_dict(changes)
    return plan(config, rows, seeds, folder)


def test_every_setting_runs_with_the_same_seeds(tmp_path):
    found = planned(tmp_path, seeds=3)
    assert [(run.row.name, run.experiment.seed) for run in found.runs] == [
        (name, seed) for name in ("few", "many") for seed in (42, 43, 44)
    ]
    assert [run.experiment.recipes["toy"].steps for run in found.runs] == [10] * 3 + [40] * 3
    assert found.runs[0].folder == tmp_path / "runs" / "few" / "seed-42"
    assert list(found.runs[0].config.stages) == ["train", "evaluate"]
    assert not tmp_path.joinpath("runs").exists()


def test_a_row_that_is_not_run_has_no_run(tmp_path):
    found = planned(tmp_path, (*STEPS, Row("theirs", {"no.such.key": 1}, not_run="needs a GPU")), 1)
    assert [run.row.name for run in found.runs] == ["few", "many"] and len(found.rows) == 3


def test_a_row_may_have_a_configuration_of_its_own(tmp_path):
    other = toy_task.get_config()
    other.toy.steps = 30
    rows = (
        Row("own"),
        Row("other", config="other.py"),
        Row("both", {"stages.evaluate.threshold": 0.7}, config="other.py"),
    )
    found = plan(toy_task.get_config(), rows, 1, tmp_path, {"other.py": other})
    steps = {run.row.name: run.experiment.recipes["toy"].steps for run in found.runs}
    assert steps == {"own": toy_task.get_config().toy.steps, "other": 30, "both": 30}
    own, changed, both = found.runs
    assert changed.identities["train"] == both.identities["train"] != own.identities["train"]
    plans.start(found)
    moved = (Row("own"), Row("other", {"toy.steps": 30}), rows[2])
    with refused("config", "other"):
        plans.start(plan(toy_task.get_config(), moved, 1, tmp_path, {"other.py": other}))


@pytest.mark.parametrize(
    ("overrides", "words", "where"),
    [
        ({"toy.stepz": 3}, ("toy.stepz", "toy.steps"), "row 'x'"),
        ({"toy.steps.more": 3}, ("toy.steps.more",), "row 'x'"),
        ({"toy.steps": "many"}, ("toy.steps", "many"), "row 'x'"),
        ({"toy.steps": 0}, ("x",), "config.toy.steps"),
        ({"stages.evaluate.models": ("other",)}, ("x", "other"), "stages.evaluate.models"),
        ({"seed": 3}, ("--seeds",), "seed"),
        ({"name": "other"}, ("experiment",), "name"),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(tmp_path, overrides, words, where):
    with refused(*words, where=where):
        planned(tmp_path, (STEPS[0], Row("x", overrides)))


def test_no_seed_and_seeds_that_cannot_be(tmp_path):
    with refused(0, where="--seeds"):
        planned(tmp_path, seeds=0)


def test_another_sweep_in_the_folder_is_refused(tmp_path):
    plans.start(planned(tmp_path))
    plans.start(planned(tmp_path, (*STEPS, Row("more", {"toy.steps": 50})), 5))
    plans.start(planned(tmp_path, (*STEPS, Row("more", {"toy.steps": 50})), 1, seed=7))
    with refused("another sweep", "'many'", 60, where=tmp_path):
        plans.start(planned(tmp_path, (STEPS[0], Row("many", {"toy.steps": 60}), Row("more", {"toy.steps": 50}))))
    with refused("another sweep", "'more'", where=tmp_path):
        plans.start(planned(tmp_path))
    with refused("another sweep", "ema_decay", 0.5, where=tmp_path):
        plans.start(planned(tmp_path, (*STEPS, Row("more", {"toy.steps": 50})), **{"toy.ema_decay": 0.5}))


def test_runs_and_sweeps_have_folders_of_their_own(tmp_path):
    """The report of one was replaced by that of the other."""
    found = planned(tmp_path)
    files.write_json(tmp_path / "config.json", {"name": "toys"})
    with refused("a run", where=tmp_path):
        plans.start(found)
    (tmp_path / "config.json").unlink()
    plans.start(found)
    with refused("a sweep", where=tmp_path):
        resume.check_experiment(found.runs[0].experiment, tmp_path)


def test_stages_with_the_same_settings_seed_and_inputs_are_one(tmp_path):
    low, low43, high, _ = planned(tmp_path, THRESHOLDS).runs
    assert low.identities["train"] == high.identities["train"] != low43.identities["train"]
    assert low.identities["evaluate"] != high.identities["evaluate"]
    few, many = planned(tmp_path, STEPS, 1).runs
    assert few.identities["evaluate"] != many.identities["evaluate"], "what it evaluates is another model"


def test_runs_that_take_a_stage_wait_for_the_one_that_makes_it(tmp_path):
    found = planned(tmp_path, (*THRESHOLDS, Row("few", {"toy.steps": 10})))
    names = [(run.row.name, run.seed) for run in found.runs]
    assert names == [("low", 42), ("low", 43), ("few", 42), ("few", 43), ("high", 42), ("high", 43)]
    assert [found.before(run) for run in found.runs] == [(), (), (), (), (0,), (1,)]


def test_some_stages_alone(tmp_path):
    """The others are not run, and not asked for. What an evaluation reads is run, or was."""
    trained = plan(toy_task.get_config(), THRESHOLDS, 1, tmp_path, stages=["train"])
    low, high = trained.runs
    assert list(low.made) == list(high.made) == ["train"] and trained.before(high) == (0,)
    with refused("evaluate", "train", where="--stages=evaluate"):
        plan(toy_task.get_config(), THRESHOLDS, 1, tmp_path, stages=["evaluate"])
    with refused("low", "'painting'", where="--stages=painting"):
        plan(toy_task.get_config(), THRESHOLDS, 1, tmp_path, stages=["painting"])
    for run in trained.runs:
        assert not run.is_finished
        made(run, "train")
        files.write_json(run.folder / "config.json", plain(run.config))
        files.write_text(run.folder / "report.html", "")
        assert run.is_finished
    again = plan(toy_task.get_config(), THRESHOLDS, 1, tmp_path, stages=["evaluate"])
    assert list(again.runs[0].finished) == ["train"], "of an earlier call"
    assert [[stage.name for stage in run.stages] for run in again.runs] == [["evaluate"]] * 2
    assert not any(run.is_finished for run in again.runs)


def made(run, stage: str, weights: str = "") -> None:
    folder = files.make_folder(run.folder / stage)
    files.make_folder(folder / "checkpoints" / "5")
    if stage == "train":
        files.make_folder(folder / "model")
        files.write_text(folder / "model" / "params", weights)
    own = run.experiment.stages[stage]
    depends = resume.settings(run.experiment, own) | resume.inputs(run.experiment, run.folder, own)
    files.write_json(folder / resume.DEPENDS, depends)
    files.write_json(folder / resume.FINISHED, {"summary": {}, "seconds": 1.0})


def test_only_finished_stages_that_are_the_same_are_taken(tmp_path):
    found = planned(tmp_path, THRESHOLDS)
    low, low43, high, high43 = found.runs
    assert plans.take_finished(found, high) == []
    made(low, "train")
    made(low, "evaluate")
    assert plans.take_finished(found, low43) == []
    assert plans.take_finished(found, high) == ["train"]
    assert (high.folder / "train" / "finished.json").is_file() and not (high.folder / "train" / "checkpoints").exists()
    assert plans.take_finished(found, high) == [], "what is begun stays as it is"
    (low43.folder / "train").mkdir(parents=True)
    files.write_json(low43.folder / "train" / "config.json", {"seed": 43})
    files.write_json(low43.folder / "train" / "finished.json", {})
    assert plans.take_finished(found, high43) == [], "it was made with other settings"


def test_what_read_other_weights_is_not_taken(tmp_path):
    """An evaluation belongs to its weights, even where the settings of their training are the same."""
    found = planned(tmp_path, (Row("a"), Row("b", {"toy.steps": 40})), 1)
    first, second = found.runs
    assert first.identities == second.identities
    made(first, "train", "weights")
    made(first, "evaluate")
    made(second, "train", "weights of another machine")
    assert plans.take_finished(found, second) == []
    files.write_text(second.folder / "train" / "model" / "params", "weights")
    assert plans.take_finished(found, second) == ["evaluate"]


def on_file(tmp_path):
    """A sweep on a COCO file with one image of each split; its first run has finished both stages."""
    file, images = tmp_path / "real.json", []
    for number, split in enumerate(("train", "val", "test")):
        images.append({"id": number, "file_name": f"{number}.png", "width": 8, "height": 8, "split": split})
    files.write_json(file, {"images": images, "annotations": [], "categories": [{"id": 1, "name": "mass"}]})
    found = planned(
        tmp_path / "sweep", (Row("a"), Row("b", {"toy.steps": 40})), 1, **{"data.real.spec": f"coco:{file}"}
    )
    for stage in ("train", "evaluate"):
        made(found.runs[0], stage)
        end = found.runs[0].folder / stage / "finished.json"
        run = Run(found.runs[0].experiment, found.runs[0].folder, None)
        known = resume.annotation_hash(run, found.runs[0].experiment.stages[stage])
        files.write_json(end, files.read_json(end) | {"annotations": known})
    return found, file


def with_image(file, split: str) -> None:
    content = files.read_json(file)
    content["images"].append({**content["images"][0], "id": 9, "file_name": "9.png", "split": split})
    files.write_json(file, content)


def test_a_training_on_annotations_that_have_changed_is_not_taken(tmp_path):
    found, file = on_file(tmp_path)
    made_by, second = found.runs
    with_image(file, "train")
    with refused("annotations", "stage train", where=made_by.folder / "train"):
        plans.take_finished(found, second)
    assert not (second.folder / "train").exists()
    shutil.rmtree(made_by.folder / "train")
    assert plans.take_finished(found, second) == [], "as the message says: it is made again"


def test_an_evaluation_on_annotations_that_have_changed_is_not_taken(tmp_path):
    found, file = on_file(tmp_path)
    with_image(file, "test")
    assert plans.take_finished(found, found.runs[1]) == ["train"]


def test_names_of_classes_and_files_are_annotations_too(tmp_path):
    """What an earlier version knows of a finished stage, without them, still holds for it."""
    found, file = on_file(tmp_path)
    first = found.runs[0]
    stage, before = first.experiment.stages["evaluate"], files.read_json(file)
    changed = lambda: resume.have_changed(Run(first.experiment, first.folder, None), stage)
    assert not changed()
    for part, position, change in (
        ("categories", 0, {"name": "calcification"}),
        ("images", 2, {"file_name": "other.png"}),
        ("images", 2, {"frame": 3}),
        ("images", 2, {"volume": "v", "slice": 1}),
    ):
        content = json.loads(json.dumps(before))
        content[part][position] |= change
        files.write_json(file, content)
        assert changed(), change
    files.write_json(file, before)
    end = first.folder / "evaluate" / "finished.json"
    kept = resume._annotation_hash(Run(first.experiment, first.folder, None), stage, resume._described_earlier)
    files.write_json(end, files.read_json(end) | {"annotations": kept})
    assert not changed()
    with_image(file, "test")
    assert changed()


def no_links(*arguments):
    raise OSError("no links")


@pytest.mark.parametrize("link", [os.link, no_links])
def test_frozen_features_of_other_runs_are_taken(tmp_path, monkeypatch, link):
    """A run computes no features that another run of the sweep has, and its own stay as they are."""
    monkeypatch.setattr(os, "link", link)
    low, low43, *_ = (found := planned(tmp_path, THRESHOLDS)).runs
    place = lambda run: run.folder / store.FOLDER
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    store.kept(place(low), "way", ["a", "b"], lambda positions: values)
    store.kept(place(low43), "way", ["c", "d"], lambda positions: -values)
    assert plans.take_features(found, low43) == 1 and plans.take_features(found, low43) == 0
    read = store.kept(place(low43), "way", ["a", "b", "c", "d"], lambda positions: values * np.nan)
    np.testing.assert_array_equal(read, [*values, *-values])
    (taken,) = place(low).iterdir()
    assert (place(low43) / taken.name).samefile(taken) == (link is not no_links)
    assert {path.stat().st_mode & 0o777 for path in place(low43).iterdir()} == {0o600}
