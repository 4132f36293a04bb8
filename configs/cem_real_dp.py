"""A detector with private fine-tuning: differential privacy protects the patients of the training data.

  python launch/train.py --config=configs/cem_real_dp.py                      embedded data, 2,010 training patients
  python launch/train.py --config=configs/cem_real_dp.py:small,half --stages=private,evaluate \\
      --config.data.real.spec=coco:/data/cem/cem.json --config.data.held_out.spec=coco:/data/cem/cem.json \\
      --config.stages.private.init_from=weights/public \\
      --config.private.privacy.epsilon=8 "--config.stages.evaluate.models=('private',)"
A detector is trained without privacy on public data: mammograms of other people, and simulated contrast-enhanced ones
with plain blobs as lesions. Three detectors start from its weights on contrast-enhanced mammograms: `private`, which
trains scales, biases and output layers; `same_layers`, which trains the same layers without privacy; and `open`, which
trains all layers without privacy. The report compares them, and gives the share of the gain of fine-tuning that the
private one keeps. Weights that have seen the protected patients are refused.
In `private`, `loader.batch_size` is the expected number of patients in a batch; privacy: elk_jax/privacy/settings.py.
Variants: tiny (tests), quick (default), small, paper; half; retinanet, efficientdet; and many, only for quick with the
Faster R-CNN: with ten times the patients, an eighth of all parameters can be trained despite the noise (an hour on 2
CPU cores).
"""

from dataclasses import replace

from configs import variants
from configs.recipes.detector import detector_for_privacy, private_detector
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks.detection.recipe import EvaluateDetectorsStage, TrainDetectorStage

PHANTOMS = {"tiny": (128, 48), "quick": (128, 13_400), "small": (512, 400), "paper": (1024, 800)}
"""Variant -> (pixels of a side, images) of the protected embedded data: 60 % of the patients, with four images each,
are training patients. The others are not used."""
MANY = 133_400
"""Number of images of the protected embedded data in `many`: 20,010 training patients."""
OTHERS = 2400
"""Largest number of images of the public data, and of the data whose validation and test splits are used."""
EPSILON, DELTA, DELTA_OF_MANY = 8.0, 1e-4, 1e-5
MICRO_BATCH = {"tiny": 1, "quick": 4}
"""Patients whose gradients are computed at once; more than 4 are no faster on a CPU."""


def get_config(variant=None):
    rivals = (*variants.RIVALS, ("many", *variants.KINDS))
    size, extras = variants.parse(variant, ("half", "many", *variants.KINDS), rivals=rivals)
    pixels, count = PHANTOMS[size]
    many = "many" in extras
    if many and size != "quick":
        raise ValueError(f"'{size}' and 'many' exclude each other: 'many' requires 'quick'")
    size_of, others = f"phantom:size={pixels}", min(count, OTHERS)
    phantom = f"{size_of},lesions=realistic"
    delta = DELTA_OF_MANY if many else DELTA
    privacy = Privacy(epsilon=EPSILON, delta=delta, images=1, micro_batch=MICRO_BATCH.get(size, 16))
    fine_tuned = TrainDetectorStage(train_on=("real",), validate_on="held_out", init_from="public")
    return variants.experiment(
        "cem_real_dp",
        data={
            "on_error": "stop",
            "mammo": SourceSpec(f"{phantom},count={others},seed=3,modality=low_energy"),
            "simulated": SourceSpec(f"{size_of},lesions=blobs,count={others},seed=7"),
            "real": SourceSpec(f"{phantom},count={MANY if many else count},seed=1"),  # the training split
            # the other splits; for your own data the same file
            "held_out": SourceSpec(f"{phantom},count={others},seed=5"),
        },
        detector=detector_for_privacy(size, extras),
        same_layers=private_detector(size, extras, None),
        private=private_detector(size, extras, privacy),
        stages={
            "public": TrainDetectorStage(train_on=("mammo", "simulated"), validate_on="simulated"),
            "private": replace(fine_tuned, recipe="private"),
            "same_layers": replace(fine_tuned, recipe="same_layers"),
            "open": fine_tuned,
            "evaluate": EvaluateDetectorsStage(models=("public", "private", "same_layers", "open"), on="held_out"),
        },
    )
