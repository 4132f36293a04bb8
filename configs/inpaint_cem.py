"""ELK's lesion synthesis alone: train an inpainter on close-ups of lesions, paint lesions into healthy breasts, and
compare them with real ones.

  python launch/train.py --config=configs/inpaint_cem.py                      embedded data, minutes on 2 CPU cores
  python launch/train.py --config=configs/inpaint_cem.py:small --config.data.real.spec=coco:/data/cem/cem.json
  python launch/train.py --config=configs/inpaint_cem.py:paper --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.stages.inpainter.init_from=weights/sd15_inpainting             the published recipe, on a GPU
The painted set is RUN/lesions/synthetic.json, a data source for any experiment: coco:RUN/lesions/synthetic.json.
"""

from configs import base


def get_config(variant=None):
    size, fewshot = base.parse(variant)
    return base.experiment(
        "inpaint_cem",
        data={
            "on_error": "stop",
            "real": base.source(base.phantom(size, "realistic", seed=1), patients=base.few(size, fewshot)),
            "synthetic": base.source("stage:lesions"),
        },
        inpainter=base.inpainter(size),
        stages={
            "inpainter": base.train_inpainter("real"),
            "lesions": base.synthesize("inpainter", "real"),
            "evaluate": base.evaluate_lesions("synthetic", on="real"),
        },
    )
