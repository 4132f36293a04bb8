"""Classify patches into two classes with a trained network: a Swin transformer, or an EfficientNet.

  python launch/train.py --config=configs/swin_real.py                        generated patches, minutes on 2 CPU cores
  python launch/train.py --config=configs/swin_real.py:small \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)" \\
      --config.stages.network.init_from=weights/lite0                         EfficientNet-Lite0, minutes on 2 CPU cores
  python launch/train.py --config=configs/swin_real.py:paper \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)" \\
      --config.stages.network.init_from=weights/swin_t                        Swin-T, a GPU
The patches are DIR/SPLIT/CLASS/FILE, or any source whose images have one class each. Weights: launch/import_weights.py;
without them a network starts from random weights. Variants: tiny (tests), quick (default), small, paper; and head,
which trains only the linear classifier and needs weights.
Published (CBIS-DDSM test split, Swin-T from ImageNet): AUROC 0.825, and 0.778 when only a head of two layers is trained
(paper,head with --config.network.model.hidden=384).
"""

from configs import variants
from configs.private_head import PHANTOMS
from configs.recipes.network import HEAD_ONLY, network
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.classification.recipe import EvaluateClassifiersStage, TrainClassifierStage

PUBLISHED = (("Osuala et al. 2024", 0.0, 0.825),)


def get_config(variant=None):
    size, extras = variants.parse(variant, ("head",))
    return experiment("swin_real", size, PUBLISHED, head="head" in extras)


def experiment(name, size, published, head, privacy=None):
    """A network on patches, and its evaluation. published: results on real patches."""
    pixels, count = PHANTOMS[size]
    recipe = network(size) if privacy is None else network(size) | {"privacy": variants.settings(privacy)}
    if head:
        recipe["optimizer"]["frozen"] = HEAD_ONLY
        recipe["model"]["drop_path"] = 0.0
    return variants.experiment(
        name,
        data={
            "on_error": "stop",
            "patches": SourceSpec(f"phantom_patches:size={pixels},count={count},healthy_fraction=0.1,seed=5"),
        },
        network=recipe,
        stages={
            "network": TrainClassifierStage(train_on=("patches",), validate_on="patches"),
            "evaluate": EvaluateClassifiersStage(
                models=("network",),
                on="patches",
                bootstrap=200 if size == "tiny" else 2000,
                published=published if size in ("small", "paper") else (),
            ),
        },
    )
