"""A private head: what it learns, what it promises, and what nobody can read of it."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from elk_jax import files
from elk_jax.data.sources.open import list_source
from elk_jax.data.sources.patients import patient_hash
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.experiments.experiment import run_experiment
from elk_jax.features.whitening import Whitening
from elk_jax.heads.linear import Linear
from elk_jax.privacy import accounting
from elk_jax.tasks import frozen
from elk_jax.tasks.classification import fit, model, search, train
from elk_jax.weights import model_folder
from tests.refusals import refused
from tests.tasks.classification.conftest import COUNTS, assert_unmarked, experiment


def test_heads_learn_and_noise_costs(fitted):
    _, summaries = fitted
    open_head, private = summaries["without_privacy"], summaries["epsilon_6"]
    assert open_head["auroc"][0] > 0.9 and len(private["auroc"]) == 3
    assert private["protection"] == "epsilon 6, per patient" and open_head["protection"] == "without privacy"


def test_the_promise_is_that_of_the_noise(fitted):
    run, _ = fitted
    promise = model.load(run / "epsilon_6" / "model").description.trained.privacy
    assert promise.private and (promise.delta, promise.ledger.unit) == (1e-4, "patient")
    mean, steps = promise.ledger.phases
    assert (mean.sampling_rate, mean.steps, steps.sampling_rate, steps.steps) == (1, 1, 1, 30)
    precision = mean.noise_multiplier**-2 + steps.steps * steps.noise_multiplier**-2  # of mean and steps together
    spent = accounting.gaussian_epsilon(precision**-0.5, promise.delta)
    assert spent == pytest.approx(6, rel=1e-3) == promise.epsilon and spent <= 6 * (1 + 1e-6)
    for words in ("each patient", "epsilon 6", "0.0001", "zero-out", "Not counted", "validation"):
        assert words in promise.sentence()
    assert promise.sentence() in (run / "report.html").read_text()


def test_nothing_that_is_published_says_who_was_in_the_training_data(fitted):
    """Patients and their hashes, counts of training images and classes, losses: of the private head, and the report."""
    run, summaries = fitted
    published = [run / "report.html", *(run / "epsilon_6" / "model").iterdir()]
    people = [str(701 + number) for number in range(COUNTS["train"])]
    secrets = [f"p{person}_" for person in people] + [patient_hash(person) for person in people]
    for path in published:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path.name
    for name in ("epsilon_6", "without_privacy"):  # a report on both shows the training data of the private one
        assert list(summaries[name]["data"]) == ["validation"] and not summaries[name]["notes"]
    assert summaries["epsilon_6"]["units"] == {"patients": COUNTS["train"]}
    assert model_folder.seen_patients(run / "epsilon_6" / "model") == frozenset()
    known = {patient_hash(person) for person in people}
    assert model_folder.seen_patients(run / "without_privacy" / "model") == known


def test_the_seed_of_the_noise_is_in_no_file(fitted):
    assert_unmarked(fitted[0])


def test_private_files_are_their_owners(fitted):
    run, _ = fitted
    private = [*(run / "features").iterdir(), run / "epsilon_6" / "draws.safetensors"]
    assert len(private) == 5 and {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert (run / "features").stat().st_mode & 0o777 == 0o700
    alone = model.load(run / "epsilon_6" / "model")
    drawn = fit.with_draws(alone, run / "epsilon_6").draws
    assert len(drawn) == 3 and fit.with_draws(alone, run / "epsilon_6" / "model").draws == ()
    np.testing.assert_array_equal(drawn[0].weights, alone.head.weights)


def test_features_are_computed_once(fitted, folders, monkeypatch):
    run, _ = fitted
    monkeypatch.setattr(frozen, "_compute", lambda *_: pytest.fail("computed again"))
    run_experiment(experiment(folders), run, ["evaluate"])


def test_noise_is_fresh_or_known_to_all(folders, tmp_path, cheap_features):
    def weights(name, **changes):
        config = experiment(folders, **changes)
        del config.stages["without_privacy"], config.stages["evaluate"]
        summary = run_experiment(config, tmp_path / name)["epsilon_6"]
        return summary, model.load(tmp_path / name / "epsilon_6" / "model")

    (_, first), (_, second) = weights("first"), weights("second")
    assert not np.allclose(first.head.weights, second.head.weights)
    (_, known), (summary, again) = weights("known", known_seed=3), weights("again", known_seed=3)
    np.testing.assert_array_equal(known.head.weights, again.head.weights)
    assert not known.description.trained.privacy.private and summary["protection"].startswith("not private")
    assert "Not private" in summary["promise"]
    assert "Not private" in (tmp_path / "again" / "report.html").read_text()


@pytest.mark.parametrize("unit, count", [("image", 60), ("patient", 30)])
def test_every_training_image_belongs_to_a_unit(folders, unit, count):
    spec = SourceSpec(f"folders:{folders / 'patches'}", patient_pattern=r"p(\d+)_")
    source = list_source(spec, "train")
    units, found = train.units_of(source, unit)
    assert found == count and sorted(set(units)) == list(range(count)) and len(units) == 60
    of = {}
    for info, number in zip(source.infos, units):
        of.setdefault(number, set()).add(info.patient_id)
    assert all(len(patients) == 1 for patients in of.values())


def test_keys_of_draws_differ():
    keys = np.asarray(jax.random.key_data(search.noise_keys(5, None, 0)))
    assert len(np.unique(keys, axis=0)) == 5
    data = lambda purpose: np.asarray(jax.random.key_data(search.noise_keys(2, 7, purpose)))
    np.testing.assert_array_equal(data(1), data(1))
    assert not (data(1) == data(2)).any()


def test_calibration_takes_the_scale_and_shift_of_the_validation_images():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 1, 4000)
    truth = rng.random(4000) < 1 / (1 + np.exp(-(3 * odds - 1)))
    # inputs have the norm 1: two columns carry one number between -1 and 1
    angle = np.arcsin(np.clip(odds / 4, -1, 1))
    features = np.stack([np.sin(angle), np.cos(angle)], 1).astype(np.float32)
    plain = lambda size: {"a": Whitening(np.zeros(size, np.float32), np.eye(size, dtype=np.float32))}
    head = fit.calibrate(Linear(plain(2), np.zeros(2), np.array([4.0, 0.0]), 0.0), {"a": features}, truth)
    assert head.weights[0] == pytest.approx(12, rel=0.1) and head.bias == pytest.approx(-1, abs=0.15)
    two = Linear(plain(1), np.zeros(1), np.array([2.0]), 0.0)
    separable = fit.calibrate(two, {"a": np.array([[-1.0], [1.0]])}, np.array([False, True]))
    assert separable.weights[0] == 2 and np.isfinite(separable.bias)


# ---- Refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, where, words",
    [
        (lambda c: c.stages.epsilon_6.update(public=("patches",)), "config.stages.epsilon_6.public", ["whitening"]),
        (lambda c: c.data.public.update(spec=c.data.patches.spec), "stage epsilon_6.public", ["'patches'"]),
        (lambda c: c.data.patches.update(patient_pattern=""), "epsilon_6.unit", ["patient_pattern", "unit=image"]),
        (lambda c: c.data.patches.update(where="class=benign"), "patches", ["malignant", "train"]),
        (lambda c: c.head.update(positive="cancer"), "config.head.positive", ["cancer", "benign, malignant"]),
        (lambda c: c.head.features.scattering.update(scales=5), "config.head.features.scattering", ["16 x 16"]),
        (lambda c: c.head.search.update(features=("lite0",)), "config.head.search.features", ["lite0", "scattering"]),
        (lambda c: c.head.update(rules=("best",)), "config.head.rules", ["best", "youden"]),
        (lambda c: c.stages.evaluate.update(split="train"), "config.stages.evaluate.split", ["'patches'", "epsilon_6"]),
        (lambda c: c.stages.evaluate.update(split=""), "config.stages.evaluate.split", ["'patches'", "epsilon_6"]),
        (lambda c: c.stages.epsilon_6.update(delta=1.0), "config.stages.epsilon_6.delta", ["below 1"]),
        (lambda c: c.stages.epsilon_6.update(epsilon=-1.0), "config.stages.epsilon_6.epsilon", ["at least 0"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(folders, tmp_path, change, where, words):
    config = experiment(folders)
    del config.stages["without_privacy"]
    config.stages.evaluate.models = ("epsilon_6",)
    change(config)
    with refused(*words, where=where):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_public_images_that_are_training_images_are_refused(folders, tmp_path, cheap_features):
    config, copied = experiment(folders), tmp_path / "copied" / "any"
    del config.stages["without_privacy"], config.stages["evaluate"]
    copied.mkdir(parents=True)
    for path in sorted((folders / "patches" / "train").rglob("*.png"))[:40]:
        (copied / path.name).write_bytes(path.read_bytes())
    config.data.public.spec = f"folders:{copied.parent}"
    with refused("40 of the public images", where="stage epsilon_6.public"):
        run_experiment(config, tmp_path / "run")


def test_copies_are_reported_before_training(folders, tmp_path, cheap_features, capsys):
    """In the terminal, and on the report where no private head has the same training data."""
    patches = tmp_path / "patches"
    for path in (folders / "patches").rglob("*.png"):
        place = patches / path.relative_to(folders / "patches")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    first = next(iter(sorted((patches / "train" / "benign").iterdir())))
    (patches / "train" / "malignant" / "p900_a.png").write_bytes(first.read_bytes())
    (patches / "test" / "benign" / "p901_a.png").write_bytes(first.read_bytes())
    config = experiment(folders)
    config.data.patches.spec = f"folders:{patches}"
    del config.stages["epsilon_6"], config.stages["evaluate"]
    summary = run_experiment(config, tmp_path / "run")["without_privacy"]
    assert "different classes" in summary["notes"][0] and "p900_a" in summary["notes"][0]
    assert "different splits" in summary["notes"][1] and "test" in summary["notes"][1]
    assert "different classes" in capsys.readouterr().out
    assert "different classes" in (tmp_path / "run" / "report.html").read_text()


def test_the_summary_can_be_written(fitted):
    run, summaries = fitted
    written = files.read_object(run / "epsilon_6" / "finished.json")["summary"]
    assert written == json.loads(json.dumps(summaries["epsilon_6"]))
