"""The tables of the unified regime: every row is a setting of its experiment; nothing is trained here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from configs import sources, unified, unified_misaligned, unified_scarce
from elk_jax.data.sources import phantom_volumes
from elk_jax.detection.fused_config import FusedConfig
from elk_jax.sweeps.plan import plan
from elk_jax.sweeps.settings import Row, checked, read_rows
from elk_jax.tasks.distillation.model import MODES
from tests.refusals import refused

CONFIGS = Path(unified.__file__).parent


def planned(rows, folder, size="tiny"):
    """(plan, name of the row -> its experiment)."""
    found = plan(unified.get_config(size), rows, 1, folder)
    return found, {run.row.name: run.experiment for run in found.runs}


def made_anew(found, row, first):
    """The stages of a row that its first row does not share."""
    of = {run.row.name: run.identities for run in found.runs}
    return {stage for stage, identity in of[row].items() if identity != of[first][stage]}


def test_what_the_unified_regime_is_made_of(tmp_path):
    rows = read_rows(CONFIGS / "unified_table.py")
    found, experiments = planned(rows, tmp_path, "quick")  # tiny has one patient in validation: no partner to exchange
    assert len(experiments) == len([row for row in rows if not row.not_run]) == len(found.runs)
    modes = {one.recipes["borrow"].mode for one in experiments.values()}
    assert modes == {name for name, mode in MODES.items() if mode.reads == "same"}
    for name, one in experiments.items():
        assert one.stages["borrowed"].init_from == ("" if name.endswith("from C") else "sm")
        fused, bound = (one.recipes[recipe].model for recipe in ("fused", "bound"))
        assert isinstance(fused, FusedConfig) and (fused.tap, fused.join) == (bound.tap, bound.join)
        assert fused.tap == one.recipes["borrow"].tap  # B resembles what is joined
    assert experiments["B detects too"].recipes["borrow"].detection_weight == 1
    tuned = experiments["tuned trunks"].recipes["fused"].optimizer
    assert not tuned.frozen and tuned.multipliers == (("^(own|other)/", 0.1),)
    assert experiments["mse"].recipes["fused"].optimizer.frozen == ("^(own|other)/",)
    assert {one.recipes["fused"].model.join for one in experiments.values()} == {"conv", "concat"}
    assert experiments["without B"].stages["unified"].members == {"own": "sm", "other": "sm"}
    assert experiments["without A"].stages["unified"].members == {"own": "borrowed", "other": "borrowed"}


def test_settings_share_what_they_do_not_change(tmp_path):
    found, _ = planned(read_rows(CONFIGS / "unified_table.py"), tmp_path, "quick")
    of_b = {"borrowed", "unified", "evaluate"}
    assert made_anew(found, "pkd", "mse") == of_b and made_anew(found, "mse, B from C", "mse") == of_b
    assert made_anew(found, "without B", "mse") == {"unified", "evaluate"}
    assert made_anew(found, "tuned trunks", "mse") == {"unified", "capacity", "evaluate"}
    assert made_anew(found, "others' partners", "mse") == of_b | {"base_ub", "dropout"}
    assert made_anew(found, "backbone", "mse") == of_b | {"base_ub", "capacity"}


def test_misaligned_pairs(tmp_path):
    """Every loss at every shift; without one, the sources are those of the experiment itself."""
    rows = checked(unified_misaligned.rows(partial(sources.phantom_volumes, "tiny", unified_misaligned.SEED)), "table")
    found, experiments = planned(rows, tmp_path)
    assert len(rows) == len(unified_misaligned.LOSSES) * len(unified_misaligned.SHIFTS)
    assert {row.axis for row in rows} == {unified_misaligned.AXIS}
    base = unified.get_config("tiny").data
    for row in rows:
        data = experiments[row.name].data
        options = [phantom_volumes.parse_options(data[name].place) for name in ("pairs", "ffdm")]
        assert [(one.shift, one.zoom) for one in options] == [(row.at, pytest.approx(0.05 * row.at / 64))] * 2
        assert [one.modality for one in options] == ["synthetic_2d", "mammogram"]
        assert data["pairs"].partner == "mammogram" and data["sm"].spec == base.sm.spec
        assert (data["pairs"].spec == base.pairs.spec) == (data["ffdm"].spec == base.ffdm.spec) == (row.at == 0)
        assert experiments[row.name].recipes["borrow"].tolerance == (row.line == "tolerance of one cell")
    whole = {"sm", "borrowed", "unified", "capacity", "base_ub"}
    assert all(whole <= set(one.stages["evaluate"].models) for one in experiments.values())
    of_b = unified_misaligned.rows(evaluated=())
    assert not any("stages.evaluate.models" in row.overrides for row in of_b)
    unmoved = {"sm", "sm_again", "capacity"}
    assert not made_anew(found, "mse, 64", "mse, 0") & unmoved
    assert made_anew(found, "contrastive, 16", "mse, 16") == {"borrowed", "unified", "evaluate"}
    assert read_rows(CONFIGS / "unified_misaligned.py") == unified_misaligned.ROWS


def test_few_synthetic_mammograms_with_boxes(tmp_path):
    """Only A and what follows the trunks read fewer boxes; C, B and every patient that is tested stay."""
    rows = read_rows(CONFIGS / "unified_scarce.py")
    found, experiments = planned(rows, tmp_path)
    assert len(rows) == len(unified_scarce.TRUNKS) * len(unified_scarce.SHARES)
    base = unified.get_config("tiny").data
    for row in rows:
        one = experiments[row.name]
        assert one.data["sm"].train_share == row.at and one.data["sm"].partner == base.pairs.partner == "mammogram"
        assert one.data["pairs"].train_share == one.data["ffdm"].train_share == 1
        assert one.data["sm"].spec == one.data["pairs"].spec
        learning = {name for name, stage in one.stages.items() if "sm" in getattr(stage, "train_on", ())}
        assert learning == {"sm", "sm_again", "unified", "capacity", "base_ub", "dropout"}
        assert one.stages["borrowed"].train_on == ("pairs",) and one.stages["borrowed"].init_from == ""
        letters = {"sm": "A", "borrowed": "B", "ffdm": "C"}
        trunks = ", ".join(letters[name] for name in one.stages["unified"].members.values())
        assert row.line.removesuffix(", faster") == trunks
    assert unified.get_config("quick").detector.schedule.base == unified_scarce.RATE
    few = {"sm", "sm_again", "unified", "capacity", "base_ub", "dropout", "evaluate"}
    assert made_anew(found, "A, B, 0.25", "A, B, 0.1") == few  # B and C are made once for all shares
    faster = {"unified", "capacity", "base_ub", "evaluate"}
    assert made_anew(found, "A, B, faster, 0.1", "A, B, 0.1") == faster
    assert made_anew(found, "C, A, 0.1", "A, B, 0.1") == {"unified", "evaluate"}
    real = unified_scarce.rows("partner", rate=3e-4)
    assert {row.overrides["data.sm.partner"] for row in real} == {"partner"}
    rates = {row.overrides[f"{recipe}.schedule.base"] for row in real[4:8] for recipe in ("fused", "bound")}
    assert rates == {3e-4} and not any("fused.schedule.base" in row.overrides for row in (*real[:4], *real[8:]))


def test_where_boxes_are_scarce_a_may_have_a_recipe_of_its_own():
    stages = unified.get_config("tiny,scarce").stages
    own = {name for name in stages if getattr(stages[name], "recipe", "") == "few"}
    assert own == {"sm", "sm_again"} and stages.ffdm.recipe == "detector"
    assert "few" not in unified.get_config("tiny")


@pytest.mark.parametrize("extra", ["lite0", "half"])
def test_modality_dropout_starts_from_a_and_c_where_layers_are_frozen(extra):
    """They would stay random otherwise."""
    stages = unified.get_config(f"small,{extra}").stages
    assert (stages.dropout.own, stages.dropout.other) == ("sm", "ffdm")
    assert unified.get_config("small").stages.dropout.own == ""


def test_single_images_where_pairs_are_read_are_refused_before_any_run(tmp_path):
    with refused("setting single", "pairs", where="config.data.pairs.partner"):
        planned(checked([Row("pairs"), Row("single", {"data.pairs.partner": ""})], "table"), tmp_path)
