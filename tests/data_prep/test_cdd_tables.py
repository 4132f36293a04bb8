"""Reading the official tables: shapes of regions, quirks, and the published counts on the real tables."""

from __future__ import annotations

import json
import zipfile
from collections import Counter

import cdd_tables
import cv2
import numpy as np
import openpyxl
import pytest
from cdd_layout import circle, image_row, write_tables

from elk_jax import budget
from tests.refusals import refused


def box(**shape):
    return cdd_tables.region_box(json.dumps(shape), "here")


def test_polygon_and_polyline_include_their_outline():
    for name in ("polygon", "polyline"):
        assert box(name=name, all_points_x=[10, 20, 15], all_points_y=[5, 7, 30]) == (10, 5, 21, 31)


def test_rect_circle_and_ellipse():
    assert box(name="rect", x=3, y=4, width=10, height=20) == (3, 4, 13, 24)
    assert box(name="circle", cx=50, cy=40, r=10) == (40, 30, 61, 51)
    assert box(name="ellipse", cx=50, cy=40, rx=10, ry=5) == (40, 35, 61, 46)


def test_a_turned_ellipse():
    assert box(name="ellipse", cx=50, cy=40, rx=10, ry=5, theta=np.pi / 2) == (45, 30, 56, 51)
    slanted = box(name="ellipse", cx=50, cy=50, rx=20, ry=20, theta=0.7)
    assert slanted == box(name="circle", cx=50, cy=50, r=20)


def test_points_and_regions_without_an_area_are_skipped():
    assert box(name="point", cx=5, cy=5) is None
    assert box(name="circle", cx=5, cy=5, r=0) is None
    assert box(name="polygon", all_points_x=[-9, -3], all_points_y=[2, 8]) is None


def test_what_lies_outside_the_image_is_cut_off():
    assert box(name="circle", cx=2, cy=1, r=5) == (0, 0, 8, 7)
    assert box(name="polygon", all_points_x=[-1, 8], all_points_y=[-5, 3]) == (0, 0, 9, 4)


@pytest.mark.parametrize("seed", range(20))
def test_rectangles_agree_with_filled_masks(seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(5, 95, (rng.integers(3, 9), 2))
    mask = cv2.fillPoly(np.zeros((100, 100), np.uint8), [points.astype(np.int32)], 255)
    x, y, width, height = cv2.boundingRect(mask)
    assert box(name="polygon", all_points_x=points[:, 0].tolist(), all_points_y=points[:, 1].tolist()) == (
        x, y, x + width, y + height)  # fmt: skip
    (cx, cy), (rx, ry) = rng.integers(40, 60, 2).tolist(), rng.uniform(1, 30, 2)
    ys, xs = np.ogrid[:100, :100]
    mask = (((xs - cx) / rx) ** 2 + ((ys - cy) / ry) ** 2 <= 1).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(mask)
    assert box(name="ellipse", cx=cx, cy=cy, rx=rx, ry=ry) == (x, y, x + width, y + height)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{not json", "region"),
        ("{}", "'name'"),
        ('{"name": "star"}', "'star'"),
        ('{"name": "circle", "cx": 1, "cy": 2}', "'r'"),
        ('{"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1]}', "2 x"),
        ('{"name": "polygon", "all_points_x": [], "all_points_y": []}', "0 x"),
        ('{"name": "circle", "cx": "a", "cy": 2, "r": 3}', "region"),
        ('{"name": "circle", "cx": NaN, "cy": 2, "r": 3}', "region"),
        ("[1, 2]", "region"),
    ],
)
def test_a_bad_region_names_its_line(text, what):
    with refused(what, where="table, line 7"):
        cdd_tables.region_box(text, "table, line 7")


