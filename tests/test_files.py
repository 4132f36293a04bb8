"""Whole files or none, and errors of one line."""

from __future__ import annotations

import errno
import os

import pytest

from elk_jax import files
from elk_jax.errors import UserError, from_os_error, run_main
from tests.refusals import refused


def test_written_json_reads_back_and_leaves_no_other_file(tmp_path):
    files.write_json(tmp_path / "a.json", {"x": [1, 2.5, None]})
    assert files.read_json(tmp_path / "a.json") == {"x": [1, 2.5, None]}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    files.write_text(tmp_path / "a.txt", "old")

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with refused("full", "space", where="a.txt"):
        files.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("content, word", [(None, "no such file"), ("{", "JSON")])
def test_unreadable_json_is_named(tmp_path, content, word):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with refused(word, where="a.json"):
        files.read_json(path)


def test_folder_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with refused("folder", where=path):
            files.make_folder(path)


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path):
    files.check_writable(tmp_path / "a" / "b")
    files.check_writable(tmp_path)
    assert not os.listdir(tmp_path)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with refused("folder", where=tmp_path / "file"):
            files.check_writable(path)


@pytest.mark.parametrize("number, text", [(errno.EACCES, "permission denied"), (errno.EROFS, "permission denied")])
def test_operating_system_errors_say_what_to_do(number, text):
    assert text in str(from_os_error(OSError(number, "x"), "/some/where"))


def test_user_error_is_one_line():
    assert str(UserError("two\nlines.", where="here", todo="do this.")) == "two lines (here). do this"


def test_run_main_exits_with_two_and_one_line(capsys):
    def main():
        raise UserError("wrong", where="there", todo="mend it")

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: wrong (there). mend it\n"
