"""Classify patches into two classes with a linear head on frozen features, with and without differential privacy.

  python launch/train.py --config=configs/private_head.py                     generated patches, a minute on 2 CPU cores
  python launch/train.py --config=configs/private_head.py:small \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)" \\
      --config.data.public.spec=coco:/data/mammograms/lesions.json --config.head.features.lite0.weights=weights/lite0
The patches are DIR/SPLIT/CLASS/FILE, or any source whose images have one class each. The features are whitened with
`public`, images of other people with boxes, which need no protection: patches are cut around the boxes. Weights of a
frozen network are optional: launch/import_weights.py. Variants: tiny (tests), quick (default), small (the published
crops: 128 px, lesions off centre); and image, which protects images instead of patients.
Published (CBIS-DDSM test split, epsilon per image, delta 1e-4): AUROC 0.661, 0.677, 0.712 at epsilon 1, 6, 60; 0.778
without privacy.
"""

from typing import Literal

from configs import variants
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.classification.recipe import EvaluateClassifiersStage, FitHeadStage, HeadRecipe, Search
from elk_jax.tasks.frozen import NetworkFeatures, ScatteringFeatures

PHANTOMS = {"tiny": (128, 60), "quick": (256, 400), "small": (512, 800), "paper": (512, 800)}
"""Variant -> (pixels of a breast, images) of the embedded data."""
PUBLISHED = (
    ("Osuala et al. 2024, per image", 1.0, 0.661),
    ("Osuala et al. 2024, per image", 6.0, 0.677),
    ("Osuala et al. 2024, per image", 60.0, 0.712),
)
FROZEN = ("Osuala et al. 2024, per image", 0.0, 0.778)
CROPS = (0.6875, 0.5625)
"""Row and column of the lesions in the published crops of CBIS-DDSM."""


def get_config(variant=None):
    size, extras = variants.parse(variant, ("image",))
    pixels, count = PHANTOMS[size]
    spec = f"phantom_patches:size={pixels},count={count},healthy_fraction=0.1"
    unit: Literal["image", "patient"] = "image" if "image" in extras else "patient"
    budgets = {"without_privacy": 0.0, "epsilon_60": 60.0, "epsilon_6": 6.0, "epsilon_1": 1.0}
    heads = {
        name: FitHeadStage(train_on=("patches",), validate_on="patches", public=("public",), epsilon=epsilon, unit=unit)
        for name, epsilon in budgets.items()
    }
    published = (*PUBLISHED, FROZEN) if size in ("small", "paper") else ()
    return variants.experiment(
        "private_head",
        data={
            "on_error": "stop",
            "patches": SourceSpec(f"{spec},seed=5"),
            "public": SourceSpec(f"{spec},seed=6"),
            "more_public": SourceSpec(),  # with stages.NAME.public="('public','more_public')"
        },
        head=head(size),
        stages={
            **heads,
            "evaluate": EvaluateClassifiersStage(
                models=tuple(heads), on="patches", published=published, bootstrap=200 if size == "tiny" else 2000
            ),
        },
    )


def head(size):
    """The recipe at the size of a variant."""
    if size == "tiny":
        scattering = ScatteringFeatures(scales=3, orientations=4, windows=3, spacing=12.0)
        few = Search(components=(8,), learning_rates=(20.0, 70.0), draws=2)
        return HeadRecipe(size=64, features={"scattering": scattering}, search=few, draws=3)
    if size == "quick":
        scattering = ScatteringFeatures(scales=4, windows=3, spacing=12.0)
        return HeadRecipe(size=64, features={"scattering": scattering}, search=Search(components=(16, 32)))
    return HeadRecipe(
        centre=CROPS,
        features={"scattering": ScatteringFeatures(), "lite0": NetworkFeatures()},
        search=Search(features=("scattering", "lite0", "scattering+lite0")),
    )
