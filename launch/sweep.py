"""Run an experiment with several settings and seeds, and compare the settings.

  python launch/sweep.py --config=configs/cem_real.py --over=detector.ema_decay=0.9,0.99 --seeds=5 --workdir=runs/decay
  python launch/sweep.py --config=configs/private_head.py:tiny --over=head.size=48,64 --over=head.draws=2,3 --seeds=3 \\
      --jobs=2 --against=size=64 --metrics=auroc,brier --workdir=runs/heads
  python launch/sweep.py --config=configs/cem_mixed.py --list=table.py --seeds=3 --workdir=runs/table

Every combination of the values of --over is a setting; --config.KEY=VALUE applies to all of them. Values are written
as in --config.KEY=VALUE. Commas separate values, except in brackets and quotes:
  "--over=stages.mixed.train_on=('a',),('a','b')"
Quote a string that contains a comma, a bracket or a quote; the empty string is '':
  "--over=data.real.spec='phantom:size=64,count=24','coco:b.json'"

For settings that are not a product, give a list: a Python file with ROWS, a tuple of elk_jax.sweeps.settings.Row, or a
JSON file with objects of the same fields:
  [{"name": "ours", "overrides": {"detector.steps": 100}, "published": {"mean_sensitivity": 0.71}, "note": ""},
   {"name": "theirs", "not_run": "needs a GPU", "published": {"mean_sensitivity": 0.69}}]
A row with not_run, a reason not to run it, appears only in the table. A row may use another configuration,
{"config": "configs/cem_mixed.py:small"}; each given --config.KEY=VALUE applies to it if it has the key. Write the model
before a published value that belongs to one model of an evaluation, {"mixed/mean_sensitivity": 0.74}. Rows with a
number on an axis, {"at": 16, "axis": "shift, pixels", "line": "with tolerance"}, are also plotted over it, and so is a
product over one key with numeric values.

All settings run with the same seeds: config.seed and the following ones. They do not change the seed of a phantom. Each
run has an ordinary run folder, WORKDIR/runs/SETTING/seed-N, and its own process; --jobs of them run at once and share
the cores. A stage with the same settings, seed and inputs in several runs runs once. Rerun the same command to resume:
finished runs are not repeated, interrupted ones continue from their checkpoints. Settings, seeds and stages (--stages)
can be added later. A run that fails does not stop the others.

At the end, the sweep writes table.csv, table.json and report.html: the mean over seeds, the deviation of a single seed,
95 % intervals by resampling patients and seeds, and the difference of each setting from --against on the same patients
and seeds. --against is the first setting, a named one, or, with KEY=VALUE as in --over, the setting that has this
value and is otherwise the same. The models of an evaluation are also compared within each run, on the same patients and
seed by seed: each with the first one, or with those named by --models_against:
  python launch/sweep.py --config=configs/unified.py:small --seeds=5 --models_against=capacity,sm --workdir=runs/gains
A sweep selects nothing: comparisons on a test split are only reported.
"""

from __future__ import annotations

from pathlib import Path

import command_line
from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: configs/NAME.py[:variant].")
OVER = flags.DEFINE_multi_string("over", [], "KEY=VALUE,VALUE,...: the values of a key of the configuration.")
LIST = flags.DEFINE_string("list", None, "A Python or JSON file of settings, FILE[:VARIANT], instead of --over.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds of each setting.")
JOBS = flags.DEFINE_integer("jobs", 1, "Number of runs at once.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the sweep.")
AGAINST = flags.DEFINE_string("against", "", "The setting that others are compared with. Default: the first.")
MODELS_AGAINST = flags.DEFINE_list(
    "models_against",
    [],
    "Models that the others of their evaluation are compared with, within each run. Default: the first one of each.",
)
METRICS = flags.DEFINE_list("metrics", [], "Metrics to show first. Default: the first one of each evaluation.")
BOOTSTRAP = flags.DEFINE_integer(
    "bootstrap", 2000, "Resamples for the intervals, 0 for none.", lower_bound=0, upper_bound=100_000
)
STAGES = flags.DEFINE_list(
    "stages",
    None,
    "Run only these stages of every setting. Default: all. Results of other finished stages stay in the table.",
)
RUN = flags.DEFINE_string("run", None, "Run only SETTING/seed-N, in this process, for example as one job on a cluster.")


def main() -> None:
    config = command_line.required(CONFIG, "configs/cem_real.py")
    folder = Path(command_line.required(WORKDIR, "runs/sweep")).absolute()
    if OVER.value and LIST.value:
        raise command_line.UserError("--over and --list exclude each other", todo="give one of them")
    from elk_jax.sweeps import settings
    from elk_jax.sweeps.plan import plan
    from elk_jax.sweeps.results import check_references
    from elk_jax.sweeps.sweep import own_command, run_one, run_sweep

    values: dict[tuple[str, str], object] = {}
    if LIST.value:
        file, _, variant = LIST.value.partition(":")
        rows = settings.read_rows(Path(file), variant)
    elif OVER.value:
        overs = [settings.read_over(text) for text in OVER.value]
        values = {(over.key, text): _value(over.key, text) for over in overs for text in over.texts}
        rows = settings.product(overs, values)
    else:
        rows = (settings.Row(config.name),)
    baselines = settings.baselines(rows, AGAINST.value, values)
    own = {row.config: command_line.other_config(row.config) for row in rows if row.config and not row.not_run}
    planned = plan(config, rows, SEEDS.value, folder, own, STAGES.value)
    if RUN.value:
        run_one(planned, RUN.value)
        return
    check_references(planned, MODELS_AGAINST.value, f"--models_against={','.join(MODELS_AGAINST.value)}")
    run_sweep(
        planned,
        baselines,
        jobs=JOBS.value,
        resamples=BOOTSTRAP.value,
        metrics=METRICS.value,
        references=MODELS_AGAINST.value,
        command=own_command(),
    )


def _value(key: str, text: str) -> object:
    try:
        return command_line.config_value(key, text)
    except command_line.UserError as error:
        raise command_line.UserError(error.what, where=f"--over={key}={text}", todo=error.todo) from error


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
