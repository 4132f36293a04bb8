"""Makes radiomics.npz: features of images by PyRadiomics, and Frechet radiomics distances by frd-score.

    pip install SimpleITK PyWavelets scipy opencv-python-headless scikit-learn matplotlib scikit-build-core
    pip install --no-build-isolation git+https://github.com/AIM-Harvard/pyradiomics.git@8ed579383b44
    pip install --no-deps frd-score==1.0.1
    python tests/golden/make_radiomics.py

The images are those of textures.py. PyRadiomics is of its main branch, as frd-score asks: 3.0.1 refuses a mask of all
pixels. Of a single slice it makes no Laplacians; those of each case here are of the same slice, eight times one above
the other. Versions are stored under `version`.
"""

import logging
import tempfile
from pathlib import Path

import numpy as np
import pywt
import radiomics
import SimpleITK as sitk
import textures
from frd_score import frd
from radiomics import imageoperations

DEVIATIONS = [2.0, 3.0, 4.0, 5.0]
SLICES = 8
VARIANTS = {
    "v0": {"frd_version": "v0"},
    "v0_first": {"frd_version": "v0", "norm_ref": "d1"},
    "v0_zscore": {"frd_version": "v0", "norm_type": "zscore"},
    "v1": {"frd_version": "v1"},
    "v1_paper": {"frd_version": "v1", "use_paper_log": True},
    "v1_joint": {"frd_version": "v1", "norm_ref": "joint"},
    "v1_own": {"frd_version": "v1", "norm_ref": "independent"},
    "v1_minmax": {"frd_version": "v1", "norm_type": "minmax"},
    "v1_means": {"frd_version": "v1", "means_only": True},
}


def written(folder, name, pixels):
    path = str(folder / f"{name}.png")
    sitk.WriteImage(sitk.GetImageFromArray(pixels), path)
    return path


def features(version, image_path, mask_path):
    extractor = frd.get_feature_extractor(frd_version=version)
    return frd.process_image_mask_pair((image_path, mask_path), feature_extractor=extractor, frd_version=version)[1]


def laplacian_features(pixels, mask):
    """The features of the Laplacians, with the settings of v1."""
    extractor = frd.get_feature_extractor(frd_version="v1")
    settings = extractor.settings
    image = sitk.GetImageFromArray(pixels[None].astype(np.float32))
    labels = sitk.GetImageFromArray(mask[None].astype(np.uint32))
    image, labels = imageoperations.resampleImage(imageoperations.normalizeImage(image, **settings), labels, **settings)
    bounds, _ = imageoperations.checkMask(image, labels, **settings)
    stack = sitk.GetImageFromArray(np.repeat(sitk.GetArrayFromImage(image), SLICES, 0))
    stack.SetSpacing((2.0, 2.0, 2.0))
    found = {}
    for filtered, name, _ in imageoperations.getLoGImage(stack, None, sigma=DEVIATIONS):
        middle = sitk.GetImageFromArray(sitk.GetArrayFromImage(filtered)[SLICES // 2][None])
        middle.CopyInformation(image)
        found.update(
            extractor.computeFeatures(*imageoperations.cropToTumorMask(middle, labels, bounds), name, **settings)
        )
    return {name: float(value) for name, value in found.items()}


def main():
    radiomics.setVerbosity(60)
    logging.getLogger().setLevel(logging.ERROR)
    versions = f"PyRadiomics {radiomics.__version__} 8ed579383b44, frd-score 1.0.1, SimpleITK "
    versions += f"{sitk.Version_VersionString()}, PyWavelets {pywt.__version__}, NumPy {np.__version__}"
    out = {"version": np.array(versions)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number, (name, height, width, region) in enumerate(textures.CASES):
            pixels, mask = textures.image(name, height, width), textures.region(region, height, width)
            image_path = written(folder, f"image_{number}", pixels)
            mask_path = None if region == "all" else written(folder, f"mask_{number}", mask.astype(np.uint8))
            for version in ("v0", "v1"):
                found = features(version, image_path, mask_path)
                if version == "v1":
                    found |= laplacian_features(pixels, mask)
                out[f"{version}_{number}_names"] = np.array(list(found))
                out[f"{version}_{number}"] = np.array(list(found.values()))
        for name in textures.SETS:
            paths = [
                [written(folder, f"{name}_{side}_{k}", pixels) for k, pixels in enumerate(images)]
                for side, images in enumerate(textures.sets(name))
            ]
            for variant, settings in VARIANTS.items():
                if name == "few" or variant == "v1" or (variant, name) == ("v0", "many"):
                    out[f"{name}_{variant}"] = np.array(frd.compute_frd(paths, num_workers=1, **settings))
    np.savez_compressed(Path(__file__).with_name("radiomics.npz"), **out)


if __name__ == "__main__":
    main()
