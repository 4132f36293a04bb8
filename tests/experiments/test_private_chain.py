"""The published chain (configs/private_swin.py): a generator, a network on its patches, and private last layers."""

from __future__ import annotations

import functools
import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from configs import private_swin, private_table
from elk_jax import files
from elk_jax.backbones import swin
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.privacy import accounting, mechanism
from elk_jax.sweeps.plan import plan
from elk_jax.sweeps.settings import read_rows
from elk_jax.tasks.classification.recipe import FitHeadStage, HeadRecipe, Search
from elk_jax.tasks.frozen import NetworkFeatures
from elk_jax.weights import model_folder
from tests.refusals import refused

VARIANTS = [
    ",".join(filter(None, words))
    for words in itertools.product(
        private_swin.SIZES, private_swin.LEARNED, ("", *private_swin.LAST), ("", *private_swin.OTHERS)
    )
    if "protected" not in words or not set(words) & set(private_swin.UNPROTECTED)
]


# ---- The configuration -----------------------------------------------------------------------------------------------


def test_every_variant_is_well_formed():
    for variant in VARIANTS:
        experiment, words = parse(private_swin.get_config(variant)), variant.split(",")
        stages, made = experiment.stages, next((word for word in words if word in private_swin.READY), "samples")
        read = {"real": {"patches"}, "mixed": {"patches", made}, "nothing": set(), "synthetic": {made}}[words[1]]
        assert set(stages["first"].train_on if "first" in stages else ()) == read, variant
        last = {"patches", made} if "beside" in words else {made} if "alone" in words else {"patches"}
        assert set(stages["without_privacy"].train_on) == last, variant
        used = made in read | last
        learner = "denoiser" if "denoiser" in words else "pool" if "protected" in words else "gan"
        expected = [learner] if used and made == "samples" else []
        assert [name for name in ("gan", "denoiser", "pool") if name in stages] == expected, variant
        guarded = [stage for name, stage in stages.items() if name.startswith("epsilon_")]
        budgets = set(private_swin.EPSILONS[words[0]]) & (set(private_swin.ALONE) if "alone" in words else {*range(99)})
        assert {stage.name for stage in guarded} == {f"epsilon_{epsilon}" for epsilon in budgets}, variant
        exposed = (bool(read) or made in last) and "protected" not in words
        assert all(stage.exposed == exposed for stage in guarded), variant
        assert {unit_of(experiment, stage) for stage in guarded} == {"patient" if "protected" in words else "image"}
        assert all(stage.protects(experiment.recipe_of(stage)) for stage in guarded), variant


def unit_of(experiment, stage) -> str:
    privacy = getattr(experiment.recipe_of(stage), "privacy", None)
    return privacy.unit if privacy else stage.unit


def test_words_that_exclude_each_other():
    pairs = ("real,nothing", "beside,alone", "tiny,cpu", "published,denoiser", "protected,drawn")
    for variant in (*pairs, "protected,mixed", "protected,beside", "protected,nothing"):
        with pytest.raises(ValueError, match="exclude"):
            private_swin.get_config(variant)


def test_the_published_settings_of_the_last_training():
    experiment = parse(private_swin.get_config("paper"))
    assert experiment.recipes["first"].steps == 7200
    for epsilon in (1, 6, 12, 20, 60):
        recipe = experiment.recipes[f"epsilon_{epsilon}"]
        privacy = recipe.privacy
        assert (privacy.epsilon, privacy.delta, privacy.unit, privacy.accountant) == (epsilon, 1e-4, "image", "rdp")
        assert (recipe.steps, recipe.schedule.base, privacy.clipping.bound) == (2700, 1e-5, 1.0)
        assert recipe.optimizer.weight_decay == 1e-8 and recipe.optimizer.frozen
    found = mechanism.plan(experiment.recipes["epsilon_6"].privacy, 1104, 123, 2700)
    assert found.noise_multiplier == pytest.approx(4.34, rel=0.01)  # Opacus 1.6, a sampling rate of 1/9


# ---- A whole run -----------------------------------------------------------------------------------------------------


