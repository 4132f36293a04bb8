import pickle
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from elk_jax.data.sources.source import cached, concatenate, fewshot, open_source, subset, summary, without_unreadable
from elk_jax.errors import UserError


def test_splits_and_filters(coco_folder):
    spec = f"coco:{coco_folder()}"
    assert len(open_source(spec)) == 6
    assert [info.image_id for info in open_source(spec, "train").infos] == ["1", "2", "3", "4"]
    assert [info.image_id for info in open_source(spec, "train", {"is_mass": True}).infos] == ["1", "3"]
    assert [info.image_id for info in open_source(spec, where={"is_mass": "false"}).infos] == ["2", "4", "6"]
    assert len(open_source(spec, where={"birads": [4, 5]})) == 6
    record = open_source(spec, "val")[0]
    assert record.info.image_id == "5"
    assert record.image.shape == (40, 60, 1) and record.image.dtype == np.float32
    assert record.image.min() >= 0 and 0.9 < record.image.max() <= 1


def test_images_beside_the_json(coco_folder, tmp_path):
    path = coco_folder()
    for file in (tmp_path / "images").iterdir():
        file.rename(tmp_path / file.name)
    (tmp_path / "images").rmdir()
    assert open_source(f"coco:{path}")[3].info.file_name == "4.png"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "dev"}, ["no image in split 'dev'", "test (1), train (4), val (1)"]),
        ({"where": {"mass": True}}, ["no image has the field 'mass'", "is_mass"]),
        ({"where": {"birads": "6"}}, ["no image fits", "5"]),
        ({"on_error": "ignore"}, ["on_error is 'ignore'", "stop or skip"]),
    ],
)
def test_bad_choices(coco_folder, arguments, words):
    with pytest.raises(UserError) as error:
        open_source(f"coco:{coco_folder()}", **arguments)
    assert all(word in str(error.value) for word in words), error.value


def test_bad_specs(tmp_path, coco_folder):
    with pytest.raises(UserError, match=r"unknown data source 'data\.json'.*coco:FILE"):
        open_source("data.json")
    with pytest.raises(UserError, match="no readable TFDS data set"):
        open_source(f"tfds:{tmp_path}")

    def no_splits(content):
        for image in content["images"]:
            del image["split"]

    with pytest.raises(UserError, match=r"add a field `split`.*or set split_shares=0\.7,0\.15,0\.15"):
        open_source(f"coco:{coco_folder(no_splits)}", "train")
    with pytest.raises(UserError, match="has no image"):
        open_source(f"coco:{coco_folder(lambda c: c.update(images=[], annotations=[]))}")
    with pytest.raises(UserError, match="patient A is in two splits"):
        open_source(f"coco:{coco_folder(lambda c: c['images'][4].update(patient_id='A'))}", "train")


def test_images_without_splits_are_dealt_out_by_patient(coco_folder):
    def no_splits(content):
        for image in content["images"]:
            del image["split"]

    spec, shares = f"coco:{coco_folder(no_splits)}", (0.5, 0.25, 0.25)
    split_of = lambda **wanted: {
        info.image_id: split
        for split in ("train", "val", "test")
        for info in open_source(spec, split, split_shares=shares, **wanted).infos
    }
    drawn = split_of()
    assert sorted(drawn) == ["1", "2", "3", "4", "5", "6"], "every image in one split"
    assert drawn["1"] == drawn["2"] and drawn["3"] == drawn["4"], "patients stay together"
    assert sorted(Counter(drawn[image] for image in "1356").values()) == [1, 1, 2]
    assert split_of() == drawn
    everything = open_source(spec, split_shares=shares, where={"is_mass": True})
    assert {info.image_id: info.split for info in everything.infos} == {i: drawn[i] for i in "135"}, "filters move none"
    with pytest.raises(UserError, match=r"split_shares is \(0\.7, 0\.3\).*three numbers"):
        open_source(spec, split_shares=(0.7, 0.3))
    with pytest.raises(UserError, match="name their splits already: test, train, val"):
        open_source(f"coco:{coco_folder()}", "train", split_shares=shares)
    with pytest.raises(UserError, match="name their splits already"):
        open_source("phantom:size=64,count=12", "train", split_shares=shares)


def test_twelve_bits_of_a_source_and_of_an_image(coco_folder, tmp_path):
    path = coco_folder(lambda content: content["images"][1].update(bit_depth=14))
    for number, brightest in ((1, 4095), (2, 16383)):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.full((40, 60), brightest, np.uint16))
    source = open_source(f"coco:{path}", bit_depth=12)
    assert [source[i].image.max() for i in range(2)] == [1.0, 1.0]
    assert 0.9 < source[2].image.max() <= 1, "one of 8 bits"
    with pytest.raises(UserError, match=r"bit_depth is 40 .*give 1 to 16"):
        open_source(f"coco:{path}", bit_depth=40)
    with pytest.raises(UserError, match=r"bit_depth is 'twelve' .*image 1\)"):
        open_source(f"coco:{coco_folder(lambda content: content['images'][0].update(bit_depth='twelve'))}")


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
def test_one_unreadable_image(coco_folder, tmp_path, damage, reason):
    spec = f"coco:{coco_folder()}"
    damage(tmp_path)
    with pytest.raises(UserError, match=reason) as error:
        open_source(spec)[2]
    assert "3.png" in str(error.value)
    source = open_source(spec, "train", on_error="skip")
    assert [info.image_id for info in source.infos] == ["1", "2", "4"]
    assert [image_id for image_id, _ in source.skipped] == ["3"]
    assert source[2].info.image_id == "4"


