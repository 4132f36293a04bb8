import json
from dataclasses import replace

import numpy as np
import pytest

from elk_jax import fields
from elk_jax.distances.compare import Settings, compare
from elk_jax.distances.folder import as_json, write_comparison
from elk_jax.distances.network import Pooled
from elk_jax.distances.page import page
from elk_jax.distances.sets import ImageSet
from elk_jax.distances.tables import headline, print_comparison, told_apart, written
from elk_jax.evaluation import frechet
from elk_jax.output import Console
from tests.golden import textures
from tests.refusals import refused

V0 = Settings(frd=("v0",))


def made(name, kind, count, side=16, start=0):
    """Images of two classes, two of a patient each."""
    images = tuple(textures.image(kind, side, side, start + number).astype(np.float32) / 255 for number in range(count))
    titles = tuple(f"{name} {number}" for number in range(count))
    patients = tuple(f"{name} {number // 2}" for number in range(count))
    return ImageSet(name, images, titles, patients, tuple("ab"[number // 2 % 2] for number in range(count)))


REAL, OTHER, ROUGH = made("real", "smooth", 24), made("other", "smooth", 10, start=100), made("rough", "rough", 10)


@pytest.fixture(scope="module")
def found():
    pooled = Pooled("toy", lambda images, progress: np.array([[i.mean(), i.std(), i[0, 0]] for i in images]))
    return compare(REAL, ROUGH, Settings(by_class=True), [pooled])


def named(found, name):
    return next(one for one in found.measures if one.name == name)


def test_every_measure_stands_beside_real_from_real(found):
    names = [one.name for one in found.measures]
    assert names[:4] == ["FRD v0", "FRD v1", "FID, toy", "KID, toy"] and len(names) == 6
    for one in found.measures:
        assert one.synthetic.mean > one.real.mean, one.name
    assert [one.unit for one in found.measures[:3]] == ["d²", "ln d²", "d²"]
    assert named(found, "FRD v0").images == 10 and named(found, "FRD v0").features == 102
    low, mean, high = (getattr(named(found, "FRD v1").real, name) for name in ("low", "mean", "high"))
    assert low < mean < high
    distance = named(found, "FRD v1")
    assert distance.ratio == pytest.approx(distance.squared[0] / distance.squared[1])
    assert distance.ratio == pytest.approx(np.exp(distance.synthetic.mean - distance.real.mean))  # as the row says


def test_sets_alike_are_as_near_as_real_ones_to_each_other(found):
    alike = compare(REAL, OTHER, V0)
    assert 0.5 < named(alike, "FRD v0").ratio < 2
    assert 5 * named(alike, "FRD v0").ratio < named(found, "FRD v0").ratio
    assert alike.told_apart["low"] < 0.6 and found.told_apart["auc"] == 1


def test_a_network_is_compared_by_its_features(found):
    drawn = frechet.draws(REAL.patients, len(ROUGH), 0)
    features = lambda one: np.array([[i.mean(), i.std(), i[0, 0]] for i in one.images])
    expected = [frechet.frechet_distance(features(REAL)[draw.one], features(ROUGH)[draw.synthetic]) for draw in drawn]
    assert named(found, "FID, toy").synthetic.mean == pytest.approx(np.mean(expected))


def test_each_class_is_compared_by_itself(found):
    assert list(found.of_classes) == ["a", "b"]
    only = lambda one, label: replace(
        one,
        **{
            name: tuple(value for value, own in zip(getattr(one, name), one.classes) if own == label)
            for name in ("images", "titles", "patients", "classes")
        },
    )
    alone = compare(only(REAL, "a"), only(ROUGH, "a"), V0)
    ours, theirs = named(alone, "FRD v0").synthetic, found.of_classes["a"][0].synthetic
    assert ours.mean == pytest.approx(theirs.mean) and found.of_classes["a"][0].images == 6


def test_features_are_listed_by_their_difference(found):
    sizes = [abs(one.difference) for one in found.different]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 20
    assert found.map.real.shape == (24, 2) and found.map.synthetic.shape == (10, 2)
    assert sorted(found.far) == list(range(10))


def test_the_seed_and_the_count_decide_what_is_drawn():
    settings = replace(V0, count=4)
    assert compare(REAL, OTHER, settings).measures == compare(REAL, OTHER, settings).measures
    assert compare(REAL, OTHER, settings).measures != compare(REAL, OTHER, replace(settings, seed=1)).measures
    assert named(compare(REAL, OTHER, settings), "FRD v0").images == 4


def test_sets_of_one_patient_are_not_told_apart():
    found = compare(replace(REAL, patients=("P",) * len(REAL)), ROUGH, V0)
    assert found.told_apart is None and told_apart(found) == "" and any("one patient" in note for note in found.notes)
    assert as_json(found)["told_apart"] is None and "separate the sets" not in page(found).sections[0].html


def test_the_logarithm_of_the_paper_is_half():
    ours, paper = (compare(REAL, ROUGH, Settings(frd=("v1",), paper_log=log)).measures[0] for log in (False, True))
    assert paper.synthetic.mean == pytest.approx(ours.synthetic.mean / 2) and paper.unit == "ln d"
    assert paper.ratio == pytest.approx(ours.ratio) and paper.squared == pytest.approx(ours.squared)


def test_what_was_left_out_is_said(found):
    assert any("v1" in note and "singular" in note for note in found.notes)
    grey = np.full((16, 16), 0.5, np.float32)
    constant = replace(ROUGH, images=(*ROUGH.images[:8], grey, grey))
    other = compare(REAL, constant, Settings(frd=("v1",)))
    assert any("left out: constant" in note for note in other.notes)
    assert "1 image is a copy of another synthetic image" in other.notes
    assert "2 of 10 synthetic images are constant" in other.notes
    assert sorted(other.far) == list(range(8))
    skipped = compare(REAL, replace(OTHER, skipped=(("b/c.png", "no image"),)), V0)
    assert any("1 file of the synthetic" in note and "b/c.png" in note for note in skipped.notes)
    doubted = compare(replace(REAL, doubt="no patients"), replace(OTHER, doubt="drawn ones have none"), V0)
    assert "no patients" in doubted.notes and "drawn ones have none" not in doubted.notes


def test_constant_images_are_left_out_of_all_distances_alike():
    grey = lambda number: np.full((16, 16), number / 20, np.float32)
    mixed = replace(ROUGH, images=(*ROUGH.images[:3], *map(grey, range(7))))
    only = replace(ROUGH, images=ROUGH.images[:3], patients=ROUGH.patients[:3], classes=ROUGH.classes[:3])
    v1 = Settings(frd=("v1",))
    found = compare(REAL, mixed, v1)
    assert found.measures[0] == compare(REAL, only, v1).measures[0] and found.measures[0].images == 3
    with refused("class b", "2 of 2 real images", "v1", where="real"):
        half = replace(REAL, images=(*REAL.images[:2], grey(1), grey(2)), classes=tuple("aabb"), patients=tuple("pqrs"))
        compare(half, ROUGH, replace(v1, by_class=True))


def test_notes_of_a_class_name_it(found):
    few = [note for note in found.notes if note.startswith("class a: ")]
    assert any("6 images" in note and "singular" in note for note in few)
    assert not {note.removeprefix("class a: ") for note in few} & set(found.notes)


def test_networks_of_one_name_are_both_compared():
    first, second = (Pooled("toy", lambda images, bar, k=k: np.array([[i.mean() * k] for i in images])) for k in (1, 2))
    measures = [one for one in compare(REAL, OTHER, V0, [first, second]).measures if one.name == "FID, toy"]
    assert measures[1].synthetic.mean == pytest.approx(4 * measures[0].synthetic.mean)


def test_sets_without_any_contrast_are_equal():
    grey = lambda name, value: replace(made(name, "smooth", 6), images=(np.full((16, 16), value, np.float32),) * 6)
    found = compare(grey("one", 0.2), grey("two", 0.7), V0)
    assert found.told_apart is None and found.different == () and named(found, "FRD v0").synthetic.mean > 0
    assert found.measures[1].ratio is None and "nan" not in page(found).sections[0].html
    with refused("6 of 6 real images", "v1", where="one"):
        compare(grey("one", 0.2), grey("two", 0.7), Settings(frd=("v1",)))


def test_sizes_that_differ_are_said():
    mixed = replace(OTHER, images=(*OTHER.images[:5], *made("large", "smooth", 5, side=20).images))
    assert any("16 x 16" in note and "2 sizes" in note and "20 x 20" in note for note in compare(REAL, mixed, V0).notes)
    large = made("large", "smooth", 6, side=20)
    assert any("16 x 16" in note and "20 x 20" in note for note in compare(REAL, large, V0).notes)
    assert not any("size of a pixel" in note for note in compare(REAL, OTHER, V0).notes)


def test_with_one_real_patient_there_is_no_reference():
    alone = replace(REAL, patients=("P",) * len(REAL))
    found = compare(alone, OTHER, V0)
    assert named(found, "FRD v0").real.mean is None and named(found, "FRD v0").ratio is None
    assert named(found, "FRD v0").synthetic.mean > 0 and any("no reference" in note for note in found.notes)
    assert "real from real" not in headline(found)
    assert "None" not in page(found).summary


def test_refusals():
    with refused(1, where="other"):
        compare(REAL, replace(OTHER, images=OTHER.images[:1]), V0)
    shared = replace(OTHER, images=(REAL.images[3], *OTHER.images[1:]))
    with refused("1 image is in both", "real 3", "other 0", where="other"):
        compare(REAL, shared, V0)
    by_class = replace(V0, by_class=True)
    with refused("'b'", "0 images", where="rough"):
        compare(REAL, replace(ROUGH, classes=("a",) * 10), by_class)
    with refused("by_class", where="rough"):
        compare(REAL, replace(ROUGH, classes=("",) * 10), by_class)


@pytest.mark.parametrize(
    "values, where",
    [
        ({"frd": ("v2",)}, "frd"),
        ({"frd": ()}, "frd"),
        ({"frd": ("v1", "v1")}, "frd"),
        ({"count": 1}, "count"),
        ({"count": -1}, "count"),
        ({"frd": ("v0",), "paper_log": True}, "paper_log"),
    ],
)
def test_impossible_settings(values, where):
    with refused(where=where):
        fields.build(Settings, values)


def test_the_folder_has_the_page_and_the_numbers(found, tmp_path):
    write_comparison(found, tmp_path / "out")
    read = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert read == json.loads(json.dumps(as_json(found)))
    assert [one["name"] for one in read["measures"]] == [one.name for one in found.measures]
    assert read["real"]["images"] == 24 and read["synthetic"]["sizes"] == [[16, 16]]
    html = (tmp_path / "out" / "report.html").read_text()
    for one in (*found.measures, *found.different):
        assert one.name in html
    for note in found.notes:
        assert note.split(":")[0] in html
    assert html.count("<circle") > 34 and "nan" not in html.replace("Jan", "")
    assert "rough 0" in html and "<h3>a</h3>" in html


def test_the_terminal_has_them_too(found, capsys):
    print_comparison(found, Console(width=160))
    text = capsys.readouterr().out
    for one in found.measures:
        assert one.name in text
    assert "class a" in text and told_apart(found) in text and f"note: {found.notes[0]}"[:60] in text


@pytest.mark.parametrize(
    "value, text",
    [(None, "–"), (float("nan"), "–"), (0, "0.00"), (7.4512, "7.45"), (0.012345, "0.0123"), (79493.2, "79,493"),
     (-316.24, "−316"), (4.82e-8, "4.82e−8"), (4.09469e8, "4.09e8")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert written(value) == text


def test_radiomics_look_inside_regions_alone():
    """What differs outside of them is not seen, and the page says how many images are looked at so."""
    left = np.zeros((16, 16), bool)
    left[:, :8] = True
    hidden = replace(ROUGH, images=tuple(np.where(left, a, b) for a, b in zip(OTHER.images, ROUGH.images)))
    inside = lambda one: replace(one, regions=(left,) * len(one))
    near = compare(inside(REAL), inside(hidden), V0)
    assert named(near, "FRD v0").synthetic == named(compare(inside(REAL), inside(OTHER), V0), "FRD v0").synthetic
    assert named(compare(REAL, hidden, V0), "FRD v0").ratio > 3 * named(near, "FRD v0").ratio
    assert "radiomics cover the lesions in 10 of 10 synthetic images, and the others whole" in near.notes
