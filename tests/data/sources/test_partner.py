"""Pairs as a data source: two images a record, of COCO files and phantoms, through crops, flips and batches."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from elk_jax.data.augment import Augmentation, Resize, augment, resize_only
from elk_jax.data.batches.detection import LoaderConfig, blank_batch, eval_batches, train_batches
from elk_jax.data.breast import crop_to_breast
from elk_jax.data.flips import flipped
from elk_jax.data.sources import shuffled_partners
from elk_jax.data.sources.decode import encode_png
from elk_jax.data.sources.open import list_source, open_source
from elk_jax.data.sources.source import cached, concatenate, one_of, subset, with_images
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.files import write_json
from elk_jax.images.schema import ImageInfo, Record
from tests.refusals import refused

CANVAS = (48, 32)


@pytest.fixture
def folder(tmp_path):
    """Three images with a bright square at the lesion, and their partners, whose square is darker by half."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in range(1, 4):
        pixels = np.full((40, 24), 60, np.uint8)
        pixels[10:18, 4 + number : 12 + number] = 200
        (tmp_path / "images" / f"{number}.png").write_bytes(encode_png(pixels))
        (tmp_path / "images" / f"{number}_other.png").write_bytes(encode_png(pixels // 2))
        entry = {
            "id": number,
            "file_name": f"{number}.png",
            "partner": f"{number}_other.png",
            "patient_id": f"P{number}",
        }
        images.append({**entry, "width": 24, "height": 40, "split": "train"})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [4 + number, 10, 8, 8]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "lesion"}]}

    def write(change=lambda content: None):
        change(content)
        write_json(tmp_path / "pairs.json", content)
        return SourceSpec(f"coco:{tmp_path / 'pairs.json'}", partner="partner")

    write.folder = tmp_path
    return write


def test_a_record_has_both_images(folder):
    pairs = open_source(folder(), "train")
    assert pairs.images == 2 and pairs[1].image.shape == (40, 24, 2)
    np.testing.assert_allclose(pairs[1].image[12, 8], [200 / 255, 100 / 255], atol=1e-6)
    assert np.array_equal(one_of(pairs, 0)[2].image, pairs[2].image[..., :1])
    assert np.array_equal(one_of(pairs, 1)[2].image, pairs[2].image[..., 1:])
    assert one_of(pairs, 1).infos == pairs.infos and one_of(pairs, 1).images == 1
    chosen = subset(pickle.loads(pickle.dumps(pairs)), [2, 0])
    assert np.array_equal(chosen[0].image, pairs[2].image) and chosen.images == 2
    assert concatenate([pairs, chosen]).images == 2


def test_a_partner_that_is_not_read_is_not_opened(folder):
    """By any way to the first images: their files alone are there."""
    for number in range(1, 4):
        (folder.folder / "images" / f"{number}_other.png").unlink()
    spec = folder()
    pairs = list_source(spec, "train")
    bright = pytest.approx(200 / 255)
    assert pairs.images == 2 and one_of(pairs, 0)[1].image[12, 8] == bright
    single = open_source(spec, "train", images=1)
    assert len(single) == 3 and not open_source(spec, "train", on_error="skip", images=1).skipped
    for first in (with_images(flipped(pairs, "both"), 1), one_of(subset(concatenate([pairs, pairs]), [4]), 0)):
        assert first[0].image.max() == bright
    assert with_images(crop_to_breast(pairs)[0], 1)[0].image.max() == bright
    for needed in (pairs, one_of(pairs, 1)):
        with refused(where="1_other.png"):
            _ = needed[0]


def test_the_second_images_alone_do_not_need_the_first(folder):
    pairs = list_source(folder(), "train")
    for number in range(1, 4):
        (folder.folder / "images" / f"{number}.png").unlink()
    assert one_of(pairs, 1)[0].image.max() == pytest.approx(100 / 255)


