"""ELK's baseline: a Faster R-CNN fine-tuned on real contrast-enhanced mammograms alone.

  python launch/train.py --config=configs/cem_real.py                          embedded data, minutes on 2 CPU cores
  python launch/train.py --config=configs/cem_real.py:paper --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.stages.real.init_from=weights/dbt                               the published recipe, on a GPU
Published (CDD-CESM test split, chosen by sensitivity): mean sensitivity 0.71, AUFROC to 2 FP 0.66.
"""

from configs import base


def get_config(variant=None):
    size, extras = base.parse(variant)
    return base.experiment(
        "cem_real",
        data={
            "on_error": "stop",  # or skip: leave unreadable images out, count and list them
            "real": base.source(base.phantom(size, "realistic", seed=1), patients=base.few(size, extras)),
        },
        detector=base.detector(size, extras),
        stages={
            "real": base.train_detector("real"),
            "evaluate": base.evaluate_detectors("real"),
        },
    )