@pytest.mark.parametrize("kind", ["xlsx", "csv"])
def test_both_kinds_of_table(tmp_path, kind):
    images = [
        image_row("P1_L_DM_CC", density="C", birads="3$2"),
        image_row("P1_L_CM_CC ", density="_"),
        image_row("P2_R_CM_MLO", "normal", "No mass or non mass enhancement", "Normal"),
    ]
    shapes = [("P1_L_CM_CC", circle(10, 10, 3)), ("P1_L_CM_CC", {"name": "point", "cx": 1, "cy": 2})]
    write_tables(tmp_path / "in" / "deeper", images, shapes, kind)
    first, second, third = cdd_tables.read_tables(tmp_path / "in")
    assert (second.name, second.patient_id, second.side, second.view) == ("P1_L_CM_CC", "1", "L", "CC")
    assert second.modality == "subtracted" and first.modality == "low_energy"
    assert second.density == "C", "taken from the low-energy image of the same breast"
    assert third.density == ""
    assert first.birads == "3$2" and second.pathology == "Malignant"
    np.testing.assert_array_equal(second.boxes, [[7, 7, 14, 14]])
    assert second.points == 1 and first.boxes.shape == (0, 4)
    assert cdd_tables.is_healthy(third) and not cdd_tables.is_healthy(second)


@pytest.mark.parametrize(
    ("tags", "findings", "elk", "masses"),
    [
        ("malignant, mass", "Enhancing mass", True, True),
        ("Benign MASS", "enhancing", True, True),
        ("malignant, Non Mass", "enhancing", False, False),
        ("malignant mass, non mass", "enhancing", False, False),
        ("benign", "Enhancing mass", False, False),
        ("mass", "mass with Rim enhancement", False, True),
        ("mass", "Non Enhancement", False, True),
        ("mass", "focus enhancement", False, True),
    ],
)
def test_filters(tmp_path, tags, findings, elk, masses):
    write_tables(tmp_path, [image_row("P1_L_CM_CC", tags, findings)], [("P1_L_CM_CC", circle(9, 9, 2))])
    (row,) = cdd_tables.read_tables(tmp_path)
    assert cdd_tables.passes(row, "elk") is elk
    assert cdd_tables.passes(row, "all_masses") is masses
    assert cdd_tables.passes(row, "none")


def test_healthy_needs_every_column_to_agree(tmp_path):
    images = [
        image_row("P1_L_CM_CC", "normal, portacath", "none", "Normal"),
        image_row("P2_L_CM_CC", "normal", "none", "Benign"),
        image_row("P3_L_CM_CC", "abnormal", "none", "Normal"),
        image_row("P4_L_CM_CC", "normal", "none", "Normal"),
    ]
    write_tables(tmp_path, images, [("P4_L_CM_CC", {"name": "point", "cx": 1, "cy": 2})])
    assert [cdd_tables.is_healthy(row) for row in cdd_tables.read_tables(tmp_path)] == [True, False, False, False]


def test_cleaning():
    boxes = np.array(
        [[0, 0, 100, 100], [10, 10, 20, 20], [0, 0, 100, 100], [200, 0, 300, 100], [200, 40, 300, 120]], np.float32
    )
    strict = cdd_tables.kept_boxes(boxes, "strict")
    assert strict.tolist() == [True, False, False, True, False]
    published = cdd_tables.kept_boxes(boxes, "published")
    assert published.tolist() == [True, False, True, True, False], "exact duplicates come back"
    assert cdd_tables.kept_boxes(boxes, "none").all()
    for rule in ("strict", "published", "none"):
        assert cdd_tables.kept_boxes(np.zeros((0, 4), np.float32), rule).shape == (0,)
        assert cdd_tables.kept_boxes(boxes[:1], rule).tolist() == [True]


def test_published_cleaning_drops_what_overlaps_a_dropped_box():
    """A chain of three: the second goes by the first; the third by the second, though that is gone itself."""
    chain = np.array([[0, 0, 100, 100], [0, 45, 100, 142], [0, 90, 100, 184]], np.float32)
    assert cdd_tables.kept_boxes(chain, "published").tolist() == [True, False, False]
    assert cdd_tables.kept_boxes(chain, "strict").tolist() == [True, False, True]


