"""The house stays as it is: what tasks, detectors and keys of data sources touch, and the way of a setting."""

from __future__ import annotations

import ast
import sys

import pytest

from benchmarks import structure
from benchmarks.structure import Module, Row, Trace

NOT_REACHED = {
    "existing source files that name the detector": 2,  # the table, and the layouts of published weights
    "files that a key of a data source touches: bit_depth": 4,  # raster images and DICOM, whose pipeline is a file
}
"""Measures that are above the bound, and how far: they may become less, not more."""


def test_figures_of_the_house_are_kept():
    worse = [
        f"{row.measure}: {row.now} ({', '.join(row.files)})"
        for row in structure.static_rows()
        if not row.reached and row.now > NOT_REACHED.get(row.measure, 0)
    ]
    assert not worse


def test_a_task_named_elsewhere_is_seen():
    tree = ast.parse("from elk_jax.tasks.detection import train\nTASK = 'inpainting'\n")
    strings, imports = frozenset({"inpainting"}), frozenset({"elk_jax.tasks.detection.train"})
    for path, expected in (
        ("elk_jax/experiments/new.py", ["detection", "inpainting"]),
        ("elk_jax/tasks/detection/new.py", ["inpainting"]),
    ):
        module = Module(path, tree, frozenset(), strings, imports)
        assert [t for t in ("detection", "inpainting", "translation") if structure._names_task(module, t)] == expected


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("BLOCKS = {18: 2, 34: 3, 50: 3, 101: 3}", 1),
        ("Literal[18, 34, 50, 101]", 1),
        ("help = 'Layers: 18, 34, 50, 101.'", 1),
        ("BLOCKS = {18: 2, 34: 3}", 0),
    ],
)
def test_lists_of_depths_are_seen(code, found):
    assert len(list(structure._lists_of(structure.DEPTHS, ast.parse(code)))) == found


def test_a_configuration_is_parsed_once_and_climbs_no_more_than_it_may():
    from configs import cem_real
    from elk_jax.backbones.resnet import ResNetConfig
    from elk_jax.experiments.parse import parse

    config, trace = cem_real.get_config("tiny"), Trace(ResNetConfig)
    previous = sys.getprofile()
    sys.setprofile(trace)
    try:
        parse(config)
    finally:
        sys.setprofile(previous)
    assert trace.parsed == 1
    assert trace.stays == ["elk_jax/experiments/parse.py", "elk_jax/fields.py"]
    assert {"elk_jax/experiments/parse.py", "elk_jax/fields.py"} <= trace.files
    assert not trace.climbs(structure.modules("elk_jax"))
    trace.stays.reverse()
    assert trace.climbs(structure.modules("elk_jax")) == ("elk_jax/fields.py -> elk_jax/experiments/parse.py",)


def test_a_row_without_a_bound_is_reached():
    assert Row("lines", "", 5, None).reached and Row("files", "", 1, 1).reached
    assert not Row("files", "", 2, 1).reached
