"""Processes that run in parallel, each with its share of the cores; a failure does not stop the others.

A process ends when its parent ends, for whatever reason, because the other end of its standard input closes then. It
ends as after SIGTERM: a training writes its checkpoint first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from elk_jax import files
from elk_jax.output import visible

WORKER = "ELK_SWEEP_WORKER"
"""Environment variable of a process that must end when its parent ends."""
MEMORY, SHARED_MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION", 0.9
"""The share of an accelerator's memory that JAX takes in all processes together."""
PATIENCE = 20.0
"""Seconds that a process has to end by itself."""
LAST = 1 << 16
"""Bytes at the end of a log that are searched for the error."""


@dataclass(frozen=True)
class Job:
    """A process to run. log: file for its output. after: positions of jobs that must end before it starts."""

    name: str
    command: tuple[str, ...]
    log: Path
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ended:
    """error: one line; "" for a process that succeeded."""

    seconds: float
    error: str = ""


def run_all(jobs: Sequence[Job], at_once: int, tell: Callable[[int, Ended | None], None]) -> list[Ended]:
    """Run all jobs, `at_once` in parallel; returns how each ended, in their order.

    tell: called with the position of a job when it starts (None) and when it has ended. On Ctrl-C or SIGTERM, running
    processes are stopped, and KeyboardInterrupt is raised. Runs in the main thread.
    """
    before_signal = signal.signal(signal.SIGTERM, signal.default_int_handler)
    shares = core_shares(at_once)
    ended: dict[int, Ended] = {}
    running: dict[Future[Ended], tuple[int, int]] = {}
    open_programs: dict[int, subprocess.Popen] = {}
    waiting, free = list(range(len(jobs))), list(range(at_once))
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or running:
                ready = [n for n in waiting if all(before in ended for before in jobs[n].after)]
                while ready and free:
                    number, slot = ready.pop(0), free.pop(0)
                    waiting.remove(number)
                    tell(number, None)
                    program, before = _start(jobs[number], shares[slot], at_once)
                    open_programs[number] = program
                    running[pool.submit(_finish, program, jobs[number].log, before)] = number, slot
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    number, slot = running.pop(future)
                    ended[number] = future.result()
                    free.append(slot)
                    tell(number, ended[number])
        finally:
            _stop([program for number, program in open_programs.items() if number not in ended])
            signal.signal(signal.SIGTERM, before_signal)
    return [ended[number] for number in range(len(jobs))]


def end_with_starter() -> None:
    """In a process of `run_all`: end when its parent has ended or stops it."""
    if os.environ.get(WORKER):
        threading.Thread(target=_wait_for_end, daemon=True).start()


def core_shares(at_once: int) -> list[list[int]]:
    """The cores of each of `at_once` processes: as equal as possible, at least one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return [cores[slot::at_once] or [cores[slot % len(cores)]] for slot in range(at_once)]


def _start(job: Job, cores: Sequence[int], at_once: int) -> tuple[subprocess.Popen, int]:
    """(the process, the bytes of its log from earlier attempts)."""
    files.make_folder(job.log.parent)
    environment: Mapping[str, str] = os.environ | {WORKER: "1"}
    if at_once > 1:
        environment = {MEMORY: f"{SHARED_MEMORY / at_once:.3f}", **environment}
    with open(job.log, "ab") as log:
        before = log.tell()
        program = subprocess.Popen(
            job.command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    if hasattr(os, "sched_setaffinity"):  # covers its threads, which start later
        os.sched_setaffinity(program.pid, cores)
    return program, before


def _finish(program: subprocess.Popen, log: Path, before: int) -> Ended:
    started = time.monotonic()
    code = program.wait()
    seconds = time.monotonic() - started
    return Ended(seconds) if code == 0 else Ended(seconds, said_error(log, code, before))


def _stop(programs: Sequence[subprocess.Popen]) -> None:
    for program in programs:
        if program.stdin is not None:
            program.stdin.close()
    until = time.monotonic() + PATIENCE
    for program in programs:
        try:
            program.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def said_error(log: Path, code: int, before: int) -> str:
    """The error of a process that ended with `code`, in one line: the last one in its log, after the `before` bytes of
    earlier attempts."""
    if code < 0:
        return f"killed by signal {-code}{', possibly out of memory' if code == -9 else ''}"
    with open(log, "rb") as file:
        file.seek(max(before, os.path.getsize(log) - LAST))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return visible((errors or lines or [f"exit code {code}"])[-1].removeprefix("error: "))


def _wait_for_end() -> None:
    while os.read(0, 1024):  # reads the descriptor: a thread waiting in sys.stdin would hold its lock at exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(130)
