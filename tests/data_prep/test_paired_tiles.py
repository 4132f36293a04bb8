"""From two COCO files of phantoms, the low-energy ones warped, to registered tiles."""

from __future__ import annotations

import numpy as np
import paired_tiles
import pytest
from pair_sets import phantom, warped, write_set

from elk_jax.data.sources import pairs
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.files import read_json, write_json
from tests.refusals import refused

TILE = 64


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return write_set(folder / "low", "low_energy"), write_set(folder / "subtracted", "subtracted")


def prepare(sets, output, *more):
    paired_tiles.main([f"--low_energy={sets[0]}", f"--subtracted={sets[1]}", f"--output={output}", *more])


@pytest.fixture(scope="module")
def built(sets, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "tiles"
    prepare(sets, output, f"--tile={TILE}")
    return output


def test_tiles_are_aligned_pairs_that_the_reader_takes(built):
    spec = f"coco:{built / 'tiles.json'}"
    subtracted = open_source(SourceSpec(spec))
    found = pairs.cut_pairs(pairs.pair_up(subtracted, SourceSpec(spec)), subtracted, TILE)
    assert len(found) == len(subtracted) and {i.patient_id for i in found.infos} == {"P0", "P1"}
    for i, info in enumerate(found.infos):
        index = int(info.patient_id[1:])
        breast = phantom(index)
        x, y = info.meta["position"]
        low, contrast = (image[..., 0] for image in found[i])
        np.testing.assert_allclose(contrast, breast.subtracted[y : y + TILE, x : x + TILE], atol=0.5 / 255 + 1e-6)
        assert info.split == ("test" if index == 1 else "train") and info.meta["likeness"] > 0.4
        assert (low <= 0.02).mean() <= 0.7
        true = breast.low_energy[y : y + TILE, x : x + TILE]
        shown = (low > 0.02) & (true > 0.02)
        before = warped(breast.low_energy)[y : y + TILE, x : x + TILE]
        assert np.abs(low - true)[shown].mean() < 0.7 * np.abs(before - true)[shown].mean()


def test_boxes_move_with_their_tile(built):
    infos = open_source(SourceSpec(f"coco:{built / 'tiles.json'}")).infos
    breast = phantom(0)
    box = breast.boxes[0]
    for info in infos:
        if info.patient_id != "P0":
            continue
        x, y = info.meta["position"]
        clipped = np.clip(box - [x, y, x, y], 0, TILE)
        expected = clipped[None] if (clipped[2:] > clipped[:2]).all() else np.zeros((0, 4))
        np.testing.assert_allclose(info.boxes, expected, atol=2e-3)


def test_the_summary_counts_what_was_left_out(built):
    summary = read_json(built / "summary.json")
    index = read_json(built / "tiles.json")
    assert summary["pairs"] == 2 and [name for name, _ in summary["not_registered"]] == ["2_subtracted.png"]
    assert sum(summary["tiles"].values()) == len(index["images"]) and set(summary["tiles"]) == {"train", "test"}
    # 160 px are 3 tiles of 64 a side, the last ending with the image
    assert summary["black_tiles"] + len(index["images"]) == 2 * 9
    assert {tuple(image["position"]) for image in index["images"]} <= {(x, y) for x in (0, 64, 96) for y in (0, 64, 96)}
    assert len(list((built / "overlays").iterdir())) == 3


def test_the_same_again_and_a_full_folder_is_refused(sets, built, tmp_path):
    prepare(sets, tmp_path / "again", f"--tile={TILE}")
    for path in sorted(built.rglob("*.png")) + [built / "tiles.json"]:
        assert (tmp_path / "again" / path.relative_to(built)).read_bytes() == path.read_bytes()
    with refused("empty", "--overwrite", where=tmp_path / "again"):
        prepare(sets, tmp_path / "again", f"--tile={TILE}")


def test_what_is_behind_the_images_goes_with_the_tiles(tmp_path):
    sets = [write_set(tmp_path / name, kind, 1) for name, kind in (("l", "low_energy"), ("s", "subtracted"))]
    for path, info in zip(sets, ({"seen_patients": ["a"]}, {"seen_patients": ["b"], "promise": "Private."})):
        write_json(path, read_json(path) | {"info": info})
    prepare(sets, tmp_path / "out", f"--tile={TILE}")
    found = open_source(SourceSpec(f"coco:{tmp_path / 'out' / 'tiles.json'}"))
    assert found.seen_patients == {"a", "b"} and found.promises is None


def test_sets_that_are_no_pairs_are_refused(sets, tmp_path):
    out = tmp_path / "out"
    other = write_set(tmp_path / "other", "low_energy", 1, view="ML")
    with refused("patient_id", "P0 L ML", "P0 L CC"):
        prepare((other, sets[1]), out)
    bare = write_set(tmp_path / "bare", "low_energy", 1, view=None)
    with refused("'view'", where="(0_low_energy.png)"):
        prepare((bare, sets[1]), out)
    split = write_set(tmp_path / "split", "low_energy", 1, split="val")
    with refused("0_low_energy.png", "'val'", "'train'"):
        prepare((split, sets[1]), out)
    twice = write_set(tmp_path / "twice", "low_energy", 2, patient_id="P0", split="train")
    with refused("P0 L CC", "0_low_energy.png", where="(1_low_energy.png)"):
        prepare((twice, sets[1]), out)
    with refused(512, 160, where=".png"):
        prepare(sets, out)
    with refused(2.0, where="--max_black"):
        prepare(sets, out, "--max_black=2")
    with refused(3, where=sets[1]):
        prepare(sets, out, f"--tile={TILE}", "--max_black=0")
    assert not out.exists() and not list(tmp_path.glob(".*"))