def break_tables(folder, what):
    (xlsx,) = folder.glob("*.xlsx")
    (regions,) = folder.glob("*segmentations*")
    if what == "no images table":
        xlsx.unlink()
    elif what == "no regions":
        regions.unlink()
    elif what == "two tables":
        (folder / "copy").mkdir()
        (folder / "copy" / xlsx.name).write_bytes(xlsx.read_bytes())
    elif what == "not xlsx":
        xlsx.write_text("no spreadsheet")
    elif what == "cut xlsx":
        xlsx.write_bytes(xlsx.read_bytes()[:1000])
    elif what == "empty regions":
        regions.write_text("")
    elif what == "binary regions":
        regions.write_bytes(b"\xff\xfe\x00\x81" * 9)
    elif what == "other columns":
        regions.write_text("a,b\n1,2\n")
    elif what == "unknown image":
        regions.write_text(regions.read_text().replace("P1_L_CM_CC", "P77_L_CM_CC"))


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("no images table", "*Radiology*manual*annotations"),
        ("no regions", "*Radiology*segmentations"),
        ("two tables", "2 tables"),
        ("not xlsx", "XLSX"),
        ("cut xlsx", "XLSX"),
        ("empty regions", "empty"),
        ("binary regions", "CSV"),
        ("other columns", "'#filename'"),
        ("unknown image", "P77_L_CM_CC"),
    ],
)
def test_bad_tables_end_in_one_line(tmp_path, what, word):
    write_tables(tmp_path, [image_row("P1_L_CM_CC")], [("P1_L_CM_CC", circle(9, 9, 2))])
    break_tables(tmp_path, what)
    with refused(word) as caught:
        cdd_tables.read_tables(tmp_path)
    assert caught.value.where.startswith(str(tmp_path))


def test_bad_rows_name_their_line(tmp_path):
    row = image_row("P1_L_CM_CC")
    write_tables(tmp_path / "a", [row, row], [("P1_L_CM_CC", circle(9, 9, 2))])
    with refused("twice", where="line 3, P1_L_CM_CC"):
        cdd_tables.read_tables(tmp_path / "a")
    row[2] = "left"
    write_tables(tmp_path / "b", [row], [("P1_L_CM_CC", circle(9, 9, 2))])
    with refused("'LEFT'", where="line 2, P1_L_CM_CC"):
        cdd_tables.read_tables(tmp_path / "b")
    with refused("no such folder", where="nowhere"):
        cdd_tables.read_tables(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "words", "line"),
    [
        (lambda rows: rows + rows[1:2], "occurs twice", 5),  # tables joined
        (lambda rows: rows[:-1], "region_count is 2", 3),  # a table cut short
        (lambda rows: [rows[0], rows[1].replace(",1,0,", ",,0,"), *rows[2:]], "region_count is empty", 2),
    ],
)
def test_regions_that_are_missing_or_occur_twice(tmp_path, change, words, line):
    """They would change the boxes, and through the number of lesions the split."""
    names = ("P1_L_CM_CC", "P2_L_CM_CC", "P2_L_CM_CC")
    write_tables(tmp_path, [image_row(name) for name in names[:2]], [(name, circle(9, 9, 2)) for name in names])
    (table,) = tmp_path.glob("*segmentations*")
    table.write_text("\n".join(change(table.read_text().splitlines())))
    with refused(words, where=f"line {line}"):
        cdd_tables.read_tables(tmp_path)


def test_a_patient_is_one_however_the_table_writes_it(tmp_path):
    rows = [image_row(f"P3_{side}_{kind}_CC") for side in "LR" for kind in ("CM", "DM")]
    for row, patient in zip(rows, ("3", "3.0", " 3", "03.00")):
        row[1] = patient
    rows[0][2] = "l"
    blank = [""] * len(rows[0])
    write_tables(tmp_path, [*rows[:2], blank, *rows[2:], blank], [("P3_L_CM_CC", circle(9, 9, 2))], "csv")
    for file in list(tmp_path.glob("*.csv")):
        file.rename(file.with_suffix(".CSV"))
    read = cdd_tables.read_tables(tmp_path)
    assert [row.patient_id for row in read] == ["3"] * 4
    assert read[0].density == "C", "of the low-energy image, whose side is written otherwise"


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        (1, "4", "patient '4'"),
        (2, "R", "side 'R'"),
        (3, "DM", "type 'DM'"),
        (8, "MLO", "view 'MLO'"),
        (8, "", "view ''"),
    ],
)
def test_a_row_that_contradicts_the_name_of_its_image(tmp_path, column, value, words):
    rows = [[], image_row("P3_L_DM_CC2"), image_row("P3_L_CM_CC")]
    rows[1][8], rows[2][column] = "CC", value
    write_tables(tmp_path, rows, [("P3_L_CM_CC", circle(9, 9, 2))], "csv")
    with refused(words, where="line 4, P3_L_CM_CC"):
        cdd_tables.read_tables(tmp_path)


