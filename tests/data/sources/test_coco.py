"""COCO in and out; every bad annotation ends in one line that names file, image and annotation."""

import json

import numpy as np
import pytest

from elk_jax.data.sources.coco import open_coco, read_coco, write_coco
from elk_jax.data.sources.patients import named
from elk_jax.data.sources.source import concatenate
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.files import read_json, write_json
from elk_jax.images.schema import ImageInfo
from elk_jax.privacy.accounting import Ledger, Phase
from elk_jax.privacy.mechanism import Statement
from tests.refusals import refused


def test_reads_boxes_labels_and_fields(coco_folder):
    def change(content):
        content["categories"].append({"id": 1, "name": "calcification"})
        content["annotations"].append(
            {"id": 99, "image_id": 1, "category_id": 1, "bbox": [0, 0, 60.4, 3], "iscrowd": 1}
        )

    infos, classes, category_ids, seen_patients, promises, unnamed = read_coco(coco_folder(change))
    assert (classes, category_ids) == (("calcification", "mass"), (1, 3)) and seen_patients == frozenset()
    assert promises == () and unnamed == 0
    assert infos[0].boxes.tolist() == [[5, 6, 26, 16], [0, 0, 60, 3]]  # an overhang below a pixel is clipped
    assert infos[0].labels.tolist() == [1, 0]
    assert infos[0].ignore.tolist() == [False, True]
    assert (infos[0].image_id, infos[0].patient_id, infos[0].split) == ("1", "A", "train")
    assert infos[0].meta == {"is_mass": True, "birads": "5"}


def test_image_without_annotation_or_patient(coco_folder):
    def change(content):
        del content["images"][5]["patient_id"]
        content["annotations"].pop()

    info = read_coco(coco_folder(change))[0][5]
    assert info.boxes.shape == (0, 4) and info.labels.dtype == np.int32 and info.ignore.dtype == bool
    assert info.patient_id == "6"


