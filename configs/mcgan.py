"""MCGAN: a generator of patches by class (benign, malignant), patches drawn from it, and how real they look.

  python launch/train.py --config=configs/mcgan.py                            generated patches; 46 minutes once,
                                                                              on 2 busy CPU cores (generation.md)
  python launch/train.py --config=configs/mcgan.py:small \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)"
                                                                              64 px, for hundreds of patches
  python launch/train.py --config=configs/mcgan.py:paper \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)"
                                                                              128 px, as published, a GPU
The patches are DIR/SPLIT/CLASS/FILE, or any source whose images have one class each. RUN/samples/images is a folder of
drawn patches by class, RUN/samples/synthetic.json the same as COCO. The stages `fidelity` and `held_out` check with a
classifier of real patches whether the classes of drawn and of unseen real patches are recognisable. Variants: tiny
(tests), quick (default), small, paper; and transposed or resize (upsampling of maps), lsgan or wgan (other objectives),
private. With `private` the patients of the training patches are protected (privacy: elk_jax/privacy/settings.py): the
gradients of the discriminator are clipped and noised, and drawn patches are compared with the validation split. The
stage `classifier` is not private: leave it out, with `fidelity` and `held_out`, if its scores would reveal too much.
"""

from configs import variants
from configs.recipes.drawn import drawn_and_judged, head, patches_and_samples
from configs.recipes.gan import gan, protected
from elk_jax.gan.objectives import LeastSquares, Wasserstein
from elk_jax.tasks.generation.recipe import TrainGeneratorStage

UPSAMPLING = ("transposed", "resize")
OBJECTIVES = {"lsgan": LeastSquares(), "wgan": Wasserstein()}
EXTRAS = (*UPSAMPLING, *OBJECTIVES, "private")


def get_config(variant=None):
    size, extras = variants.parse(variant, EXTRAS, rivals=(UPSAMPLING, tuple(OBJECTIVES)))
    recipe = gan(size)
    for word in extras & set(UPSAMPLING):
        recipe["model"]["upsampling"] = word
    for word in extras & set(OBJECTIVES):
        recipe["objective"] = variants.settings(OBJECTIVES[word])
        if word == "wgan":  # published: five updates of the critic, whose gradient penalty excludes instance norms
            recipe = variants.merge(recipe, WGAN | {"images": {"batch_size": 5 * (4 if size == "tiny" else 16)}})
    private = "private" in extras
    if private:
        recipe = variants.merge(recipe, protected(size, recipe["objective"]["name"]))
    return variants.experiment(
        "mcgan",
        data=patches_and_samples(size),
        gan=recipe,
        head=head(size),
        stages={
            "gan": TrainGeneratorStage(train_on=("patches",), validate_on="patches"),
            **drawn_and_judged("gan", size, private),
        },
    )


WGAN = {
    "ratio": 5,
    "optimizer": {"b2": 0.9},
    "discriminator_optimizer": {"b2": 0.9},
    "model": {"discriminator_norm": "none"},
}
