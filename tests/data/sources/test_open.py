"""From a SourceSpec to an ImageSource: which images with which boxes, and what is refused."""

import contextlib
import os
import pickle
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from elk_jax import files
from elk_jax.data.sources import coco
from elk_jax.data.sources import open as opening
from elk_jax.data.sources.open import check_readable, list_source, open_source
from elk_jax.data.sources.source import cached, concatenate
from elk_jax.data.sources.spec import SourceSpec
from tests.data.sources.dicom_files import make as dicom_file
from tests.refusals import refused


def ids(source) -> list[str]:
    return [info.image_id for info in source.infos]


@pytest.fixture
def at(coco_folder):
    """(change, **settings) -> the spec of the COCO folder with its content changed."""
    return lambda change=lambda content: None, **settings: SourceSpec(f"coco:{coco_folder(change)}", **settings)


def without_splits(content):
    for image in content["images"]:
        del image["split"]


def test_splits_and_conditions(at):
    assert ids(open_source(at())) == ["1", "2", "3", "4", "5", "6"]
    assert ids(open_source(at(), "train")) == ["1", "2", "3", "4"]
    assert ids(open_source(at(where="is_mass=true"), "train")) == ["1", "3"]
    assert ids(open_source(at(where="is_mass=FALSE"))) == ["2", "4", "6"]
    assert len(open_source(at(where="birads=4|5"))) == 6
    record = open_source(at(), "val")[0]
    assert record.info.image_id == "5"
    assert record.image.shape == (40, 60, 1) and record.image.dtype == np.float32
    assert record.image.min() >= 0 and 0.9 < record.image.max() <= 1


def test_what_chooses_training_images_leaves_the_other_splits_alone(at):
    few = {"train_where": "is_mass=true", "patients": 1}
    (one,) = list_source(at(**few), "train", seed=1).infos
    assert one.image_id in ("1", "3")
    assert {ids(list_source(at(**few), "train", seed=seed))[0] for seed in range(9)} == {"1", "3"}
    assert ids(open_source(at(**few), "test")) == ["6"] and len(open_source(at(**few))) == 6
    assert ids(open_source(at(where="birads=5", train_where="is_mass=true"), "train")) == ["1", "3"]
    with refused(3, where="data.json"):
        open_source(at(patients=3), "train")


def test_a_share_of_the_training_split_is_of_whole_patients_or_of_images(tmp_path):
    """Of 20 training patients with three images each, and two patients of each of the other splits."""
    patients = [(f"p{n:02}", "train" if n < 20 else "val" if n < 22 else "test") for n in range(24)]
    images = [
        {"id": 3 * n + k, "file_name": f"{n}_{k}.png", "width": 9, "height": 9, "split": split, "patient_id": patient}
        for n, (patient, split) in enumerate(patients)
        for k in range(3)
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "mass"}]}
    files.write_json(tmp_path / "data.json", content)

    def drawn(split, seed=0, **settings):
        infos = list_source(SourceSpec(f"coco:{tmp_path / 'data.json'}", **settings), split, seed=seed).infos
        return Counter(info.patient_id for info in infos), {info.image_id for info in infos}

    some, images_of = drawn("train", train_share=0.25)
    assert len(some) == 5 and set(some.values()) == {3}
    assert len(drawn("train", train_share=0.01)[0]) == 1
    assert images_of < drawn("train", train_share=0.5)[1]
    assert images_of != drawn("train", seed=1, train_share=0.25)[1]
    of_images, chosen = drawn("train", train_share=0.25, train_share_of="images")
    assert len(chosen) == 15 and len(of_images) > 5
    assert chosen < drawn("train", train_share=0.5, train_share_of="images")[1]
    for split in ("val", "test"):
        for of in ("patients", "images"):
            assert drawn(split, train_share=0.25, train_share_of=of) == drawn(split) and len(drawn(split)[1]) == 6


def test_a_source_is_opened_with_the_patients_that_its_seed_draws(at):
    few = at(patients=1, where="is_mass=true")
    for seed in range(4):
        assert ids(open_source(few, "train", seed=seed)) == ids(list_source(few, "train", seed=seed))


