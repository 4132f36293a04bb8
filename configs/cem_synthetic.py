"""ELK's other baseline: a detector trained on painted lesions only, tested on real images.

  python launch/train.py --config=configs/cem_synthetic.py
  python launch/train.py --config=configs/cem_synthetic.py:paper --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.stages.inpainter.init_from=weights/sd15_inpainting --config.stages.synthetic.init_from=weights/dbt
With an existing painted set: --config.data.synthetic.spec=coco:FILE.json --stages=synthetic,evaluate
Published (CDD-CESM test split, chosen by sensitivity): mean sensitivity 0.58 to 0.62.
Variants besides the size: fewshot, medium, double, retinanet, efficientdet, half, lite0, lite1, lite2,
swin, thorough.
"""

from configs import variants
from configs.recipes.detector import detector
from configs.recipes.inpainter import inpainter, painting_stages
from configs.sources import few, phantom
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.detection.recipe import EvaluateDetectorsStage, TrainDetectorStage


def get_config(variant=None):
    size, extras = variants.parse(variant, (*variants.PAINTING_EXTRAS, *variants.DETECTORS))
    return variants.experiment(
        "cem_synthetic",
        data={
            "on_error": "stop",
            "real": SourceSpec(phantom(size, "realistic", seed=1), patients=few(size, extras)),
            "synthetic": SourceSpec("stage:lesions"),
            "canvases": SourceSpec(),  # healthy images to paint on: with stages.lesions.canvases=canvases
        },
        inpainter=inpainter(size),
        detector=detector(size, extras),
        stages={
            **painting_stages(size, extras),
            "synthetic": TrainDetectorStage(train_on=("synthetic",), validate_on="real"),
            "evaluate": EvaluateDetectorsStage(models=("synthetic",), on="real"),
        },
    )