def set_box(box):
    return lambda content: content["annotations"][2].update(bbox=box)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_box([5, 6, -4, 10]), ["inverted or empty", "image 3", "3.png", "annotation 13"]),
        (set_box([5, 6, 0, 10]), ["inverted or empty", "annotation 13"]),
        (set_box([5, 6, 57, 10]), ["outside the image of 60 x 40 px", "2 px", "annotation 13"]),
        (set_box([-1.5, 6, 10, 10]), ["outside the image", "annotation 13"]),
        (set_box([70, 6, 10, 10]), ["outside the image", "annotation 13"]),
        (set_box([5, float("nan"), 4, 10]), ["NaN", "annotation 13"]),
        (set_box([5, 6, 4, float("inf")]), ["NaN or infinite", "annotation 13"]),
        (set_box([5, 6, 10**30, 4]), ["outside the image", "annotation 13"]),
        (set_box([5, 6, 4]), ["four numbers", "annotation 13"]),
        (set_box("5 6 4 4"), ["four numbers", "annotation 13"]),
        (
            lambda c: c["annotations"][0].update(category_id=8),
            ["unknown category 8", "image 1", "annotation 11", "3 (mass)"],
        ),
        (lambda c: c["annotations"][0].update(image_id=77), ["image 77", "annotation 11"]),
        (lambda c: c["annotations"][0].pop("bbox"), ["'bbox' is missing", "annotation 11"]),
        (lambda c: c["annotations"][2].update(bbox=[], segmentation=[[5, 6, 9, 6, 9, 9]]), ["around", "annotation 13"]),
        (lambda c: c["annotations"][1].update(id=11), ["annotation id 11 occurs 2 times"]),
        (lambda c: c["images"][1].update(id=1), ["image id 1 occurs 2 times"]),
        (lambda c: c["images"][1].update(id="1"), ["image id 1 occurs 2 times"]),
        (lambda c: c["images"][1].update(id=[1]), ["'id' is [1]", "images"]),
        (lambda c: c["annotations"][0].update(image_id=[1]), ["'image_id' is [1]", "annotation 11"]),
        (lambda c: c["annotations"][0].update(category_id={}), ["'category_id' is {}", "annotation 11"]),
        (lambda c: c["categories"][0].update(id="mass"), ["'mass'", "not a whole number"]),
        (lambda c: c["categories"].append({"id": 3, "name": "x"}), ["category id 3 occurs 2 times"]),
        (lambda c: c["categories"].clear(), ["categories is empty"]),
        (lambda c: c["images"][1].pop("width"), ["'width' is missing", "image 2"]),
        (lambda c: c["images"][1].update(height=0), ["positive", "image 2"]),
        (lambda c: c["images"][1].pop("file_name"), ["'file_name' is missing", "image 2"]),
        (lambda c: c["images"][1].update(height=True), ["'height' is True", "image 2"]),
        (lambda c: c["images"][1].update(height=10**30), ["positive", "image 2"]),
        (lambda c: c["images"][1].update(width=float("nan")), ["'width' is None", "image 2"]),
        (lambda c: c["images"][1].update(birads=float("inf")), ["infinite", "image 2"]),
        (lambda c: c["images"][1].update(file_name=2), ["file_name is 2", "image 2"]),
        (lambda c: c["images"][1].update(file_name=" "), ["file_name", "image 2"]),
        (lambda c: c["images"][1].update(file_name="a\ud800.png"), ["file_name", "image 2"]),
        (lambda c: c["images"][1].update(patient_id=["A"]), ["patient_id is ['A']", "image 2"]),
        (lambda c: c["images"][1].update(patient_id=True), ["patient_id is True", "image 2"]),
        (lambda c: c["images"][1].update(patient_id=1.5), ["patient_id is 1.5", "image 2"]),
        (lambda c: c["images"][1].update(split=True), ["split is True", "image 2"]),
        (lambda c: c["images"][1].update(id=True), ["'id' is True", "images"]),
        (lambda c: c["annotations"][0].update(image_id=None), ["'image_id' is None", "annotation 11"]),
        (lambda c: c["annotations"][0].update(category_id=True), ["'category_id' is True", "annotation 11"]),
        (lambda c: c["annotations"][0].update(category_id="3"), ["'category_id' is '3'", "annotation 11"]),
        (lambda c: c["annotations"][1].update(id="11"), ["annotation id 11 occurs 2 times"]),
        (lambda c: c["categories"].append({"id": 4, "name": "Mass "}), ["2 categories", "'mass'"]),
        (lambda c: c["categories"][0].update(id=True), ["'id' is True", "categories"]),
        (set_box([True, 6, 4, 4]), ["four numbers", "annotation 13"]),
        (lambda c: c["annotations"][2].update(bbox_mode=0), ["bbox_mode is 0", "annotation 13"]),
        (lambda c: c["annotations"][2].update(attributes={"rotation": 45.5}), ["45.5", "annotation 13"]),
        (set_box(["5", "6", "4", "4"]), ["four numbers", "annotation 13"]),
        (set_box([0.1, 0.2, 0.4, 0.5]), ["within a pixel", "shares", "annotation 13"]),
        (set_box([0.4, 0.4, 0.9, 0.95]), ["within a pixel", "annotation 13"]),
        (set_box([0, 0, 1, 1]), ["within a pixel", "annotation 13"]),
        (set_box([20, 6, 1e-7, 4]), ["empty", "annotation 13"]),
        (set_box([0, 6, 1e-30, 1e-30]), ["empty", "annotation 13"]),
        (lambda c: c.update(info={"seen_patients": "abc"}), ["seen_patients", "info"]),
        (lambda c: c.update(info={"seen_patients": [["a"]]}), ["seen_patients", "info"]),
        (lambda c: c.update(info={"promises": "private"}), ["promises", "info"]),
        (lambda c: c.update(info={"promises": [{"epsilon": 1.0}]}), ["info.promises[0].private", "missing"]),
        (lambda c: c["images"][1].update(slice=0, volume_slices=0), ["slice 0", "volume_slices is 0", "image 2"]),
        (lambda c: c["images"][1].update(slice=9, volume_slices=9), ["slice 9", "from 0", "image 2"]),
        (lambda c: c["images"][1].update(slice=1, volume_slices="three"), ["'three'", "image 2"]),
        (lambda c: c["images"][1].update(slice=1, volume_slices=2.5), ["2.5", "image 2"]),
        (lambda c: c["images"][1].update(lesion_slices=3), ["lesion_slices", "image 2"]),
        (lambda c: c["images"][1].update(lesion_slices=["a", "b"]), ["lesion_slices", "image 2"]),
        (lambda c: c["images"][1].update(lesion_boxes=[[0, 0, 1, 1]] * 9), ["lesion_boxes", "image 2"]),
        (lambda c: c["images"][0].update(lesion_boxes="x"), ["lesion_boxes", "image 1"]),
        (lambda c: c.pop("annotations"), ["not a COCO file"]),
        (lambda c: c.update(images=[3]), ["not a COCO file"]),
    ],
)
def test_bad_annotations(coco_folder, change, words):
    path = coco_folder(change)
    with pytest.raises(UserError) as error:
        read_coco(path)
    line = str(error.value)
    assert all(word in line for word in [*words, str(path)]), line
    assert "\n" not in line