def test_boxes_are_set_aside_before_they_are_cleaned(at):
    def breast_around_lesion(content):
        content["annotations"].append({"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 60, 40]})

    opened = lambda **settings: open_source(at(breast_around_lesion, **settings)).infos[0]
    assert opened().ignore.tolist() == [False, False]
    assert opened(clean_boxes=True).boxes.tolist() == [[0, 0, 60, 40]]
    both = opened(clean_boxes=True, ignore_over=0.5)
    assert both.boxes.tolist() == [[5, 6, 26, 16], [0, 0, 60, 40]] and both.ignore.tolist() == [False, True]


def test_the_name_is_the_place_or_the_one_in_the_configuration(at):
    spec = at()
    assert list_source(spec).name == spec.place and list_source(spec, name="real").name == "real"


def test_images_beside_the_json(at, tmp_path):
    spec = at()
    for file in (tmp_path / "images").iterdir():
        file.rename(tmp_path / file.name)
    (tmp_path / "images").rmdir()
    assert open_source(spec)[3].info.file_name == "4.png"


@pytest.mark.parametrize(
    ("spec", "split", "words"),
    [
        ({}, "dev", ["dev", "test (1), train (4), val (1)"]),
        ({"where": "mass=true"}, "", ["mass", "is_mass"]),
        ({"where": "birads=6"}, "", ["birads", "5"]),
    ],
)
def test_bad_choices(at, spec, split, words):
    with refused(*words, where="data.json"):
        open_source(at(**spec), split)


def test_a_condition_on_images_without_fields_says_so(at):
    def change(content):
        for image in content["images"]:
            for name in ("is_mass", "birads"):
                image.pop(name, None)

    known = {name for info in open_source(at(change)).infos for name in info.meta}
    assert not known
    with refused("mass", "leave", where="data.json"):
        open_source(at(change, where="mass=true"))


def test_bad_sources(at, tmp_path):
    with refused("coco:FILE", where="config.data.real.spec"):
        list_source(SourceSpec(), name="real")
    with refused("data.json", "coco:FILE", where="config.data.real.spec"):
        list_source(SourceSpec("data.json"), name="real")
    with refused("dataset_info.json", where=tmp_path):
        open_source(SourceSpec(f"tfds:{tmp_path}"))
    with refused("split", "split_shares", where="data.json"):
        open_source(at(without_splits), "train")
    with refused("no image", where="data.json"):
        open_source(at(lambda content: content.update(images=[], annotations=[])))
    with refused("patient A", where="data.json"):
        open_source(at(lambda content: content["images"][4].update(patient_id="A")), "train")
    with refused("ignore", where="on_error"):
        open_source(at(), on_error="ignore")


def test_images_without_splits_are_dealt_out_by_patient(at):
    shares = (0.5, 0.25, 0.25)
    split_of = lambda **settings: {
        image_id: split
        for split in ("train", "val", "test")
        for image_id in ids(open_source(at(without_splits, split_shares=shares, **settings), split))
    }
    drawn = split_of()
    assert sorted(drawn) == ["1", "2", "3", "4", "5", "6"], "every image in one split"
    assert drawn["1"] == drawn["2"] and drawn["3"] == drawn["4"], "patients stay together"
    assert sorted(Counter(drawn[image] for image in "1356").values()) == [1, 1, 2]
    assert split_of() == drawn
    everything = open_source(at(without_splits, split_shares=shares, where="is_mass=true"))
    assert {info.image_id: info.split for info in everything.infos} == {i: drawn[i] for i in "135"}, "filters move none"
    for named in (at(split_shares=shares), SourceSpec("phantom:size=64,count=12", split_shares=shares)):
        with refused("test, train, val", "split_shares"):
            open_source(named, "train")


def test_images_are_not_left_out_unseen(at):
    some = lambda content: [content["images"][number].update(split=None) for number in (0, 2)]
    with refused("2 of 6 images", "image 1", where="data.json"):
        list_source(at(some), "val")
    assert len(list_source(at(some))) == 6
    with refused("some of the images", "test, train, val", where="data.json"):
        list_source(at(some, split_shares=(0.5, 0.25, 0.25)), "val")
    assert ids(list_source(at(some, where="is_mass=false"), "train")) == ["2", "4"], "those are left out by `where`"
    for split in ("Train", "train\u200b"):
        with refused(f"'{split}' and 'train'", where="data.json"):
            list_source(at(lambda content, s=split: [one.update(split=s) for one in content["images"][:2]]), "val")
    assert len(list_source(at(lambda content: content["images"][1].update(split="train ")), "train")) == 4


@pytest.mark.parametrize(
    ("name", "probable", "read"),
    [("tarin", "train", "train"), ("trai", "train", "test"), ("vla", "val", "val"), ("Test", "test", "train")],
)
def test_a_split_that_is_written_wrongly_in_all_images_of_a_patient_is_refused(at, name, probable, read):
    spec = at(lambda content: [one.update(split=name) for one in content["images"] if one["patient_id"] in "BD"])
    with refused(f"'{name}'", f"'{probable}'", 3, where="data.json"):
        list_source(spec, read)
    assert len(list_source(spec, name)) == 3, "who asks for it by name gets it"
    assert len(list_source(spec)) == 6


def test_splits_of_other_names_may_be_there_and_are_named_once(at, caplog):
    names = ["train", "train", "external", "external", "valid", "unused"]
    spec = at(lambda content: [one.update(split=name) for one, name in zip(content["images"], names)])
    assert len(list_source(spec, "external")) == 2 and not caplog.records
    assert len(list_source(spec, "train")) == len(list_source(spec, "train")) == 2
    (record,) = caplog.records
    assert "external (2), valid (1)" in record.getMessage() and "data.json" in record.getMessage()
    assert "3 images" in record.getMessage(), "none that is unused on purpose"


@pytest.mark.parametrize(
    ("name", "there"),
    [("1.PNG", "1.png"), ("1 .png", "1.png"), ("a\u0308.png", "\u00e4.png"), ("sub\\1.png", "sub/1.png")],
)
def test_a_missing_file_whose_name_looks_like_another_says_so(at, tmp_path, name, there):
    spec = at(lambda content: content["images"][0].update(file_name=name))
    (tmp_path / "images" / "sub").mkdir()
    for copied in ("sub/1.png", "\u00e4.png"):
        (tmp_path / "images" / copied).write_bytes((tmp_path / "images" / "1.png").read_bytes())
    with refused("missing", repr(there), "same way", where="data.json"):
        open_source(spec, "train")
    for other in ("nothing.png", "/nowhere/1.png", "gone/1.png"):
        with refused("missing", "put the files there"):
            open_source(at(lambda content, o=other: content["images"][0].update(file_name=o)), "train")


def test_a_name_that_repeats_the_folder_of_images_says_so(at, tmp_path):
    """Label Studio writes images/NAME beside a folder of this name."""
    with refused("missing", "'images/'", where="data.json"):
        open_source(at(lambda content: content["images"][0].update(file_name="images/1.png")), "train")
    spec = at(lambda content: content["images"][0].update(file_name="beside.png"))
    (tmp_path / "beside.png").write_bytes((tmp_path / "images" / "1.png").read_bytes())
    with refused("missing", "put the files there", where="data.json"):
        open_source(spec, "train")


def test_a_link_without_a_file_is_named(at, tmp_path):
    spec = at(lambda content: content["images"][0].update(file_name="link.png"))
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "nowhere.png")
    with refused("images/link.png", "a link to", "remove the link", where="data.json"):
        open_source(spec, "train")


def test_blanks_around_a_value_do_not_leave_images_out(at):
    spec = at(lambda content: content["images"][0].update(birads=" 5 "), where="birads=5")
    assert ids(list_source(spec, "train")) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("name", ["PatientID", "patient", "Patient ID", "subject_id"])
def test_a_patient_in_a_field_of_another_name_is_not_overlooked(at, name):
    def change(content):
        for image in content["images"]:
            image[name] = image.pop("patient_id")

    with refused("patient_id", f"'{name}'", "patient_pattern", where="data.json"):
        list_source(at(change), "train")
    named = list_source(at(change, patient_pattern=r"(\d)\.png"), "train")
    assert [info.patient_id for info in named.infos] == ["1", "2", "3", "4"]
    both = list_source(at(lambda content: [one.update({name: "X"}) for one in content["images"]]), "train")
    assert [info.patient_id for info in both.infos] == ["A", "A", "B", "B"]
    assert list_source(at(lambda c: [one.update(patient_id="", patient={"age": 50}) for one in c["images"]]), "train")


@pytest.mark.parametrize(("value", "names"), [("", False), ("n/a", False), (True, False), (12.0, True), (0, True)])
def test_a_patient_in_a_field_of_another_name_counts_if_it_names_one(at, value, names):
    def change(content):
        for image in content["images"]:
            image |= {"patient_id": None, "patient": None}
        content["images"][0]["patient"] = value

    with refused("patient_id", "'patient'") if names else contextlib.nullcontext():
        list_source(at(change), "train")


def test_images_without_a_patient_among_others_are_counted_once(at, caplog):
    spec = at(lambda content: [content["images"][number].update(patient_id=None) for number in (0, 4)])
    for split in ("train", "val"):
        list_source(spec, split)
    (record,) = caplog.records
    assert "2 of 6 images" in record.getMessage() and "data.json" in record.getMessage()
    caplog.clear()
    list_source(at(lambda content: [one.pop("patient_id") for one in content["images"]]), "train")
    assert not caplog.records, "all are alike, and are counted when they are used"


def test_one_image_of_a_patient_may_be_left_out(at):
    spec = at(lambda content: content["images"][0].update(split="unused"))
    assert ids(list_source(spec, "train")) == ["2", "3", "4"]
    with refused("patient A", "'external'", "'train'", where="data.json"):
        list_source(at(lambda content: content["images"][0].update(split="external")), "train")


def test_capital_letters_are_a_way_to_write_splits(at, caplog):
    spec = at(lambda content: [one.update(split=one["split"].title()) for one in content["images"]])
    assert len(list_source(spec, "Train")) == 4 and not caplog.records


def test_twelve_bits_of_a_source_and_of_an_image(at, tmp_path):
    spec = at(lambda content: content["images"][1].update(bit_depth=14), bit_depth=12)
    for number, brightest in ((1, 4095), (2, 16383)):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.full((40, 60), brightest, np.uint16))
    source = open_source(spec)
    assert [source[i].image.max() for i in range(2)] == [1.0, 1.0]
    assert 0.9 < source[2].image.max() <= 1, "one of 8 bits"
    for wrong in ("twelve", 40, 12.0, True):
        with refused("bit_depth", wrong, where="image 1"):
            open_source(at(lambda content, wrong=wrong: content["images"][0].update(bit_depth=wrong)))