def tiny():
    """With one private training by steps, and one private head on frozen features of the same network."""
    config = private_swin.get_config("tiny")
    feature = NetworkFeatures(size=32)
    search = Search(features=("first",), components=(8,), learning_rates=(20.0,), draws=2)
    added = private_swin.variants.experiment(
        "added",
        head=HeadRecipe(size=32, features={"first": feature}, search=search, draws=2),
        public=private_swin.SourceSpec(private_swin.patches("tiny", seed=6)),
        stages={
            "head": FitHeadStage(
                train_on=("patches",),
                validate_on="patches",
                network="first",
                public=("public",),
                epsilon=6.0,
                unit="image",
                exposed=True,
            ),
            "evaluate": config.stages.evaluate,
        },
    )
    with config.unlocked():
        config.head, config.data.public = added.head, added.public
        del config.stages.without_privacy, config.without_privacy, config.stages.evaluate
        config.stages.head, config.stages.evaluate = added.stages.head, added.stages.evaluate
    config.stages.evaluate.models = ("first", "epsilon_6", "head")
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    run_experiment(tiny(), folder)
    return folder


def test_the_models_of_an_exposed_chain_claim_no_epsilon(run):
    for name in ("epsilon_6", "head"):
        trained = model_folder.read(run / name / "model").training
        assert trained.privacy.private and not trained.privacy.holds and trained.inherited == ()
        assert "'first' go back to 'patches'" in trained.privacy.exposed
        said = trained.sentence()
        assert said.startswith("Not private") and "no epsilon holds for the whole chain" in said
        assert "protected by differential privacy" not in said
        assert mechanism.together(trained.promises) is None
    assert model_folder.promises(run / "first" / "model") == ()


def test_the_report_says_in_a_sentence_what_the_chain_has_seen(run):
    page = (run / "report.html").read_text()
    assert "no epsilon holds for the whole chain" in page and "of the last training alone" in page
    assert "protected by differential privacy" not in page and "Private models" not in page


def test_every_model_is_measured(run):
    for name in ("first", "epsilon_6", "head"):
        assert 0 <= files.read_object(run / "evaluate" / name / "evaluation.json")["auroc"]["value"] <= 1


def test_a_head_takes_its_features_from_the_network_of_its_stage(run):
    content = model_folder.read(run / "head" / "model")
    first = model_folder.flatten(model_folder.load_params(run / "first" / "model")[0])
    own = model_folder.flatten(model_folder.load_params(run / "head" / "model")[0])
    assert content.entries["features"]["first"]["weights"] == ""
    for name, value in first.items():
        assert (own[f"networks/first/{name}"] == value).all()


def test_a_class_that_synthetic_patches_lack_is_refused(run, tmp_path):
    shutil.copytree(run / "gan", tmp_path / "gan")
    config = tiny()
    config.stages.samples.classes = ("benign",)
    with refused("malignant", where="samples"):
        run_experiment(config, tmp_path)
    assert (tmp_path / "samples" / "synthetic.json").is_file() and not (tmp_path / "first" / "model").exists()


@pytest.mark.parametrize(
    "changes, where, words",
    [
        ({"network": ""}, "config.head", ["search.features"]),
        ({"network": "gan"}, "config.stages.head.network", ["gan", "network"]),
        ({"exposed": False}, "config.stages.head.network", ["'first'", "'patches'", "exposed=True"]),
    ],
)
def test_heads_on_no_network_are_refused(run, tmp_path, changes, where, words):
    config = tiny()
    for key, value in changes.items():
        config.stages.head[key] = value
    for stage in ("gan", "samples", "first"):
        shutil.copytree(run / stage, tmp_path / stage, ignore=shutil.ignore_patterns("checkpoints"))
    with refused(*words, where=where):
        run_experiment(config, tmp_path)


def test_a_network_without_features_to_fill_is_refused(tmp_path):
    config = tiny()
    config.head.features.first.weights = "weights"
    with refused("no features", where="config.stages.head.network"):
        run_experiment(config, tmp_path)


# ---- Behind a generator that protects the patients -------------------------------------------------------------------


@pytest.fixture(scope="module")
def protected(tmp_path_factory) -> Path:
    config, folder = private_swin.get_config("tiny,protected"), tmp_path_factory.mktemp("protected")
    with config.unlocked():
        del config.stages.without_privacy, config.without_privacy
    config.stages.evaluate.models = ("first", "epsilon_6")
    run_experiment(config, folder)
    return folder


def test_the_last_model_has_the_promises_of_both_trainings(protected):
    trained = model_folder.read(protected / "epsilon_6" / "model").training
    of_pool, own = trained.promises
    assert model_folder.promises(protected / "first" / "model") == (of_pool,)
    assert all(one.holds and one.ledger.unit == "patient" for one in (of_pool, own))
    assert of_pool.epsilon == pytest.approx(private_swin.OF_POOL, rel=1e-3) and own.epsilon <= 6