def corners(number: int, pixel: int = 0) -> dict:
    """A box of 20 + number x 10 px at (5, 6), given by its corners; pixel: of the last pixel inside, not the edge."""
    area = (20 + number) * 10
    return {"bbox": [5, 6, 25 + number - pixel, 16 - pixel], "area": area}


@pytest.mark.parametrize("of", [range(6), range(3, 4)], ids=["all", "one"])
@pytest.mark.parametrize("pixel", [0, 1])
def test_areas_tell_of_boxes_that_are_given_by_their_corners(coco_folder, of, pixel):
    def change(content):
        for number, annotation in enumerate(content["annotations"]):
            width, height = annotation["bbox"][2:]
            annotation |= corners(number, pixel) if number in of else {"area": width * height}

    with refused(len(of), "corners", "width", where=f"image {of[0] + 1}, annotation {11 + of[0]}"):
        read_coco(coco_folder(change))


@pytest.mark.parametrize(
    "area",
    [lambda w, h: w * h, lambda w, h: w * h * 0.7, lambda w, h: None, lambda w, h: str(w * h), lambda w, h: -1],
    ids=["rectangle", "outline", "unknown", "text", "negative"],
)
def test_areas_that_show_no_corners(coco_folder, area):
    """Among them are those of outlines: one that happens to fit corners shows nothing."""

    def change(content):
        for annotation in content["annotations"]:
            annotation["area"] = area(*annotation["bbox"][2:])
        if area(10, 10) == 70:
            content["annotations"][0] |= {"bbox": [5, 6, 21, 10], "area": 16 * 4}

    plain, read = read_coco(coco_folder()), read_coco(coco_folder(change))
    np.testing.assert_array_equal(read.infos[3].boxes, plain.infos[3].boxes)


def test_a_box_outside_that_would_fit_as_corners_says_so(coco_folder):
    with refused("outside", "right", where="annotation 13"):
        read_coco(coco_folder(set_box([30, 6, 50, 26])))
    with refused("outside", where="annotation 13") as raised:
        read_coco(coco_folder(set_box([30, 6, 20, 36])))
    assert "right, bottom" not in raised.value.todo


@pytest.mark.parametrize("field", ["iscrowd", "ignore"])
def test_what_is_ignored_is_said_by_true_or_false_alone(coco_folder, field):
    flagged = lambda value: coco_folder(lambda content: content["annotations"][2].update({field: value}))
    for value in (True, False, 1, 0, 1.0, 0.0, None):  # tables with gaps write 0.0 and null
        assert read_coco(flagged(value)).infos[2].ignore.tolist() == [bool(value)]
    for value in ("0", "false", "", 0.5, 2, -1, [], float("nan")):
        with refused(f"{field} is {value!r}", where="annotation 13"):
            read_coco(flagged(value))


