"""The published table of private classification for launch/sweep.py, with the fair controls that it lacks.

  python launch/sweep.py --config=configs/private_swin.py:cpu,published --list=configs/private_table.py:cpu --seeds=3 \\
      --workdir=runs/table --config.data.patches.spec=folders:/data/patches \\
      "--config.data.patches.patient_pattern=P_(\\d+)" --config.data.published.spec=folders:/data/synthetic \\
      --config.data.public.spec=coco:/data/mammograms/lesions.json --config.stages.first.init_from=weights/lite0 \\
      --config.head.features.lite0.weights=weights/lite0
  python launch/sweep.py --config=configs/private_swin.py:paper,published --list=configs/private_table.py:paper ... \\
      --config.stages.first.init_from=weights/swin_t                          Swin-T, a GPU
A row stands for the training data; an evaluated model stands for a budget, `without_privacy`, `epsilon_1` to
`epsilon_60`, or is `first`, the network trained on synthetic patches. In `paper`, rows without a first network start
from SWIN. Variants: tiny (tests), cpu (a linear head on a frozen EfficientNet-Lite0 instead of the class layer of a
Swin-T), paper. "Our" patches come from the generator that each such row trains; to use an existing set instead, give it
after a comma: --list=configs/private_table.py:cpu,coco:drawn/synthetic.json (launch/synthesize.py --count=1500, the
published number).
The reader tunes the rates: among rows with several rates, use at each epsilon the one whose network has the largest
validation AUROC ("Networks" in the report of a run). The epsilons do not include that choice.

Published: Osuala et al. 2024, CBIS-DDSM test split, mean of three seeds; epsilon of the last training only, per image,
at delta 1e-4. Average precision has benign as the positive class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from configs import private_swin
from configs.recipes.network import HIDDEN, published_steps
from elk_jax.sweeps.settings import Row

SWIN = "weights/swin_t"
"""A model folder written by launch/import_weights.py."""
NO_GPU = "needs a GPU: --list=configs/private_table.py:paper"

Values = dict[str, tuple[float, float]]
"""Model -> (AUROC, average precision of benign)."""
PUBLISHED: dict[str, Values] = {
    "real": {
        "without_privacy": (0.778, 0.850),
        "epsilon_1": (0.525, 0.640),
        "epsilon_6": (0.572, 0.679),
        "epsilon_12": (0.596, 0.702),
        "epsilon_20": (0.611, 0.715),
        "epsilon_60": (0.622, 0.721),
    },
    "real + synthetic": {
        "without_privacy": (0.774, 0.838),
        "epsilon_1": (0.553, 0.665),
        "epsilon_6": (0.617, 0.708),
        "epsilon_12": (0.624, 0.704),
        "epsilon_20": (0.630, 0.699),
        "epsilon_60": (0.629, 0.694),
    },
    "synthetic alone": {
        "without_privacy": (0.597, 0.696),
        "epsilon_6": (0.549, 0.662),
        "epsilon_60": (0.583, 0.681),
    },
    "synthetic, then real": {  # also in private_swin.PUBLISHED, for the page of a run
        "first": (0.639, 0.733),
        "epsilon_1": (0.661, 0.741),
        "epsilon_6": (0.677, 0.752),
        "epsilon_12": (0.688, 0.758),
        "epsilon_20": (0.697, 0.763),
        "epsilon_60": (0.712, 0.776),
    },
}
"""dbr0, 9, 1, 7, 10, 8; dbr6, 90, 2, 70, 100, 4; dbr14, 12, 13; dbr15, 157, 156, 158, 159, 160."""
TUNED: Values = {
    "epsilon_1": (0.702, 0.758),
    "epsilon_6": (0.728, 0.792),
    "epsilon_12": (0.740, 0.799),
    "epsilon_20": (0.741, 0.806),
    "epsilon_60": (0.764, 0.825),
}
"""Exploratory runs in the same workbook, on real patches only, at 200 times the rate: epsilon 1, 5, 10, 19 and 50 at
delta 1e-3, mostly with one seed."""
ODD: dict[str, Values] = {
    "private, then synthetic (dbr3)": {"epsilon_6": (0.591, 0.685)},
    "synthetic head, then real (dbr5)": {"epsilon_6": (0.557, 0.656)},
    "private synthetic head, then real (dbr11)": {"epsilon_6": (0.557, 0.656)},
}
"""Rows whose published runs do not match their names: dbr5 and dbr11 have the same numbers."""


def get_rows(variant: str = "cpu") -> tuple[Row, ...]:
    """The rows of a variant, SIZE or SIZE,SPEC. SPEC: a ready data source of our patches."""
    size, _, spec = variant.partition(",")
    rows = {"": of_cpu, "cpu": of_cpu, "tiny": of_tiny, "paper": of_paper}
    if size not in rows:
        raise ValueError(f"no variant '{size}'; choose from tiny, cpu, paper")
    return (*rows[size](spec), *odd())


def config(words: str) -> str:
    return f"configs/private_swin.py:{words}"


def our(size: str, spec: str, settings: dict[str, Any], alone: dict[str, Any]) -> list[Row]:
    """The rows of our own patches. settings: of the whole chain. alone: of a network trained on nothing else."""
    if spec:
        word, source, what = "drawn", {"data.drawn.spec": spec}, f"patches of {spec}"
    else:
        recipe, _ = private_swin.generator(size, "gan")
        side, steps = recipe["model"]["size"], recipe["steps"]
        word, source, what = "", {}, f"patches of {side} px from our GAN, {steps:,} steps; published ones have 128 px"
        what += f"; {2 * private_swin.PER_CLASS[size]:,} are drawn"
    words = lambda *some: config(",".join(filter(None, (size, *some, word))))
    return [
        Row("our synthetic alone", alone | source, note=what, config=words("nothing", "alone")),
        Row("our synthetic, then real", settings | source, note=what, config=words()),
    ]


def values(published: Values) -> dict[str, float]:
    """Published values in the form of a row."""
    found = {f"{model}/auroc": auroc for model, (auroc, _) in published.items()}
    return found | {f"{model}/average_precision/benign": precision for model, (_, precision) in published.items()}


def odd() -> list[Row]:
    why = "its published configuration does not match its name"
    return [Row(name, published=values(found), not_run=why) for name, found in ODD.items()]


# ---- On two cores ----------------------------------------------------------------------------------------------------


def of_cpu(spec: str) -> list[Row]:
    """Linear heads on frozen features. Each is a full-batch descent with 30 steps: with the same epsilon, heads on any
    of the data have the same steps and the same noise."""
    public = {"head.search.features": ("lite0",)}
    slow = {"head.search.learning_rates": (SLOW,)}
    chain = config("cpu,published")
    rows = [
        Row("real", public, values(PUBLISHED["real"]), "frozen Lite0, tuned rate", config=config("cpu,nothing")),
        Row(
            "real + synthetic",
            public,
            values(PUBLISHED["real + synthetic"]),
            "all patches are clipped and noised, with steps and noise as in `real`",
            config=config("cpu,nothing,beside,published"),
        ),
        Row(
            "synthetic alone",
            public,
            values(PUBLISHED["synthetic alone"]),
            "the generator of the patches is not private, and noise on them protects nobody",
            config=config("cpu,nothing,alone,published"),
        ),
        Row("synthetic, then real", {}, values(PUBLISHED["synthetic, then real"]), "published patches", config=chain),
        *our("cpu", spec, {}, public),
        Row(
            "control: rate not tuned",
            public | slow,
            values(PUBLISHED["real"]),
            f"`real` at the rate {SLOW:g} alone",
            config=config("cpu,nothing"),
        ),
        Row(
            "control: handcrafted features",
            {"head.search.features": ("scattering",)},
            values(TUNED),
            "scattering; published: exploratory runs with a tuned rate",
            config=config("cpu,nothing"),
        ),
    ]
    return rows + [Row(f"Swin-T: {name}", published=values(found), not_run=NO_GPU) for name, found in PUBLISHED.items()]


SLOW = 0.5
"""Far below the rates tried elsewhere. A head starts from 0 here, so even a small rate gives it a direction: unlike the
published one, which starts from random weights, it does not stay at chance."""


# ---- As published ----------------------------------------------------------------------------------------------------


def of_paper(spec: str) -> list[Row]:
    """Swin-T with only the class layers in the last training, and controls with its steps and noise.

    As published, there are two such layers on the network from ImageNet, and one in a chain.
    """
    names = [f"epsilon_{e}" for e in private_swin.EPSILONS["paper"]]
    models = (private_swin.OPEN, *names)
    of_alone = (private_swin.OPEN, *(f"epsilon_{e}" for e in private_swin.ALONE))

    def start(*stages: str) -> dict[str, Any]:
        return {f"stages.{name}.init_from": SWIN for name in stages}

    linear, bare = start(*models), config("paper,nothing")
    two = linear | of_all(models, "model.hidden", HIDDEN)
    alone = start(*of_alone) | of_all(of_alone, "model.hidden", HIDDEN)
    longer = {f"{name}.steps": published_steps(4104) for name in models}
    real = values(PUBLISHED["real"])
    return [
        Row("real", two, real, config=bare),
        Row(
            "real + synthetic",
            two,
            values(PUBLISHED["real + synthetic"]),
            config=config("paper,nothing,beside,published"),
        ),
        Row(
            "synthetic alone",
            alone,
            values(PUBLISHED["synthetic alone"]),
            "the generator of the patches is not private, and noise on them protects nobody",
            config=config("paper,nothing,alone,published"),
        ),
        Row(
            "synthetic, then real",
            start("first"),
            values(PUBLISHED["synthetic, then real"]),
            "linear layer",
            config=config("paper,published"),
        ),
        *our("paper", spec, start("first"), alone),
        Row("control: linear layer", linear, real, "real only, at the published rate", config=bare),
        *tuned("two layers", two, models, values(TUNED)),
        *tuned("linear layer", linear, models, {}),
        Row("control: equal steps", two | longer, real, "real only, with the steps of real + synthetic", config=bare),
        Row(
            "control: equal noise",
            two | {f"{n}.privacy.noise_multiplier": z for n, z in zip(names, NOISE)} | unbounded(names),
            real,
            "real only, with its own steps and the noise of real + synthetic; epsilon exceeds that in the model's name",
            config=bare,
        ),
    ]


EXPLORED = 2e-3
"""The rate of exploratory runs with another protocol (`TUNED`)."""
RATES = (2e-4, EXPLORED, 2e-2)
"""Rates besides the published 1e-5."""


def tuned(name: str, settings: dict[str, Any], models: Sequence[str], explored: dict[str, float]) -> list[Row]:
    """Controls on real patches only, a row for each rate. name: of the head. explored: published values at the rate
    EXPLORED."""
    return [
        Row(
            f"control: {name}, rate {rate:g}",
            settings | of_all(models, "schedule.base", rate),
            explored if rate == EXPLORED else {},
            "real only; use the rate with the best validation at each epsilon"
            + ("; published: exploratory runs" if explored and rate == EXPLORED else ""),
            config=config("paper,nothing"),
        )
        for rate in RATES
    ]


def of_all(models: Sequence[str], key: str, value: Any) -> dict[str, Any]:
    """A setting of the recipes of all models."""
    return {f"{name}.{key}": value for name in models}


NOISE = (10.63, 2.34, 1.45, 1.08, 0.68)
"""Published noise multipliers of real + synthetic at epsilon 1, 6, 12, 20, 60."""


def unbounded(names: list[str]) -> dict[str, Any]:
    return {f"{name}.privacy.epsilon": None for name in names}


# ---- For tests -------------------------------------------------------------------------------------------------------


def of_tiny(spec: str) -> list[Row]:
    chain = values(PUBLISHED["synthetic, then real"])
    return [
        Row("real", {}, values(PUBLISHED["real"]), config=config("tiny,nothing")),
        Row("synthetic, then real", {}, chain, config=config("tiny,published")),
        *our("tiny", spec, {}, {}),
        Row("Swin-T: synthetic, then real", {}, chain, not_run=NO_GPU),
    ]
