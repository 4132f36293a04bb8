"""The linear head: its inputs have the norm 1, and it is scaled as its log odds are."""

from __future__ import annotations

import numpy as np

from elk_jax.features import whitening
from elk_jax.heads import linear
from elk_jax.heads.linear import Linear

FEATURES = np.random.default_rng(3).normal(3, 1, (5, 4)).astype(np.float32)


def test_inputs_of_a_head_have_the_norm_1():
    found = linear.inputs(FEATURES, FEATURES.mean(0))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found, whitening.unit_norm(FEATURES - FEATURES.mean(0)), rtol=1e-5)


def test_log_odds_are_scaled_and_shifted():
    by = {name: whitening.fit(np.random.default_rng(seed).normal(size=(9, 4)), 2) for seed, name in enumerate("ab")}
    head = Linear(by, np.full(4, 0.1, np.float32), np.arange(4, dtype=np.float32), 0.5)
    features = {"b": FEATURES, "a": FEATURES[::-1]}
    odds = head.log_odds(features)
    by_hand = linear.inputs(np.hstack([whitening.whiten(features[name], by[name]) for name in "ab"]), head.mean)
    np.testing.assert_allclose(odds, by_hand @ head.weights + 0.5, rtol=1e-5)
    np.testing.assert_allclose(head.scaled(-2.0, 3.0).log_odds(features), 3 - 2 * odds, rtol=1e-5)
