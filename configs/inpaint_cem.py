"""ELK's lesion synthesis only: train an inpainter on close-ups of lesions, then paint lesions into healthy breasts.

  python launch/train.py --config=configs/inpaint_cem.py                      embedded data, minutes on 2 CPU cores
  python launch/train.py --config=configs/inpaint_cem.py:small --config.data.real.spec=coco:/data/cem/cem.json
  python launch/train.py --config=configs/inpaint_cem.py:paper --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.stages.inpainter.init_from=weights/sd15_inpainting             the published recipe, on a GPU
  python launch/train.py --config=configs/inpaint_cem.py:private --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.stages.inpainter.init_from=OTHER/inpainter/model \\
      --config.data.canvases.spec=coco:/data/healthy/healthy.json             the patients of `real` are protected
The painted set is RUN/lesions/synthetic.json, a data source for any experiment: coco:RUN/lesions/synthetic.json.
Variants besides the size: fewshot, medium, double, private. A private training starts from an inpainter of other
people's images, as from random weights it learns too little under its noise. Its lesions are painted into images that
need no protection, `canvases`.
"""

from configs import variants
from configs.recipes.inpainter import inpainter, painting_stages
from configs.sources import few, phantom
from elk_jax.data.sources.spec import SourceSpec


def get_config(variant=None):
    size, extras = variants.parse(variant, (*variants.PAINTING_EXTRAS, "private"))
    private = "private" in extras
    return variants.experiment(
        "inpaint_cem",
        data={
            "on_error": "stop",
            "real": SourceSpec(phantom(size, "realistic", seed=1), patients=few(size, extras)),
            "synthetic": SourceSpec("stage:lesions"),
            # healthy images to paint on: with stages.lesions.canvases=canvases
            "canvases": SourceSpec(phantom(size, "realistic", seed=3) if private else ""),
        },
        inpainter=inpainter(size, private),
        stages=painting_stages(size, extras),
    )
