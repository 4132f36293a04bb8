import numpy as np
import pytest

from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.phantom import parse_options
from elk_jax.data.sources.spec import SourceSpec
from tests.refusals import refused

SPEC = "phantom:size=96,count=24"


def test_splits_by_patient_and_growth():
    sources = {split: open_source(SourceSpec(SPEC), split) for split in ("train", "val", "test")}
    assert [len(source) for source in sources.values()] == [16, 4, 4]
    patients = [{info.patient_id for info in source.infos} for source in sources.values()]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    assert len(open_source(SourceSpec(SPEC))) == 24
    more = open_source(SourceSpec("phantom:size=96,count=48"), "val")
    assert len(more) == 8 and np.array_equal(more[3].image, sources["val"][3].image)


def test_the_progress_of_the_drawing():
    seen = []

    def progress(results, total):
        for result in results:
            seen.append(total)
            yield result

    assert len(open_source(SourceSpec(SPEC), "val", progress=progress)) == 4 and seen == [4] * 4


def test_records():
    source = open_source(SourceSpec(SPEC), "train")
    assert source.classes == ("lesion",)
    record = source[0]
    assert record.image.shape == (96, 96, 1) and record.image.dtype == np.float32
    assert {"laterality", "view"} <= record.info.meta.keys()
    assert any(len(info.boxes) for info in source.infos)
    again = open_source(SourceSpec(SPEC), "train")
    assert all(np.array_equal(again[i].image, source[i].image) for i in range(len(source)))


def test_modalities_are_paired_and_seeds_differ():
    low = open_source(SourceSpec(SPEC + ",modality=low_energy"), "val")
    subtracted = open_source(SourceSpec(SPEC), "val")
    other = open_source(SourceSpec(SPEC + ",seed=1"), "val")
    assert [i.patient_id for i in low.infos] == [i.patient_id for i in subtracted.infos]
    assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(low.infos, subtracted.infos))
    assert not np.array_equal(low[0].image, subtracted[0].image)
    assert {i.patient_id for i in other.infos}.isdisjoint(i.patient_id for i in subtracted.infos)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("colour=red", ["colour=red", "size"]),
        ("size", ["'size'"]),
        ("size=big", ["size", "big", "int"]),
        ("count=4", [4, 12]),
        ("modality=ct", ["ct", "low_energy"]),
    ],
)
def test_bad_options(options, words):
    with refused(*words, where=f"phantom:{options}"):
        parse_options(options)


def test_bad_split():
    with refused("dev", "train, val, test", where=SPEC):
        open_source(SourceSpec(SPEC), "dev")
