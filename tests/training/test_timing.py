from types import SimpleNamespace

import pytest

from elk_jax.training import timing
from elk_jax.training.timing import Timer


class Clock:
    """A clock that runs only when told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def run(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_evaluation_saving_and_compilation_are_not_part_of_a_step(clock):
    timer = Timer()
    for what, seconds in (("compile", 30.0), ("data", 2.0), ("pause", 60.0)):
        with timer.spending(what):
            clock.run(seconds)
    for _ in range(2):
        clock.run(3.0)
        timer.count(images=16)
    values = timer.take()
    assert values["step_seconds"] == 4.0  # 8 s for 2 steps, the wait for data included
    assert values["images_per_second"] == 4.0
    assert values["data_wait_share"] == 0.25
    assert values["compile_seconds"] == 30.0
    assert values["elapsed_seconds"] == 98.0


def test_every_line_measures_the_steps_since_the_one_before(clock):
    timer = Timer()
    with timer.spending("compile"):
        clock.run(30.0)
    clock.run(5.0)
    timer.count(images=8)
    timer.take()
    clock.run(2.0)
    timer.count(images=8)
    values = timer.take()
    assert (values["step_seconds"], values["images_per_second"], values["data_wait_share"]) == (2.0, 4.0, 0.0)
    assert "compile_seconds" not in values
    assert values["elapsed_seconds"] == 37.0


def test_the_clock_continues_that_of_earlier_attempts(clock):
    timer = Timer(before=50.0)
    clock.run(7.0)
    assert timer.clock() == timer.take()["elapsed_seconds"] == 57.0


def test_time_spent_until_an_error_counts(clock):
    timer = Timer()
    with pytest.raises(StopIteration), timer.spending("pause"):
        clock.run(9.0)
        raise StopIteration
    clock.run(1.0)
    timer.count(images=1)
    assert timer.take()["step_seconds"] == 1.0


def test_a_line_without_steps_divides_by_nothing(clock):
    values = Timer().take()
    assert values["images_per_second"] == values["data_wait_share"] == 0.0


@pytest.mark.parametrize(
    "stats, peak",
    [({"peak_bytes_in_use": 12}, 12), ({"bytes_in_use": 12}, 3 * 1024), (None, 3 * 1024)],
)
def test_memory_is_of_the_device_where_it_keeps_count(monkeypatch, stats, peak):
    device = SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(timing.jax, "local_devices", lambda: [device])
    monkeypatch.setattr(timing.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3))  # kilobytes
    monkeypatch.setattr(timing, "sys", SimpleNamespace(platform="linux"))
    assert timing.peak_memory() == peak
