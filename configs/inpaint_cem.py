"""ELK's lesion synthesis alone: train an inpainter on close-ups of lesions, then paint lesions into healthy breasts.

  python launch/train.py --config=configs/inpaint_cem.py                      embedded data, minutes on 2 CPU cores
  python launch/train.py --config=configs/inpaint_cem.py:small --config.data.real.spec=coco:/data/cem/cem.json
  python launch/train.py --config=configs/inpaint_cem.py:paper --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.stages.inpainter.init_from=weights/sd15_inpainting             the published recipe, on a GPU
The painted set is RUN/lesions/synthetic.json, a data source for any experiment: coco:RUN/lesions/synthetic.json.
Variants beside the size: fewshot, medium, double.
"""

from configs import base, base_inpainting


def get_config(variant=None):
    size, extras = base.parse(variant, base.PAINTING_EXTRAS)
    return base.experiment(
        "inpaint_cem",
        data={
            "on_error": "stop",
            "real": base.source(base.phantom(size, "realistic", seed=1), patients=base.few(size, extras)),
            "synthetic": base.source("stage:lesions"),
            "canvases": base.source(""),  # healthy images to paint on: with stages.lesions.canvases=canvases
        },
        inpainter=base_inpainting.inpainter(size),
        stages=base_inpainting.paint_lesions(size, extras),
    )
