"""ELK: a Faster R-CNN trained on real and synthetic contrast-enhanced mammograms, against real ones alone.

  python launch/train.py --config=configs/cem_mixed.py                         embedded data, minutes on 2 CPU cores
  python launch/train.py --config=configs/cem_mixed.py:paper --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.data.synthetic.spec=coco:/data/synthetic/synthetic.json \\
      --config.stages.real.init_from=weights/dbt --config.stages.mixed.init_from=weights/dbt
Published (CDD-CESM test split, chosen by sensitivity): real 0.71, real + 100 % synthetic 0.74 mean sensitivity.
The embedded stand-in for synthetic images is a phantom with a cruder lesion model.
"""

from configs import base


def get_config(variant=None):
    size, fewshot = base.parse(variant)
    few = base.few(size, fewshot)
    return base.experiment(
        "cem_mixed",
        data={
            "on_error": "stop",
            "real": base.source(base.phantom(size, "realistic", seed=1), patients=few),
            "synthetic": base.source(base.phantom(size, "blobs", seed=2), patients=few),
        },
        detector=base.detector(size),
        stages={
            "real": base.train_detector("real"),
            "mixed": base.train_detector("real", "synthetic", validate_on="real"),
            "evaluate": base.evaluate_detectors("real", "mixed"),
        },
    )