def test_both_images_of_a_pair_are_kept_within_the_memory_for_a_source(folder):
    calls = []
    reader = lambda number: lambda position: calls.append(number) or np.full((4, 4, 1), number / 255, np.float32)
    source = replace(subset(open_source(folder(), "train"), [0, 1]), read=reader(1), partner=reader(2))
    whole, tight = cached(source, 64), cached(source, 32)  # 16 bytes an image
    for kept in (whole, tight):
        for _ in range(3):
            assert [one(position)[0, 0, 0] * 255 for position in (0, 1) for one in (kept.read, kept.partner)] == [
                pytest.approx(1), pytest.approx(2)] * 2  # fmt: skip
    assert calls.count(1) == calls.count(2) == 2 + 1 + 3, "each image once, and the one without room every time"


def test_a_source_gives_as_many_images_as_are_read(folder):
    pairs = open_source(folder(), "train")
    single = open_source(SourceSpec(folder().spec), "train")
    assert with_images(pairs, 2) is pairs and with_images(single, 1) is single
    assert with_images(pairs, 1)[0].image.shape == (40, 24, 1)
    for refuse in (lambda: with_images(single, 2), lambda: one_of(single, 1)):
        with refused("partner", where="pairs.json"):
            refuse()
    with refused("partner", where=f"{pairs.name} and {single.name}"):
        concatenate([pairs, single])


EVERYTHING = Augmentation(horizontal_flip=0.5, vertical_flip=0.5, rotate90=0.5, rotation=10.0, crop=0.7)


@pytest.mark.parametrize("resize", [Resize(jitter=(0.6, 1.5)), Resize((20, 30), 50)])
def test_both_images_get_one_geometry(folder, resize):
    pairs, rng = open_source(folder(), "train"), np.random.default_rng(0)
    for turn in range(40):
        record = pairs[turn % 3]
        twice = Record(record.info, np.repeat(record.image[..., :1], 2, -1))
        example = augment(twice, EVERYTHING, resize, (48, 48), rng)
        assert example.image.ndim == 3 and np.array_equal(example.image[..., 0], example.image[..., 1])
    example = resize_only(pairs[0], resize, CANVAS)
    assert example.image.shape[-1] == 2
    np.testing.assert_allclose(example.image[..., 1], example.image[..., 0] / 2, atol=2 / 255)


def test_grey_values_change_apart_and_those_of_the_first_do_not_depend_on_the_second(folder):
    record = open_source(folder(), "train")[0]
    greys = Augmentation(gain=0.3, gamma=0.3, noise=0.02)
    both = augment(record, greys, Resize((24,)), CANVAS, np.random.default_rng(3)).image
    alone = Record(record.info, record.image[..., :1])
    assert np.array_equal(both[..., :1], augment(alone, greys, Resize((24,)), CANVAS, np.random.default_rng(3)).image)
    ratio = both / record.image
    assert not np.allclose(ratio[..., 0], ratio[..., 1], atol=0.02)


def test_batches_hold_both_images(folder):
    pairs = open_source(folder(), "train")
    config = LoaderConfig(batch_size=2, buckets=(CANVAS,), lesion_share=None)
    stream = train_batches(pairs, config, seed=0)
    batch = next(stream)
    stream.close()
    assert batch["image"].shape == (2, *CANVAS, 2) == blank_batch(2, CANVAS, 8, images=2)["image"].shape
    tested = list(eval_batches(pairs, config))
    assert tested[0]["image"].shape == (2, *CANVAS, 2) and tested[0]["gt_valid"][0].sum() == 1
    pasting = LoaderConfig(batch_size=2, buckets=(CANVAS,), augmentation=Augmentation(copy_paste=0.5))
    with refused("pairs", where="augmentation.copy_paste"):
        train_batches(pairs, pasting, seed=0)


def test_pairs_are_cut_to_the_breast_of_the_first_image_and_mirrored_together():
    pairs = open_source(SourceSpec("phantom:size=64,count=12", partner="low_energy"), "val")
    cut, windows = crop_to_breast(pairs)
    alone, same = crop_to_breast(one_of(pairs, 0))
    assert windows == same
    assert np.array_equal(cut[0].image[..., :1], alone[0].image) and cut[0].image.shape[-1] == 2
    assert np.array_equal(flipped(pairs, "horizontal")[0].image, pairs[0].image[:, ::-1])


