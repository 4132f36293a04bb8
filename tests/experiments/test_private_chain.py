"""The published chain (configs/private_swin.py): a generator, a network on its patches, and private last layers."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from configs import private_swin, private_table
from elk_jax import files
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.privacy import mechanism
from elk_jax.sweeps.plan import plan
from elk_jax.sweeps.settings import read_rows
from elk_jax.tasks.classification.recipe import FitHeadStage, HeadRecipe, NetworkFeatures, Search
from elk_jax.weights import model_folder
from tests.refusals import refused

VARIANTS = [
    ",".join(filter(None, words))
    for words in itertools.product(
        private_swin.SIZES, private_swin.LEARNED, ("", *private_swin.LAST), ("", *private_swin.OTHERS)
    )
]


# ---- The configuration -----------------------------------------------------------------------------------------------


def test_every_variant_is_well_formed():
    for variant in VARIANTS:
        experiment, words = parse(private_swin.get_config(variant)), variant.split(",")
        stages, made = experiment.stages, "published" if "published" in words else "samples"
        read = {"real": {"patches"}, "mixed": {"patches", made}, "nothing": set(), "synthetic": {made}}[words[1]]
        assert set(stages["first"].train_on if "first" in stages else ()) == read, variant
        last = {"beside": {"patches", made}, "alone": {made}}.get(words[2] if len(words) > 2 else "", {"patches"})
        assert set(stages["without_privacy"].train_on) == last, variant
        used = made in read | last
        learner, other = ("denoiser", "gan") if "denoiser" in words else ("gan", "denoiser")
        assert (learner in stages) == (used and made == "samples") and other not in stages, variant
        guarded = [stage for name, stage in stages.items() if name.startswith("epsilon_")]
        assert len(guarded) == (0 if "alone" in words else len(private_swin.EPSILONS[words[0]])), variant
        assert all(stage.exposed == (bool(read) or made in last) for stage in guarded), variant
        assert all(stage.protects(experiment.recipe_of(stage)) for stage in guarded), variant


def test_words_that_exclude_each_other():
    for variant in ("real,nothing", "beside,alone", "tiny,cpu", "published,denoiser"):
        with pytest.raises(ValueError, match="exclude"):
            private_swin.get_config(variant)


def test_the_published_settings_of_the_last_training():
    experiment = parse(private_swin.get_config("paper"))
    assert experiment.recipes["first"].steps == 300 * 3000 // 128
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


# ---- The table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["tiny", "cpu", "paper"])
def test_every_row_of_the_table_may_run(variant):
    rows = read_rows(Path(private_table.__file__), variant)
    words = {row.config.partition(":")[2] for row in rows if row.config}
    configs = {private_table.config(one): private_swin.get_config(one) for one in words}
    planned = plan(private_swin.get_config(f"{variant},published"), rows, 1, Path("none"), configs)
    for run in planned.runs:
        models = run.experiment.stages["evaluate"].models
        if variant != "tiny":  # every published budget is a model of the row, but for those that protect nobody
            missing = {key.partition("/")[0] for key in run.row.published} - set(models)
            assert missing <= ({"epsilon_6", "epsilon_60"} if run.row.name == "synthetic alone" else set())
    absent = {row.name for row in rows if row.not_run}
    assert set(private_table.ODD) <= absent
    if variant != "paper":
        assert "Swin-T: synthetic, then real" in absent
    else:
        steps = {
            run.row.name: run.experiment.recipes["epsilon_6"].steps
            for run in planned.runs
            if run.row.name != "synthetic alone"
        }
        assert steps["control: equal steps"] == steps["real + synthetic"] == 9900 and steps["real"] == 2700


def test_an_unknown_variant_of_the_table():
    with refused("no variant 'small'", where="private_table.py"):
        read_rows(Path(private_table.__file__), "small")
