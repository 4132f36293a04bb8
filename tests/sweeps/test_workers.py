"""Programs beside each other: failures, shares of the cores, order, and the end of their starter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from elk_jax.sweeps import workers
from elk_jax.sweeps.workers import Job, core_shares, run_all, said_error


def job(tmp_path, name: str, code: str, after=()) -> Job:
    return Job(name, (sys.executable, "-c", code), tmp_path / f"{name}.log", after)


def test_a_failure_stops_no_other_and_is_one_line(tmp_path):
    told = []
    jobs = [
        job(tmp_path, "wrong", "import sys; print('error: no data (x.json)'); print('bye'); sys.exit(2)"),
        job(tmp_path, "right", "print('well')"),
        job(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"),
        job(tmp_path, "silent", "import sys; sys.exit(3)"),
    ]
    ended = run_all(jobs, 2, lambda at, end: told.append((at, end is None)))
    errors = [one.error for one in ended]
    assert errors[:2] == ["no data (x.json)", ""] and "signal 9" in errors[2] and "3" in errors[3]
    assert sorted(told) == sorted([(at, start) for at in range(4) for start in (True, False)])
    assert (tmp_path / "right.log").read_text() == "well\n"


def test_a_job_waits_for_those_before_it(tmp_path):
    """The second writes last although it is listed between the others and a slot is free."""
    write = "import time; time.sleep({}); open(r'{}', 'a').write('{}')"
    place = tmp_path / "order"
    jobs = [
        job(tmp_path, "first", write.format(0.3, place, "a")),
        job(tmp_path, "second", write.format(0, place, "b"), after=(0, 2)),
        job(tmp_path, "third", write.format(0, place, "c")),
    ]
    assert not any(one.error for one in run_all(jobs, 3, lambda at, end: None))
    assert place.read_text() == "cab"


def test_the_cores_are_shared(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4}, raising=False)
    assert core_shares(1) == [[0, 1, 2, 3, 4]]
    assert core_shares(2) == [[0, 2, 4], [1, 3]]
    assert core_shares(7) == [[0], [1], [2], [3], [4], [0], [1]]


def test_programs_end_with_the_process_that_started_them_and_save_what_they_have(tmp_path):
    child = (
        "import os, signal, sys, time; from elk_jax.sweeps.workers import end_with_starter; end_with_starter(); "
        f"signal.signal(signal.SIGTERM, lambda *_: (open(r'{tmp_path / 'saved'}', 'w').close(), sys.exit(130))); "
        f"open(r'{tmp_path / 'pid'}', 'w').write(str(os.getpid())); "
        f"os.rename(r'{tmp_path / 'pid'}', r'{tmp_path / 'there'}'); time.sleep(60)"
    )
    parent = (
        "import signal, sys; from pathlib import Path; from elk_jax.sweeps.workers import Job, run_all; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # background jobs of a shell ignore it
        f"run_all([Job('child', (sys.executable, '-c', {child!r}), Path(r'{tmp_path / 'log'}'))], 1, lambda a, e: None)"
    )
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        for name in ("there", "saved"):
            (tmp_path / name).unlink(missing_ok=True)
        started = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not (tmp_path / "there").exists() and time.monotonic() < until:
            time.sleep(0.01)
        pid = int((tmp_path / "there").read_text())
        started.send_signal(number)
        started.wait(60)
        while _is_running(pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert not _is_running(pid) and (tmp_path / "saved").exists()


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_last_error_of_a_log_is_the_one(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"error: of an earlier attempt\nresumed\nerror: now \x1b[2J\xff\n")
    assert said_error(log, 2, 0).startswith("now \\x1b")
    log.write_text("Traceback\nValueError: wrong\n")
    assert said_error(log, 1, 0) == "ValueError: wrong"
    log.write_text("")
    assert "1" in said_error(log, 1, 0)
    assert workers.WORKER not in os.environ


def test_an_error_of_an_earlier_attempt_is_not_that_of_the_next(tmp_path):
    """The log of a run is continued; an attempt that ends without an error line must not repeat an older one."""
    first = job(tmp_path, "run", "import sys; print('error: no data'); sys.exit(2)")
    tell = lambda at, end: None
    assert run_all([first], 1, tell)[0].error == "no data"
    (second,) = run_all([job(tmp_path, "run", "raise ValueError('wrong')")], 1, tell)
    assert second.error == "ValueError: wrong"
    (third,) = run_all([job(tmp_path, "run", "import sys; sys.exit(3)")], 1, tell)
    assert "3" in third.error
    assert first.log.read_text().startswith("error: no data\n")
