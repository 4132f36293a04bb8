"""What the settings of a private training come to: noise, steps, promise."""

import dataclasses
import math

import pytest

from elk_jax import fields
from elk_jax.privacy.accounting import gaussian_epsilon, gaussian_noise_multiplier
from elk_jax.privacy.mechanism import Mechanism, in_words, once, plan, together
from elk_jax.privacy.settings import Adaptive, Flat, Normalised, Privacy
from tests.refusals import refused

FULL = {"units": 50, "batch_size": 50}
"""Full batches, whose accounting is exact and quick."""


def test_noise_follows_from_the_budget():
    found = plan(Privacy(epsilon=2.0, delta=1e-5), steps=30, **FULL)
    assert found.noise_multiplier == pytest.approx(gaussian_noise_multiplier(2.0, 1e-5, 30), rel=1e-6)
    assert (found.sampling_rate, found.steps) == (1.0, 30)
    assert found.statement(30, True).epsilon == pytest.approx(2.0, rel=1e-6)


def test_a_training_with_both_stops_before_its_budget():
    privacy = Privacy(epsilon=2.0, noise_multiplier=5.0, delta=1e-5)
    found = plan(privacy, steps=1000, **FULL)
    assert gaussian_epsilon(5.0, 1e-5, found.steps) <= 2.0 < gaussian_epsilon(5.0, 1e-5, found.steps + 1)
    assert plan(privacy, steps=3, **FULL).steps == 3
    with refused("2", where="privacy.noise_multiplier"):
        plan(dataclasses.replace(privacy, noise_multiplier=0.5), steps=10, **FULL)


def test_noise_alone_has_no_limit_but_its_price():
    found = plan(Privacy(noise_multiplier=1.0, delta=1e-5), steps=10**4, **FULL)
    assert found.steps == 10**4
    assert found.statement(10, True).epsilon == pytest.approx(gaussian_epsilon(1.0, 1e-5, 10), rel=1e-6)


def test_the_ledger_counts_steps_of_one_rate_and_noise():
    found = Mechanism(Privacy(noise_multiplier=1.5, unit="image"), 90, 10, 1.5, 100)
    ledger = found.ledger(7)
    assert found.ledger(0) is None and ledger.unit == "image" and ledger.adjacency == "zero-out"
    assert [dataclasses.astuple(phase) for phase in ledger.phases] == [(1 / 9, 1.5, 7)]


def test_every_release_of_a_step_is_counted():
    privacy = Privacy(epsilon=2.0, delta=1e-5)
    found = plan(privacy, steps=10, releases=3, **FULL)
    assert found.noise_multiplier == pytest.approx(gaussian_noise_multiplier(2.0, 1e-5, 30), rel=1e-6)
    assert found.ledger(4).phases[0].steps == 12 and found.statement(10, True).epsilon == pytest.approx(2.0, rel=1e-6)
    stopped = plan(dataclasses.replace(privacy, noise_multiplier=5.0), steps=1000, releases=3, **FULL)
    spent = lambda steps: gaussian_epsilon(5.0, 1e-5, 3 * steps)
    assert spent(stopped.steps) <= 2.0 < spent(stopped.steps + 1)


def test_the_promise_in_words():
    found = plan(Privacy(epsilon=2.0, delta=1e-5), steps=30, **FULL)
    said = found.statement(30, True).sentence()
    for word in ("patient", "epsilon 2 ", "1e-05", "zero-out", "validation", "settings"):
        assert word in said
    assert found.statement(30, False).sentence().startswith("Not private")


def test_no_epsilon_holds_for_a_chain_that_is_exposed():
    found = plan(Privacy(epsilon=2.0, delta=1e-5), steps=30, **FULL)
    fine, exposed = found.statement(30, True), found.statement(30, True, "the images of 'a' go back to 'b'")
    said = exposed.sentence()
    assert said.startswith("Not private: the images of 'a' go back to 'b'") and said.count(". ") == 0
    assert "epsilon 2 at delta 1e-05" in said and "this training alone" in said and "no epsilon" in said
    assert fine.holds and not exposed.holds and not found.statement(30, False).holds
    assert together([fine, fine]) > 2 and together([fine, exposed]) is None
    for statements in ([exposed], [exposed, fine], [fine, exposed]):
        assert in_words(statements) == said
    open_noise = found.statement(30, False)
    assert in_words([exposed, open_noise]).startswith("Of 2 private training runs")
    assert "known seed is not protected" in in_words([open_noise, fine])
    assert "with epsilon" not in in_words([open_noise, fine]).partition("Not counted")[2]


def test_batches_larger_than_the_data_and_counts_that_spend_everything_are_refused():
    with refused(51, 50, where="batch_size"):
        plan(Privacy(epsilon=1.0), 50, 51, 10)
    adaptive = Privacy(noise_multiplier=1.0, clipping=Adaptive(count_noise=0.05))
    with refused("1e+09", where="privacy.epsilon"):
        plan(Privacy(epsilon=1e9, delta=1e-5), 50, 10, 30)
    with refused("0.125", where="privacy.clipping.count_noise"):
        plan(adaptive, 100, 4, 10)
    assert math.isfinite(plan(adaptive, 100, 20, 10).gradient_noise)


def test_settings_come_from_a_configuration():
    section = {"epsilon": 6, "unit": "image", "clipping": {"name": "normalised", "stability": 0.1}}
    assert fields.build(Privacy, section) == Privacy(epsilon=6, unit="image", clipping=Normalised(stability=0.1))
    assert fields.build(Privacy, {"noise_multiplier": 1.0}).clipping == Flat()


@pytest.mark.parametrize(
    "wrong, where",
    [
        ({}, "epsilon"),
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": 1, "delta": 1.0}, "delta"),
        ({"epsilon": 1, "noise_multiplier": 0}, "noise_multiplier"),
        ({"epsilon": 1, "unit": "breast"}, "unit"),
        ({"epsilon": 1, "micro_batch": 0}, "micro_batch"),
        ({"epsilon": 1, "clipping": {"name": "layers"}}, "clipping.name"),
        ({"epsilon": 1, "clipping": {"name": "flat", "clip_norm": 0}}, "clipping.clip_norm"),
        ({"epsilon": 1, "clipping": {"name": "adaptive", "quantile": 1}}, "clipping.quantile"),
        ({"epsilon": 1, "known_seed": -1}, "known_seed"),
    ],
)
def test_impossible_settings_are_refused(wrong, where):
    with refused(where=where):
        fields.build(Privacy, wrong)


def test_a_training_behind_several_models_is_counted_once():
    """Full batches of Gaussian noise compose to one of all their steps: the first training, then two that follow it."""
    found = plan(Privacy(noise_multiplier=5.0, delta=1e-5), steps=4, **FULL)
    first, left, right = (found.statement(steps, True).named() for steps in (4, 3, 3))
    assert len({first.identity, left.identity, right.identity} - {""}) == 3
    assert once([first, left, first, right]) == (first, left, right)
    assert together(once([first, left, first, right])) == pytest.approx(gaussian_epsilon(5.0, 1e-5, 10), rel=1e-3)
    nameless = found.statement(4, True)
    assert once([nameless, first, nameless]) == (nameless, first, nameless), "nobody knows that they are one training"
    known = found.statement(4, False)
    assert known.named() == known, "who knows the noise can repeat the training, to the bit"
