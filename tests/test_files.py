"""Whole files or none, and errors of one line."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import math
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from elk_jax import files
from elk_jax.errors import UserError, from_os_error, run_main
from tests.interruption import changes, killed, on_full_disk
from tests.refusals import check_refusal, refused


def test_written_json_reads_back_and_leaves_no_other_file(tmp_path):
    files.write_json(tmp_path / "a.json", {"x": [1, 2.5, None]})
    assert files.read_json(tmp_path / "a.json") == {"x": [1, 2.5, None]}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_private_file_is_its_owners_alone(tmp_path):
    files.write_private(tmp_path / "a", b"secret")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600 and (tmp_path / "a").read_bytes() == b"secret"


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


@pytest.mark.parametrize(
    "entries", [[], [1], [{"x": [1, {"ä\n": []}], "y": {}}, None, "a\nb\\n"], [{"n": i} for i in range(99)]]
)
def test_a_list_is_written_entry_by_entry_as_it_is_at_once(tmp_path, entries):
    files.write_json(tmp_path / "whole.json", entries)
    files.write_json_list(tmp_path / "parts.json", iter(entries))
    assert (tmp_path / "parts.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert (tmp_path / "parts.json").read_text() == json.dumps(entries, indent=2) + "\n"


def test_a_list_is_not_held_in_memory_and_a_failure_leaves_the_old_file(tmp_path):
    files.write_text(tmp_path / "a.json", "old")
    alive = 0

    class Entry(dict):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def entries():
        nonlocal alive
        for number in range(30_000):
            alive += 1
            yield Entry(number=number)
            assert alive < 5
        raise UserError("no more", where="entries")

    with refused("no more", where="entries"):
        files.write_json_list(tmp_path / "a.json", entries())
    assert (tmp_path / "a.json").read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "content, word",
    [
        (None, "no such file"),
        (b"", "empty"),
        (b" \n", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"{", "JSON"),
        (b"\xff\xfe\xfd[1]", "JSON"),
        (b"[" * 100_000, files.MOST_NESTED),
        (b"[" * 101 + b"]" * 101, files.MOST_NESTED),
        (b'{"a": [-1' + b"0" * 400 + b"]}", "402 digits"),
        (b"1" * 5000, "5000 digits"),
        (b'{"images": [{"id": 1, "file\\u005fname": "a", "file_name": "b"}]}', "'file_name' occurs twice"),
    ],
    ids=[
        *("absent", "empty", "blank", "pointer", "broken", "bytes", "brackets", "deep"),
        *("402 digits", "5000 digits", "twice"),
    ],
)
def test_unreadable_json_is_named(tmp_path, content, word):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with refused(word, where="a.json"):
        files.read_json(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_of_every_unicode_encoding(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"ä": [-Infinity, 340282366920938463463374607431768211455]}', encoding)
    assert files.read_json(tmp_path / "a.json") == {"ä": [-math.inf, 2**128 - 1]}


def test_json_of_allowed_depth(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100 + "]" * 100)
    assert str(files.read_json(tmp_path / "a.json")) == "[" * 100 + "]" * 100


@pytest.mark.parametrize("read", [files.read_bytes, files.read_json, files.read_text])
def test_only_regular_files_are_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")  # opening it in the usual way would wait for ever
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    socket.socket(socket.AF_UNIX).bind(str(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    kinds = {"pipe": "pipe", "link": "pipe", "socket": "socket", "/dev/zero": "device", "": "folder", "loop": "loop"}
    kinds |= {"x" * 5000: "long", "a\0b": "name", "\ud83d": "name", "absent": "no such"}
    for name, word in kinds.items():
        with refused() as error:
            read(tmp_path / name)
        assert word in str(error.value).lower(), name
    (tmp_path / "to").symlink_to("file")
    (tmp_path / "file").write_text("[1]")
    assert read(tmp_path / "to") in (b"[1]", "[1]", [1])


def test_text_has_to_be_utf8(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffä".encode())
    assert files.read_text(tmp_path / "a") == "ä"
    (tmp_path / "a").write_bytes(b"\xe4")
    with refused("UTF-8", where="a"):
        files.read_text(tmp_path / "a")


def test_folder_under_a_file_is_left(tmp_path):
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


# ---- One writer a folder, and what killed ones leave ---------------------------------------------------------------


def test_a_folder_has_one_writer_and_the_next_one_is_told_who(tmp_path):
    with files.locked(tmp_path):
        with refused(os.getpid(), socket.gethostname(), "since", where=tmp_path), files.locked(tmp_path):
            pass
        files.write_text(tmp_path / "a.txt", "whole")
    with files.locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_killed_process_holds_nothing_and_its_leftovers_go(tmp_path):
    child = os.fork()
    if child == 0:
        with files.locked(tmp_path):
            for folder in (tmp_path, tmp_path / "stage" / "model"):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / ".a.json.77.partial").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / files.LOCK).exists()
    (tmp_path / "stage" / "model" / "b.json").write_text("whole")
    before = files.fingerprint(tmp_path / "stage" / "model")
    with files.locked(tmp_path):
        assert files.fingerprint(tmp_path / "stage" / "model") == before
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*")) if path.is_file()] == [
        "stage/model/b.json"
    ]


@pytest.mark.parametrize("change, taken", [({}, True), ({"process": 1}, False), ({"host": "another"}, False)])
def test_without_locks_of_the_file_system_the_file_is_the_lock(tmp_path, monkeypatch, change, taken):
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)

    def unsupported(descriptor, operation):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    holder = {"process": gone, "host": socket.gethostname(), "since": "yesterday"} | change
    files.write_json(tmp_path / files.LOCK, holder)
    if taken:
        with files.locked(tmp_path):
            pass
        return
    with refused(holder["process"], holder["host"], "yesterday", "remove", where=tmp_path), files.locked(tmp_path):
        pass


def test_no_link_is_followed(tmp_path):
    other = tmp_path / "other"
    other.write_text("theirs")
    (tmp_path / "a.txt").symlink_to(other)
    (tmp_path / files.LOCK).symlink_to(other)
    files.write_text(tmp_path / "a.txt", "ours")
    assert other.read_text() == "theirs" and (tmp_path / "a.txt").read_text() == "ours"
    with refused("link", where=files.LOCK), files.locked(tmp_path):
        pass
    assert other.read_text() == "theirs"


@pytest.mark.parametrize("name", ["a" * 251, "\u00e4" * 125 + "a"])  # 255 bytes with the ending
def test_any_name_that_a_file_can_have_is_written(tmp_path, name):
    files.write_text(tmp_path / f"{name}.txt", "whole")
    assert (tmp_path / f"{name}.txt").read_text() == "whole"
    for write in (files.check_name, lambda path: files.write_text(path, "")):
        with refused(256, 255, where=f"{name}a.txt"):
            write(tmp_path / f"{name}a.txt")
    assert len(os.listdir(tmp_path)) == 1


def test_a_name_of_other_bytes_is_written_as_text(tmp_path):
    name = os.fsdecode(b"br\xe4st.png")
    files.write_text(tmp_path / name, f"file,{name}")
    assert (tmp_path / name).read_text(encoding="utf-8") == "file,br\\udce4st.png"
    files.write_json(tmp_path / "a.json", {"file": name})
    assert files.read_json(tmp_path / "a.json") == {"file": name} and files.fingerprint(tmp_path)


# ---- A folder, whole or not at all -----------------------------------------------------------------------------------


def write_two(folder):
    with files.whole_folder(folder, last="index") as place:
        (place / "index").write_text("all")
        (place / "part").mkdir()
        (place / "part" / "weights").write_text("1")
        assert {path.name for path in folder.iterdir()} == {place.name, files.LOCK}


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_written_whole(tmp_path, there):
    folder = tmp_path / "out"
    if there:  # as a killed program leaves it
        (folder / files.PARTIAL / "half").mkdir(parents=True)
    write_two(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["index", "part"]
    with refused("not empty", where=folder):
        write_two(folder)
    assert (folder / "part" / "weights").read_text() == "1"


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("failing", ["index", "weights"])
def test_of_a_folder_that_cannot_be_written_nothing_remains(tmp_path, monkeypatch, there, failing):
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
    replace, write = os.replace, Path.write_text

    def moved(path, target):
        if Path(path).name == failing:  # the last: the other has moved
            assert (folder / "part").is_dir()
            raise OSError(errno.ENOSPC, "full")
        return replace(path, target)

    def written(path, text):
        if path.name == failing != "index":
            raise OSError(errno.ENOSPC, "full")
        return write(path, text)

    monkeypatch.setattr(os, "replace", moved)
    monkeypatch.setattr(Path, "write_text", written)
    with refused("disk is full", where=folder):
        write_two(folder)
    assert list(folder.iterdir()) == [] if there else not folder.exists()


def test_a_folder_that_a_killed_command_left_is_written_again(tmp_path):
    def is_left():
        return not (folder / "index").exists() or (folder / files.MOVED).exists()

    folder = tmp_path / "out"
    for at in range(1, changes(folder, lambda: write_two(folder)) + 1):
        shutil.rmtree(folder)
        killed(folder, at, lambda: write_two(folder))
        if at % 2 and is_left():  # once more, while it removes what is there
            killed(folder, at // 2 + 1, lambda: write_two(folder))
        if is_left():
            write_two(folder)
        (folder / files.LOCK).unlink(missing_ok=True)  # of a dead process
        assert there(folder) == {"index": "all", "part/weights": "1"} and len(list(folder.iterdir())) == 2, at


def test_of_what_a_killed_command_left_only_its_own_is_removed(tmp_path):
    folder = tmp_path / "out"
    for at in itertools.count(1):
        shutil.rmtree(folder, ignore_errors=True)
        killed(folder, at, lambda: write_two(folder))
        if (folder / "part").exists():  # the first of two moves has been made
            break
    assert not (folder / "index").exists()
    (folder / "mine").write_text("mine")
    with refused("not empty", where=folder):
        write_two(folder)
    (folder / "mine").unlink()
    with files.whole_folder(folder, last="other") as place:  # another content
        (place / "other").write_text("all")
    assert there(folder) == {"other": "all"}


def test_a_folder_has_one_writer_of_its_whole(tmp_path):
    folder = tmp_path / "out"
    with files.whole_folder(folder, last="index") as place:
        (place / "index").write_text("first")
        with refused("another process", where=folder):
            write_two(folder)
    assert there(folder) == {"index": "first"}


EARLIER = ("page", "pictures/[0-9]_*", "index")


def write_results(folder, *names, inputs=()):
    with files.new_results(folder, "index", EARLIER, inputs) as place:
        for name in names:
            files.write_text(files.make_folder((place / name).parent) / name.rpartition("/")[2], "new")


def there(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_new_results_replace_the_earlier_ones_and_no_other_file(tmp_path):
    write_results(tmp_path, "index", "page", "pictures/1_a", "pictures/2_b")
    assert there(tmp_path) == dict.fromkeys(("index", "page", "pictures/1_a", "pictures/2_b"), "new")
    for name in ("mine", "pictures/mine", "pictures/3_given"):
        (tmp_path / name).write_text("old")
    write_results(tmp_path, "index", "pictures/2_c", inputs=[tmp_path / "pictures" / "3_given"])
    new, old = ("index", "pictures/2_c"), ("mine", "pictures/mine", "pictures/3_given")
    assert there(tmp_path) == dict.fromkeys(new, "new") | dict.fromkeys(old, "old")
    for name in ("pictures/mine", "pictures/3_given"):
        (tmp_path / name).unlink()
    write_results(tmp_path, "index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "mine"]


def test_files_that_no_command_has_written_stay(tmp_path):
    (tmp_path / "page").write_text("mine")
    write_results(tmp_path, "index")
    assert there(tmp_path) == {"index": "new", "page": "mine"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_after_an_error_the_earlier_results_are_as_they_were(tmp_path, monkeypatch, error):
    write_results(tmp_path, "index", "page")
    before = there(tmp_path)

    def fail(*arguments):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with refused("disk is full") if isinstance(error, OSError) else pytest.raises(KeyboardInterrupt):
        write_results(tmp_path, "page", "index")
    assert there(tmp_path) == before


def test_results_of_a_killed_command_are_not_complete_and_are_replaced(tmp_path):
    def act():
        write_results(tmp_path, "index", "page", "pictures/1_b")

    def start():
        shutil.rmtree(tmp_path)
        for name in before:
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_text("old")

    before = dict.fromkeys(("index", "page", "pictures/0_a"), "old")
    after = dict.fromkeys(("index", "page", "pictures/1_b"), "new")
    start()
    for at in range(1, changes(tmp_path, act) + 1):
        start()
        killed(tmp_path, at, act)
        if (tmp_path / "index").exists():
            found = {name: text for name, text in there(tmp_path).items() if not name.startswith(".")}
            assert found in (before, after), at
        if at % 2:  # another one after it, killed as well
            killed(tmp_path, at // 2 + 1, act)
        write_results(tmp_path, "index")
        assert there(tmp_path) == {"index": "new"}, at


def test_what_a_command_has_not_replaced_when_it_is_killed_stays(tmp_path):
    (tmp_path / "page").write_text("mine")
    with files.new_results(tmp_path, "index", EARLIER) as place:
        (place / "index").write_text("new")  # first, as some commands write it
        shutil.copytree(place, tmp_path / "left")
    (tmp_path / "index").unlink()
    (tmp_path / "left").rename(tmp_path / files.PARTIAL)  # as if it had been killed there
    write_results(tmp_path, "index")
    assert there(tmp_path) == {"index": "new", "page": "mine"}


def test_results_on_a_full_disk_leave_the_earlier_ones_or_none_that_look_complete(tmp_path):
    write_results(tmp_path, "index", "page")
    before = there(tmp_path)
    for at in range(1, changes(tmp_path, lambda: write_results(tmp_path, "index", "page")) + 1):
        try:
            on_full_disk(tmp_path, at, lambda: write_results(tmp_path, "index", "page"))
        except UserError as error:
            check_refusal(error, "disk is full")
        assert not (tmp_path / "index").exists() or before.items() <= there(tmp_path).items(), at
        write_results(tmp_path, "index", "page")
        assert there(tmp_path) == before, at


@pytest.mark.parametrize("between", [";", "\t"])
def test_a_table_with_other_separators_says_so(tmp_path, between):
    path = tmp_path / "a.csv"
    path.write_text(between.join(("a", "b")) + "\n")
    with refused("a, b", "commas", where=path):
        list(files.read_table(path, ("a", "b")))


def test_files_below_a_folder_are_found_through_links_but_not_in_circles(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("a/1", "a/b/2", "other/3"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "a" / "gone").symlink_to("nothing")
    found = [str(path.relative_to(tmp_path)) for path in files.below(tmp_path / "a")]
    assert found == ["a/1", "a/b/2", "a/gone", "a/linked/3", "a/self"]
    with refused("no such", where="nowhere"):
        files.below(tmp_path / "nowhere")


def test_a_table_without_content_is_named_so(tmp_path):
    path = tmp_path / "a.csv"
    for content, words in (("\n", "empty"), ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull")):
        path.write_text(content)
        with refused(words, where=path):
            list(files.read_table(path, ("a", "b")))
