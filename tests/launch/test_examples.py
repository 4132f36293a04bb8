"""The documented commands for the published recipes, as far as they can be checked without weights."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from elk_jax.experiments.checks import check_inputs
from elk_jax.experiments.parse import kind_of, parse
from elk_jax.programs import topology
from elk_jax.sweeps.plan import plan
from elk_jax.sweeps.settings import read_rows
from elk_jax.tasks.run import Run
from elk_jax.training.mesh import make_mesh
from tests.models import EARLIER, save_earlier
from tests.tpu import need_compiler

ROOT = Path(__file__).resolve().parents[2]
PLACES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted((ROOT / "configs").glob("*.py"))]
PLACES += [path for path in sorted((ROOT / "launch").iterdir()) if path.suffix in (".py", ".sh", ".yaml")]
COMMAND = re.compile(r"--config=configs/\w+\.py:paper\S*(?: --[\w.]+=\S+)*")
PHANTOMS = {"coco": "phantom:size=64,count=12"} | dict.fromkeys(
    ("folders", "phantom_patches"), "phantom_patches:size=128,count=60"
)
"""Little embedded data in place of a recipe's own or a user's, by their kind."""


def commands(path: Path) -> list[str]:
    """The arguments of every command with a published recipe in a file, with continued lines joined."""
    joined = re.sub(r"\s*\\*\n\s*(?:# +|- )?(?=--)", " ", path.read_text())
    return COMMAND.findall(joined)


def parsed(arguments: str, monkeypatch, *others: str) -> flags.FlagValues:
    """The flags of a command: config, and `others`."""
    values, line = flags.FlagValues(), ["train.py", *arguments.split()]
    monkeypatch.chdir(ROOT)
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=line)
    for name in others:
        flags.DEFINE_string(name, None, "", flag_values=values)
    values(line)
    return values


EXAMPLES = [pytest.param(text, id=f"{path.name}-{i}") for path in PLACES for i, text in enumerate(commands(path))]
PLANS = [example for example in EXAMPLES if "--topology=" in example.values[0]]


@pytest.mark.parametrize("arguments", PLANS)
def test_an_example_of_a_plan_names_a_stage_and_slices_that_there_are(arguments, monkeypatch):
    need_compiler()
    given = parsed(arguments, monkeypatch, "stage", "topology")
    experiment = parse(given.config)
    assert kind_of(experiment.stages[given.stage]).workload
    for name in given.topology.split(","):
        make_mesh(experiment.mesh.data, experiment.mesh.fsdp, topology.find(name).devices)


@pytest.mark.parametrize("arguments", [example for example in EXAMPLES if example not in PLANS])
def test_an_example_of_a_published_recipe_can_start(arguments, monkeypatch, tmp_path):
    config = parsed(arguments, monkeypatch, "workdir", "list").config
    for source in config.data.values():
        if isinstance(source, ConfigDict):
            source.spec = PHANTOMS.get(source.spec.partition(":")[0], source.spec)
    for stage in config.stages.values():
        if stage.get("init_from", "") not in ("", *config.stages):
            stage.init_from = str(tmp_path / "weights")
            save_earlier(tmp_path / "weights", {}, EARLIER)
    check_inputs(Run(parse(config), tmp_path / "run", make_mesh()), list(config.stages))


IMPORT = re.compile(r"^(?:from|import) elk_jax\S*(?: import [\w, ]+)?", re.MULTILINE)
DOCUMENTED = [line.strip() for path in PLACES if path.suffix == ".md" for line in IMPORT.findall(path.read_text())]


@pytest.mark.parametrize("line", DOCUMENTED)
def test_a_documented_import_works(line):
    exec(line, {})  # raises where the name is gone


@pytest.mark.parametrize(
    "name, counts",
    [
        ("slurm.sh", [r"--nodes=(\d+)", r"--gpus-per-node=(\d+)"]),
        ("kubernetes.yaml", [r"completions: (\d+)", r"/gpu: (\d+)"]),
        ("tpu.sh", [r"TYPE:-v5litepod-(\d+)"]),
    ],
)
def test_the_batch_is_divisible_by_the_devices_of_several_machines(name, counts, monkeypatch):
    place = ROOT / "launch" / name
    (arguments,), text = commands(place), place.read_text()
    devices = math.prod(int(re.search(count, text)[1]) for count in counts)
    config, single = (parsed(line, monkeypatch, "workdir").config for line in (arguments, arguments.split()[0]))
    assert devices > 1 and config.detector.loader.batch_size % devices == 0
    more = config.detector.loader.batch_size / single.detector.loader.batch_size
    assert config.detector.schedule.base == pytest.approx(more * single.detector.schedule.base)


def documented_lists() -> list:
    """(the configuration of the last sweep before it, the text) of every list of settings in docs/results/."""
    found = []
    for page in sorted((ROOT / "docs" / "results").glob("*.md")):
        text = page.read_text()
        blocks = [block for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL) if "ROWS" in block[1]]
        configs = [re.findall(r"sweep\.py --config=(\S+)", text[: block.start()])[-1] for block in blocks]
        found += [pytest.param(config, block[1], id=f"{page.stem}-{config}") for config, block in zip(configs, blocks)]
    return found


@pytest.mark.parametrize(("config", "text"), documented_lists())
def test_a_documented_list_has_settings_that_there_are(config, text, tmp_path, monkeypatch):
    (tmp_path / "rows.py").write_text(text)
    rows = read_rows(tmp_path / "rows.py")
    experiment = parsed(f"--config={config}", monkeypatch).config
    own = {row.config: parsed(f"--config={row.config}", monkeypatch).config for row in rows if row.config}
    assert len(plan(experiment, rows, 1, tmp_path / "run", own).runs) == len(rows) > 1
