"""Settings of a sweep: the values of --over, rows of lists, and the baseline of each."""

from __future__ import annotations

import json

import pytest

from elk_jax.sweeps.settings import Row, baselines, checked, product, read_over, read_rows
from tests.refusals import refused

MODE, SHARE = read_over("distill.mode=none,lesion"), read_over("data.share=0.1,1")
VALUES = {("distill.mode", "none"): "none", ("distill.mode", "lesion"): "lesion"}
VALUES |= {("data.share", "0.1"): 0.1, ("data.share", "1"): 1.0}
ROWS = product([MODE, SHARE], VALUES)


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("a=1", ("1",)),
        ("a.b=1, 2 ,3", ("1", "2", "3")),
        ("a=('x',),('x','y')", ("('x',)", "('x','y')")),
        ("a=[1,2],{'k': 3}", ("[1,2]", "{'k': 3}")),
        ("a='phantom:size=64,count=2',\"coco:b(1.json\"", ("phantom:size=64,count=2", "coco:b(1.json")),
        ("a='',x=y", ("", "x=y")),
    ],
)
def test_commas_separate_values_outside_brackets_and_quotes(text, texts):
    assert read_over(text).texts == texts


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("steps", "KEY=VALUE"),
        ("=1", "KEY=VALUE"),
        ("a b=1", "KEY=VALUE"),
        ("a=", "empty"),
        ("a=1,,2", "empty"),
        ("a=1,2,1", "twice"),
        ("a=(1,2", "not closed"),
        ("a=1)", "no opening bracket"),
        ("a=(1]", "no opening bracket"),
        ("a='x", "not closed"),
        ("a='x'y", "quoted"),
    ],
)
def test_over_that_cannot_be_read(text, word):
    with refused(word, where=f"--over={text}"):
        read_over(text)


def test_a_product_has_a_row_for_every_combination():
    assert [row.name for row in ROWS] == [
        "mode=none,share=0.1",
        "mode=none,share=1",
        "mode=lesion,share=0.1",
        "mode=lesion,share=1",
    ]
    assert ROWS[2].overrides == {"distill.mode": "lesion", "data.share": 0.1}


def test_keys_are_named_by_as_many_parts_as_distinguish_them():
    overs = [read_over("real.steps=1"), read_over("mixed.steps=1"), read_over("steps=1")]
    (row,) = product(overs, {(over.key, "1"): 1 for over in overs})
    assert row.name == "real.steps=1,mixed.steps=1,steps=1"


def test_a_product_with_one_key_of_numbers_is_drawn_over_it():
    assert [(row.at, row.axis, row.line) for row in ROWS] == [
        (0.1, "share", "mode=none"),
        (1.0, "share", "mode=none"),
        (0.1, "share", "mode=lesion"),
        (1.0, "share", "mode=lesion"),
    ]
    (alone, _) = product([read_over("a.steps=1,2")], {("a.steps", "1"): 1, ("a.steps", "2"): 2})
    assert (alone.at, alone.axis, alone.line) == (1.0, "steps", "")


@pytest.mark.parametrize(
    "values",
    [
        {"a": {"1": 1, "2": 2}, "b": {"3": 3, "4": 4}},  # two keys of numbers
        {"a": {"True": True, "False": False}},
        {"a": {"1": 1, "None": None}},
        {"a": {"x": "x", "1": 1}},
        {"a": {"1": 1}, "b": {"x": "x", "y": "y"}},  # one value is not an axis
    ],
)
def test_other_products_have_no_axis(values):
    overs = [read_over(f"{key}={','.join(texts)}") for key, texts in values.items()]
    rows = product(overs, {(key, text): value for key, texts in values.items() for text, value in texts.items()})
    assert all(row.at is None and not row.axis for row in rows)


def test_two_texts_of_one_value_and_a_key_twice_are_refused():
    with refused("same setting"):
        product([read_over("a=0.1,0.10")], {("a", "0.1"): 0.1, ("a", "0.10"): 0.1})
    with refused("twice", "--over=a=1,2", where="--over=a"):
        product([read_over("a=1"), read_over("a=2")], {("a", "1"): 1, ("a", "2"): 2})


