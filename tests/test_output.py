"""Whatever is printed, by whatever name, in whatever encoding: text that does no harm, and no error."""

from __future__ import annotations

import io
import os
import sys

import pytest
import rich.console

from elk_jax import output
from elk_jax.errors import UserError
from elk_jax.progress import Progress
from elk_jax.reporting import html
from elk_jax.reporting.tables import difference_cell, name_cell, named_table

SAME = ["plain", "[/b] [red]", "\u00e4\u03b2", "a b"]
ESCAPED = {
    "a\x1b[31m": "a\\x1b[31m",
    "a\nb\r": "a\\nb\\r",
    "a\u202etxt": "a\\u202etxt",
    os.fsdecode(b"br\xe4st"): "br\\udce4st",
}
NAMES = {**{name: name for name in SAME}, **ESCAPED}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_text_everywhere(name):
    shown, stream = NAMES[name], io.StringIO()
    assert output.visible(name) == shown
    console = output.Console(file=stream, width=200)
    console.print(f"skipped {name}: {name}")
    table = named_table(name, "first")
    table.add_row(name_cell(name))
    for one in (console, rich.console.Console(file=stream, width=200)):
        one.print(table)
    with Progress(name, 1, stream=stream) as bar:
        bar.say(name)
        bar.update(1)
    assert stream.getvalue().count(shown) == 8
    for hidden in "\x1b\r\u202e\udce4":
        assert hidden not in stream.getvalue() + str(UserError(name, where=name)) + html.text(name)
    assert len(str(UserError(name, where=name)).splitlines()) == 1


def test_a_number_is_whole_where_there_is_no_room():
    table, stream = named_table("", "name"), io.StringIO()
    table.add_column("share")
    table.add_row("a", "2.5e-07")
    output.Console(file=stream, width=15).print(table)
    cells = [line.split("│")[2].strip() for line in stream.getvalue().splitlines() if line.startswith("│")]
    assert len(cells) > 1 and "".join(cells) == "2.5e-07"


def test_a_difference_lies_in_its_interval_as_written():
    cell = difference_cell({"difference": -0.001, "low": -0.004, "high": 0.002})
    value, low, _, high = cell.plain.replace("−", "-").split()
    assert float(low) < float(value) < float(high) and float(low) < 0 < float(high)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_no_character_is_too_much_for_an_encoding(encoding, monkeypatch, tmp_path):
    with open(tmp_path / "log", "w", encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)
        output.prepare()
        print("lesion \u2265 0.5 \u2192 \u65e5")
        output.Console().print(named_table("\u65e5\u2192", "metric"))
        sys.stdout.flush()
    assert b"lesion \\u2265 0.5 \\u2192 \\u65e5" in (tmp_path / "log").read_bytes()


def test_work_goes_on_when_nobody_reads(monkeypatch):
    reader, writer = os.pipe()
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)
        output.prepare()
        print("first")
        sys.stdout.flush()
        os.close(reader)
        for _ in range(3):
            print("more")
            output.Console().print("more")
            sys.stdout.flush()
    monkeypatch.setattr(sys, "stdout", None)  # as Python starts with closed ones
    output.prepare()
    print("nowhere")
    output.Console().print("nowhere")
