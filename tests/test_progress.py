import io

from elk_jax import progress
from elk_jax.threads import map_in_threads


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_log_file_gets_a_line_now_and_then_and_one_at_the_end():
    stream = io.StringIO()
    with progress.Progress("training", 100, every=1e9, stream=stream) as bar:
        for step in range(1, 101):
            bar.update(step, f"loss {1 / step:.2f}" if step % 50 == 0 else None)
        bar.say("checkpoint written")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "checkpoint written" and len(lines) == 2
    assert lines[1].startswith("training: 100/100 steps in 0:0") and lines[1].endswith("loss 0.01")


def test_every_update_is_a_line_when_asked_so_with_time_left():
    stream = io.StringIO()
    with progress.Progress("reading", 4, start=2, unit="image", every=0.0, stream=stream) as bar:
        bar.update(3)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("reading: 3/4 images in 0:00, 0:00 left, ") and "images/s" in lines[0]


def test_nothing_is_written_when_nothing_was_done():
    stream = io.StringIO()
    with progress.Progress("training", 5, start=5, stream=stream):
        pass
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    with progress.Progress("training", 10, stream=stream) as bar:
        bar.update(10, "loss 0.5")
        bar.say("a word [between]")
    shown = stream.getvalue()
    assert "10/10" in shown and "loss 0.5" in shown and "a word [between]" in shown


def test_short_work_shows_nothing_and_long_work_from_then_on():
    for stream in (io.StringIO(), Terminal()):
        with progress.Progress("opening", 10, patience=1e9, stream=stream) as bar:
            bar.update(10)
        assert stream.getvalue() == ""
    stream = Terminal()
    with progress.Progress("opening", 10, patience=1e-9, stream=stream) as bar:
        assert stream.getvalue() == ""
        bar.update(7)
    assert "7/10" in stream.getvalue()


def test_clock():
    assert [progress.clock(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


def test_a_bar_over_results_shows_long_work_alone(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LONG", 1e9)
    assert map_in_threads(abs, 60, progress.progress_bar("decoding")) == list(range(60))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LONG", 1e-9)
    assert map_in_threads(abs, 60, progress.progress_bar("decoding")) == list(range(60))
    assert capsys.readouterr().err.startswith("decoding: 60/60 images in ")
