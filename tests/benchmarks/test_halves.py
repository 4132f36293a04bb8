"""The comparison over two halves of the patients: no patient trains and validates, and the test split stays out."""

import json

import pytest

from benchmarks import halves
from elk_jax import files
from elk_jax.data.sources.open import list_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.evaluation.detections import write_results
from elk_jax.evaluation.truth import write_truth
from elk_jax.images.schema import ImageInfo
from tests.evaluation.conftest import make_result
from tests.refusals import refused

LESION = [10, 10, 50, 50]


@pytest.fixture
def data(tmp_path):
    """Two images of each of 12 patients: 4 train, 4 val, 4 test; of every second patient one is not a mass."""
    images = [
        {"id": n, "file_name": f"{n}.png", "width": 100, "height": 100, "patient_id": f"P{n // 2}",
         "split": ("train", "val", "test")[n // 2 % 3], "is_mass": n % 4 != 3}
        for n in range(24)
    ]  # fmt: skip
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 10, 40, 40]} for n in range(24)]
    path = tmp_path / "data.json"
    files.write_json(path, {"categories": [{"id": 1, "name": "lesion"}], "images": images, "annotations": boxes})
    return path


def splits(path):
    infos = list_source(SourceSpec(f"coco:{path}")).infos
    return {split: {info.patient_id for info in infos if info.split == split} for split in ("train", "val", "test")}


def test_divide(data, tmp_path):
    halves.main(["divide", f"--data={data}", "--where=is_mass=true", f"--output={tmp_path / 'out'}"])
    first, second = (splits(tmp_path / "out" / f"{name}.json") for name in halves.HALVES)
    assert first["train"] == second["val"] and first["val"] == second["train"] and not first["train"] & first["val"]
    assert len(first["train"]) == 4 and first["train"] | first["val"] == {f"P{n}" for n in range(12) if n % 3 != 2}
    written = files.read_object(tmp_path / "out" / "first.json", "images", "annotations")
    assert all(image["is_mass"] for image in written["images"])
    assert {entry["image_id"] for entry in written["annotations"]} == {image["id"] for image in written["images"]}
    (tmp_path / "out" / "first.json").unlink()
    with refused("exists", where="second.json"):
        halves.main(["divide", f"--data={data}", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out" / "first.json").exists()


def test_divide_keeps_all_lesions_of_a_file_with_an_entry_for_each(data, tmp_path):
    """Entries of one image count as one image; the ids of images are texts in one list and numbers in the other."""
    content = files.read_object(data, "images", "annotations")
    for n in range(24):
        content["images"][n]["id"] = str(n)
        content["images"].append(content["images"][n] | {"id": str(100 + n)})
        box = {"id": 100 + n, "image_id": 100 + n, "category_id": 1, "bbox": [60, 60, 20, 20]}
        content["annotations"].append(box)
    files.write_json(data, content)
    halves.main(["divide", f"--data={data}", f"--output={tmp_path / 'out'}"])
    for half in halves.HALVES:
        infos = list_source(SourceSpec(f"coco:{tmp_path / 'out' / half}.json")).infos
        assert len(infos) == 16 and {info.split for info in infos} == {"train", "val"}
        assert all(info.boxes.tolist() == [[10, 10, 50, 50], [60, 60, 80, 80]] for info in infos)


def write_run(folder, results):
    (folder / "evaluate" / "real").mkdir(parents=True)
    infos = [one_info(result) for result in results]
    write_truth(folder / "evaluate" / "truth.json", infos, [1])
    write_results(folder / "evaluate" / "real" / "predictions.json", results, [1])
    return folder


def one_info(result):
    size = (result.width, result.height, result.gt_boxes, result.gt_labels, result.gt_ignore)
    return ImageInfo(result.image_id, result.patient_id, *size)


def test_compare(tmp_path, capsys):
    """The second setting finds the lesion of every image, the first that of one half of the patients."""
    runs = {}
    for half, found in (("a", [LESION]), ("b", [])):
        images = [f"{half}{n}" for n in range(4)]
        base = [make_result(i, [LESION], found, [0.9] * len(found)) for i in images]
        runs[half] = write_run(tmp_path / f"base_{half}", base)
        runs[f"all_{half}"] = write_run(
            tmp_path / f"all_{half}", [make_result(i, [LESION], [LESION], [0.9]) for i in images]
        )
    halves.main(["compare", f"base={runs['a']},{runs['b']}", f"all={runs['all_a']},{runs['all_b']}", "--resamples=50"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["base"]["mean_sensitivity"], found["all"]["mean_sensitivity"]) == (0.5, 1.0)
    assert found["all"]["differences"]["mean_sensitivity"]["difference"] == 0.5
    assert [one["found"] for one in found["all"]["by_size"]] == [0, 0, 8, 0, 0]
    with refused("patient a0", where="base_a"):
        halves.main(["compare", f"base={runs['a']},{runs['a']}"])
    with refused("same name"):
        halves.main(["compare", f"base={runs['a']}", f"base={runs['b']}"])
    with refused("NAME=RUN"):
        halves.main(["compare", str(runs["a"])])
