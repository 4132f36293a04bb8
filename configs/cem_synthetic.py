"""ELK's other baseline: a detector trained on painted lesions alone, tested on real images.

  python launch/train.py --config=configs/cem_synthetic.py
  python launch/train.py --config=configs/cem_synthetic.py:paper --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.stages.inpainter.init_from=weights/sd15_inpainting --config.stages.synthetic.init_from=weights/dbt
With a set that was painted before: --config.data.synthetic.spec=coco:FILE.json --stages=synthetic,evaluate
Published (CDD-CESM test split, chosen by sensitivity): mean sensitivity 0.58 to 0.62.
Variants beside the size: fewshot, medium, double, half.
"""

from configs import base, base_inpainting


def get_config(variant=None):
    size, extras = base.parse(variant, (*base.PAINTING_EXTRAS, "half"))
    return base.experiment(
        "cem_synthetic",
        data={
            "on_error": "stop",
            "real": base.source(base.phantom(size, "realistic", seed=1), patients=base.few(size, extras)),
            "synthetic": base.source("stage:lesions"),
            "canvases": base.source(""),  # healthy images to paint on: with stages.lesions.canvases=canvases
        },
        inpainter=base_inpainting.inpainter(size),
        detector=base.detector(size, extras),
        stages={
            **base_inpainting.paint_lesions(size, extras),
            "synthetic": base.train_detector("synthetic", validate_on="real"),
            "evaluate": base.evaluate_detectors("synthetic"),
        },
    )
