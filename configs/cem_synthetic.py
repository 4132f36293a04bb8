"""ELK's other baseline: trained on synthetic lesions alone, tested on real images.

  python launch/train.py --config=configs/cem_synthetic.py
  python launch/train.py --config=configs/cem_synthetic.py:paper --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.data.synthetic.spec=coco:/data/synthetic/synthetic.json --config.stages.synthetic.init_from=weights/dbt
Published (CDD-CESM test split, chosen by sensitivity): mean sensitivity 0.58 to 0.62. The embedded stand-in for
synthetic images is a phantom with a cruder lesion model.
"""

from configs import base


def get_config(variant=None):
    size, fewshot = base.parse(variant)
    return base.experiment(
        "cem_synthetic",
        data={
            "on_error": "stop",
            "real": base.source(base.phantom(size, "realistic", seed=1)),
            "synthetic": base.source(base.phantom(size, "blobs", seed=2), patients=base.few(size, fewshot)),
        },
        detector=base.detector(size),
        stages={
            "synthetic": base.train_detector("synthetic", validate_on="real"),
            "evaluate": base.evaluate_detectors("synthetic"),
        },
    )
