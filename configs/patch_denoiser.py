"""Patches by class (benign, malignant) from a denoising network, an alternative to the GAN of configs/mcgan.py.

  python launch/train.py --config=configs/patch_denoiser.py                   generated patches, minutes on 2 CPU cores
  python launch/train.py --config=configs/patch_denoiser.py:small \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)"
                                                                              128 px, more than an hour on 2 CPU cores
  python launch/train.py --config=configs/patch_denoiser.py:paper ...         128 px, a GPU
A U-Net is trained to remove noise from patches, and draws them from pure noise. The loss is a regression, without an
adversary. The other stages are those of the GAN: RUN/samples/images is a folder of drawn patches by class,
RUN/samples/synthetic.json the same as COCO; `looks`, `quality`, `fidelity` and `held_out` measure how real they are.
Variants: tiny (tests), quick (default), small, paper; and private. The recipe sets how to sample:
--config.denoiser.guidance=2 adds classifier-free guidance, and --config.denoiser.sampler.steps=100 halves the steps, in
twice the time. For a trained denoiser: launch/synthesize.py --guidance=2 --sampler_steps=100.
With `private` the gradients are clipped and noised (privacy: elk_jax/privacy/settings.py), and drawn patches are
compared with the validation split; --config.stages.denoiser.init_from=DIR starts from a denoiser of public patches. The
stage `classifier` is not private: leave it out, with `fidelity` and `held_out`, if its scores would reveal too much.
"""

from configs import variants
from configs.recipes.denoiser import denoiser, protected
from configs.recipes.drawn import drawn_and_judged, head, patches_and_samples
from elk_jax.tasks.denoising.recipe import TrainDenoiserStage


def get_config(variant=None):
    size, extras = variants.parse(variant, ("private",))
    private = "private" in extras
    recipe = variants.merge(denoiser(size), protected() if private else {})
    return variants.experiment(
        "patch_denoiser",
        data=patches_and_samples(size),
        denoiser=recipe,
        head=head(size),
        stages={
            "denoiser": TrainDenoiserStage(train_on=("patches",), validate_on="patches"),
            **drawn_and_judged("denoiser", size, private),
        },
    )
