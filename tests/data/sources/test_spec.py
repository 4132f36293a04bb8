"""A data source as it is described: every key, checked before anything is opened."""

import pytest

from elk_jax import fields
from elk_jax.data.sources.spec import SourceSpec, parse_where
from tests.refusals import refused


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("", {}),
        (" , ", {}),
        ("is_mass=true", {"is_mass": True}),
        ("is_mass=true, view=MLO|CC", {"is_mass": True, "view": ("MLO", "CC")}),
        ("birads=4|5,density=null", {"birads": (4, 5), "density": None}),
        ("name=a=b", {"name": "a=b"}),
        ("note=", {"note": ""}),
    ],
)
def test_conditions_are_json_values_or_text(text, wanted):
    assert parse_where(text) == SourceSpec(where=text).conditions("test") == wanted


def test_conditions_of_the_training_split():
    spec = SourceSpec(where="view=CC", train_where="fewshot=true")
    assert spec.conditions("train") == {"view": "CC", "fewshot": True}
    assert spec.conditions("") == spec.conditions("val") == {"view": "CC"}


@pytest.mark.parametrize(
    "settings, where, word",
    [
        ({"where": "is_mass"}, "where", "is_mass"),
        ({"where": "=true"}, "where", "=true"),
        ({"where": "view=MLO,view=CC"}, "where", "field=value|value"),
        ({"train_where": "fewshot"}, "train_where", "fewshot"),
        ({"where": "view=MLO", "train_where": "view=CC"}, "train_where", "view"),
        ({"ignore_over": 1.5}, "ignore_over", 1.5),
        ({"train_share": 1.5}, "train_share", "1.5"),
        ({"train_share": 0.0}, "train_share", "above 0"),
        ({"train_share": 0.5, "patients": 3}, "train_share", "patients"),
        ({"patients": -1}, "patients", "at least 0"),
        ({"split_shares": (0.7, 0.3)}, "split_shares", "three"),
        ({"split_shares": (0.7, 0.3, 0.0)}, "split_shares", "above 0"),
        ({"bit_depth": 17}, "bit_depth", 16),
        ({"clean_boxes": 1}, "clean_boxes", "bool"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_field(settings, where, word):
    with refused(word, where=where):
        SourceSpec("coco:a.json", **settings)
    with refused(word, where=f"config.data.real.{where}"):
        fields.build(SourceSpec, settings, "config.data.real")


def test_kind_and_place():
    spec = SourceSpec("coco:C:/data/a.json")
    assert (spec.kind, spec.place) == ("coco", "C:/data/a.json")
    assert (SourceSpec().kind, SourceSpec("phantom:").place) == ("", "")
