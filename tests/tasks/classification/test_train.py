"""A network is trained on patches, plainly and privately, from the phantom to its model folder and its evaluation."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import swin_dp, swin_real
from elk_jax import files
from elk_jax.backbones import resnet, swin
from elk_jax.data.batches import labelled
from elk_jax.data.batches.labelled import Augmented, Labelled, LabelledConfig
from elk_jax.data.sources.folds import of_patients, pooled
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.patients import patient_hash
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.evaluation import bootstrap, thresholds
from elk_jax.evaluation.predictions import joined, read_predictions
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.fields import build
from elk_jax.tasks.classification import evaluate, model, predict, train
from elk_jax.tasks.classification.evaluate import EvaluateSettings
from elk_jax.tasks.classification.predict import PredictSettings
from elk_jax.tasks.classification.recipe import CombineClassifiersStage, NetworkRecipe, TrainClassifierStage
from elk_jax.tasks.run import Run
from elk_jax.training.writer import read_metrics
from elk_jax.weights import model_folder
from elk_jax.weights.classifiers import ImportedClassifier, Origin
from tests.refusals import refused

PATCHES = SourceSpec("phantom_patches:size=128,count=60,healthy_fraction=0.1,seed=5")
TINY = swin_real.get_config("tiny").network.model
FLIPS = ("horizontal_flip", "vertical_flip", "transpose")
STAGE = TrainClassifierStage(name="network", train_on=("patches",), validate_on="patches")


def private_config():
    config = swin_dp.get_config("tiny")
    config.network.privacy.accountant = "rdp"
    return config


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, run_experiment(swin_real.get_config("tiny"), folder)


@pytest.fixture(scope="module")
def private_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    return folder, run_experiment(private_config(), folder)


@pytest.fixture(scope="module")
def config():
    return build(swin.SwinConfig, TINY)


@pytest.fixture(scope="module")
def weights(config):
    return drawn(config, 1)


def drawn(config, seed):
    """Parameters that took no compilation."""
    rng, shapes = np.random.default_rng(seed), model_folder.shapes_of(partial(swin.init, config))
    return model_folder.nest({name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()})


# ---- Trained ---------------------------------------------------------------------------------------------------------


def test_a_trained_network_is_kept_at_its_best_validation_auroc(plain_run):
    folder, summaries = plain_run
    lines = [line for line in read_metrics(folder / "network" / "metrics.jsonl") if "eval/auroc" in line]
    best = max(line["eval/auroc"] for line in lines)
    summary = summaries["network"]
    assert summary["best"]["auroc"] == best and summary["best_step"] in {
        line["step"] for line in lines if line["eval/auroc"] == best
    }
    trained = model.load(folder / "network" / "model")
    assert trained.description.trained.step == summary["best_step"] and len(trained.description.trained.patients) == 9
    validation = open_source(PATCHES, "val")
    scores = trained.probabilities(validation)[0]
    truth = np.array([info.labels[0] == 1 for info in validation.infos])
    pairs = scores[truth][:, None] - scores[~truth][None]
    assert best == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_it_is_evaluated_and_predicts_as_in_the_stage(plain_run, tmp_path):
    folder, _ = plain_run
    staged = files.read_object(folder / "evaluate" / "network" / "evaluation.json")
    found = evaluate.evaluate_source(
        model=folder / "network" / "model", data=PATCHES, split="test", on_error="stop", output=tmp_path,
        settings=EvaluateSettings(bootstrap=0),
    )  # fmt: skip
    assert found["auroc"]["value"] == pytest.approx(staged["auroc"]["value"])
    page = (folder / "report.html").read_text()
    for title in ("Networks", "Privacy and accuracy", "ROC", "Training of networks"):
        assert f"<h2>{title}</h2>" in page


def test_thresholds_have_intervals_over_patients_in_the_model_the_log_and_the_report(tmp_path, capsys):
    """The model, asked again, gives them; the few patients of the validation split are warned of."""
    found = run_experiment(swin_real.get_config("tiny"), tmp_path)["network"]
    trained, validation = model.load(tmp_path / "network" / "model"), open_source(PATCHES, "val")
    own, labels = trained.description, np.array([info.labels[0] for info in validation.infos])
    said = model.predictions(trained.probabilities(validation)[0], validation, labels, own.positive)
    again = thresholds.by_rules(said, own.positive, [point.rule for point in own.operating_points])
    people = len({info.patient_id for info in validation.infos})
    for point, other in zip(own.operating_points, again, strict=True):
        assert (point.low, point.high) == pytest.approx((other.low, other.high), abs=1e-5)
        assert point.low <= point.high and point.on == other.on
        assert {"sensitivity", "specificity"} <= set(point.intervals)
        for name, interval in point.intervals.items():
            assert interval == pytest.approx(other.intervals[name], abs=1e-5)
        assert 0 < point.on.patients_of_positives <= people < bootstrap.LEAST_PATIENTS
    told = capsys.readouterr().out
    assert f"thresholds: {thresholds.in_words(own.operating_points)}" in told
    assert f"warning: {found['warning']}" in told and "few patients" in found["warning"]
    evaluation = files.read_object(tmp_path / "evaluate" / "network" / "evaluation.json")
    assert evaluation["warning"] == found["warning"] and evaluation["operating_points"][0]["on"]["positives"] > 0
    assert f"Warning: network: {found['warning']}" in (tmp_path / "report.html").read_text()


def test_thresholds_of_an_earlier_version_are_read_without_intervals(plain_run, tmp_path):
    params, content = model_folder.load_params(plain_run[0] / "network" / "model")
    points = [{k: v for k, v in one.items() if k in ("threshold", "rule", "chosen_on", "there")}
              for one in content.entries["operating_points"]]  # fmt: skip
    model_folder.save_params(tmp_path, params, {**content.entries, "operating_points": points})
    own = model.load(tmp_path).description.operating_points
    assert [point.threshold for point in own] == [point["threshold"] for point in points]
    assert all(point.low is None and point.on is None for point in own) and "unknown" in thresholds.doubt(own)


def test_thresholds_are_chosen_on_what_folds_say_of_patients_they_have_not_seen(tmp_path):
    """The model of each fold, asked again, gives the thresholds of the last one."""
    config = swin_real.get_config("tiny")
    config.network.folds, config.network.eval_every = 2, 0
    found = run_experiment(config, tmp_path, ["network"])["network"]
    spec = parse(config).data["patches"]
    pool = pooled(open_source(spec, "train"), open_source(spec, "val"))
    parts = []
    for fold in (1, 2):
        own = model.load(tmp_path / "network" / f"fold_{fold}" / "model")
        seen = own.description.trained.patients
        theirs = of_patients(pool, {i.patient_id for i in pool.infos if patient_hash(i.patient_id) not in seen})
        labels = np.array([info.labels[0] for info in theirs.infos])
        parts.append(model.predictions(own.probabilities(theirs)[0], theirs, labels, own.description.positive))
    both = joined(parts)
    last = model.load(tmp_path / "network" / "model").description
    assert sorted(both.image_ids) == sorted(info.image_id for info in pool.infos)
    assert last.trained.step == found["folds"]["step"] == config.network.steps
    assert found["notes"] == [], "the last training has all images in both splits, and they are not copies"
    for point in last.operating_points:
        again = thresholds.choose(both, last.positive, thresholds.rule_from_text(point.rule), "2 folds")
        assert point.chosen_on == "2 folds" and point.threshold == pytest.approx(again.threshold, abs=1e-5)
    assert "<td>2 folds</td>" in (tmp_path / "report.html").read_text(), "what the step was chosen on"


def test_the_folds_are_a_mean_whose_thresholds_are_those_of_single_members(tmp_path):
    """Each member of the model folder, asked again of the patients that it has not seen, gives the thresholds."""
    config = swin_real.get_config("tiny")
    config.network.update(folds=2, refit=False, eval_every=1)
    found = run_experiment(config, tmp_path, ["network"])
    mean = model.load(tmp_path / "network" / "model")
    spec, step = parse(config).data["patches"], found["network"]["folds"]["step"]
    pool, parts = pooled(open_source(spec, "train"), open_source(spec, "val")), []
    for own in mean.members:
        seen = own.description.trained.patients
        theirs = of_patients(pool, {i.patient_id for i in pool.infos if patient_hash(i.patient_id) not in seen})
        labels = np.array([info.labels[0] for info in theirs.infos])
        parts.append(model.predictions(own.probabilities(theirs)[0], theirs, labels, own.description.positive))
        assert own.description.trained.step == step
    both, last = joined(parts), mean.description
    assert sorted(both.image_ids) == sorted(info.image_id for info in pool.infos)
    for point in last.operating_points:
        again = thresholds.choose(both, last.positive, thresholds.rule_from_text(point.rule))
        assert point.threshold == pytest.approx(again.threshold, abs=1e-5) and "had not seen" in point.chosen_on
    assert set(last.trained.patients) == {patient_hash(info.patient_id) for info in pool.infos}
    assert len(list(tmp_path.glob("network/fold_*/held_out/*/model"))) == 2 and config.network.steps > 1
    assert "members of the ensemble" in (tmp_path / "report.html").read_text()


def test_thresholds_of_a_mean_are_chosen_on_what_the_folds_of_its_members_say(tmp_path):
    """Two networks deal the patients out alike: the mean of the folds that do not know a patient, asked again."""
    config = swin_real.get_config("tiny")
    config.network.update(folds=2, eval_every=0)
    with config.unlocked():
        config.other = ConfigDict(config.network.to_dict())
        config.other.steps = 2 * config.network.steps
        config.stages.other = ConfigDict({**config.stages.network.to_dict(), "recipe": "other"})
        del config.stages["evaluate"]
        mean = CombineClassifiersStage(members=("network", "other"), validate_on="patches", rules=("youden",))
        config.stages.mean = ConfigDict(dataclasses.asdict(mean))
    found = run_experiment(config, tmp_path)["mean"]
    spec = parse(config).data["patches"]
    pool, by_member = pooled(open_source(spec, "train"), open_source(spec, "val")), []
    for name in ("network", "other"):
        parts = []
        for fold in (1, 2):
            own = model.load(tmp_path / name / f"fold_{fold}" / "model")
            seen = own.description.trained.patients
            theirs = of_patients(pool, {i.patient_id for i in pool.infos if patient_hash(i.patient_id) not in seen})
            labels = np.array([info.labels[0] for info in theirs.infos])
            parts.append(model.predictions(own.probabilities(theirs)[0], theirs, labels, own.description.positive))
        by_member.append(joined(parts))
    assert by_member[0].image_ids == by_member[1].image_ids and len(by_member[0]) == len(pool.infos)
    odds = [np.log(one.probabilities / (1 - one.probabilities)) for one in by_member]
    both = dataclasses.replace(by_member[0], probabilities=1 / (1 + np.exp(-np.mean(odds, axis=0))))
    (point,) = model.load(tmp_path / "mean" / "model").description.operating_points
    again = thresholds.choose(both, "malignant", thresholds.Rule(), "2 folds")
    assert point.threshold == pytest.approx(again.threshold, abs=1e-5) and point.on == again.on
    assert point.chosen_on == found["chosen_on"] == "2 folds" and list(found["data"]) == ["2 folds"]
    assert "<td>2 folds</td>" in (tmp_path / "report.html").read_text()
    config.other.folds = 0
    with refused("2 folds", "other has none", where="config.stages.mean.members"):
        run_experiment(config, tmp_path / "again")
    config.other.update(folds=2, refit=False)
    with refused("other is an ensemble", "refit=True", where="config.stages.mean.members[1]"):
        run_experiment(config, tmp_path / "again")


def test_files_are_classified_as_their_source_is(plain_run, tmp_path, folders):
    folder = plain_run[0] / "network" / "model"
    place = folders / "patches"
    source = open_source(SourceSpec(f"folders:{place}"), "test")
    expected = model.load(folder).probabilities(source)[0][:3]
    rows = predict.predict_files(
        model=folder, inputs=[str(place / info.file_name) for info in source.infos[:3]], decoding=SourceSpec(),
        on_error="stop", output=tmp_path, settings=PredictSettings(),
    )  # fmt: skip
    np.testing.assert_allclose([row["probability"] for row in rows], expected, atol=2e-6)


def test_a_private_network_says_what_it_promises_and_nothing_of_its_patients(private_run):
    folder, summaries = private_run
    description = model.load(folder / "network" / "model").description
    promise, summary = description.trained.privacy, summaries["network"]
    assert promise.private and promise.epsilon <= 6 and promise.ledger.unit == "patient"
    assert description.trained.patients == () and summary["units"] == {"patients": 9}
    assert summary["data"]["train"] == {"units": 9} and summary["notes"] == [] and summary["withheld"]
    for point in description.operating_points:  # of validation images, which nothing protects, and of no others
        validating = summary["data"]["validation"]
        assert point.chosen_on == "validation" and point.on.positives == validating["malignant"]
        assert point.on.positives + point.on.negatives == validating["images"]
    keys = {key for line in read_metrics(folder / "network" / "metrics.jsonl") for key in line}
    assert not {"train/loss", "train/accuracy"} & keys and "eval/auroc" in keys
    page = (folder / "report.html").read_text()
    assert promise.sentence() in page and "epsilon 6, per patient" in page
    assert read_predictions(folder / "evaluate" / "network" / "predictions.json").classes == ("benign", "malignant")


# ---- Loss and batches ------------------------------------------------------------------------------------------------


def test_the_loss_is_the_smoothed_cross_entropy_of_valid_examples(config, weights):
    batch = {
        "image": np.random.default_rng(0).random((3, 32, 32, 1), np.float32),
        "label": np.array([0, 1, 1], np.int32),
        "valid": np.array([True, True, False]),
    }
    still = build(swin.SwinConfig, {**TINY, "drop_path": 0.0})
    network = model.trainable(still, 0.1)
    loss = jax.jit(lambda batch: network.loss(weights, {}, batch, jax.random.key(0), jax.vmap)[0])
    logits = np.asarray(jax.jit(partial(swin.logits, still))(weights, batch["image"]), np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    by_hand = -np.mean([0.95 * logs[0, 0] + 0.05 * logs[0, 1], 0.95 * logs[1, 1] + 0.05 * logs[1, 0]])
    assert loss(batch) == pytest.approx(by_hand, rel=1e-5)
    assert loss(batch | {"valid": np.zeros(3, bool)}) == 0


def test_an_image_is_seen_in_all_symmetries_of_the_square():
    source = open_source(PATCHES, "val")
    images = Labelled(source, np.arange(len(source)), 16)
    example = Augmented(images, LabelledConfig())
    views = [example(1, np.random.default_rng(seed))["image"] for seed in range(80)]
    plain = images.example(1)["image"]
    turned = [np.rot90(plain, k) for k in range(4)]
    expected = {one.tobytes() for one in (*turned, *(one[:, ::-1] for one in turned))}
    assert {view.tobytes() for view in views} == expected and len(expected) == 8
    batches = list(labelled.eval_batches(images, LabelledConfig(batch_size=4)))
    assert [batch["label"][batch["valid"]].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5]]


def test_images_are_moved_and_their_greys_changed_at_random():
    images, still = Labelled(open_source(PATCHES, "val"), np.zeros(6, np.int32), 16), dict.fromkeys(FLIPS, 0.0)

    def view(seed, **change):
        return Augmented(images, LabelledConfig(**still, **change))(1, np.random.default_rng(seed))["image"]

    plain = images.example(1)["image"]
    np.testing.assert_array_equal(view(0), plain)
    for change in ({"zoom": 0.2}, {"shift": 0.1}, {"gain": 0.2}, {"gamma": 0.2}, {"noise": 0.05}):
        first, again, other = view(0, **change), view(0, **change), view(1, **change)
        assert first.shape == plain.shape and first.dtype == np.float32 and first.min() >= 0 and first.max() <= 1
        assert (first != plain).any() and (first != other).any()
        np.testing.assert_array_equal(first, again)


def test_symmetric_views_give_turned_images_the_same_probability(config, weights):
    image = np.random.default_rng(0).random((2, 32, 32, 1), np.float32)
    views = np.asarray(model.symmetric_views(image))
    turned = [np.rot90(image, k, (1, 2)) for k in range(4)]
    assert {view.tobytes() for view in views} == {v.tobytes() for one in turned for v in (one, one[:, :, ::-1])}
    network, plain = model.trainable(config, symmetries=True), model.trainable(config)
    predict = jax.jit(lambda images: network.predict(weights, {}, {"image": images}, jax.vmap)["probability"])
    of_one = jax.jit(lambda images: plain.predict(weights, {}, {"image": images}, jax.vmap)["probability"])
    np.testing.assert_allclose([predict(one) for one in turned], [predict(image)] * 4, atol=1e-5)
    np.testing.assert_allclose(predict(image), np.mean([of_one(view) for view in views], 0), atol=1e-5)


# ---- Weights to start from -------------------------------------------------------------------------------------------


def imported(folder, **changes):
    settings = build(swin.SwinConfig, {**TINY, "num_classes": 2, **changes})
    params = drawn(settings, 3)
    model_folder.save_params(folder, params, ImportedClassifier("swin", settings, Origin("timm", "file", "0" * 64)))
    return params


def test_of_imported_weights_all_but_the_classes_are_taken(tmp_path, config, weights):
    params, recipe = imported(tmp_path), NetworkRecipe(model=config)
    found = train._start(tmp_path, STAGE, recipe, ("benign", "malignant"), weights)
    assert found.keys() == weights.keys()
    for name, part in found.items():
        origin = weights if name == "classifier" else params  # of as many classes, and yet of others
        jax.tree.map(np.testing.assert_array_equal, part, origin[name])


def test_of_an_earlier_training_everything_is_taken(plain_run, config, weights):
    folder = plain_run[0] / "network" / "model"
    found = train._start(folder, STAGE, NetworkRecipe(model=config), ("benign", "malignant"), weights)
    jax.tree.map(np.testing.assert_array_equal, found, model.load(folder).params)
    with refused("benign, malignant", where=folder):
        train._start(folder, STAGE, NetworkRecipe(model=config), ("malignant", "benign"), weights)


@pytest.mark.parametrize("changes, word", [({"window": 2}, "window"), ({"pixel_mean": (0.4,)}, "pixel_mean")])
def test_weights_of_another_network_are_refused(tmp_path, config, weights, changes, word):
    imported(tmp_path, **changes)
    with refused(word, f"--config.network.model.{word}", where=tmp_path):
        train._start(tmp_path, STAGE, NetworkRecipe(model=config), ("benign", "malignant"), weights)


# ---- Refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, where, words",
    [
        (lambda c: c.network.model.update(num_classes=3), "config.network.model.num_classes", ["two classes"]),
        (lambda c: c.network.update(positive="cancer"), "config.network.positive", ["cancer", "benign, malignant"]),
        (lambda c: c.network.update(rules=("best",)), "config.network.rules", ["best"]),
        (lambda c: c.network.model.update(frozen_stages=2), "config.network.model", ["random", "backbone/patches"]),
        (lambda c: c.network.optimizer.update(frozen=("^backbone",)), "config.network.optimizer.frozen", ["random"]),
        (lambda c: c.network.update(label_smoothing=1.0), "config.network.label_smoothing", ["below 1"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, change, where, words):
    config = private_config()
    change(config)
    with refused(*words, where=where):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_resnet_is_trained_from_weights_or_freezes_its_norms_alone(tmp_path):
    """Constant norms start as the identity."""
    config = swin_real.get_config("tiny")
    with config.unlocked():
        network = resnet.ResNetConfig(depth=18, width=2, num_classes=2, image_size=32)
        config.network.model = ConfigDict(dataclasses.asdict(network))
    for patterns, kept in (((), ""), (("^backbone/stem",), "backbone/stem/conv/kernel"), (("/norm/",), "")):
        config.network.optimizer.frozen = patterns
        experiment = parse(config)
        run = Run(experiment, tmp_path, mesh=None)
        check = partial(train.check_train, run, experiment.stages["network"], experiment.recipes["network"], ())
        if kept:
            with refused(kept, where="config.network.optimizer.frozen"):
                check()
        else:
            check()


def test_weights_that_have_seen_the_protected_patients_are_refused(plain_run, tmp_path):
    config = private_config()
    config.stages.network.init_from = str(plain_run[0] / "network" / "model")
    with refused("patient", "other people", where="config.stages.network.init_from"):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("experiment", [swin_real, swin_dp])
@pytest.mark.parametrize("variant", [None, "tiny", "small", "paper", "paper,head"])
def test_every_variant_is_well_formed(experiment, variant):
    recipe = parse(experiment.get_config(variant)).recipes["network"]
    assert bool(recipe.privacy) == (experiment is swin_dp) and bool(recipe.optimizer.frozen) == ("head" in str(variant))
    if variant == "paper":
        assert (recipe.size, recipe.schedule.base, recipe.label_smoothing) == (224, 1e-5, 0.1)
        assert recipe.images.batch_size == 128 and recipe.model.depths == (2, 2, 6, 2)