def test_the_epsilon_of_the_chain_is_that_of_both_ledgers(protected):
    trained = model_folder.read(protected / "epsilon_6" / "model").training
    phases = [phase for one in trained.promises for phase in one.ledger.phases]
    composed = accounting.epsilon_of(phases, 1e-4, "pld")
    assert mechanism.together(trained.promises) == composed
    of_each = [one.epsilon for one in trained.promises]
    assert max(of_each) < composed < accounting.epsilon_of(phases, 1e-4, "rdp")
    assert composed < sum(accounting.epsilon_of(one.ledger.phases, 5e-5) for one in trained.promises)


def test_model_and_report_state_the_epsilon_of_the_chain_in_a_sentence(protected):
    trained = model_folder.read(protected / "epsilon_6" / "model").training
    words = f"epsilon {mechanism.together(trained.promises):.3g} at delta 0.0001."
    for text in (
        files.read_object(protected / "epsilon_6" / "model" / "model.json")["promise"],
        (protected / "report.html").read_text(),
    ):
        assert words in text and "protected by differential privacy" in text
        assert "Not private" not in text and "not accounted for here" not in text


def test_a_promise_to_images_has_no_epsilon_with_one_to_patients(protected):
    of_pool, own = model_folder.promises(protected / "epsilon_6" / "model")
    of_images = replace(own, ledger=replace(own.ledger, unit="image"))
    assert mechanism.together([of_pool, of_images]) is None


# ---- Patches of an earlier run ---------------------------------------------------------------------------------------


def test_drawn_patches_of_an_earlier_run_are_learned_from(run, tmp_path):
    """Alone, and with noise, which protects nobody."""
    config = private_swin.get_config("tiny,nothing,alone,drawn")
    config.data.drawn.spec = f"coco:{run / 'samples' / 'synthetic.json'}"
    run_experiment(config, tmp_path, stages=["epsilon_6"])
    trained = model_folder.read(tmp_path / "epsilon_6" / "model").training
    assert trained.on == ("drawn",) and not trained.privacy.holds and "'drawn'" in trained.privacy.exposed


# ---- The table -------------------------------------------------------------------------------------------------------


def planned(variant: str):
    """(rows, row name -> experiment) of a variant of the table."""
    rows = read_rows(Path(private_table.__file__), variant)
    words = {row.config.partition(":")[2] for row in rows if row.config}
    configs = {private_table.config(one): private_swin.get_config(one) for one in words}
    size = variant.partition(",")[0]
    found = plan(private_swin.get_config(f"{size},published"), rows, 1, Path("none"), configs)
    return rows, {run.row.name: run.experiment for run in found.runs}


@pytest.mark.parametrize("variant", ["tiny", "cpu", "paper"])
def test_every_row_of_the_table_may_run(variant):
    rows, experiments = planned(variant)
    for row in rows:
        if row.not_run or variant == "tiny":
            continue
        models = experiments[row.name].stages["evaluate"].models  # every published budget is a model of the row
        assert {key.partition("/")[0] for key in row.published} <= set(models), row.name
    absent = {row.name for row in rows if row.not_run}
    assert set(private_table.ODD) <= absent
    if variant != "paper":
        assert "Swin-T: synthetic, then real" in absent


TWO_LAYERS, LINEAR, SWIN_T = 296_066, 1_538, 27_520_892
SHEET = {
    "real": (TWO_LAYERS, 1104, {"dbr0": 0, "dbr9": 20.31, "dbr1": 4.34, "dbr7": 2.54, "dbr10": 1.78, "dbr8": 0.96}),
    "real + synthetic": (
        TWO_LAYERS,
        4104,
        {"dbr6": 0, "dbr90": 10.63, "dbr2": 2.34, "dbr70": 1.45, "dbr100": 1.08, "dbr4": 0.68},
    ),
    "synthetic alone": (TWO_LAYERS, 3000, {"dbr14": 0, "dbr12": 2.72, "dbr13": 0.73}),
    "synthetic, then real": (
        LINEAR,
        1104,
        {"dbr157": 20.31, "dbr156": 4.34, "dbr158": 2.54, "dbr159": 1.78, "dbr160": 0.96},
    ),
}
"""Row -> trained parameters, patches, published run -> noise multiplier of Opacus 1.6 (0: without privacy)."""
STEPS = {1104: 2700, 3000: 7200, 4104: 9900}
"""Patches -> steps of 300 epochs."""
EPSILON = {"dbr9": 1, "dbr90": 1, "dbr157": 1, "dbr7": 12, "dbr70": 12, "dbr158": 12, "dbr10": 20, "dbr100": 20}
EPSILON |= {"dbr159": 20, "dbr8": 60, "dbr4": 60, "dbr13": 60, "dbr160": 60}
"""Of published runs; the other private ones have 6."""


