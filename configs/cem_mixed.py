"""ELK: lesions are painted into healthy breasts, and a Faster R-CNN is trained on real and painted ones.

  python launch/train.py --config=configs/cem_mixed.py                         embedded data, minutes on 2 CPU cores
  python launch/train.py --config=configs/cem_mixed.py:paper --config.data.real.spec=coco:/data/cem/cem.json \\
      --config.stages.inpainter.init_from=weights/sd15_inpainting --config.stages.real.init_from=weights/dbt \\
      --config.stages.synthetic.init_from=weights/dbt --config.stages.mixed.init_from=weights/dbt
Stages: an inpainter is trained on the lesions of the training split and paints as many (`,double`: twice as many) into
healthy windows of the same breasts. Three detectors are trained: on real images, on painted ones, and on both. The last
stage compares them on real test images. With synthetic images from elsewhere:
--config.data.synthetic.spec=coco:FILE.json --stages=real,synthetic,mixed,evaluate. Shares of real and painted images in
the mix (default: by their numbers): "--config.stages.mixed.weights=(0.8,0.2)". Variants besides the size: fewshot,
medium, double, retinanet, efficientdet, half, lite0, lite1, lite2, swin, thorough.
The embedded data of `quick` are scarce: three patients with lesions, and sixty without, into whose images 240 lesions
are painted; the mix has four real images for each painted one. Use `small` or `paper` for your own images.
Published (CDD-CESM test split, chosen by sensitivity): mean sensitivity real 0.71, synthetic alone 0.58 to 0.62,
real + 100 % synthetic 0.74, real + 200 % 0.72, real + medium area 0.70.
"""

from configs import variants
from configs.recipes.detector import detector
from configs.recipes.inpainter import inpainter, painting_stages
from configs.sources import few, healthy, phantom
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.detection.recipe import EvaluateDetectorsStage, TrainDetectorStage


def get_config(variant=None):
    size, extras = variants.parse(variant, (*variants.PAINTING_EXTRAS, *variants.DETECTORS))
    scarce = size == "quick"
    extras |= {"fewshot"} if scarce else set()
    return variants.experiment(
        "cem_mixed",
        data={
            "on_error": "stop",
            "real": SourceSpec(phantom(size, "realistic", seed=1), patients=few(size, extras)),
            "synthetic": SourceSpec("stage:lesions"),
            # healthy images to paint on: with stages.lesions.canvases=canvases
            "canvases": SourceSpec(healthy(size, seed=2) if scarce else ""),
        },
        inpainter=inpainter(size, scarce=scarce),
        detector=detector(size, extras),
        stages={
            **painting_stages(size, extras, scarce),
            "real": TrainDetectorStage(train_on=("real",), validate_on="real"),
            "synthetic": TrainDetectorStage(train_on=("synthetic",), validate_on="real"),
            "mixed": TrainDetectorStage(
                train_on=("real", "synthetic"), validate_on="real", weights=(0.8, 0.2) if scarce else ()
            ),
            "evaluate": EvaluateDetectorsStage(models=("real", "mixed", "synthetic"), on="real"),
        },
    )
