"""A generator whose discriminator descends privately, from embedded patches to drawn ones that say who is protected."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import mcgan
from elk_jax import files
from elk_jax.data.batches import labelled
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import parse
from elk_jax.gan import networks
from elk_jax.gan.augment import Augmentation
from elk_jax.gan.networks import GanConfig
from elk_jax.gan.objectives import LeastSquares, NonSaturating, Wasserstein
from elk_jax.privacy import secret as secrets
from elk_jax.privacy.accounting import epsilon_of
from elk_jax.privacy.mechanism import Mechanism
from elk_jax.privacy.settings import Flat, Privacy
from elk_jax.tasks import private
from elk_jax.tasks.generation import model as generators
from elk_jax.training import mesh as meshes
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.schedules import Constant
from elk_jax.training.step.private import private as private_step
from elk_jax.training.step.private_adversarial import judge, judge_recipe
from elk_jax.training.step.separable import check_examples
from elk_jax.training.step.step import Protection
from elk_jax.training.writer import read_metrics
from tests.refusals import refused
from tests.tasks.checks import assert_same_weights, assert_secret_stays_in_checkpoints, resumed
from tests.tasks.generation.test_train import write

STAGES = ["gan", "samples", "looks"]


def config_with(**settings):
    config = mcgan.get_config("tiny,private")
    config.gan.privacy.update({"epsilon": None, "noise_multiplier": 1.0, "accountant": "rdp", "images": 2, **settings})
    return config


@pytest.fixture(scope="module")
def private_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    run_experiment(config_with(), folder, stages=STAGES)
    return folder


def test_the_generator_says_what_it_promises_and_nothing_of_its_patients(private_run):
    trained = generators.load(private_run / "gan" / "model").description.trained
    (phase,) = trained.privacy.ledger.phases
    # 6 steps of 2 updates of the discriminator, each of which expects 4 of the patients
    assert trained.privacy.private and trained.privacy.ledger.unit == "patient" and phase.steps == 12
    assert trained.privacy.epsilon == pytest.approx(epsilon_of([phase], trained.privacy.delta, "rdp"))
    assert trained.patients == ()
    summary = files.read_object(private_run / "gan" / "finished.json")["summary"]
    units = summary["data"]["train"]["units"]
    assert summary["data"]["train"] == {"units": units} and phase.sampling_rate == pytest.approx(4 / units)
    keys = {key for line in read_metrics(private_run / "gan" / "metrics.jsonl") for key in line}
    assert {"train/loss", "train/discriminator_grad_norm", "eval/distance"} <= keys
    assert not any(name in key for key in keys for name in ("score", "discriminator_loss", "time/"))


def test_drawn_patches_carry_the_promise(private_run):
    """So that whoever learns from them can compose it."""
    promise = generators.load(private_run / "gan" / "model").description.trained.privacy
    info = files.read_object(private_run / "samples" / "synthetic.json")["info"]
    assert info["promise"] == promise.sentence() and "seen_patients" not in info
    for word in ("patient", f"epsilon {promise.epsilon:.3g}", "0.0001", "zero-out"):
        assert word in info["promise"]
    kept = files.read_object(private_run / "samples" / "synthesis.json")["trained"]
    assert kept["privacy"]["ledger"]["phases"][0]["steps"] == 12 and "patients" not in kept


def test_the_report_has_the_promise_and_no_training_patch(private_run):
    promise = generators.load(private_run / "gan" / "model").description.trained.privacy
    page = (private_run / "report.html").read_text()
    assert promise.sentence() in page
    assert files.read_object(private_run / "looks" / "evaluation.json")["split"] == "val"
    experiment = parse(config_with())
    notes = {name: private.unprotected(experiment, stage) for name, stage in experiment.stages.items()}
    assert {name for name, note in notes.items() if note} == {"classifier"}  # whose class fidelity needs real patches


def test_no_file_outside_the_checkpoints_has_the_secret(private_run):
    assert_secret_stays_in_checkpoints(private_run, "gan")


def test_a_private_training_is_resumed_with_its_own_secret(private_run, tmp_path):
    copy = resumed(private_run, config_with(), "gan", 6, tmp_path / "run")
    assert_same_weights(private_run / "gan", copy / "gan")


def test_public_patches_are_learned_from_and_a_known_seed_is_not_private(tmp_path, capsys):
    config = config_with(known_seed=1, public_weight=0.5, images=1)
    with config.unlocked():
        config.data.others = config.data.patches.copy_and_resolve_references()
    config.data.others.spec = "phantom_patches:size=128,count=20,healthy_fraction=0.1,seed=9"
    config.stages.gan.public = ("others",)
    config.gan.update({"steps": 1, "ratio": 1, "images": {"batch_size": 4}})
    run_experiment(config, tmp_path, stages=["gan"])
    assert "Not private" in capsys.readouterr().out
    trained = generators.load(tmp_path / "gan" / "model").description.trained
    assert not trained.privacy.private and trained.on == ("patches", "others") and trained.patients
    lines = read_metrics(tmp_path / "gan" / "metrics.jsonl")
    assert [line["train/discriminator_public_loss"] > 0 for line in lines if "train/loss" in line] == [True]


# ---- What is clipped -------------------------------------------------------------------------------------------------

SMALL = GanConfig(size=8, noise=4, embedding=3, generator_width=3, discriminator_width=3)
CHANGES = Augmentation(brightness=0.1, contrast=0.2, shift=0.2, cutout=0.3)


def units(count=3, rows=4, examples=2):
    """Random patches of units, of which the last has one."""
    rng = np.random.default_rng(0)
    valid = np.broadcast_to(np.arange(rows)[:, None] < count, (rows, examples)).copy()
    valid[count - 1, 1:] = False
    image = rng.random((rows, examples, 8, 8, 1), np.float32)
    label = rng.integers(0, 2, (rows, examples)).astype(np.int32)
    unit = np.where(np.arange(rows) < count, np.arange(rows) * 5, -1).astype(np.int32)
    return {"examples": {"image": image, "label": label, "valid": valid}, "unit": unit}


@pytest.mark.parametrize("gradients", ["per_example", "ghost"])
def test_the_clipped_sum_of_the_discriminator_equals_a_loop_over_units(gradients):
    recipe = parse(mcgan.get_config("tiny,private")).recipes["gan"]
    privacy = Privacy(noise_multiplier=1.0, clipping=Flat(clip_norm=0.4), gradients=gradients, micro_batch=2)
    plain = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0)
    descent = {"discriminator_optimizer": plain, "discriminator_schedule": Constant(base=1.0)}
    recipe = judge_recipe(replace(recipe, privacy=privacy, **descent))
    game, mesh = generators.trainable(SMALL, NonSaturating(), CHANGES), meshes.make_mesh(devices=jax.devices()[:1])
    params = jax.tree.map(lambda x: 3 * x, game.init(jax.random.key(1)))  # as after some training
    secret = secrets.known(2)
    step = private_step(judge(game), recipe, Protection(Mechanism(privacy, 100, 3, 0.0, 10), secret), mesh)
    constants = {"model": {"game": {}, "generator": params["generator"]}, "secret": secret.keys()}
    batch = units()
    after, _ = jax.jit(step.update)(step.init(params["discriminator"]), constants, batch)

    key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(secret.keys()[1]), 0))[0]
    model, total, norms = judge(game), jax.tree.map(jnp.zeros_like, params["discriminator"]), []
    gradient = jax.jit(jax.grad(lambda p, own, rng: model.loss(p, constants["model"], own, rng, jax.vmap)[0]))
    for row in range(3):
        own = {name: x[row] for name, x in batch["examples"].items()}
        grads = gradient(params["discriminator"], own, jax.random.fold_in(key, batch["unit"][row]))
        norms.append(float(optax.tree.norm(grads)))
        total = jax.tree.map(lambda t, g, n=norms[-1]: t + min(1, 0.4 / n) * g, total, grads)
    assert max(norms) > 0.4
    moved = jax.tree.map(lambda b, a: 3 * (b - a), params["discriminator"], after.params)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, moved, total)) / optax.tree.norm(total)
    assert difference < 1e-5


def check(objective, size=8):
    game = generators.trainable(replace(SMALL, size=size), objective, CHANGES)
    blank = labelled.blank_batch(1, size)
    check_examples(judge(game, game.init(jax.random.key(0))["generator"]), blank)


@pytest.mark.parametrize("objective", [NonSaturating(), LeastSquares(), Wasserstein()])
def test_no_objective_lets_examples_meet(objective):
    """Neither do changes of patches, nor the penalty on slopes."""
    check(objective)


def test_batch_norms_in_the_discriminator_are_refused(monkeypatch):
    def batch_norm(x):
        return (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)

    monkeypatch.setitem(networks.NORMS, "instance", batch_norm)
    with refused("batch normalisation", where="privacy"):
        check(NonSaturating(), size=16)  # the first map has no norm


# ---- Trainings that are refused --------------------------------------------------------------------------------------


def start(folder, config):
    run_experiment(config, folder, stages=["gan"])


@pytest.mark.parametrize(
    ("stage", "setting", "value"),
    [
        ("looks", "split", "train"),
        ("looks", "split", ""),
        ("quality", "split", "train"),
        ("quality", "repeated", True),
    ],
)
def test_a_comparison_with_protected_patches_is_refused(tmp_path, stage, setting, value):
    """Its counts, pictures and measures would describe them."""
    config = config_with()
    config.stages[stage][setting] = value
    with refused("'patches'", "stage gan", where=f"config.stages.{stage}.{setting}"):
        run_experiment(config, tmp_path / "run", stages=["gan", "samples", stage])
    assert not (tmp_path / "run").exists()


def test_patches_that_name_no_patient_are_refused_where_patients_are_protected(tmp_path):
    config = config_with()
    config.data.patches.spec = f"folders:{write(tmp_path / 'data')}"
    with refused("patient", where="config.gan.privacy.unit"):
        start(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_batches_larger_than_the_patients_are_refused(tmp_path):
    config = config_with()
    config.gan.images.batch_size = 2000
    with refused(1000, where="batch_size"):
        start(tmp_path / "run", config)
    assert not (tmp_path / "run" / "gan" / "checkpoints").exists()


def test_public_data_and_their_weight_belong_together(tmp_path):
    with refused("public", "gan.privacy.public_weight", where="stages.gan.public"):
        start(tmp_path / "run", config_with(public_weight=0.5))


def test_the_protected_patients_are_not_public(tmp_path):
    config = config_with(public_weight=0.5)
    config.stages.gan.public = ("patches",)
    with refused("'patches'", where="config.stages.gan.public"):
        start(tmp_path / "run", config)


def test_the_published_private_variant():
    found = parse(mcgan.get_config("paper,private")).recipes["gan"]
    # 3,000 epochs of 1,104 patches in batches of 8, in the discriminator
    assert found.steps * found.ratio == 3000 * 1104 // 8 and found.images.batch_size // found.ratio == 8
    assert found.objective == NonSaturating(real=(1.0, 1.0))
    assert (found.privacy.epsilon, found.privacy.delta, found.privacy.clipping) == (100, 1e-4, Flat(clip_norm=1.0))
    assert found.privacy.unit == "patient"


@pytest.mark.parametrize(
    ("words", "objective", "ratio", "batch"),
    [
        ("", NonSaturating(real=(1.0, 1.0)), 2, 16),
        (",lsgan", LeastSquares(), 2, 16),
        (",wgan", Wasserstein(), 5, 80),
    ],
)
def test_a_private_variant_keeps_its_objective(words, objective, ratio, batch):
    found = parse(mcgan.get_config(f"paper,private{words}")).recipes["gan"]
    assert (found.objective, found.ratio, found.images.batch_size) == (objective, ratio, batch)
    assert found.privacy.epsilon == 100
