"""Programs that a test starts beside itself: each writes a log, none outlives its time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(arguments: Sequence[object], log: Path, umask: int = -1, **environment: str) -> subprocess.Popen:
    """Python with these arguments, in the repository; what it says goes to `log`."""
    with open(log, "w") as file:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            umask=umask,
        )


def finish(processes: Sequence[subprocess.Popen], seconds: float) -> list[int | None]:
    """The exit codes of processes that have `seconds` together; None for one that had to be killed."""
    until = time.monotonic() + seconds
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, until - time.monotonic()))
        return [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seen(folder: Path, processes: Sequence[subprocess.Popen], seconds: float = 600) -> Any:
    """What programs wrote into `seen.json` in a folder, once they have ended well; their logs (log*) are there too."""
    codes = finish(processes, seconds)
    assert codes == [0] * len(codes), said(folder)
    return json.loads((folder / "seen.json").read_text())


def said(folder: Path) -> str:
    """The ends of the logs (log*) in a folder."""
    return "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in sorted(folder.glob("log*")))
