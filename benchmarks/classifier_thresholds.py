"""How often 95 % intervals of a classifier's operating points contain the value on new patients.

    python benchmarks/classifier_thresholds.py --patients 11 30 60

Thresholds are chosen on a few simulated patients, each with similar images, by rules of
`elk_jax/evaluation/thresholds.py`, and tried on 20,000 others. Methods, on the same resamples:
  present   of the model folder (`bootstrap.on_others`)
  fixed     with a fixed threshold, as if it had been chosen elsewhere
  shifted   that interval, less the optimism (Harrell)
  632       thresholds chosen on each resample: 0.368 of the value there and 0.632 of that on the patients not drawn
  left out  only the latter
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import measure  # noqa: E402
from elk_jax.evaluation import bootstrap, roc, thresholds  # noqa: E402
from elk_jax.evaluation.predictions import Predictions  # noqa: E402
from elk_jax.evaluation.thresholds import Rule, at_corner, called, chosen_corner, rule_from_text  # noqa: E402

RULES = ("youden", "f1", "sensitivity:0.9", "specificity:0.9")
OWN = {"youden": "balanced_accuracy", "f1": "f1"}
"""The quantity that a rule maximises, besides sensitivity and specificity."""
ILL = {"common": 0.6, "rare": 0.25}
"""Share of the patients with images of the positive class, which are four of five of their images."""
FRESH = 20_000
"""Number of patients on whom a threshold is tried."""
POSITIVE = "malignant"
METHODS = ("present", "fixed", "shifted", "632", "left out")


def simulated(patients: int, ill: float, separation: float, rng: np.random.Generator) -> Predictions:
    """1 to 5 images of each patient. separation: of the classes, in standard deviations of the log-odds of a class."""
    of = np.repeat(np.arange(patients), rng.integers(1, 6, patients))
    truth = (rng.random(patients) < ill)[of] & (rng.random(len(of)) < 0.8)
    scores = 1 / (1 + np.exp(-rng.normal(0, 0.6, patients)[of] - rng.normal(0, 0.8, len(of)) - separation * truth))
    probabilities = np.stack([1 - scores, scores], 1)
    images, people = tuple(map(str, range(len(of)))), tuple(map(str, of))
    return Predictions(images, people, truth.astype(int), probabilities, ("other", POSITIVE))


def others(chosen: Predictions, rule: Rule, threshold: float, resamples: int, seed: int) -> dict[str, dict]:
    """The intervals (low, high) of other methods: {method: {measure: interval}}."""
    truth, scores = chosen.truth(POSITIVE), chosen.scores(POSITIVE)
    patients, row_of = np.unique(np.array(chosen.patient_ids), return_inverse=True)
    weights = bootstrap.draw_weights(len(patients), resamples, seed).astype(float)[:, row_of]
    ranking = roc.rank(scores, truth)
    drawn, rest, whole = (roc.corners(ranking, w) for w in (weights, weights == 0, np.ones((1, len(truth)))))
    again = chosen_corner(drawn, rule)
    there, transferred, left_out = (at_corner(found, again) for found in (drawn, whole, rest))
    fixed = called(scores, truth, threshold, weights)
    found: dict[str, dict] = {"fixed": {}, "shifted": {}, "632": {}, "left out": {}}
    for name in there:
        interval = lambda values: tuple(np.nanquantile(values, [0.025, 0.975]))
        found["fixed"][name] = low, high = interval(fixed[name])
        optimism = np.nanmean(there[name] - transferred[name])
        found["shifted"][name] = (low - optimism, high - optimism)
        found["632"][name] = interval(0.368 * there[name] + 0.632 * left_out[name])
        found["left out"][name] = interval(left_out[name])
    return found


def trial(patients: int, ill: float, separation: float, fresh: Predictions, resamples: int, rng: np.random.Generator):
    """One choice: {(rule, measure, method): (later value, low, high)}, and (.., "value") with the predicted value."""
    chosen = simulated(patients, ill, separation, rng)
    while len(set(chosen.labels)) < 2:
        chosen = simulated(patients, ill, separation, rng)
    seed, found = int(rng.integers(1 << 31)), {}
    for text in RULES:
        rule = rule_from_text(text)
        point = thresholds.choose(chosen, POSITIVE, rule, resamples=resamples, seed=seed)
        comes = called(fresh.scores(POSITIVE), fresh.truth(POSITIVE), point.threshold, np.ones((1, len(fresh))))
        methods = others(chosen, rule, point.threshold, resamples, seed)
        for name in ("sensitivity", "specificity", *([OWN[text]] if text in OWN else [])):
            own, real = point.intervals[name], float(comes[name][0])
            bounds = {"present": (own["low"], own["high"])} | {method: of[name] for method, of in methods.items()}
            for method, (low, high) in bounds.items():
                found[text, name, method] = (real, *((np.nan, np.nan) if low is None else (low, high)))
            found[text, name, "value"] = (real, point.there[name], np.nan if own["value"] is None else own["value"])
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=measure.count, nargs="+", default=[11, 30, 60])
    parser.add_argument("--separation", type=float, nargs="+", default=[1.4, 2.8])
    parser.add_argument("--trials", type=measure.count, default=400)
    parser.add_argument("--resamples", type=int, default=500)
    flags = parser.parse_args(arguments)
    print("share of intervals that contain the later value / their mean width; missing intervals are left out")
    for separation in flags.separation:
        for kind, ill in ILL.items():
            fresh = simulated(FRESH, ill, separation, np.random.default_rng(0))
            for patients in flags.patients:
                rng = np.random.default_rng([patients, round(100 * separation), round(100 * ill)])
                setting = (patients, ill, separation, fresh, flags.resamples, rng)
                trials = [trial(*setting) for _ in range(flags.trials)]
                print(f"\n{patients} patients, positives {kind}, {separation:g} apart")
                print(f"{'':34s}" + "".join(f"{name:>13s}" for name in (*METHODS, "given", "too good", "expected")))
                for rule, name in dict.fromkeys(key[:2] for key in trials[0]):
                    print(f"{rule:16s}{name:18s}{summary(trials, rule, name)}", flush=True)


def summary(trials: list[dict], rule: str, name: str) -> str:
    """One line of `main`: each method, how often the present one gives an interval, and the mean errors of the value
    where the threshold was chosen and of the expected one."""
    cells = []
    for method in METHODS:
        real, low, high = np.array([one[rule, name, method] for one in trials]).T
        low, high, given = np.maximum(low, 0), np.minimum(high, 1), np.isfinite(low)
        held = (low - 1e-9 <= real) & (real <= high + 1e-9)
        cells.append(f"{held[given].mean():.2f} / {(high - low)[given].mean():.2f}")
    given = np.mean([np.isfinite(one[rule, name, "present"][1]) for one in trials])
    real, there, expected = np.array([one[rule, name, "value"] for one in trials]).T
    cells += [f"{given:.2f}", f"{np.mean(there - real):+.3f}", f"{np.nanmean(expected - real):+.3f}"]
    return "".join(f"{cell:>13s}" for cell in cells)


if __name__ == "__main__":
    main()