@pytest.mark.parametrize(
    "spec, partner",
    [
        ("phantom:size=64,count=12,seed=2,modality=low_energy", "subtracted"),
        ("phantom_volumes:size=64,count=12,slices=9,modality=synthetic_2d", "mammogram"),
        ("phantom_volumes:size=64,count=12,slices=9,modality=mammogram", "synthetic_2d"),
    ],
)
def test_pairs_of_phantoms_are_their_modalities(spec, partner):
    pairs = open_source(SourceSpec(spec, partner=partner), "val")
    for number, modality in enumerate((spec.rpartition("=")[2], partner)):
        other = open_source(SourceSpec(f"{spec},modality={modality}"), "val")
        assert np.array_equal(pairs[1].image[..., number], other[1].image[..., 0])
    first = open_source(SourceSpec(spec), "val")
    assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(pairs.infos, first.infos, strict=True))


def test_what_is_said_of_a_file_is_not_said_of_its_partner(folder):
    deep = np.full((40, 24), 3000, np.uint16)
    for name in ("1.png", "1_other.png"):
        (folder.folder / "images" / name).write_bytes(encode_png(deep))

    spec = folder(lambda content: content["images"][0].update(bit_depth=12))
    image = open_source(spec, "train")[0].image
    np.testing.assert_allclose(image[0, 0], [3000 / 4095, 3000 / 65535], rtol=1e-4)
    spec = folder(lambda content: content["images"][0].update(partner_bit_depth=12))
    np.testing.assert_allclose(open_source(spec, "train")[0].image[0, 0], 3000 / 4095, rtol=1e-4)


# ---- Refusals --------------------------------------------------------------------------------------------------------


def test_an_image_without_a_partner_is_named(folder):
    spec = folder(lambda content: content["images"][1].pop("partner"))
    with refused("partner", "paired_images.py", where="image 2 (2.png)"):
        open_source(spec, "train")
    with refused("other", where="image 1 (1.png)"):
        open_source(SourceSpec(spec.spec, partner="other"), "train")


def test_a_partner_that_is_not_there_or_of_another_size_is_named(folder):
    (folder.folder / "images" / "3_other.png").write_bytes(encode_png(np.zeros((40, 25), np.uint8)))
    for pairs in (open_source(folder(), "train"), flipped(open_source(folder(), "train"), "both")):
        with refused(24, 25, "paired_images.py", where="image 3 (3.png)"):
            _ = pairs[2]
    assert [name for name, _ in open_source(folder(), "train", on_error="skip").skipped] == ["3"]
    (folder.folder / "images" / "3_other.png").unlink()
    with refused("3_other.png", where="pairs.json"):
        open_source(folder(), "train")


@pytest.mark.parametrize(
    "spec, partner, words",
    [
        ("phantom:size=64,count=12", "subtracted", ("subtracted", "low_energy")),
        ("phantom:size=64,count=12", "ct", ("ct", "low_energy")),
        ("phantom_volumes:size=64,count=12,slices=9", "mammogram", ("dbt", "synthetic_2d")),
        ("phantom_volumes:size=64,count=12,slices=9,modality=mammogram", "dbt", ("dbt", "synthetic_2d")),
        ("phantom_patches:count=12", "low_energy", ("coco:", "phantom:")),
    ],
)
def test_impossible_partners_are_named(spec, partner, words):
    with refused(*words):
        open_source(SourceSpec(spec, partner=partner), "val")


def test_an_image_is_not_its_own_partner(folder):
    for name in ("./2.png", str(folder.folder / "images" / "2.png")):
        spec = folder(lambda content, name=name: content["images"][1].update(partner=name))
        with refused("itself", where="image 2 (2.png)"):
            open_source(spec, "train")
    frames = folder(lambda content: content["images"][1].update(partner="2.png", partner_frame=1))
    assert list_source(frames, "train").images == 2  # another frame of the file


def test_a_partner_of_another_patient_or_split_is_named(folder):
    for name in ("2.png", str(folder.folder / "images" / "2.png")):
        spec = folder(lambda content, name=name: content["images"][0].update(partner=name))
        with refused("P1", "P2", where="image 1 (1.png)"):
            open_source(spec, "train")
    spec = folder(lambda content: content["images"][1].update(patient_id="P1", split="test"))
    with refused("train", "test", where="image 1 (1.png)"):
        open_source(spec, "train")


