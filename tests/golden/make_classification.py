"""Makes classification.json: what scikit-learn says about small sets of scores, with ties and weights.

Runs under a Python that has scikit-learn:

    python3 tests/golden/make_classification.py

The weights are whole numbers, as those of resampled images. The version is stored in the file.
"""

import json
from pathlib import Path

import numpy as np
import sklearn
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

OUTPUT = Path(__file__).with_name("classification.json")
random = np.random.default_rng(1404)
CASES = {  # name -> (images, share of positive ones, decimals of the scores, largest weight)
    "untied": (60, 0.5, 6, 1),
    "ties": (80, 0.4, 1, 1),
    "two_scores": (30, 0.5, 0, 1),
    "rare": (200, 0.04, 2, 1),
    "weighted": (70, 0.4, 2, 4),
}


def case(images: int, share: float, decimals: int, largest: int) -> dict:
    truth = random.uniform(size=images) < share
    truth[:2] = True, False
    scores = np.round(1 / (1 + np.exp(-random.normal(1.2 * truth - 0.4, 1.3))), decimals)
    weights = random.integers(largest > 1, largest + 1, images) if largest > 1 else np.ones(images, int)
    given = {"sample_weight": weights}
    called = scores >= 0.5
    false, true, _ = metrics.roc_curve(truth, scores, drop_intermediate=False, **given)
    inside = np.clip(scores, 2.0**-52, 1 - 2.0**-52)
    logits = np.log(inside / (1 - inside))[:, None]
    fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(logits, truth, **given)
    return {
        "truth": truth.tolist(),
        "scores": scores.tolist(),
        "weights": weights.tolist(),
        "auroc": metrics.roc_auc_score(truth, scores, **given),
        "average_precision": metrics.average_precision_score(truth, scores, **given),
        "average_precision_reversed": metrics.average_precision_score(~truth, -scores, **given),
        "sensitivity_at_specificity_0.9": true[false <= 0.1 + 1e-12].max(),
        "specificity_at_sensitivity_0.9": 1 - false[true >= 0.9 - 1e-12].min(),
        "brier": metrics.brier_score_loss(truth, scores, **given),
        "cross_entropy": metrics.log_loss(truth, inside, **given),
        "calibration_slope": float(fit.coef_[0, 0]),
        "accuracy": metrics.accuracy_score(truth, called, **given),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, called, **given),
        "f1": metrics.f1_score(truth, called, **given),
        "sensitivity": metrics.recall_score(truth, called, **given),
        "specificity": metrics.recall_score(~truth, ~called, **given),
        "precision": metrics.precision_score(truth, called, **given),
        "negative_predictive_value": metrics.precision_score(~truth, ~called, **given),
    }


content = {"version": f"scikit-learn {sklearn.__version__}"} | {name: case(*of) for name, of in CASES.items()}
OUTPUT.write_text(json.dumps(content) + "\n")
