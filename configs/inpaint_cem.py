"""ELK's lesion synthesis only: train an inpainter on close-ups of lesions, then paint lesions into healthy breasts.

  python launch/train.py --config=configs/inpaint_cem.py                      embedded data, minutes on 2 CPU cores
  python launch/train.py --config=configs/inpaint_cem.py:small --config.data.real.spec=coco:/data/cem/cem.json
  python launch/train.py --config=configs/inpaint_cem.py:paper --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.stages.inpainter.init_from=weights/sd15_inpainting             the published recipe, on a GPU
The painted set is RUN/lesions/synthetic.json, a data source for any experiment: coco:RUN/lesions/synthetic.json.
Variants beside the size: fewshot, medium, double.
"""

from configs import variants
from configs.recipes.inpainter import inpainter, painting_stages
from configs.sources import few, phantom
from elk_jax.data.sources.spec import SourceSpec


def get_config(variant=None):
    size, extras = variants.parse(variant, variants.PAINTING_EXTRAS)
    return variants.experiment(
        "inpaint_cem",
        data={
            "on_error": "stop",
            "real": SourceSpec(phantom(size, "realistic", seed=1), patients=few(size, extras)),
            "synthetic": SourceSpec("stage:lesions"),
            "canvases": SourceSpec(),  # healthy images to paint on: with stages.lesions.canvases=canvases
        },
        inpainter=inpainter(size),
        stages=painting_stages(size, extras),
    )