def test_a_frame_of_an_image(at, tmp_path):
    frames = np.stack([np.full((40, 60), value, np.uint16) for value in (0, 4095)])
    for frame in (0, 1, 1.0):
        spec = at(lambda content, frame=frame: content["images"][0].update(frame=frame))
        (tmp_path / "images" / "1.png").write_bytes(dicom_file(frames))  # by its content, whatever its name
        assert open_source(spec)[0].image.max() == frame
    for wrong in (-1, "two", True, 1.5):
        with refused("frame", wrong, where="image 1"):
            open_source(at(lambda content, wrong=wrong: content["images"][0].update(frame=wrong)))


def test_size_and_boxes_are_of_the_turned_picture(at, tmp_path):
    """Stored as 60 rows of 40, shown as 40 of 60; the lesion lies right in what is shown."""
    spec, exif = at(), Image.Exif()
    exif[274] = 6
    shown = np.zeros((40, 60), np.uint8)
    shown[6:16, 40:50] = 255
    Image.fromarray(np.rot90(shown)).save(tmp_path / "images" / "1.png", exif=exif)
    np.testing.assert_array_equal(open_source(spec)[0].image[..., 0], shown / 255)
    Image.fromarray(np.rot90(shown)).save(tmp_path / "images" / "1.png")
    with refused("orientation", where="image 1 (1.png)"):
        _ = open_source(spec)[0]