@pytest.mark.parametrize(
    ("of_image", "of_annotation"),
    [
        ({"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}, {"attributes": {"occluded": False}}),
        ({"license": None, "split": None, "volume": None}, {"area": None, "segmentation": None, "iscrowd": None}),
        ({"extra": {"name": "x.png", "user_tags": ["a"]}}, {"segmentation": [], "area": 0, "ignore": 0}),
        ({"patient_id": 7, "width": 60.0}, {"category_id": 3.0, "segmentation": [[1, 2, 3, 4, 5, 6]]}),
        ({}, {"attributes": {"occluded": False, "rotation": 180.0}}),
        ({}, {"attributes": {"rotation": 0}}),
        ({"neg_category_ids": []}, {"bbox_mode": 1, "keypoints": [1, 2, 2], "num_keypoints": 1, "track_id": 4}),
    ],
)
def test_what_annotation_programs_write(coco_folder, of_image, of_annotation):
    def change(content):
        content["images"][2] |= of_image
        content["annotations"][2] |= of_annotation
        content["categories"][0]["supercategory"] = ""

    plain, read = read_coco(coco_folder()).infos[2], read_coco(coco_folder(change)).infos[2]
    np.testing.assert_array_equal(read.boxes, plain.boxes)
    assert read.labels.tolist() == plain.labels.tolist() and not read.ignore.any()


def test_ids_are_the_same_as_text_and_as_numbers(coco_folder):
    def change(content):
        content["images"][0]["id"], content["annotations"][0]["image_id"] = "1", 1
        content["annotations"][1]["image_id"], content["annotations"][2]["image_id"] = "2", 3.0
        content["images"][3] |= {"width": 60.0, "height": 40.0}

    infos = read_coco(coco_folder(change)).infos
    assert [info.image_id for info in infos] == ["1", "2", "3", "4", "5", "6"]
    assert [len(info.boxes) for info in infos] == [1] * 6 and (infos[3].width, infos[3].height) == (60, 40)


@pytest.mark.parametrize("value", [None, float("nan"), "", "  ", "nan", "None", "#N/A"])
def test_an_image_without_a_patient_is_its_own(coco_folder, value):
    change = lambda content: [image.update(patient_id=value) for image in content["images"][:3]]
    assert [info.patient_id for info in read_coco(coco_folder(change)).infos[:4]] == ["1", "2", "3", "B"]


@pytest.mark.parametrize("value, written", [(108, "108"), (108.0, "108"), ("A ", "A"), ("e\u0301", "\u00e9")])
def test_a_patient_is_written_in_one_way(coco_folder, value, written):
    info = read_coco(coco_folder(lambda content: content["images"][0].update(patient_id=value))).infos[0]
    assert info.patient_id == written


def test_entries_of_one_file_are_one_image(coco_folder):
    def doubled(content, **changes):
        first, box = content["images"][0], content["annotations"][0]
        content["images"].append(first | {"id": 7, "file_name": ".//1.png"} | changes)
        other = {"id": 98, "image_id": 7, "category_id": 3, "bbox": [30, 6, 9, 9]}
        content["annotations"] += [other, box | {"id": 99, "image_id": 7}]

    infos = read_coco(coco_folder(doubled)).infos
    assert len(infos) == 6 and infos[0].boxes.tolist() == [[5, 6, 26, 16], [30, 6, 39, 15]]
    for changes in ({"split": "val"}, {"patient_id": "Z"}, {"width": 61}, {"birads": "4"}):
        with refused("1 and 7", *changes, where="data.json"):
            read_coco(coco_folder(lambda content, changes=changes: doubled(content, **changes)))


def test_slices_and_frames_without_a_patient_are_of_one(coco_folder):
    def change(content):
        for number, image in enumerate(content["images"]):
            del image["patient_id"]
            of_volume, of_file = {"volume": "v", "slice": number}, {"file_name": "tomo.dcm", "frame": number}
            image |= of_volume if number < 2 else of_file if number < 4 else {}

    infos = read_coco(coco_folder(change)).infos
    assert [info.patient_id for info in infos] == ["v", "v", "tomo.dcm", "tomo.dcm", "5", "6"]
    assert named(infos) == set(), "unknown to other files"


@pytest.mark.parametrize(
    "name, refuses",
    [("ANONYMOUS", False), ("Anonymized^Patient", False), ("anon", False), ("Anon0012", True), ("Anona Maria", True)],
)
def test_a_name_that_every_patient_has_does_not_ask_for_patients(coco_folder, name, refuses):
    def change(content):
        for image in content["images"]:
            del image["patient_id"]
            image["PatientName"] = name

    path = coco_folder(change)
    if refuses:
        with refused("PatientName", "patient_pattern", where=path):
            open_coco(SourceSpec(f"coco:{path}"))
    else:
        assert len({info.patient_id for info in open_coco(SourceSpec(f"coco:{path}")).infos}) == 6


@pytest.mark.parametrize(
    "place", [lambda k: {"volume": "v", "slice": k}, lambda k: {"frame": k, "file_name": "v"}], ids=["slices", "frames"]
)
@pytest.mark.parametrize("lacking", [0, 5])
def test_slices_and_frames_of_which_only_some_name_a_patient_are_refused(coco_folder, place, lacking):
    """Those without one were of another patient, even in another split."""

    def change(content, lacking=lacking):
        for k, image in enumerate(content["images"]):
            image |= {"patient_id": "" if k == lacking else "A"} | place(k)

    with refused("'v'", "names A", where=f"image {lacking + 1}"):
        read_coco(coco_folder(change))
    infos = read_coco(coco_folder(lambda content: change(content, None))).infos
    assert {info.patient_id for info in infos} == {"A"}


def test_a_volume_may_have_the_id_of_an_image(coco_folder):
    infos = read_coco(coco_folder(lambda c: c["images"][0].update(volume="2", slice=0, patient_id=None))).infos
    assert [info.patient_id for info in infos[:2]] == ["2", "A"]


def test_frames_of_one_file_are_images(coco_folder):
    def change(content):
        for frame, image in enumerate(content["images"][:3]):
            image |= {"file_name": "tomo.dcm", "frame": frame, "patient_id": "A"}

    infos = read_coco(coco_folder(change)).infos
    assert len(infos) == 6 and [info.meta["frame"] for info in infos[:3]] == [0, 1, 2]
    with refused("1 and 3", "frame", where="data.json"):
        read_coco(coco_folder(lambda content: (change(content), content["images"][2].pop("frame"))))


def test_unknown_values_of_other_fields_can_be_written_again(coco_folder, tmp_path):
    nested = {"birads": float("nan"), "sizes": [1, float("nan")]}
    infos, classes, *_ = read_coco(coco_folder(lambda content: content["images"][0].update(nested)))
    write_coco(tmp_path / "again.json", infos, classes)
    again = read_coco(tmp_path / "again.json").infos[0].meta
    assert (again["birads"], again["sizes"]) == (None, [1, None])


def test_bad_files(tmp_path):
    with refused(where="none.json"):
        read_coco(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"images": [')
    with refused("JSON", where="cut.json"):
        read_coco(tmp_path / "cut.json")


def test_write_and_read_again(tmp_path, make_info):
    infos = [
        make_info(0, [[1.25, 2, 30.5, 40]], image_id="S1_L_CC", split="train", meta={"view": "CC", "n": np.int64(3)}),
        make_info(5, [], image_id="S2_R_CC"),
        make_info(6, [[0, 0, 5, 5], [3, 3, 9, 9]], ignore=[True, False], labels=np.array([0, 1], np.int32)),
    ]
    write_coco(tmp_path / "a.json", infos, ("mass", "other"))
    again, classes, *_ = read_coco(tmp_path / "a.json")
    assert classes == ("mass", "other")
    for old, new in zip(infos, again):
        np.testing.assert_allclose(new.boxes, old.boxes, atol=2e-3)
        assert new.labels.tolist() == old.labels.tolist()
        assert new.ignore.tolist() == old.ignore.tolist()
        assert (new.patient_id, new.split, new.file_name) == (old.patient_id, old.split, old.file_name)
    assert again[0].meta == {"view": "CC", "n": 3}
    assert [info.image_id for info in again] == ["1", "2", "3"]


def test_write_keeps_whole_number_ids(tmp_path, make_info):
    write_coco(tmp_path / "a.json", [make_info(7, []), make_info(3, [])], ("mass",))
    assert [image["id"] for image in json.loads((tmp_path / "a.json").read_text())["images"]] == [7, 3]


def test_slices_of_a_volume_come_back(coco_folder, tmp_path):
    def slices(content):
        for number, image in enumerate(content["images"][:2]):
            image |= {"volume": 7, "slice": float(number)}  # as tables with gaps are written
        content["images"][2]["slice"] = 16

    infos, classes, *_ = read_coco(coco_folder(slices))
    assert [(info.volume, info.slice) for info in infos[:4]] == [("7", 0), ("7", 1), ("", 16), ("", -1)]
    assert not {"volume", "slice"} & set(infos[0].meta)
    write_coco(tmp_path / "again.json", infos, classes)
    again = read_coco(tmp_path / "again.json").infos
    assert [(info.volume, info.slice) for info in again] == [(info.volume, info.slice) for info in infos]


@pytest.mark.parametrize("fields", [{"volume": "a"}, {"slice": -1}, {"volume": "a", "slice": "L3"}, {"volume": ""}])
def test_a_volume_without_a_slice_is_refused(coco_folder, fields):
    with refused("volume", where="image 1"):
        read_coco(coco_folder(lambda content: content["images"][0].update(fields)))


@pytest.mark.parametrize("key", ["seen_patients", "learned_from"])
def test_patients_that_a_painter_has_seen_are_read_from_sets_of_earlier_versions_too(coco_folder, key):
    path = coco_folder(lambda content: content.update(info={key: ["a1", "b2"]}))
    assert read_coco(path).seen_patients == {"a1", "b2"}


def test_promises_go_with_the_images(tmp_path):
    """Written, read, and joined: a training behind two sets is named once, and one in words alone is not known."""
    first, second = (
        Statement(True, 1.0, 1e-5, "pld", Ledger((Phase(1.0, noise, 3),), "patient")).named() for noise in (4.0, 5.0)
    )
    info = ImageInfo(
        "1", "P", 8, 8, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), file_name="1.png"
    )
    sets = {"one": (first, second), "two": (first,), "words": (), "empty": (), "lost": None, "none": ()}
    for name, given in sets.items():
        write_coco(tmp_path / f"{name}.json", [info], ["lesion"], promises=given)
    for name, said in (("words", {}), ("empty", {"promises": []})):  # of earlier versions, or of other programs
        content = read_json(tmp_path / f"{name}.json")
        write_json(tmp_path / f"{name}.json", content | {"info": {"promise": "Private."} | said})
    opened = {name: open_coco(SourceSpec(f"coco:{tmp_path / f'{name}.json'}")) for name in sets}
    found = {name: one.promises for name, one in opened.items()}
    assert found == sets | {"words": None, "empty": None}
    assert "epsilon" in read_json(tmp_path / "one.json")["info"]["promise"]
    both = lambda *names: concatenate([opened[name] for name in names]).promises
    assert both("two", "one", "none") == (first, second) and both("one", "words") is None