def test_no_readable_image(make_source, make_info):
    def fail(position):
        raise UserError("bad image")

    source = replace(make_source([make_info(0, [])]), read=fail)
    with pytest.raises(UserError, match="none of 1 images can be read"):
        without_unreadable(source)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.full((48, 64, 1), np.nan, np.float32), "3072 pixels are NaN"),
        (np.full((48, 64, 1), 1.5, np.float32), "grey values reach from 1.5 to 1.5"),
        (np.zeros((64, 48, 1), np.float32), "48 x 64 px, its record says 64 x 48"),
        (np.zeros((48, 64, 3), np.float32), "one grey channel"),
    ],
)
def test_pixels_are_checked(make_source, make_info, image, reason):
    source = replace(make_source([make_info(0, [])]), read=lambda position: image)
    for opened in (source, cached(source), subset(source, [0]), concatenate([source, source])):
        with pytest.raises(UserError, match=reason):
            opened[0]


def test_subset_and_fewshot(make_source, make_info):
    source = make_source([make_info(n, []) for n in range(20)])  # two images per patient
    chosen = subset(source, [5, 2])
    assert [chosen[i].info.image_id for i in range(2)] == ["5", "2"]
    assert np.array_equal(chosen[0].image, source[5].image)
    few = [{info.patient_id for info in fewshot(source, n, seed=3).infos} for n in (2, 5)]
    assert len(few[0]) == 2 and len(few[1]) == 5 and few[0] < few[1]
    assert len(fewshot(source, 5)) == 10
    with pytest.raises(UserError, match="11 patients wanted, the source has 10"):
        fewshot(source, 11)


def test_concatenate(make_source, make_info):
    real = make_source([make_info(n, [[0, 0, 9, 9]]) for n in range(3)], "real")
    synthetic = make_source([make_info(n, []) for n in range(10, 12)], "synthetic")
    mixed = concatenate([real, synthetic])
    assert [mixed.mixed[info.source] for info in mixed.infos] == ["real"] * 3 + ["synthetic"] * 2
    assert mixed[4].info.image_id == "11"
    assert np.array_equal(mixed[4].image, synthetic[1].image)
    assert summary(mixed.infos) == {"images": 5, "patients": 3, "lesions": 3, "lesion_free": 2}
    real, synthetic = (replace(s, learned_from=frozenset(marks)) for s, marks in ((real, "ab"), (synthetic, "bc")))
    assert concatenate([real, subset(synthetic, [0])]).learned_from == frozenset("abc")
    with pytest.raises(UserError, match="classes differ: lesion against mass"):
        concatenate([real, replace(synthetic, classes=("mass",))])


@pytest.mark.parametrize("levels", [255, 65535])
def test_cached(make_source, make_info, levels):
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, levels + 1, (48, 64, 1)).astype(np.float32) * np.float32(1 / levels) for _ in range(3)
    ]
    images = [image.clip(0, 1) for image in images]
    reads = []
    source = replace(
        make_source([make_info(n, []) for n in range(3)]), read=lambda i: reads.append(i) or images[i]
    )
    kept = cached(source, max_bytes=2 * 48 * 64 * (1 if levels == 255 else 2))  # room for two
    for _ in range(3):
        for i in range(3):
            assert np.array_equal(kept[i].image, images[i])
    assert reads.count(0) == 1 and reads.count(1) == 1 and reads.count(2) == 3


def test_kept_images_are_not_decoded_again(coco_folder, tmp_path):
    spec = f"coco:{coco_folder()}"
    break_truncated(tmp_path)
    plain = open_source(spec, "train", on_error="skip")
    kept = open_source(spec, "train", on_error="skip", keep_bytes=1 << 20)
    images = [plain[i].image for i in range(3)]
    for number in (1, 2, 4):
        (tmp_path / "images" / f"{number}.png").unlink()
    for image, record in zip(images, (kept[i] for i in range(3))):
        assert np.array_equal(record.image, image)
    with pytest.raises(UserError, match=r"1\.png"):
        plain[0]


def test_opened_late_nothing_is_looked_at_before_it_is_read(coco_folder, tmp_path):
    spec = f"coco:{coco_folder()}"
    break_missing(tmp_path)
    with pytest.raises(UserError, match=r"3\.png"):
        open_source(spec)
    source = open_source(spec, on_error="late")
    assert len(source) == 6 and source[0].info.image_id == "1"
    with pytest.raises(UserError, match=r"3\.png"):
        source[2]


def test_sources_can_be_sent_to_workers(coco_folder):
    source = open_source(f"coco:{coco_folder()}", "train", {"is_mass": True}, clean=True)
    mixed = cached(concatenate([source, source]))
    again = pickle.loads(pickle.dumps(mixed))
    assert np.array_equal(again[3].image, mixed[3].image)


def test_cdd_cesm(real_data):
    """The published counts of the real images: 151 subtracted mass images, 95 / 19 / 37."""
    spec = f"coco:{real_data / 'cdd_cesm_512' / 'subtracted.json'}"
    mass = {split: open_source(spec, split, {"is_mass": True}) for split in ("", "train", "val", "test")}
    assert [len(source) for source in mass.values()] == [151, 95, 19, 37]
    assert len(open_source(spec)) == 245
    assert len(open_source(spec.replace("subtracted", "low_energy"))) == 247
    record = mass["train"][0]
    assert record.image.shape == (512, 512, 1)
    x1, y1, x2, y2 = record.info.boxes[0].astype(int)
    assert record.image[y1:y2, x1:x2].mean() > 1.5 * record.image.mean()