def test_each_setting_is_compared_with_its_baseline():
    assert baselines(ROWS, "", VALUES) == {row.name: "mode=none,share=0.1" for row in ROWS[1:]}
    assert (
        baselines(ROWS, "mode=none", VALUES)
        == baselines(ROWS, "distill.mode=none", VALUES)
        == {
            "mode=lesion,share=0.1": "mode=none,share=0.1",
            "mode=lesion,share=1": "mode=none,share=1",
        }
    )
    assert set(baselines(ROWS, "mode=lesion,share=1", VALUES).values()) == {"mode=lesion,share=1"}
    for unknown in ("mode=image", "mode", "mode=none,", "mode=none,share=7"):
        with refused("mode=none,share=1" if not unknown.endswith(",") else "empty", where=f"--against={unknown}"):
            baselines(ROWS, unknown, VALUES)


def test_a_baseline_is_written_like_the_values():
    """With quotes around commas and brackets, and spaces beside commas, as in `--over`."""
    overs = [read_over("data.spec='phantom:size=64,count=24','a(b'"), read_over("mode=none, lesion")]
    values = {(over.key, text): text for over in overs for text in over.texts}
    rows = product(overs, values)
    names = [row.name for row in rows]
    assert baselines(rows, "spec='phantom:size=64,count=24'", values) == {names[2]: names[0], names[3]: names[1]}
    assert set(baselines(rows, "data.spec='a(b', mode=none", values).values()) == {names[2]}
    with refused("is not closed", where="--against=spec='a(b"):
        baselines(rows, "spec='a(b", values)


def test_a_row_that_is_not_run_is_no_baseline():
    rows = checked([Row("theirs", not_run="needs a GPU"), Row("a", {"x": 1}), Row("b", {"x": 2})], "list")
    assert baselines(rows, "", {}) == {"b": "a"}
    with refused("a; b", where="--against=theirs"):
        baselines(rows, "theirs", {})


def test_a_row_may_name_the_one_that_it_is_compared_with():
    rows = [Row(name, {"x": k}, against=other) for k, (name, other) in enumerate([("a", ""), ("b", ""), ("c", "b")])]
    assert baselines(checked(rows, "list"), "", {}) == {"b": "a", "c": "b"}
    assert baselines(rows, "a", {}) == {"b": "a", "c": "a"}, "--against goes before"
    with refused("'c'", "'b'", where="list"):
        checked([rows[0], Row("b", not_run="needs a GPU"), rows[2]], "list")


def test_lists_are_python_or_json(tmp_path):
    entry = {"name": "ours", "overrides": {"a.b": 2}, "published": {"auroc": 0.7}, "note": "per image"}
    entry |= {"at": 16, "axis": "shift, pixels", "line": "<tolerant>"}
    (tmp_path / "table.json").write_text(json.dumps([entry, {"name": "theirs", "not_run": "needs a GPU"}]))
    python = "from elk_jax.sweeps.settings import Row\nROWS = (Row('ours', {'a.b': 2}, {'auroc': 0.7}, 'per image',"
    python += "at=16, axis='shift, pixels', line='<tolerant>'),"
    (tmp_path / "table.py").write_text(f"{python} Row('theirs', not_run='needs a GPU'))")
    assert read_rows(tmp_path / "table.json") == read_rows(tmp_path / "table.py")
    assert read_rows(tmp_path / "table.py")[0].published == {"auroc": 0.7}


def test_a_list_may_define_classes(tmp_path):
    """A dataclass looks its module up; with annotations as text it needs the module's names."""
    lines = ("from __future__ import annotations", "from dataclasses import dataclass")
    lines += ("from elk_jax.sweeps.settings import Row", "@dataclass", "class Pair:", "    size: int")
    lines += ("ROWS = tuple(Row(f'{pair}', {'a': pair.size}) for pair in (Pair(1), Pair(2)))",)
    (tmp_path / "table.py").write_text("\n".join(lines))
    assert [row.overrides for row in read_rows(tmp_path / "table.py")] == [{"a": 1}, {"a": 2}]