# ---- Files ---------------------------------------------------------------------------------------------------------


def break_missing(folder):
    (folder / "images" / "3.png").unlink()


def break_truncated(folder):
    file = folder / "images" / "3.png"
    file.write_bytes(file.read_bytes()[:600])


def break_size(folder):
    cv2.imwrite(str(folder / "images" / "3.png"), np.zeros((40, 58), np.uint8))


def break_nan(folder):
    pixels = np.full((40, 60), 0.5, np.float32)
    pixels[3, 4] = np.nan
    cv2.imwrite(str(folder / "3.tiff"), pixels)
    (folder / "3.tiff").rename(folder / "images" / "3.png")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_missing, "missing"),
        (break_truncated, "truncated"),
        (break_size, "58 x 40 px"),
        (break_nan, "NaN"),
    ],
)
def test_one_unreadable_image(at, tmp_path, damage, reason):
    spec = at()
    damage(tmp_path)
    with refused(reason) as raised:
        open_source(spec)[2]
    assert "3.png" in str(raised.value)
    source = open_source(spec, "train", on_error="skip")
    assert ids(source) == ["1", "2", "4"]
    assert [image_id for image_id, _ in source.skipped] == ["3"]
    assert source[2].info.image_id == "4"


def test_listing_looks_at_no_image_and_its_source_is_made_readable_without_reading_the_file_again(
    at, tmp_path, monkeypatch
):
    reads = []
    read_coco = lambda path, progress: reads.append(path) or original(path, progress)
    original = coco.read_coco
    monkeypatch.setattr(coco, "read_coco", read_coco)
    spec = at()
    break_missing(tmp_path)
    source = list_source(spec)
    assert len(source) == 6 and source[0].info.image_id == "1"
    with refused() as raised:
        source[2]
    assert "3.png" in str(raised.value)
    with refused("3.png", "missing"):
        check_readable(source, spec)
    assert ids(check_readable(source, spec, "skip")) == ["1", "2", "4", "5", "6"]
    assert check_readable(list_source(spec, "test"), spec).skipped == ()
    assert len(reads) == 2


