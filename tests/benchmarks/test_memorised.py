"""The benchmark of the search for copies: what is planted, what is counted, and what it refuses."""

import json

import cv2
import numpy as np
import pytest

from benchmarks import memorised
from elk_jax import files
from tests.refusals import refused


@pytest.fixture(scope="module")
def textures():
    """Structures of several sizes, all different: 16 patches."""
    noise = np.random.default_rng(0).normal(size=(16, 128, 128))
    rough = [sum(cv2.GaussianBlur(one, (0, 0), s) * s for s in (3, 6, 12)) for one in noise]
    return np.array([np.clip(0.5 + 0.2 * one / one.std(), 0, 1) for one in rough], np.float32)


def write(folder, patches, patient_of, split_of):
    for n, patch in enumerate(patches):
        place = files.make_folder(folder / split_of(n) / "benign")
        cv2.imwrite(str(place / f"P_{patient_of(n)}_{n:02d}.png"), np.round(patch * 255).astype(np.uint8))
    return f"--data=folders:{folder}"


def test_counts_of_a_folder(textures, tmp_path, capsys, monkeypatch):
    data = write(tmp_path / "real", textures, lambda n: n // 2, lambda n: "train" if n < 12 else "val")
    write(tmp_path / "made", [textures[3].T, textures[13]], lambda n: n, lambda n: "train")
    chosen = {name: memorised.CHANGES[name] for name in ("none", "noise 10 %", "rotation 10 deg")}
    monkeypatch.setattr(memorised, "CHANGES", {**chosen, "flat": lambda patch, rng: np.zeros_like(patch)})
    memorised.main([data, r"--patient_pattern=P_(\d+)", f"--synthetic=folders:{tmp_path / 'made'}", "--copies=5"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["training"], found["patients"], found["rate"]) == (12, 6, pytest.approx(1 / 13))
    assert found["fresh"]["patches"] == 4 and found["fresh"]["found"] <= 1
    for name in chosen:
        assert (found["copies"][name]["found"], found["copies"][name]["named"]) == (5, 5)
    assert found["copies"]["flat"] == {
        "found": 0,
        "named": found["copies"]["flat"]["named"],
        "of": 5,
        "least_margin": 0,
    }
    assert found["synthetic"] == {"patches": 2, "found": 1}


def test_a_patient_in_two_splits_and_too_few_are_refused(textures, tmp_path):
    data = write(tmp_path / "shared", textures[:6], lambda n: n % 4, lambda n: "train" if n < 4 else "val")
    with refused("patient 0", "train"):
        memorised.main([data, r"--patient_pattern=P_(\d+)"])
    data = write(tmp_path / "few", textures[:4], lambda n: n, lambda n: "train" if n < 2 else "val")
    with refused(2, "three"):
        memorised.main([data, r"--patient_pattern=P_(\d+)"])


def test_changes_do_what_their_names_say(textures):
    patch, rng = textures[0], np.random.default_rng(1)
    np.testing.assert_allclose(memorised.moved(patch, x=3, y=-2)[10:-10, 10:-10], patch[12:-8, 7:-13], atol=1e-6)
    np.testing.assert_allclose(memorised.moved(patch, angle=90), np.rot90(patch), atol=1e-6)
    centre = memorised.moved(patch, zoom=2.0)[32:96, 32:96]
    np.testing.assert_allclose(centre[:-1:2, :-1:2].mean(), patch[48:80, 48:80].mean(), atol=0.01)
    noise = memorised.CHANGES["noise 5 %"](np.full((128, 128), 0.5, np.float32), rng)
    assert noise.std() == pytest.approx(0.05, rel=0.05)
    shifts = [memorised.CHANGES["shift 8 px"](patch, rng) for _ in range(3)]
    assert not np.array_equal(shifts[0], shifts[1])
    assert memorised.CHANGES["gain 0.8, offset 0.15"](np.float32([[0.5]]), rng)[0, 0] == pytest.approx(0.55)
    jpeg = np.abs(memorised.CHANGES["JPEG 50"](patch, rng) - patch)
    assert 0.001 < jpeg.mean() < 0.05
