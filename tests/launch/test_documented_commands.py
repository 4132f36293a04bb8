"""The commands of README.md and docs/ can be given one after the other, and leave nothing that git would add."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from elk_jax.experiments.parse import parse

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted(ROOT.glob("docs/results/*.md"))
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *RESULTS]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"python (\w+/\w+\.py) ([^`\n]*)")
NOT_SETTINGS = ("--workdir=", "--stages=", "--jobs=")
"""Of a training or a sweep: what may differ when a run is continued."""
INPUTS = re.compile(r"^/?[A-Z_]+$")
"""A place that the reader fills in."""


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(script, its words) of every command of a page, continued lines joined, without comments."""
    joined = re.sub(r"\s*\\\n\s*", " ", page.read_text())
    return [(script, shlex.split(words, comments=True)) for script, words in COMMAND.findall(joined)]


def shell_lines(page: Path) -> list[str]:
    """The lines of the blocks that are for a shell, which name no other language."""
    blocks = [text for language, text in BLOCK.findall(page.read_text()) if language in ("", "bash")]
    return [line for block in blocks for line in block.splitlines()]


def value(words: list[str], flag: str, default: str = "") -> str:
    return next((word.split("=", 1)[1] for word in words if word.startswith(f"--{flag}=")), default)


def default_output(script: str) -> str:
    """Where a script writes without --output: the default of the flag, or what its help says of it; "" for neither."""
    found = re.search(r'"output", (?:None|"(\S+)"), ".*?(?:Default: ([a-z]\S*)/[^"]*)?"', (ROOT / script).read_text())
    return (found[1] or found[2] or "") if found else ""


RUNS = [
    (str(page.relative_to(ROOT)), script, words)
    for page in PAGES
    for script, words in commands(page)
    if script in ("launch/train.py", "launch/sweep.py")
]


def run_folder(words: list[str]) -> str:
    return value(words, "workdir", f"runs/{Path(value(words, 'config').partition(':')[0]).stem}")


def test_no_two_documented_runs_of_other_settings_have_one_folder():
    seen: dict[str, tuple[str, set[str]]] = {}
    for page, script, words in RUNS:
        settings = {script, *(word for word in words if not word.startswith(NOT_SETTINGS))}
        other, known = seen.setdefault(run_folder(words), (page, settings))
        assert known == settings, f"{other} and {page} both use {run_folder(words)}"
    assert len(seen) > 40


TRAININGS = [
    pytest.param(words, id=f"{page}-{run_folder(words)}")
    for page, script, words in RUNS
    if script == "launch/train.py" and not any("$" in word for word in words)
]


RECORDED = """
python() { printf '%s\\0' "$@" '|'; }
ln() { :; }
"""
"""Commands of the pages, as functions of a shell that finds no other program: a script is not run, its words are
printed."""


def as_given(page: Path) -> list[list[str]]:
    """The words of every command of a page, as a shell that is given the whole page passes them on."""
    lines = [RECORDED, *shell_lines(page)]
    shell, given = [shutil.which("bash") or "", "--norc", "-eu"], "\n".join(lines)
    done = subprocess.run(shell, input=given, env={"PATH": ""}, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return [words.split("\0")[:-1] for words in done.stdout.split("|\0")[:-1]]


WITH_VARIABLES = [page for page in RESULTS if any("$" in line for line in shell_lines(page))]


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in WITH_VARIABLES])
def test_the_commands_of_a_page_have_their_variables(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = as_given(page)
    assert given
    for script, *words in given:
        assert (ROOT / script).is_file() and not any("$" in word for word in words)
        if script in ("launch/train.py", "launch/evaluate.py"):
            assert all(word.startswith("--") for word in words), words
        if script == "launch/train.py":
            parse_training(words)


@pytest.mark.parametrize("words", TRAININGS)
def test_a_documented_training_has_settings_that_there_are(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse_training(words)


def parse_training(words: list[str]) -> None:
    """Parse the flags of launch/train.py and its configuration, in the root of the project."""
    values, line = flags.FlagValues(), ["train.py", *words]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=line)
    for name in ("workdir", "stages"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    assert values(line) == ["train.py"]
    assert parse(values.config).stages


def test_what_documented_commands_write_is_ignored():
    written = {value(words, "output", default_output(script)) for page in PAGES for script, words in commands(page)}
    written |= {run_folder(words) for _, _, words in RUNS} | {value(words, "list") for _, _, words in RUNS}
    places = sorted(
        place
        for place in written
        if place and not place.startswith(("/", "configs/")) and "$" not in place and not INPUTS.match(place)
    )
    assert {"privacy.svg", "plans", "comparison", "drawn", "halves", "theirs", "rows.py"} <= set(places)
    asked = "".join(f"{place}{'' if Path(place).suffix else '/'}\n" for place in places)
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", "--stdin"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=60)
    if done.returncode > 1:
        pytest.skip("not a git repository")
    assert sorted(done.stdout.split()) == sorted(asked.split())


def test_commands_for_zsh_have_no_comments():
    assert [line for page in RESULTS for line in shell_lines(page) if re.search(r"(^|\s)#", line)] == []


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_no_comment_of_a_command_opens_a_quote(page):
    comments = [line.partition("# ")[2] for line in shell_lines(page)]
    assert [comment for comment in comments if comment.count("'") % 2 or comment.count('"') % 2] == []


def test_exports_have_folders_of_their_own():
    places = [value(words, "output") for script, words in commands(PAGES[0]) if script == "launch/export_weights.py"]
    assert len(places) == len(set(places)) == 3
