"""The data sources of the experiments: the embedded data set at the size of a variant."""

from __future__ import annotations

PHANTOMS = {"tiny": (128, 24), "quick": (256, 400), "small": (512, 400), "paper": (1024, 800)}
"""Variant -> (pixels of a side, images)."""


SCARCE = 3
"""Number of patients with lesions in the embedded data such that painted lesions help; with 4 a detector is as good as
with 60."""


def phantom(size: str, lesions: str, seed: int, modality: str = "subtracted") -> str:
    """The embedded data set at the size of a variant."""
    pixels, count = PHANTOMS[size]
    return f"phantom:size={pixels},count={count},lesions={lesions},seed={seed},modality={modality}"


def healthy(size: str, seed: int) -> str:
    """Embedded breasts without lesions, to paint on."""
    return f"{phantom(size, 'realistic', seed)},healthy_fraction=1.0"


VOLUMES = {"tiny": (64, 24), "quick": (256, 240), "small": (512, 240), "paper": (1024, 400)}
"""Variant -> (pixels of the height, breasts)."""


def phantom_volumes(size: str, seed: int, modality: str = "dbt") -> str:
    """The embedded tomosynthesis data set at the size of a variant; its modalities are dbt, mammogram, synthetic_2d."""
    pixels, count = VOLUMES[size]
    return f"phantom_volumes:size={pixels},count={count},seed={seed},modality={modality}"


def few(size: str, extras: frozenset[str]) -> int:
    """Training patients of the few-shot variant: ELK's 26, fewer if the embedded data are small; otherwise 0 for
    all."""
    return {"tiny": 2, "quick": SCARCE, "small": 8, "paper": 26}[size] if "fewshot" in extras else 0