def _of_patients(folder, patients):
    """The COCO pairs of `folder` with one image more for each name in `patients`, of other sizes and grey values."""

    def change(content):
        content["images"], content["annotations"] = [], []
        for number, patient in enumerate(patients):
            height, width = 40 + 2 * number, 24 + number
            for name, grey in ((f"n{number}.png", 10 * number), (f"n{number}_other.png", 100 + 10 * number)):
                (folder.folder / "images" / name).write_bytes(encode_png(np.full((height, width), grey, np.uint8)))
            entry = {"id": number + 1, "file_name": f"n{number}.png", "partner": f"n{number}_other.png"}
            content["images"].append(
                {**entry, "patient_id": patient, "width": width, "height": height, "split": "train"}
            )

    return replace(folder(change), shuffled_partners=True)


@pytest.mark.parametrize("patients", ["ABCD", "AABBBC", "AAABCD", "AB"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffled_partners_are_those_of_other_patients(folder, patients, seed):
    pairs = list_source(_of_patients(folder, patients), "train", seed=seed)
    shown = [round(float(pairs[i].image[..., 1].mean()) * 255 - 100) // 10 for i in range(len(pairs))]
    assert sorted(shown) == list(range(len(patients)))
    assert all(patients[i] != patients[other] for i, other in enumerate(shown))
    for position, info in enumerate(pairs.infos):
        assert pairs[position].image.shape == (info.height, info.width, 2)
        assert np.allclose(pairs[position].image[..., 0] * 255, 10 * position)
    again = list_source(_of_patients(folder, patients), "train", seed=seed)
    assert np.array_equal(again[0].image, pairs[0].image)


def test_shuffled_partners_follow_the_seed_and_the_chosen_patients(folder):
    spec = _of_patients(folder, "ABCDEFGH")
    shown = lambda source: [float(source[i].image[0, 0, 1]) for i in range(len(source))]
    assert len({tuple(shown(list_source(spec, "train", seed=seed))) for seed in range(4)}) > 1
    few = list_source(replace(spec, patients=3), "train", seed=1)
    own = one_of(list_source(replace(spec, patients=3, shuffled_partners=False), "train", seed=1), 1)
    assert sorted(shown(few)) == sorted(float(own[i].image[0, 0, 0]) for i in range(3))


def test_partners_that_cannot_be_exchanged_are_named(folder):
    with refused("'A'", "3 of 5", "more patients", where="config.data.pairs.shuffled_partners"):
        list_source(_of_patients(folder, "AAABC"), "train", name="pairs")
    unnamed = folder(lambda content: [one.pop("patient_id") for one in content["images"]])
    with refused("no patient ID", "patient_pattern", where="config.data.pairs.shuffled_partners"):
        list_source(replace(unnamed, shuffled_partners=True), "train", name="pairs")
    with refused("partner", where="shuffled_partners"):
        SourceSpec("phantom:size=64,count=12", shuffled_partners=True)


def test_partners_are_exchanged_among_images_of_one_side_and_view():
    """As far as they can be: the image of a view that one patient alone has stands beside one of another view."""
    views = ["L CC", "R CC", "L CC", "R CC", "L CC", "L MLO", "R MLO"]
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    infos = [
        ImageInfo(str(number), patient, 4, 4, *none, meta=dict(zip(("laterality", "view"), view.split())))
        for number, (patient, view) in enumerate(zip("ABBAACB", views))
    ]
    shown = shuffled_partners._of_another_patient(infos, 3, "")
    assert sorted(shown) == list(range(7))
    assert all(infos[own].patient_id != infos[other].patient_id for own, other in enumerate(shown))
    assert (shown[1], shown[3]) == (3, 1), "of L CC patient A has two of three; of either MLO there is one image"


def test_shuffled_phantoms_show_another_breast():
    spec = SourceSpec("phantom:size=64,count=40", partner="low_energy")

    def likeness(pairs):
        images = [pairs[position].image for position in range(len(pairs))]
        return [np.corrcoef(image[..., 0].ravel(), image[..., 1].ravel())[0, 1] for image in images]

    own, others = (likeness(open_source(one, "val")) for one in (spec, replace(spec, shuffled_partners=True)))
    assert np.median(own) > max(others)
