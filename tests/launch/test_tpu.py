"""The script for Cloud TPU slices, with a stub of gcloud that runs the workers' commands in a folder of the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "tpu.sh"
FLAGS = {"--zone", "--accelerator-type", "--version", "--worker", "--command", "--quiet"}
"""Of `gcloud compute tpus tpu-vm`, as far as the script needs them."""
GCLOUD = """
import json, os, subprocess, sys
home = os.environ["WORKER"]
with open(os.path.join(home, "calls"), "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if "describe" in sys.argv:
    sys.exit(1)  # the slice does not exist yet
for flag in sys.argv:
    if flag.startswith("--command="):
        sys.exit(subprocess.run(["bash", "-c", flag.partition("=")[2]], cwd=home).returncode)
"""


@pytest.fixture
def start(tmp_path):
    """(arguments, variables) -> (what the script said, the calls of gcloud); `mounted`: as `mountpoint` finds it."""
    programs, worker = tmp_path / "bin", tmp_path / "worker"
    for path, text in {
        programs / "gcloud": f"#!{sys.executable}\n{GCLOUD}",
        programs / "mountpoint": '#!/bin/sh\n[ -e "$WORKER/mounted" ]\n',
        programs / "sudo": '#!/bin/sh\necho "$@" >>"$WORKER/as_root"\n',
        programs / "tar": "#!/bin/sh\nexit 0\n",
        worker / "elk_jax" / ".venv" / "bin" / "python": '#!/bin/sh\nprintf "%s\\n" "$@"\n',
        worker / "elk_jax" / "launch" / "setup.sh": 'echo "$PYTHON" "$@" >>"$WORKER/set_up"\n',
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(*arguments: str, **variables: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "WORKER": str(worker), **variables}
        done = subprocess.run(["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60)
        calls = worker / "calls"
        found = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        assert all(call[:3] == ["compute", "tpus", "tpu-vm"] for call in found)
        flags = {part.partition("=")[0] for call in found for part in call if part.startswith("--")}
        assert flags <= FLAGS
        return done, [call[3:] for call in found]

    return run


HERE = {"TPU": "elk", "ZONE": "us-west4-a"}


def test_create_makes_a_slice_and_sets_up_every_worker(start, tmp_path):
    done, calls = start("create", **HERE, NFS="10.0.0.2:/my share")
    assert done.returncode == 0, done.stderr
    assert [call[0] for call in calls] == ["describe", "create", "scp", "ssh"]
    kind = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"]
    assert calls[1][1:] == ["elk", *kind, "--zone=us-west4-a"]
    assert all("--worker=all" in call for call in calls[2:])
    worker = tmp_path / "worker"
    assert (worker / "set_up").read_text() == "python3.12 tpu\n"
    assert (worker / "as_root").read_text().splitlines()[-1] == "mount -t nfs 10.0.0.2:/my share /mnt/elk_jax"


def test_run_starts_the_same_script_on_every_worker(start, tmp_path):
    command = ["launch/train.py", "--config=configs/cem_real.py:paper,fewshot", "--workdir=it's", "--x=('a b', $HOME)"]
    done, _ = start("run", *command, **HERE)
    assert done.returncode == 2 and "not mounted" in done.stderr
    (tmp_path / "worker" / "mounted").touch()
    done, calls = start("run", *command, **HERE)
    assert done.stdout.splitlines() == command
    assert "--worker=all" in calls[-1]


@pytest.mark.parametrize(
    "arguments, variables, word",
    [
        ([], HERE, "usage"),
        (["start"], HERE, "usage"),
        (["run", "launch/train.py"], {"TPU": "elk"}, "ZONE"),
        (["run", "--config=configs/cem_real.py"], HERE, "no script"),
        (["create"], HERE, "NFS"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_started(start, arguments, variables, word):
    done, calls = start(*arguments, **variables)
    assert done.returncode == 2 and word in done.stderr and not calls


def test_delete(start):
    assert start("delete", **HERE)[1] == [["delete", "elk", "--quiet", "--zone=us-west4-a"]]
