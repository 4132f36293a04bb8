"""A private generator: what it draws, what it promises, what nobody can read of it, and what it refuses."""

from __future__ import annotations

import json

import cv2
import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import private_generator
from elk_jax import files
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.patients import patient_hash
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.privacy import accounting, mechanism, secret
from elk_jax.tasks import frozen
from elk_jax.tasks.generation import fit, model, page, synthesize
from elk_jax.tasks.generation.recipe import Guidance, Means, SampleSettings, Votes
from elk_jax.training import mesh as meshes
from elk_jax.weights import model_folder
from tests.refusals import refused
from tests.tasks.classification.conftest import COUNTS, SIZE, assert_unmarked, run_marked, write_patches

GENERATORS = ["without_privacy", "epsilon_10", "epsilon_1"]
PUBLIC = 120
QUIET = secret.known(0)
"""Of noise that a multiplier of 0 takes away."""


def sorted_means(parts, name, images):
    """Features [N, 4] that are the same for mirrored and turned pictures: means of the quarters, sorted."""
    half = SIZE // 2
    return np.sort(images[..., 0].reshape(len(images), 2, half, 2, half).mean((2, 4)).reshape(len(images), -1), axis=1)


def experiment(folder, variant="tiny", **changes):
    """The configuration of pictures whose upper left tells their class. changes: of the stage epsilon_10."""
    config = private_generator.get_config(variant)
    config.data.patches.spec = f"folders:{folder / 'patches'}"
    config.data.patches.patient_pattern = r"p(\d+)_"
    config.data.public.spec = f"folders:{folder / 'public'}"
    config.data.labelled.spec = f"folders:{folder / 'labelled'}"
    config.pool.components, config.head.search.components = 3, (3,)
    for recipe in (config.pool, config.head):
        recipe.size = SIZE
        recipe.features.scattering.scales = 2
    for key, value in changes.items():
        config.stages.epsilon_10[key] = value
    return config


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """`patches`; `public`: pictures of one class with any upper left; `labelled`: with classes that say nothing."""
    folder, rng = tmp_path_factory.mktemp("private"), np.random.default_rng(2)
    write_patches(folder / "patches")
    for name, classes in (("public", ["any"]), ("labelled", ["benign", "malignant"])):
        for number in range(PUBLIC if name == "public" else 20):
            place = folder / name / "train" / classes[number % len(classes)]
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(60, 160, (SIZE, SIZE)) + rng.integers(-40, 40)
            pixels[: SIZE // 2, : SIZE // 2] += rng.integers(-30, 70)
            cv2.imwrite(str(place / f"q{number:03d}.png"), np.clip(pixels, 0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="session")
def fitted(folders, tmp_path_factory):
    """(run folder, summaries) of the experiment, whose entropy was MARKER."""
    return run_marked(experiment(folders), tmp_path_factory.mktemp("run"), sorted_means)


@pytest.fixture
def cheap_features(monkeypatch):
    monkeypatch.setattr(frozen, "_compute", sorted_means)


def upper_left(run, name):
    """Mean grey value of the drawn patches of each class, less that of their other pixels, of the brightest corner."""
    source = open_source(SourceSpec(f"coco:{run / f'{name}_samples' / 'synthetic.json'}"))
    found = {label: [] for label in source.classes}
    for position, info in enumerate(source.infos):
        image = source[position].image[..., 0]
        corners = image.reshape(2, SIZE // 2, 2, SIZE // 2).mean((1, 3))
        found[source.classes[info.labels[0]]].append(corners.max() - np.median(corners))
    return {label: np.mean(values) for label, values in found.items()}


# ---- What it does --------------------------------------------------------------------------------------------------


def test_drawn_patches_are_public_ones_that_look_like_their_class(fitted, folders):
    run, summaries = fitted
    assert summaries["epsilon_10_samples"]["counts"] == {"benign": 20, "malignant": 20}
    public = {path.read_bytes() and cv2.imread(str(path), 0).tobytes() for path in folders.glob("[pl]*l*/train/*/*")}
    views = {turned(np.frombuffer(one, np.uint8).reshape(SIZE, SIZE), view) for one in public for view in range(8)}
    drawn = list((run / "epsilon_10_samples" / "images").glob("*/*.png"))
    assert len(drawn) == 40 and {cv2.imread(str(path), 0).tobytes() for path in drawn} <= views
    for name in ("without_privacy", "epsilon_10"):
        of_class = upper_left(run, name)
        assert of_class["malignant"] > of_class["benign"] + 0.05


def turned(picture, view):
    picture = picture.T if view & 4 else picture
    return np.ascontiguousarray(picture[:: 1 - (view & 2), :: 1 - 2 * (view & 1)]).tobytes()


def test_a_classifier_of_drawn_patches_alone_knows_real_ones(fitted):
    """They have only seen public pictures."""
    run, _ = fitted
    auroc = lambda name: files.read_object(run / "evaluate" / name / "evaluation.json")["auroc"]["value"]
    assert auroc("without_privacy_head") > 0.9 and auroc("epsilon_10_head") > 0.8 and auroc("real") > 0.9


def test_every_set_is_judged_by_its_classes_and_by_radiomics(fitted):
    """Beside public classes, which say nothing, and on the validation split alone: no report tells of training
    patches."""
    run, _ = fitted
    fidelity = lambda name: files.read_object(run / f"{name}_fidelity" / "real" / "evaluation.json")["auroc"]["value"]
    assert min(fidelity("without_privacy"), fidelity("epsilon_10")) > 0.9 and abs(fidelity("public_only") - 0.5) < 0.2
    for name in (*GENERATORS, "public_only"):
        looks = files.read_object(run / f"{name}_looks" / "evaluation.json")
        assert looks["split"] == "val" and looks["classes"]["all"]["real"] == 2 * COUNTS["val"]
        assert set(looks["classes"]["benign"]["frd"]) == {"v0", "v1"}
    said = (run / "report.html").read_text()
    assert said.count("Fréchet radiomics distance") == 4 and "FRD v1 (ln d²)" in said


def test_a_drawn_patch_follows_the_weights():
    """By a pool of two patches, of which one class has the first alone and the other both, three to one."""
    pool = np.stack([np.zeros((2, 2, 1)), np.ones((2, 2, 1))]).astype(np.float32)
    params = {"patches": jnp.asarray(pool), "weights": jnp.array([[1.0, 0.0], [0.25, 0.75]])}
    description = model.PoolDescription(model.POOL, ("a", "b"), 2, (0.5, 0.5))
    seeds = np.stack([np.zeros(400, np.uint32), np.arange(400, dtype=np.uint32)], axis=1)
    draw = jax.jit(lambda label: description.predict(params, {}, {"seed": seeds, "label": label}, jax.vmap)["image"])
    assert not np.asarray(draw(np.zeros(400, np.int32))).any()
    assert np.asarray(draw(np.ones(400, np.int32))).mean() == pytest.approx(0.75, abs=0.07)


@pytest.mark.parametrize(
    ("centre", "views"), [((0.5, 0.5), 8), ((0.6, 0.6), 2), ((0.6, 0.5), 2), ((0.5, 0.4), 2), ((0.7, 0.6), 1)]
)
def test_the_views_that_are_drawn_leave_the_lesion_where_it_is(centre, views):
    """A bright spot at the centre stays there; all views of the rest are drawn that can be."""
    picture = np.random.default_rng(0).random((1, 10, 10, 1)).astype(np.float32) / 2
    row, column = (np.array(centre) * 10).round().astype(int)
    spots = np.ix_(
        [row - 1, row] if centre[0] == 0.5 else [row], [column - 1, column] if centre[1] == 0.5 else [column]
    )
    picture[0, spots[0], spots[1]] = 1
    params = {"patches": jnp.asarray(picture), "weights": jnp.ones((1, 1))}
    seeds = np.stack([np.zeros(200, np.uint32), np.arange(200, dtype=np.uint32)], axis=1)
    batch = {"seed": seeds, "label": np.zeros(200, np.int32)}
    drawn = model.PoolDescription(model.POOL, ("a",), 10, centre).predict(params, {}, batch, jax.vmap)["image"]
    assert len({one.tobytes() for one in np.asarray(drawn)}) == views
    assert (np.asarray(drawn)[:, spots[0], spots[1]] == 1).all()


def test_votes_alone_give_the_weights():
    """Three patients of class 0 vote for the patch at theirs, one of class 1 for its own; nothing below a vote."""
    pool = np.eye(3)
    data = fit.Private(pool[[0, 0, 1, 2]], np.array([0, 0, 0, 1]), np.arange(4), 4, 2)
    weights, _ = fit.weigh(Votes(neighbours=1, threshold=0.0), data, pool, 0.0, QUIET, "votes")
    np.testing.assert_allclose(weights, [[2 / 3, 1 / 3, 0], [0, 0, 1]])


def test_a_class_without_enough_votes_has_equal_weights():
    """The release is spent: another attempt would add one that no ledger counts."""
    data = fit.Private(np.eye(3)[[0, 0, 1]], np.array([0, 0, 1]), np.arange(3), 3, 2)
    found = fit.weigh(Votes(neighbours=1, threshold=1e9), data, np.eye(3), 1e-3, QUIET, "votes")
    np.testing.assert_allclose(found.weights, np.full((2, 3), 1 / 3))
    assert found.unvoted == (0, 1)
    some = fit.weigh(Votes(neighbours=1, threshold=1500.0), data, np.eye(3), 1e-3, QUIET, "votes")
    np.testing.assert_allclose(some.weights, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    assert some.unvoted == (1,)


def test_guidance_follows_a_classifier_of_the_private_images():
    """Of two classes along one direction: weights of a class grow with it, as the exponential of the contrast."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    features = rng.normal(size=(60, 3)) * [0.3, 1, 1] + np.outer(2 * labels - 1, [1, 0, 0])
    data = fit.Private(features, labels, np.arange(60), 60, 2)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    pool = np.stack([np.cos(angles), np.sin(angles), np.zeros(40)], axis=1)
    weights, _ = fit.weigh(Guidance(contrast=0.7), data, pool, 0.0, QUIET, "guidance")
    np.testing.assert_allclose(weights.sum(1), 1)
    scores = np.log(weights[1] / weights[0]) / 2  # contrast times the standardised log odds, up to a constant
    assert np.corrcoef(scores, pool[:, 0])[0, 1] > 0.95
    assert scores.std() == pytest.approx(0.7, rel=1e-4)
    noisy, _ = fit.weigh(Guidance(contrast=0.7), data, pool, 5.0, secret.known(1), "guidance")
    assert np.abs(noisy - weights).max() > 0.01
    # one patch in 40 of the other kind: all scores of one class are small beside the largest of the other
    skewed = np.eye(3)[np.zeros(40, int)] * np.where(np.arange(40) == 7, -1, 1)[:, None]
    steep, _ = fit.weigh(Guidance(contrast=200), data, skewed, 0.0, QUIET, "guidance")
    np.testing.assert_allclose(steep, np.where(np.arange(40) == 7, [[1], [0]], [[0], [1 / 39]]), atol=1e-9)


def test_every_release_costs_what_its_noise_says():
    for settings in (Guidance(steps=7), Means(), Votes()):
        spent = accounting.epsilon_of(fit.phases(settings, 3.0), 1e-4)
        assert spent == pytest.approx(dp_accounting.get_epsilon_gaussian(3.0, 1e-4), rel=1e-6)


def test_contrast_enlarges_the_difference_between_classes_and_shift_moves_both():
    rng = np.random.default_rng(0)
    pool = rng.normal(size=(200, 3))
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    features = np.array([[2.0, 0, 0], [0, 0.6, 0.8], [1, 0, 0], [0, -0.6, 0.8]])  # of norm 1 when they are released
    private = np.array([[0.5, 0.3, 0.4], [0.5, -0.3, 0.4]])
    data = fit.Private(features, np.array([0, 0, 1, 1]), np.arange(4), 4, 2)

    def means(**settings):
        weights, _ = fit.weigh(Means(penalty=1e-4, **settings), data, pool, 0.0, QUIET, "means")
        np.testing.assert_allclose(weights.sum(1), 1)
        return weights @ pool

    np.testing.assert_allclose(means(contrast=1.0, shift=1.0), private, atol=2e-3)
    apart = means(contrast=2.0, shift=0.0)
    np.testing.assert_allclose(apart[0] - apart[1], [0, 1.2, 0], atol=3e-3)
    np.testing.assert_allclose(apart.mean(0), pool.mean(0), atol=3e-3)


# ---- What it promises ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "epsilon"), [("epsilon_10", 10), ("epsilon_1", 1)])
def test_the_promise_is_that_of_the_noise(fitted, name, epsilon):
    run, summaries = fitted
    promise = model.load(run / name / "model").description.trained.privacy
    assert promise.private and (promise.delta, promise.ledger.unit) == (1e-4, "patient")
    mean, steps = promise.ledger.phases
    assert (mean.sampling_rate, mean.steps, steps.sampling_rate, steps.steps) == (1, 1, 1, 30)
    precision = mean.noise_multiplier**-2 + steps.steps * steps.noise_multiplier**-2
    assert dp_accounting.get_epsilon_gaussian(precision**-0.5, 1e-4) == pytest.approx(epsilon, rel=1e-6)
    assert promise.epsilon == pytest.approx(epsilon, rel=1e-6)
    assert promise.sentence() == summaries[name]["promise"] and promise.sentence() in page_of(run)
    said = files.read_object(run / f"{name}_samples" / "synthesis.json")["trained"]["privacy"]
    assert said["epsilon"] == promise.epsilon and said["ledger"]["unit"] == "patient"


def page_of(run):
    return (run / "report.html").read_text()


def test_a_set_without_noise_promises_nothing(fitted):
    run, summaries = fitted
    trained = model.load(run / "without_privacy" / "model").description.trained
    assert trained.privacy is None and summaries["without_privacy"]["promise"] == ""
    assert "without_privacy is not private" in page_of(run)


def test_nothing_that_is_published_says_who_was_in_the_training_data(fitted):
    run, summaries = fitted
    published = [run / "report.html", *(run / "epsilon_10" / "model").iterdir()]
    published += [path for path in (run / "epsilon_10_samples").rglob("*") if path.is_file()]
    people = [str(701 + number) for number in range(COUNTS["train"])]
    secrets = [f"p{person}_" for person in people] + [patient_hash(person) for person in people]
    for path in published:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path.name
    assert list(summaries["epsilon_10"]["data"]) == ["validation"]
    assert summaries["epsilon_10"]["units"] == {"patients": COUNTS["train"]}
    known = {patient_hash(person) for person in people}
    assert model_folder.seen_patients(run / "without_privacy" / "model") == known


def test_the_seed_of_the_noise_is_in_no_file(fitted):
    assert_unmarked(fitted[0])


def test_a_known_seed_repeats_the_noise_and_is_not_private(folders, tmp_path, cheap_features):
    runs = [tmp_path / name for name in ("one", "other", "fresh")]
    for run, seed in zip(runs, (7, 7, None)):
        run_experiment(experiment(folders, known_seed=seed), run, stages=["epsilon_10"])
    one, other, fresh = (model.load(run / "epsilon_10" / "model") for run in runs)
    np.testing.assert_array_equal(one.params["weights"], other.params["weights"])
    assert (one.params["weights"] != fresh.params["weights"]).any()
    assert not one.description.trained.privacy.private and fresh.description.trained.privacy.private
    assert "Not private" in files.read_object(runs[0] / "epsilon_10" / "finished.json")["summary"]["promise"]


def test_the_report_has_a_row_for_every_generator(fitted):
    run, summaries = fitted
    section = page.pools_section({name: summaries[name] for name in GENERATORS})
    for name in GENERATORS:
        assert name in section.html
    assert "epsilon 10, per patient" in section.html and "140" in section.html
    assert "Compared with public_only" in page_of(run)


# ---- Other uses ----------------------------------------------------------------------------------------------------


def test_votes_go_through_the_same_stages(folders, tmp_path, cheap_features):
    config = experiment(folders, "tiny,votes", known_seed=1)
    config.pool.release.update({"neighbours": 4, "threshold": 0.5})
    run_experiment(config, tmp_path, stages=["epsilon_10", "epsilon_10_samples"])
    weights = model.load(tmp_path / "epsilon_10" / "model").params["weights"]
    assert (weights == 0).any() and np.allclose(weights.sum(1), 1)
    assert json.loads((tmp_path / "epsilon_10" / "finished.json").read_text())["summary"]["release"] == "votes"


def test_a_release_without_votes_is_finished_and_said(folders, tmp_path, cheap_features, capsys):
    config = experiment(folders, "tiny,votes", known_seed=1)
    config.pool.release.update({"neighbours": 4, "threshold": 1e9})
    (summary,) = run_experiment(config, tmp_path, stages=["epsilon_10"]).values()
    assert [name in note for name, note in zip(("benign", "malignant"), summary["notes"])] == [True, True]
    trained = model.load(tmp_path / "epsilon_10" / "model").description.trained
    assert len(trained.privacy.ledger.phases) == 1
    for said in (capsys.readouterr().out, page_of(tmp_path)):
        assert "votes for the class malignant" in said


def test_a_command_draws_from_it(fitted, tmp_path):
    run, _ = fitted
    settings = SampleSettings(classes=("malignant",))
    synthesize.synthesize_files(
        model=run / "epsilon_10" / "model", count=3, output=tmp_path / "drawn", seed=1, settings=settings
    )
    assert len(list((tmp_path / "drawn" / "images" / "malignant").iterdir())) == 3


def test_the_default_variants_protect_patients():
    for variant in ("tiny", "quick", "small", "paper", "quick,votes"):
        stages = parse(private_generator.get_config(variant)).stages
        assert [stages[name].epsilon for name in GENERATORS] == [0, 10, 1]
        assert {stages[name].unit for name in GENERATORS} == {"patient"}


# ---- Refusals ------------------------------------------------------------------------------------------------------


def run_one(config, folder):
    run_experiment(config, folder / "run", stages=["epsilon_10"])


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"public": ()}, "public", ["no public"]),
        ({"public": ("patches",)}, "public", ["'patches'", "published"]),
        ({"init_from": "epsilon_1"}, "init_from", ["no initial weights"]),
        ({"epsilon": -1.0}, "epsilon", ["-1"]),
        ({"delta": 1.0}, "delta", ["1"]),
    ],
)
def test_settings_that_cannot_be_are_refused(folders, changes, where, words):
    with refused(*words, where=f"config.stages.epsilon_10.{where}"):
        parse(experiment(folders, **changes))


def test_patches_of_a_class_that_has_none_are_refused(folders, tmp_path):
    config = experiment(folders)
    (tmp_path / "patches").symlink_to(folders / "patches")
    config.data.patches.train_where = "class=benign"
    with refused("malignant", "'train'", where="patches"):
        run_one(config, tmp_path)


def test_a_classifier_of_three_classes_is_refused(folders, tmp_path):
    """Means and votes have any number of classes."""
    config = experiment(folders)
    for split in ("train", "val"):
        for number, name in enumerate(("benign", "malignant", "other")):
            place = tmp_path / "three" / split / name
            place.mkdir(parents=True)
            cv2.imwrite(str(place / f"p{number + 10 * (split == 'val')}_a.png"), np.full((SIZE, SIZE), 90, np.uint8))
    config.data.patches.spec = f"folders:{tmp_path / 'three'}"
    with refused("3 classes", "other", "votes", where="config.pool.release.name"):
        run_one(config, tmp_path)


@pytest.mark.parametrize("stage", ["epsilon_10", "real"])
def test_a_budget_that_needs_no_noise_is_refused_before_anything_runs(folders, tmp_path, stage):
    config = experiment(folders)
    config.stages[stage].epsilon = 1e9
    with refused("1e+09", where=f"config.stages.{stage}.epsilon"):
        run_experiment(config, tmp_path / "run", stages=[stage])
    assert not (tmp_path / "run" / "features").exists()


def test_public_images_of_private_patients_are_refused(folders, tmp_path):
    config = experiment(folders)
    config.data.public.spec = f"folders:{folders / 'patches'}/"
    config.data.public.patient_pattern = r"p(\d+)_"
    with refused("'public'", "701", where="config.stages.epsilon_10.public"):
        run_one(config, tmp_path)
    config.data.public.patient_pattern = ""
    with refused("training images", where="stage epsilon_10.public"):
        run_one(config, tmp_path)
    assert not (tmp_path / "run" / "epsilon_10" / "model").exists()


def test_public_images_that_were_made_of_private_patients_are_refused(folders, tmp_path, fitted):
    """The set without privacy says whom it has seen; the private one does not show anybody."""
    run, _ = fitted
    config = experiment(folders)
    config.data.public.spec = f"coco:{run / 'without_privacy_samples' / 'synthetic.json'}"
    with refused("701", where="config.stages.epsilon_10.public"):
        run_one(config, tmp_path)


def test_an_open_generator_of_private_patients_is_refused_before_it_is_trained(folders, tmp_path, cheap_features):
    """The patches of a private generator are not, and its promise is composed with that of what learns from them."""
    config = experiment(folders)
    config.stages.epsilon_1.public = ("public", "without_privacy_samples")
    with refused("'without_privacy_samples'", "'patches'", where="config.stages.epsilon_1.public"):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run" / "without_privacy").exists()
    config.stages.epsilon_1.public = ("public", "epsilon_10_samples")
    run_experiment(config, tmp_path / "run", stages=["epsilon_10", "epsilon_10_samples", "epsilon_1"])
    trained = model.load(tmp_path / "run" / "epsilon_1" / "model").description.trained
    assert [round(one.epsilon, 2) for one in trained.promises] == [10, 1]
    noise = [one.ledger.phases[0].noise_multiplier for one in trained.promises]
    assert noise[0] < noise[1] and "2 private training runs" in trained.sentence()


def test_a_private_set_of_another_run_is_composed_and_its_generator_counts_once(folders, tmp_path, fitted):
    """Two sets of one generator spend what it has spent. The oracle composes the two releases by itself."""
    run, _ = fitted
    sets = [run / "epsilon_10_samples" / "synthetic.json", tmp_path / "more" / "synthetic.json"]
    settings, mesh = SampleSettings(), meshes.make_mesh()
    synthesize.sample(run / "epsilon_10" / "model", 8, sets[1].parent, settings, 7, mesh)
    config = experiment(folders)
    for name, path in zip(("public", "labelled"), sets):
        config.data[name].spec = f"coco:{path}"
    run_experiment(config, tmp_path / "run", stages=["epsilon_1"])
    trained = model.load(tmp_path / "run" / "epsilon_1" / "model").description.trained
    assert [round(one.epsilon, 2) for one in trained.promises] == [10, 1]
    assert len({one.identity for one in trained.promises} - {""}) == 2
    events = [dp_accounting.GaussianDpEvent(phase.noise_multiplier)
              for one in trained.promises for phase in one.ledger.phases for _ in range(phase.steps)]  # fmt: skip
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    expected = accountant.compose(dp_accounting.ComposedDpEvent(events)).get_epsilon(1e-4)
    assert mechanism.together(trained.promises) == pytest.approx(expected, rel=1e-3) and expected > 10
    assert f"epsilon {expected:.3g}" in trained.sentence()


def test_a_set_that_does_not_say_what_it_spends_is_refused(folders, tmp_path, fitted):
    """Sets of earlier versions promise privacy in words alone."""
    run, _ = fitted
    content = files.read_object(run / "epsilon_10_samples" / "synthetic.json")
    del content["info"]["promises"]
    files.write_json(files.make_folder(tmp_path / "old") / "synthetic.json", content)
    (tmp_path / "old" / "images").symlink_to(run / "epsilon_10_samples" / "images")
    config = experiment(folders)
    config.data.public.spec = f"coco:{tmp_path / 'old' / 'synthetic.json'}"
    with refused("'public'", "in words", "synthesize.py", where="config.stages.epsilon_1.public"):
        run_experiment(config, tmp_path / "run", stages=["epsilon_1"])
    run_experiment(config, tmp_path / "open", stages=["public_only"])


def test_copies_of_a_public_patch_count_once(folders, tmp_path, cheap_features):
    """A source that is named twice, under two names: its patches would be drawn twice as often as all others."""
    config = experiment(folders)
    config.data.labelled.spec = config.data.public.spec
    (summary,) = run_experiment(config, tmp_path, stages=["epsilon_10"]).values()
    assert summary["pool"] == PUBLIC
    (note,) = summary["notes"]
    assert f"{PUBLIC} of {2 * PUBLIC} public patches are copies" in note
    picture = np.arange(12.0).reshape(3, 2, 2, 1) / 12
    np.testing.assert_array_equal(fit.distinct(picture[[2, 0, 2, 1, 0]]), picture[[2, 0, 1]])


def test_patients_that_nobody_names_are_refused(folders, tmp_path):
    config = experiment(folders)
    config.data.patches.patient_pattern = ""
    with refused("no patient", "unit=image", where="config.stages.epsilon_10.unit"):
        run_one(config, tmp_path)


def test_fewer_patches_than_votes_or_components_are_refused(folders, tmp_path, cheap_features):
    config = experiment(folders, "tiny,votes")
    config.pool.release.neighbours = PUBLIC + 21
    with refused(PUBLIC + 21, PUBLIC + 20, where="config.pool.release.neighbours"):
        run_one(config, tmp_path)
    config = experiment(folders)
    config.pool.components = 5
    with refused(5, 4, where="stage epsilon_10.public"):
        run_one(config, tmp_path / "other")


def test_a_damaged_pool_is_refused(tmp_path):
    description = model.PoolDescription(model.POOL, ("a", "b"), 2, (0.5, 0.5))
    write = lambda **params: model_folder.save_params(tmp_path, params, description)
    patches = np.zeros((3, 2, 2, 1), np.float32)
    write(patches=patches, weights=np.ones((1, 3), np.float32))
    with refused("weights", where=tmp_path):
        model.load(tmp_path)
    write(patches=patches, weights=np.array([[1, 0, 0], [0, 0, 0]], np.float32))
    with refused("class b", where=tmp_path):
        model.load(tmp_path)


def test_a_class_that_it_does_not_know_is_refused(fitted, tmp_path):
    run, _ = fitted
    with refused("'normal'", "benign, malignant", where="classes"):
        synthesize.sample(
            run / "epsilon_10" / "model", 1, tmp_path / "out", SampleSettings(("normal",)), 0, meshes.make_mesh()
        )