VARIANTS = """
from elk_jax.sweeps.settings import Row
def get_rows(variant):
    return {"": (Row("a"),), "b": (Row("b", config="other.py:small"),)}[variant]
"""


def test_a_list_may_have_variants(tmp_path):
    path, plain = tmp_path / "table.py", tmp_path / "plain.py"
    path.write_text(VARIANTS)
    plain.write_text(f"{VARIANTS}ROWS = get_rows('b')")
    assert [row.name for row in read_rows(path)] == ["a"]
    assert [(row.name, row.config) for row in read_rows(path, "b")] == [("b", "other.py:small")]
    assert read_rows(plain) == read_rows(path, "b")
    with refused("KeyError", "c", where=str(path)):
        read_rows(path, "c")
    with refused("no variant 'b'", where=str(plain)):
        read_rows(plain, "b")
    with refused("JSON", where="table.json:b"):
        read_rows(tmp_path / "table.json", "b")


def test_published_values_are_of_a_model_or_of_all():
    row = Row("x", published={"auroc": 0.6, "first/auroc": 0.5, "first/average_precision/benign": 0.7})
    assert row.published_of("first")["auroc"] == 0.5 and row.published_of("last")["auroc"] == 0.6
    assert row.published_of("first")["average_precision/benign"] == 0.7
    assert "average_precision/benign" not in row.published_of("last")
    assert row.published_of("")["auroc"] == 0.6


def test_rows_of_two_configurations_may_change_the_same():
    rows = [Row("a", config="one.py"), Row("b", config="two.py"), Row("c")]
    assert checked(rows, "list") == tuple(rows)
    with refused("same setting"):
        checked([*rows, Row("d", config="two.py")], "list")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.json", '[{"name": "x", "config": 3}]', "config is not a string"),
        ("a.json", '{"name": "x"}', "list of rows"),
        ("a.json", "[3]", "not a row"),
        ("a.json", '[{"overrides": {}}]', "no name"),
        ("a.json", '[{"name": "x", "override": {}}]', "override"),
        ("a.json", '[{"name": 3}]', "not a string"),
        ("a.json", '[{"name": " "}]', "name"),
        ("a.json", '[{"name": "x", "overrides": [1]}]', "overrides"),
        ("a.json", '[{"name": "x", "published": {"auroc": "0.7"}}]', "auroc"),
        ("a.json", '[{"name": "x", "at": "3", "axis": "shift"}]', "at is '3'"),
        ("a.json", '[{"name": "x", "at": true, "axis": "shift"}]', "at is True"),
        ("a.json", '[{"name": "x", "at": 3}]', "axis"),
        ("a.json", '[{"name": "x", "axis": "shift"}]', "axis"),
        ("a.json", '[{"name": "x", "line": 3}]', "line is not a string"),
        ("a.json", '[{"name": "x"}, {"name": "x", "overrides": {"a": 1}}]', "x"),
        ("a.json", '[{"name": "x"}, {"name": "y"}]', "same setting"),
        ("a.json", '[{"name": "x", "not_run": "no"}]', "no setting"),
        ("a.json", "[]", "no setting"),
        ("a.py", "ROWS = 3", "ROWS"),
        ("a.py", "ROWS = ({'name': 'x'},)", "ROWS"),
        ("a.py", "import nothing_of_this_name", "nothing_of_this_name"),
        ("a.txt", "x", ".json"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path, name, content, word):
    (tmp_path / name).write_text(content)
    with refused(word) as raised:
        read_rows(tmp_path / name)
    assert name in raised.value.where


def test_folders_are_names_that_any_file_system_takes():
    names = ["lr=0.1,mode=none", "../x", "x/y", "x y", "x_y", "", ".hidden", "-flag", "é", "a" * 300]
    folders = [Row(name).folder for name in names]
    assert folders[0] == names[0] and len(set(folders)) == len(names)
    for folder in folders:
        assert folder.isascii() and "/" not in folder and not folder.startswith((".", "-")) and len(folder) <= 80
