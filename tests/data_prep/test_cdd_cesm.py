"""The script from end to end on a tiny copy of the published layout."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cdd_cesm
import numpy as np
import pytest
from cdd_layout import breast, circle, image_row, write_tables
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from tests.refusals import refused

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*flags) -> None:
    cdd_cesm.main([str(flag) for flag in flags])


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_coco_and_tfds_hold_the_same_records(published, tmp_path, capsys):
    run(f"--input={published}", f"--output={tmp_path / 'out'}")
    assert "tensorflow" not in sys.modules
    coco = open_source(SourceSpec(f"coco:{tmp_path / 'out/coco/cdd_cesm.json'}"))
    tfds = open_source(SourceSpec(f"tfds:{tmp_path / 'out/tfds'}"))
    assert len(coco) == len(tfds) == 12 and coco.classes == tfds.classes == ("lesion",)
    place = {info.image_id: position for position, info in enumerate(tfds.infos)}
    for position, info in enumerate(coco.infos):
        one, other = coco[position], tfds[place[info.meta["name"]]]
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.info.boxes, other.info.boxes)
        assert (info.split, info.patient_id, info.file_name) == (
            other.info.split, other.info.patient_id, other.info.file_name)  # fmt: skip
        assert {k: v for k, v in other.info.meta.items() if k != "pixel_spacing"} == info.meta
        assert info.meta["laterality"] == "L" and info.meta["density"] == "C" and info.meta["modality"] == "subtracted"
        assert len(info.boxes) == 1 + int(info.patient_id) % 3, "every lesion of an image in one record"
    assert {info.split for info in coco.infos} == {"train", "val", "test"}
    shown = capsys.readouterr().out
    assert "12 images (12 malignant) of 12 patients" in shown and "published" in shown


def test_images_are_kept_as_they_are(published, tmp_path):
    run(f"--input={published}", f"--output={tmp_path / 'out'}", "--formats=coco")
    assert not (tmp_path / "out" / "tfds").exists()
    for copy in (tmp_path / "out" / "coco" / "images").iterdir():
        (original,) = published.rglob(copy.name)
        assert copy.read_bytes() == original.read_bytes()


def test_canvases_are_apart_and_of_training_patients(published, tmp_path):
    run(f"--input={published}", f"--output={tmp_path / 'out'}", "--formats=coco")
    canvases = open_source(SourceSpec(f"coco:{tmp_path / 'out/coco/healthy_canvases.json'}"))
    lesions = open_source(SourceSpec(f"coco:{tmp_path / 'out/coco/cdd_cesm.json'}"))
    assert len(canvases) and all(not len(info.boxes) and info.split == "train" for info in canvases.infos)
    assert all(info.meta["laterality"] == "R" for info in canvases.infos)
    assert not {info.patient_id for info in canvases.infos} & {info.patient_id for info in lesions.infos}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["written"]["healthy_canvases"] == [info.meta["name"] for info in canvases.infos]


def test_fewshot_is_a_part_of_train(published, tmp_path):
    run(f"--input={published}", f"--output={tmp_path / 'out'}", "--formats=coco")
    source = open_source(SourceSpec(f"coco:{tmp_path / 'out/coco/cdd_cesm.json'}", where="fewshot=true"))
    assert 0 < len(source) < 12 and all(info.split == "train" for info in source.infos)


def test_modalities_and_filters(published, tmp_path):
    def found(*flags):
        run(f"--input={published}", f"--output={tmp_path / 'x'}", "--formats=coco", "--overwrite", *flags)
        return open_source(SourceSpec(f"coco:{tmp_path / 'x/coco/cdd_cesm.json'}")).infos

    assert Counter(info.meta["modality"] for info in found("--modality=both")) == {"subtracted": 12, "low_energy": 12}
    low = found("--modality=low_energy", "--filter=all_masses")
    assert all("_DM_" in info.file_name for info in low) and len(low) == 12
    every = found("--filter=none")
    assert len(every) == 18 and sum(not len(info.boxes) for info in every) == 6


def test_missing_images_are_counted_and_listed(published, tmp_path, capsys):
    gone = sorted(published.rglob("*_CM_CC.*"))[:5]
    for path in gone:
        path.unlink()
    run(f"--input={published}", f"--output={tmp_path / 'out'}")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sorted(summary["missing_images"]) == sorted(path.stem for path in gone)
    assert summary["written"]["counts"]["all"]["images"] == 7
    assert summary["tables"]["counts"]["all"]["images"] == 12
    assert "missing images: 5" in " ".join(capsys.readouterr().out.split())
    kept = open_source(SourceSpec(f"coco:{tmp_path / 'out/coco/cdd_cesm.json'}")).infos
    run(f"--input={published}", "--table_only")
    assert {info.meta["name"] for info in kept}.isdisjoint(path.stem for path in gone)


def test_no_image_at_all_is_an_error_and_table_only_needs_none(tmp_path, capsys):
    write_tables(tmp_path / "in", [image_row("P1_L_CM_CC")], [("P1_L_CM_CC", circle(9, 9, 2))])
    with refused(1, where=tmp_path / "in"):
        run(f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
    run(f"--input={tmp_path / 'in'}", "--table_only")
    assert "1 images (1 malignant) of 1 patients" in capsys.readouterr().out


def counted(rows):
    """The lines of a table of regions, numbered anew, with the number of regions of their image."""
    cells = [row.split(",", 5) for row in rows]  # before the shape: name, size, attributes, region_count, region_id
    for number, row in enumerate(cells[1:]):
        row[3:5] = str(sum(other[0] == row[0] for other in cells)), str(number)
    return [",".join(row) for row in cells]


def test_boxes_are_clipped_and_those_outside_are_dropped_and_listed(published, tmp_path):
    """Images are 40 x 60: one box overhangs, one lies beyond."""
    table = next(published.glob("*segmentations*"))
    rows = table.read_text().splitlines()
    (line,) = [i for i, row in enumerate(rows) if row.startswith("P1_L_CM_CC") and '""cx"": 11' in row]
    rows[line] = rows[line].replace('""cx"": 11', '""cx"": 39')
    rows.append(rows[line].replace('""cx"": 39', '""cx"": 99'))
    table.write_text("\n".join(counted(rows)) + "\n")
    run(f"--input={published}", f"--output={tmp_path / 'out'}")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    infos = open_source(SourceSpec(f"coco:{tmp_path / 'out/coco/cdd_cesm.json'}")).infos
    for info in infos:
        assert (info.boxes >= 0).all() and (info.boxes[:, [0, 2]] <= 40).all() and (info.boxes[:, [1, 3]] <= 60).all()
    assert summary["boxes_outside_their_image"] == ["P1_L_CM_CC"]
    (first,) = [info for info in infos if info.meta["name"] == "P1_L_CM_CC"]
    assert sorted(first.boxes[:, 2].tolist()) == [15.0, 40.0]
    drawn = summary["tables"]["counts"]["all"]["lesions"]
    assert summary["written"]["counts"]["all"]["lesions"] == drawn - len(summary["boxes_outside_their_image"])
    assert sum(len(info.boxes) for info in infos) == summary["written"]["counts"]["all"]["lesions"]


def test_the_wrong_side_is_noticed(published, tmp_path):
    from PIL import Image, ImageOps

    path = next(published.rglob("P1_L_CM_CC.png"))
    ImageOps.mirror(Image.open(path)).save(path)
    run(f"--input={published}", f"--output={tmp_path / 'out'}", "--formats=coco")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["other_side_than_the_table"] == ["P1_L_CM_CC"]


def dicom_file(pixels: np.ndarray) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.2", generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelSpacing = [0.094, 0.094]
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_one_dicom_image_makes_the_set_sixteen_bits(published, tmp_path):
    old = next(published.rglob("P1_L_CM_CC.png"))
    pixels = breast("P1_L_CM_CC").astype(np.uint16) * 16
    old.with_suffix(".dcm").write_bytes(dicom_file(pixels))
    old.unlink()
    run(f"--input={published}", f"--output={tmp_path / 'out'}")
    for spec in (f"coco:{tmp_path / 'out/coco/cdd_cesm.json'}", f"tfds:{tmp_path / 'out/tfds'}"):
        source = open_source(SourceSpec(spec))
        (position,) = [i for i, info in enumerate(source.infos) if info.file_name.startswith("P1_L")]
        np.testing.assert_allclose(source[position].image[..., 0], pixels / 4095, atol=1e-5)
        assert source.infos[position].meta["pixel_spacing"] == pytest.approx([0.094, 0.094])
        other = source[position - 1].image
        assert np.abs(other * 255 - np.round(other * 255)).max() < 1e-3, "8-bit images keep their grey values"


def test_unreadable_images_stop_or_are_listed(published, tmp_path):
    path = next(published.rglob("P2_L_CM_CC.jpg"))
    path.write_bytes(path.read_bytes()[:300])
    with refused(where="P2_L_CM_CC.jpg"):
        run(f"--input={published}", f"--output={tmp_path / 'out'}")
    assert everything_in(tmp_path) == sorted(["CDD-CESM", *(f"CDD-CESM/{name}" for name in everything_in(published))])
    run(f"--input={published}", f"--output={tmp_path / 'out'}", "--on_error=skip")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["unreadable_images"]) == ["P2_L_CM_CC"]
    assert summary["written"]["counts"]["all"]["images"] == 11


def test_two_files_of_one_image(published, tmp_path):
    path = next(published.rglob("P2_L_CM_CC.jpg"))
    (published / "copy").mkdir()
    (published / "copy" / path.name).write_bytes(path.read_bytes())
    with refused("P2_L_CM_CC", "copy", where=published):
        run(f"--input={published}", f"--output={tmp_path / 'out'}")


def test_an_existing_output_is_kept_unless_told(published, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with refused("empty", "--overwrite", where=tmp_path / "out"):
        run(f"--input={published}", f"--output={tmp_path / 'out'}")
    assert everything_in(tmp_path / "out") == ["mine.txt"]
    again = f"--input={published}", f"--output={tmp_path / 'out'}", "--formats=coco", "--overwrite"
    with refused("summary.json", where=tmp_path / "out"):
        run(*again)
    (tmp_path / "out" / "summary.json").touch()  # as if the script had built it
    run(*again)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) and not (tmp_path / "out" / "mine.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("formats", ["coco", "tfds"])
def test_a_full_disk_leaves_nothing(published, tmp_path, formats, monkeypatch):
    """A limit on the size of files stands in for the disk: one line, exit code 2, no output, no scraps."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)); import cdd_cesm;"
        "from elk_jax.errors import run_main; run_main(cdd_cesm.main, sys.argv[1:])"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'data_prep'}", "PYTHONDONTWRITEBYTECODE": "1"}
    flags = [f"--input={published}", f"--output={tmp_path / 'out'}", f"--formats={formats}"]
    done = subprocess.run([sys.executable, "-c", script, *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "large" in line or "full" in line
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["CDD-CESM"]


@pytest.mark.parametrize(
    "formats",
    ["parquet", ""],
)
def test_unknown_formats(published, tmp_path, formats):
    with refused(repr(formats), "tfds", where="--formats"):
        run(f"--input={published}", f"--output={tmp_path / 'out'}", f"--formats={formats}")


def test_no_output_and_unknown_choices(published, capsys):
    with refused("--table_only", where="--output"):
        run(f"--input={published}")
    with pytest.raises(SystemExit) as caught:
        run(f"--input={published}", "--output=x", "--filter=some")
    assert caught.value.code == 2 and "some" in capsys.readouterr().err


def test_the_native_sample(real_data, tmp_path):
    """Eight published images: the one that passes the filter, and all of them without it."""
    folder = real_data / "cdd_cesm_native"
    if not folder.is_dir():
        pytest.skip("the native sample of CDD-CESM is not there")
    run(f"--input={folder}", f"--output={tmp_path / 'elk'}")
    (info,) = open_source(SourceSpec(f"tfds:{tmp_path / 'elk' / 'tfds'}")).infos
    assert info.image_id == "P3_L_CM_MLO" and info.boxes.tolist() == [[338, 1911, 720, 2259]]
    assert (info.width, info.height, info.split) == (1657, 2620, "val")
    run(f"--input={folder}", f"--output={tmp_path / 'all'}", "--filter=none", "--modality=both", "--formats=coco")
    source = open_source(SourceSpec(f"coco:{tmp_path / 'all/coco/cdd_cesm.json'}"))
    assert len(source) == 8 and sum(len(info.boxes) for info in source.infos) == 8
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert len(summary["missing_images"]) == 1971 - 8 and summary["other_side_than_the_table"] == []