@pytest.mark.parametrize(
    ("change", "word", "where"),
    [
        (lambda text: text.replace('"Enhancing mass"', "mass, enhancing"), "13 cells", "line 3"),
        (lambda text: text.replace('"Age"', '"Tags"'), "'Tags' occurs 2 times", ".csv"),
        (lambda text: text.replace('"Enhancing mass"', '"Enhancing mass'), "CSV", ".csv"),
    ],
)
def test_a_table_whose_cells_are_not_below_their_columns(tmp_path, change, word, where):
    """A comma moves what follows it, and a quote that is not closed swallows the rest of the table."""
    write_tables(tmp_path, [[], image_row("P1_L_CM_CC")], [("P1_L_CM_CC", circle(9, 9, 2))], "csv")
    table = tmp_path / "Radiology-manual-annotations.csv"
    table.write_text(change(table.read_text()))
    with refused(word) as raised:
        cdd_tables.read_tables(tmp_path)
    assert raised.value.where.endswith(where)


@pytest.fixture(scope="module")
def real_rows(real_data):
    if not (real_data / "cdd_cesm_native").is_dir():
        pytest.skip("the official tables of CDD-CESM are not there")
    return cdd_tables.read_tables(real_data / "cdd_cesm_native")


def test_published_counts_on_the_real_tables(real_rows):
    """Filter, boxes and cleaning: the numbers of Montoya-del-Angel et al. 2024 from the tables alone."""
    assert len(real_rows) == 2006 and len({row.patient_id for row in real_rows}) == 326
    assert Counter(row.modality for row in real_rows) == {"subtracted": 1003, "low_energy": 1003}
    chosen = [row for row in real_rows if row.modality == "subtracted" and cdd_tables.passes(row, "elk")]
    assert len(chosen) == 245 and len({row.patient_id for row in chosen}) == 132
    assert Counter(row.pathology for row in chosen) == {"Malignant": 204, "Benign": 41}
    assert sum(len(row.boxes) for row in chosen) == 595
    drawn = [row for row in chosen if len(row.boxes)]
    assert len(drawn) == 243 and len({row.patient_id for row in drawn}) == 131
    kept = {
        rule: sum(int(cdd_tables.kept_boxes(row.boxes, rule).sum()) for row in drawn)
        for rule in ("published", "strict")
    }
    assert kept == {"published": 555, "strict": 553}
    assert sum(row.points for row in real_rows) + sum(len(row.boxes) for row in real_rows) == 2971


def test_xlsx_and_csv_of_the_real_tables_agree(real_rows, real_data, tmp_path):
    source = real_data / "cdd_cesm_native"
    for table in source.glob("*.csv"):
        (tmp_path / table.name).write_bytes(table.read_bytes())
    for one, other in zip(real_rows, cdd_tables.read_tables(tmp_path), strict=True):
        assert one.name == other.name and one.tags == other.tags and one.findings == other.findings
        assert (one.birads, one.pathology, one.density) == (other.birads, other.pathology, other.density)
        np.testing.assert_array_equal(one.boxes, other.boxes)


@pytest.mark.parametrize("bomb", ["zeros", "wide rows"])
def test_a_spreadsheet_that_asks_for_much_is_refused(bomb, tmp_path, monkeypatch):
    write_tables(tmp_path, [image_row("P1_L_CM_CC")], [("P1_L_CM_CC", circle(9, 9, 4))])
    path = tmp_path / "Radiology-manual annotations.xlsx"
    assert len(cdd_tables.read_tables(tmp_path)) == 1
    monkeypatch.setattr(budget, "FLOOR", 1 << 20)
    if bomb == "zeros":
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("xl/media/image1.bin", bytes(1 << 21))
    else:
        book = openpyxl.load_workbook(path)
        book["all"].cell(3, 16384, "x"), book["all"].cell(400, 1, "x")
        book.save(path)
    with refused("far more", where=path):
        cdd_tables.read_tables(tmp_path)