@functools.lru_cache
def trained_parameters(config: swin.SwinConfig, frozen: tuple[str, ...]) -> int:
    shapes = jax.eval_shape(functools.partial(swin.init, config), jax.random.key(0))
    free = {
        name: one for name, one in model_folder.flatten(shapes).items() if not any(re.search(f, name) for f in frozen)
    }
    return sum(one.size for one in free.values())


@pytest.mark.parametrize("row", SHEET)
def test_a_row_of_the_paper_has_the_published_heads_steps_and_noise(row):
    rows, experiments = planned("paper")
    parameters, count, runs = SHEET[row]
    recipes = experiments[row].recipes
    names = {dbr: f"epsilon_{EPSILON.get(dbr, 6)}" if noise else "without_privacy" for dbr, noise in runs.items()}
    published = {key.partition("/")[0] for one in rows if one.name == row for key in one.published}
    assert published - {"first"} == set(names.values())
    for dbr, noise in runs.items():
        recipe = recipes[names[dbr]]
        assert (recipe.steps, recipe.schedule.base) == (STEPS[count], 1e-5), dbr
        assert trained_parameters(recipe.model, recipe.optimizer.frozen) == parameters, dbr
        if noise:
            assert (recipe.privacy.epsilon, recipe.privacy.delta) == (EPSILON.get(dbr, 6), 1e-4), dbr
            found = mechanism.plan(recipe.privacy, count, recipe.images.batch_size, recipe.steps)
            assert found.noise_multiplier == pytest.approx(noise, rel=0.01), dbr


def test_the_first_network_of_the_paper_learns_with_all_layers():
    recipe = planned("paper")[1]["synthetic, then real"].recipes["first"]  # dbr15
    assert recipe.steps == STEPS[3000] and not recipe.optimizer.frozen
    assert trained_parameters(recipe.model, ()) == SWIN_T


def test_the_controls_of_the_paper():
    rows, experiments = planned("paper")
    recipe = lambda name, model="epsilon_6": experiments[name].recipes[model]
    assert recipe("control: equal steps").steps == recipe("real + synthetic").steps
    assert recipe("control: linear layer").model.hidden == 0
    rates = {
        (recipe(row.name).model.hidden, recipe(row.name).schedule.base): row for row in rows if ", rate" in row.name
    }
    assert set(rates) == set(itertools.product((0, 384), (2e-4, 2e-3, 2e-2)))
    assert [key for key, row in rates.items() if row.published] == [(384, 2e-3)]
    for row in rates.values():
        models = ("without_privacy", *(f"epsilon_{e}" for e in private_swin.EPSILONS["paper"]))
        assert len({recipe(row.name, model).schedule.base for model in models}) == 1


OURS = ("our synthetic alone", "our synthetic, then real")


def test_our_patches_are_as_many_as_the_published_ones_and_the_note_says_what_they_are():
    rows, experiments = planned("cpu")
    for row in rows:
        if row.name in OURS:
            stages, recipe = experiments[row.name].stages, experiments[row.name].recipes["gan"]
            assert stages["samples"].per_class * len(("benign", "malignant")) == 3000
            assert all(
                f"{value:,} {unit}" in row.note for value, unit in ((recipe.model.size, "px"), (recipe.steps, "steps"))
            )


@pytest.mark.parametrize("size", ["tiny", "cpu", "paper"])
def test_a_ready_set_takes_the_place_of_our_generator(size):
    rows, experiments = planned(f"{size},coco:mine/synthetic.json")
    for name in OURS:
        experiment = experiments[name]
        assert experiment.data["drawn"].spec == "coco:mine/synthetic.json"
        assert not {"gan", "samples"} & set(experiment.stages)
        assert "mine" in next(row.note for row in rows if row.name == name)


def test_an_unknown_variant_of_the_table():
    with refused("no variant 'small'", where="private_table.py"):
        read_rows(Path(private_table.__file__), "small")
