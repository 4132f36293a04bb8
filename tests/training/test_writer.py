import json
import shutil

import numpy as np
import pytest

from elk_jax.training.writer import Writer, read_metrics
from tests.refusals import refused


def write(folder, steps, **options):
    writer = Writer(folder, tensorboard=False, **options)
    for step in steps:
        writer.write_scalars(step, {"train/loss": 1 / step, "time/step_seconds": 0.1})
    writer.close()


def test_resumed_file_has_every_step_once(tmp_path):
    write(tmp_path, [2, 4, 6, 8])
    write(tmp_path, [6, 8, 10], resume_step=5)
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 6, 8, 10]


def test_floats_survive_the_rewriting_exactly(tmp_path):
    write(tmp_path, [3, 7])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    write(tmp_path, [], resume_step=7)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [])
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "train/lo')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    write(tmp_path, [3], resume_step=2)
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]


@pytest.mark.parametrize("line", [b"garbage\n", b'{"step": "2"}\n', b"[]\n", b"\xff\x00\n", b'{"step": 2, "tra\n'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'{"step": 3}\n')
    for read in (read_metrics, lambda path: Writer(tmp_path, resume_step=3, tensorboard=False)):
        with refused("line 2", where=path):
            read(path)
    write(tmp_path, [1])  # a new run needs nothing of the old file
    assert [record["step"] for record in read_metrics(path)] == [1]


def test_a_link_in_the_place_of_the_file_is_replaced(tmp_path):
    for number, target in enumerate((tmp_path / "theirs", tmp_path / "absent")):
        (tmp_path / "theirs").write_text("theirs")
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "metrics.jsonl").symlink_to(target)
        write(folder, [1])
        assert (tmp_path / "theirs").read_text() == "theirs" and not (tmp_path / "absent").exists()


def test_nonfinite_values_stay_valid_json(tmp_path):
    writer = Writer(tmp_path, tensorboard=False)
    writer.write_scalars(1, {"eval/ap": float("nan"), "eval/n": np.int64(3), "eval/x": np.float32(0.5)})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "eval/ap": None, "eval/n": 3, "eval/x": 0.5}


def test_tensorboard_files_hold_the_scalars(tmp_path):
    writer = Writer(tmp_path)
    writer.write_scalars(1, {"train/loss": 0.25})
    writer.close()
    content = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"train/loss" in content


@pytest.mark.parametrize("resume_step, kept", [(0, []), (5, [2, 4]), (6, [2, 4, 6])])
def test_pictures_and_events_of_later_steps_of_an_earlier_attempt_are_dropped(tmp_path, resume_step, kept):
    first = Writer(tmp_path)
    for step in (2, 4, 6, 1_000_000):
        first.write_pictures(step, {"made-by": np.zeros((2, 2, 3), np.uint8)})
    first.close()
    others = [tmp_path / "pictures" / name for name in ("mine.png", "my-own.png")]
    for path in others:
        path.write_bytes(b"")
    shutil.rmtree(tmp_path / "tensorboard")
    Writer(tmp_path, resume_step=resume_step).close()
    names = [f"made-by-{step:06d}.png" for step in kept]
    assert sorted(path.name for path in others[0].parent.iterdir()) == [*names, "mine.png", "my-own.png"]
    (log,) = (tmp_path / "tensorboard").iterdir()
    # protobuf: field 2 of an event is its step, field 7 the state of the session: TensorBoard hides what is after START
    assert bytes((0x10, resume_step + 1)) in log.read_bytes() and b"\x3a\x02\x08\x01" in log.read_bytes()


def test_a_file_in_the_way_is_a_users_error(tmp_path):
    (tmp_path / "run").write_text("")
    with refused(where=tmp_path / "run"):
        Writer(tmp_path / "run", tensorboard=False)


def test_a_full_disk_is_a_users_error(tmp_path):
    writer = Writer(tmp_path, tensorboard=False)
    writer._file = open("/dev/full", "w")  # noqa: SIM115
    with refused("full", where=tmp_path / "metrics.jsonl"):
        writer.write_scalars(1, {"a": 1.0})
    writer.close()  # and its error is the only one


@pytest.mark.parametrize("what", ["scalars", "pictures"])
def test_a_full_disk_of_tensorboard_is_a_users_error_and_nothing_waits_for_it(tmp_path, monkeypatch, what):
    monkeypatch.setattr("elk_jax.training.writer.FLUSH", 0.0)
    writer = Writer(tmp_path)
    events = writer._board._writer._py_recordio_writer
    events._writer = open("/dev/full", "wb")  # noqa: SIM115
    with refused("full", where=tmp_path / "tensorboard"):
        if what == "scalars":
            writer.write_scalars(1, {"a": 1.0})
        else:
            writer.write_pictures(1, {"made": np.zeros((2, 2, 3), np.uint8)})
    writer.close()
