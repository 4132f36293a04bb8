"""Unified representations: a detector of synthetic mammograms (SM) that has learned from full-field ones (FFDM).

  python launch/train.py --config=configs/unified.py                           embedded data
  python launch/train.py --config=configs/unified.py --config.borrow.mode=sigmoid_l2 --config.stages.borrowed.init_from=
  python launch/train.py --config=configs/unified.py:small --config.data.sm.spec=coco:/data/pairs.json \\
      --config.data.ffdm.spec=coco:/data/ffdm.json \\
      --config.data.pairs.spec=coco:/data/pairs.json --config.data.pairs.partner=partner
Stages: sm (A) and ffdm (C) are detectors, each trained on its images. borrowed (B) sees the SM of pairs and learns to
reproduce the maps of C for the FFDM, without boxes; C is not changed. unified joins the maps of A and B and is trained
to detect in SM only; it reads no FFDM. All are evaluated on the same test images.

Controls: base_ub joins A and C and sees both images (the upper bound); capacity joins A and a second A (sm_again),
because two trunks are better than one anyway; dropout is trained on pairs, half of which lack the FFDM, and starts from
A and C if the variant has a pretrained backbone; sm+ffdm are the fused boxes of A and C. ffdm is evaluated on its own
images.
--config.borrow.mode: mse (of maps with mean 0 and standard deviation 1), sigmoid_l2, pkd, fgd, cwd, contrastive (for
images that are not registered), hints (a learned regressor between maps), outputs (the predictions of C for every
anchor; with --config.borrow.best_metric=mean_sensitivity). --config.borrow.tolerance=1: for pairs that are slightly
misaligned. --config.stages.borrowed.init_from: initial weights of B, by default sm; empty for C. --config.borrow.tap
and --config.fused.model.tap: pyramid or backbone. docs/unified.md lists what the paper leaves open.
Variants besides the size (quick, tiny, small, paper): scarce (sm has its own recipe, few, for
configs/unified_scarce.py), tuned (the trunks are trained further, at a tenth of the rate), half, lite0, lite1,
lite2, swin: these start from weights, --config.stages.STAGE.init_from=DIR for sm, ffdm and sm_again, and own and other
of dropout. Pairs: data_prep/paired_images.py.
Published: better than A and C, near the upper bound; without numbers.
"""

from typing import Any

from configs import variants
from configs.recipes import unified
from configs.sources import phantom_volumes
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.detection.recipe import EvaluateDetectorsStage, TrainDetectorStage
from elk_jax.tasks.distillation.recipe import TrainDistilledStage
from elk_jax.tasks.unified.recipe import TrainFusedStage


def get_config(variant=None):
    size, extras = variants.parse(variant, ("scarce", "tuned", *variants.BACKBONES))
    few: dict[str, Any] = {"few": unified.single(size, extras)} if "scarce" in extras else {}
    synthetic = phantom_volumes(size, seed=7, modality="synthetic_2d")
    own: dict[str, Any] = {"train_on": ("sm",), "validate_on": "sm"}
    alone: dict[str, Any] = {**own, "recipe": "few"} if few else own
    both: dict[str, Any] = {"train_on": ("pairs",), "validate_on": "pairs"}
    # Frozen layers of a backbone need weights: those of A and C.
    start: dict[str, Any] = {"own": "sm", "other": "ffdm"} if extras & set(variants.BACKBONES) else {}
    return variants.experiment(
        "unified",
        data={
            "on_error": "stop",
            "sm": SourceSpec(synthetic),
            "ffdm": SourceSpec(phantom_volumes(size, seed=7, modality="mammogram")),
            "pairs": SourceSpec(synthetic, partner="mammogram"),
        },
        detector=unified.single(size, extras),
        **few,
        borrow=unified.borrowing(size, extras),
        fused=unified.fused(size, extras),
        bound=unified.fused(size, extras, second="partner"),
        dropout=unified.dropout(size, extras),
        stages={
            "sm": TrainDetectorStage(**alone),
            "ffdm": TrainDetectorStage(train_on=("ffdm",), validate_on="ffdm"),
            "borrowed": TrainDistilledStage(
                role="student", teacher="ffdm", init_from="sm", partner=True, recipe="borrow", **both
            ),
            "unified": TrainFusedStage(own="sm", other="borrowed", **own),
            "base_ub": TrainFusedStage(own="sm", other="ffdm", recipe="bound", **both),
            "sm_again": TrainDetectorStage(repetition=1, **alone),
            "capacity": TrainFusedStage(own="sm", other="sm_again", **own),
            "dropout": TrainFusedStage(recipe="dropout", **start, **both),
            "evaluate": EvaluateDetectorsStage(
                models=("sm", "unified", "base_ub", "capacity", "dropout"), late=(("sm", "ffdm"),), on="pairs"
            ),
            "ffdm_alone": EvaluateDetectorsStage(models=("ffdm",), on="ffdm"),
        },
    )
