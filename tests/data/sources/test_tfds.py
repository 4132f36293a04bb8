"""A TFDS data set built and read without TensorFlow holds the same records as its origin."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from elk_jax.data.augment import Resize  # noqa: E402
from elk_jax.data.batches.detection import LoaderConfig, eval_batches  # noqa: E402
from elk_jax.data.sources.decode import encode_png  # noqa: E402
from elk_jax.data.sources.open import open_source  # noqa: E402
from elk_jax.data.sources.spec import SourceSpec  # noqa: E402
from elk_jax.data.sources.tfds import _info, example, features  # noqa: E402
from tests.refusals import refused  # noqa: E402


def build(folder, infos_by_split, pixels, bits):
    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        __module__ = "__main__"  # else TFDS looks for this file as part of an installed package
        VERSION = tfds.core.Version("1.0.0")
        name = "small"

        def _info(self):
            spacing = tfds.features.Tensor(shape=(2,), dtype=np.float32)
            extra = {"view": tfds.features.Text(), "is_mass": np.bool_, "pixel_spacing": spacing}
            layout = features(("mass", "calcification"), bits, **extra)
            return tfds.core.DatasetInfo(builder=self, features=layout)

        def _split_generators(self, download_manager):
            return {split: self._generate_examples(infos) for split, infos in infos_by_split.items()}

        def _generate_examples(self, infos):
            for info in infos:
                row = replace(info, meta=info.meta | {"pixel_spacing": info.meta["pixel_spacing"] or [np.nan] * 2})
                yield info.image_id, example(row, encode_png(pixels[info.image_id]))

    builder = Small(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


@pytest.fixture
def collection(make_info):
    def make(kind):
        rng = np.random.default_rng(0)
        infos, pixels = {"val": [], "train": []}, {}
        for number in range(6):
            boxes = [[1, 2, 9.5, 12], [20, 20, 40, 41]][: number % 3]
            labels = np.arange(len(boxes), dtype=np.int32)
            meta = {
                "view": "MLO",
                "is_mass": number % 2 == 0,
                "pixel_spacing": [0.5, 0.25] if number else None,
            }
            split = "train" if number < 4 else "val"
            ignore = [False, True][: len(boxes)]
            place = {"volume": "V", "slice": number} if number < 3 else {}
            infos[split].append(make_info(number, boxes, labels=labels, ignore=ignore, meta=meta, **place))
            pixels[str(number)] = rng.integers(0, np.iinfo(kind).max + 1, (48, 64)).astype(kind)
        return infos, pixels

    return make


@pytest.mark.parametrize(("kind", "bits"), [(np.uint8, 8), (np.uint16, 16)])
def test_records_survive(tmp_path, collection, kind, bits):
    infos, pixels = collection(kind)
    spec = f"tfds:{build(tmp_path, infos, pixels, bits)}"
    totals = []
    source = open_source(SourceSpec(spec), progress=lambda results, total: totals.append(total) or results)
    assert totals == [6]
    assert source.classes == ("mass", "calcification")
    assert [info.split for info in source.infos] == ["train"] * 4 + ["val"] * 2
    originals = {info.image_id: info for infos_of_split in infos.values() for info in infos_of_split}
    for index, info in enumerate(source.infos):
        old = originals[info.image_id]
        np.testing.assert_array_equal(info.boxes, old.boxes)
        assert info.boxes.shape == old.boxes.shape and info.boxes.dtype == np.float32
        assert info.labels.tolist() == old.labels.tolist() and info.ignore.tolist() == old.ignore.tolist()
        assert (info.patient_id, info.file_name, info.meta) == (old.patient_id, old.file_name, old.meta)
        assert (info.volume, info.slice) == (old.volume, old.slice)
        np.testing.assert_allclose(source[index].image[..., 0] * (2**bits - 1), pixels[info.image_id], atol=1e-2)
    assert len(open_source(SourceSpec(spec, where="is_mass=true"), "train")) == 2
    assert "tensorflow" not in sys.modules
    with refused("test", "train (4), val (2)", where=source.name):
        open_source(SourceSpec(spec), "test")


def test_threads_read_the_same(tmp_path, collection):
    infos, pixels = collection(np.uint8)
    source = open_source(SourceSpec(f"tfds:{build(tmp_path, infos, pixels, 8)}"))
    config = LoaderConfig(batch_size=1, resize=Resize((48,)), threads=8, prefetch=8)
    for _ in range(5):
        batches = list(eval_batches(source, config))
        assert len(batches) == 6
        for index, batch in enumerate(batches):
            assert np.array_equal(batch["image"][0, :48, :64], source[index].image)


@pytest.mark.parametrize(
    "change, words",
    [({"labels": np.array([-1], np.int32)}, ["labels [-1]", 2]), ({"image_id": "0"}, ["image id 0", 2])],
)
def test_what_a_builder_of_others_may_write_is_refused(tmp_path, collection, make_info, change, words):
    infos, pixels = collection(np.uint8)
    meta = {"view": "CC", "is_mass": True, "pixel_spacing": None}
    infos["val"].append(make_info(8, [[1, 2, 9, 12]], meta=meta, **change))
    pixels["8"] = pixels["0"]
    with refused(*words):
        open_source(SourceSpec(f"tfds:{build(tmp_path, infos, pixels, 8)}"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b""), ["record"]),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), ["record"]),
        (lambda path: path.unlink(), ["record", "No such file"]),
    ],
    ids=["empty", "cut", "missing"],
)
def test_damaged_and_missing_records_are_named(tmp_path, collection, damage, words):
    folder = Path(build(tmp_path, *collection(np.uint8), 8))
    intact = open_source(SourceSpec(f"tfds:{folder}"), cache_bytes=0)
    damage(next(folder.glob("*-train.*")))
    with refused(*words, where=f"{folder}, split train"):
        open_source(SourceSpec(f"tfds:{folder}"), "val")
    assert len(intact) == 6 and intact[5].image.shape == (48, 64, 1)


def test_a_data_set_of_another_layout_is_refused(tmp_path):
    class Other(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        __module__ = "__main__"
        VERSION = tfds.core.Version("1.0.0")
        name = "other"

        def _info(self):
            layout = {"image": tfds.features.Image(shape=(None, None, 1)), "objects": tfds.features.Text()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(layout))

        def _split_generators(self, download_manager):
            return {"train": [("0", {"image": encode_png(np.zeros((4, 4), np.uint8)), "objects": ""})]}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Other(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    with refused("image_id", "objects.bbox", "coco_to_tfds", where=builder.data_dir):
        open_source(SourceSpec(f"tfds:{builder.data_dir}"))


RECORD = {
    "image_id": "8", "patient_id": "P8", "width": 32, "height": 32, "lesion_boxes": float("nan"),
    "objects": {"bbox": np.array([[1, 2, 9, 12]]), "label": np.array([0]), "ignore": np.array([0])},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [("width", 0), ("height", 3.5), ("width", float("nan")), ("slice", -2), ("volume", 1.5)]
)
def test_a_field_of_another_type_is_refused(name, value):
    with refused(name, where="FOLDER, split val" if name == "volume" else "image 8"):
        _info(RECORD | {name: np.asarray(value)}, "val", "FOLDER", 1)


def test_ids_that_are_numbers_are_texts():
    """Other builders write them as integers."""
    found = _info(RECORD | {"image_id": np.int64(8), "patient_id": np.int32(7)}, "val", "FOLDER", 1)
    assert (found.image_id, found.patient_id) == ("8", "7")


def test_a_patient_in_two_splits(tmp_path, collection, make_info):
    infos, pixels = collection(np.uint8)
    infos["val"].append(make_info(7, [], patient_id="P0", meta={"view": "CC", "is_mass": True, "pixel_spacing": None}))
    pixels["7"] = pixels["0"]
    folder = build(tmp_path, infos, pixels, 8)
    with refused("P0", where=folder):
        open_source(SourceSpec(f"tfds:{folder}"), "train")


@pytest.mark.parametrize("value", [3, [1, 2], [0.5]])
def test_a_list_of_boxes_has_an_entry_for_each(value):
    right = _info({**RECORD, "lesion_slices": np.array([4])}, "val", "FOLDER", 1)
    assert right.meta == {"lesion_slices": [4]}, "unknown is none"
    with refused("lesion_slices", "1 boxes", where="FOLDER, split val, image 8"):
        _info({**RECORD, "lesion_slices": np.array(value)}, "val", "FOLDER", 1)
