"""MCGAN: a generator of patches by class (benign, malignant), patches drawn from it, and how real they look.

  python launch/train.py --config=configs/mcgan.py                            generated patches, minutes on 2 CPU cores
  python launch/train.py --config=configs/mcgan.py:small \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)"
                                                                              64 px, for hundreds of patches
  python launch/train.py --config=configs/mcgan.py:paper \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)"
                                                                              128 px, as published, a GPU
The patches are DIR/SPLIT/CLASS/FILE, or any source whose images have one class each. RUN/samples/images is a folder of
drawn patches by class, RUN/samples/synthetic.json the same as COCO. The stages `fidelity` and `held_out` ask a
classifier of real patches whether the classes of drawn and of unseen real patches hold. Variants: tiny (tests), quick
(default), small, paper; and transposed or resize (how maps are enlarged), lsgan or wgan (other objectives), private.
With `private` the patients of the training patches are protected (privacy: elk_jax/privacy/settings.py): the gradients
of the discriminator are clipped and noised, and drawn patches are compared with the validation split. The stage
`classifier` is not private: leave it out, with `fidelity` and `held_out`, where its scores would tell too much.
"""

from dataclasses import replace

from configs import private_head, variants
from configs.private_head import PHANTOMS
from configs.recipes.gan import gan, protected
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.gan.objectives import LeastSquares, Wasserstein
from elk_jax.tasks.classification.recipe import (
    EvaluateClassifiersStage,
    FitHeadStage,
    KernelSearch,
    ScatteringFeatures,
)
from elk_jax.tasks.generation.recipe import EvaluateSamplesStage, SampleStage, TrainGeneratorStage
from elk_jax.tasks.lesion_quality.recipe import LesionQualityStage

UPSAMPLING = ("transposed", "resize")
OBJECTIVES = {"lsgan": LeastSquares(), "wgan": Wasserstein()}
EXTRAS = (*UPSAMPLING, *OBJECTIVES, "private")
PER_CLASS = {"tiny": 6, "quick": 100, "small": 500, "paper": 1500}
"""Variant -> drawn patches of a class."""


def get_config(variant=None):
    size, extras = variants.parse(variant, EXTRAS, rivals=(UPSAMPLING, tuple(OBJECTIVES)))
    pixels, count = PHANTOMS[size]
    recipe = gan(size)
    for word in extras & set(UPSAMPLING):
        recipe["model"]["upsampling"] = word
    for word in extras & set(OBJECTIVES):
        recipe["objective"] = variants.settings(OBJECTIVES[word])
        if word == "wgan":  # published: five updates of the critic, which sees no instance norms in its slope
            recipe = variants.merge(recipe, WGAN | {"images": {"batch_size": 5 * (4 if size == "tiny" else 16)}})
    private = "private" in extras
    if private:
        recipe = variants.merge(recipe, protected(size))
    beside = "val" if private else "train"
    resamples = 200 if size == "tiny" else 2000
    return variants.experiment(
        "mcgan",
        data={
            "on_error": "stop",
            "patches": SourceSpec(f"phantom_patches:size={pixels},count={count},healthy_fraction=0.1,seed=5"),
            "samples": SourceSpec("stage:samples"),
        },
        gan=recipe,
        head=head(size),
        stages={
            "gan": TrainGeneratorStage(train_on=("patches",), validate_on="patches"),
            "samples": SampleStage(model="gan", per_class=PER_CLASS[size]),
            "looks": EvaluateSamplesStage(on="patches", split=beside, synthetic="samples"),
            "quality": LesionQualityStage(
                on="patches", split=beside, synthetic="samples", synthetic_split="", repeated=not private
            ),
            "classifier": FitHeadStage(train_on=("patches",), validate_on="patches"),
            "fidelity": EvaluateClassifiersStage(models=("classifier",), on="samples", split="", bootstrap=resamples),
            "held_out": EvaluateClassifiersStage(models=("classifier",), on="patches", bootstrap=resamples),
        },
    )


def head(size):
    """The recipe of the classifier: a kernel head on scattering coefficients, which looks at both classes alike."""
    base = private_head.head(size)
    scattering = {name: one for name, one in base.features.items() if isinstance(one, ScatteringFeatures)}
    return replace(base, features=scattering, search=KernelSearch())


WGAN = {
    "ratio": 5,
    "optimizer": {"b2": 0.9},
    "discriminator_optimizer": {"b2": 0.9},
    "model": {"discriminator_norm": "none"},
}