def test_patients_are_drawn_before_unreadable_images_are_known(at, tmp_path):
    spec = at(patients=1)
    drawn = {seed: ids(list_source(spec, "train", seed=seed)) for seed in range(9)}
    break_missing(tmp_path)
    for seed, images in drawn.items():
        expected = [image for image in images if image != "3"]
        assert ids(check_readable(list_source(spec, "train", seed=seed), spec, "skip")) == expected


def test_kept_images_are_not_decoded_again(at, tmp_path):
    spec = at()
    break_truncated(tmp_path)
    plain = open_source(spec, "train", on_error="skip", cache_bytes=0)
    kept = open_source(spec, "train", on_error="skip")
    images = [plain[i].image for i in range(3)]
    for number in (1, 2, 4):
        (tmp_path / "images" / f"{number}.png").unlink()
    for image, record in zip(images, (kept[i] for i in range(3))):
        assert np.array_equal(record.image, image)
    with refused() as raised:
        plain[0]
    assert "1.png" in str(raised.value)


def test_what_is_in_memory_is_not_cached(monkeypatch):
    monkeypatch.setattr(opening, "cached", lambda *_: pytest.fail("phantoms were cached"))
    assert len(open_source(SourceSpec("phantom:size=64,count=12"), "val")) == 4


def test_sources_can_be_sent_to_workers(at):
    source = open_source(at(where="is_mass=true", clean_boxes=True), "train")
    mixed = cached(concatenate([source, source]))
    again = pickle.loads(pickle.dumps(mixed))
    assert np.array_equal(again[3].image, mixed[3].image)


def test_cdd_cesm(real_data):
    """The published counts of the real images: 151 subtracted mass images, 95 / 19 / 37."""
    place = f"coco:{real_data / 'cdd_cesm_512' / 'subtracted.json'}"
    spec = SourceSpec(place, where="is_mass=true")
    mass = {split: open_source(spec, split) for split in ("", "train", "val", "test")}
    assert [len(source) for source in mass.values()] == [151, 95, 19, 37]
    assert len(open_source(SourceSpec(place))) == 245
    assert len(open_source(SourceSpec(place.replace("subtracted", "low_energy")))) == 247
    record = mass["train"][0]
    assert record.image.shape == (512, 512, 1)
    x1, y1, x2, y2 = record.info.boxes[0].astype(int)
    assert record.image[y1:y2, x1:x2].mean() > 1.5 * record.image.mean()


@pytest.mark.parametrize("name", ["/dev/zero", "pipe", ".", "x" * 5000], ids=lambda name: name[:9])
def test_a_file_name_that_is_no_file_is_refused(at, tmp_path, name):
    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / "images" / "pipe")
    spec = at(lambda content: content["images"][0].update(file_name=name))
    with refused("image 1", "is missing"):
        open_source(spec)
    found = open_source(spec, on_error="skip")
    assert len(found) == 5 and len(found.skipped) == 1
