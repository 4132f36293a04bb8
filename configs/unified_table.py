"""The parts of the unified regime as a table for launch/sweep.py: similarity losses, initial weights of B, joining.

  python launch/sweep.py --config=configs/unified.py:small --list=configs/unified_table.py --seeds=5 \\
      --workdir=runs/unified --config.data.sm.spec=coco:/data/pairs.json --config.data.ffdm.spec=coco:/data/ffdm.json \\
      --config.data.pairs.spec=coco:/data/pairs.json --config.data.pairs.partner=partner
Each setting is compared with the first, the regime of the paper as far as it is known. Every run also has the detector
of one image (sm), the upper bound (base_ub) and the control with two equal trunks (capacity); they are trained once per
seed, unless a setting changes them. The data need two patients in every split ("others' partners"), which `tiny` does
not have.

Published (Sharma et al. 2024): better than either image alone and near the upper bound, without numbers or ablations.
The losses and initial weights are those of related work: hallucination (Hoffman et al. 2016) for sigmoid_l2 from C,
distillation of maps for pkd, fgd and cwd, hints (Romero et al. 2015), generalised distillation (Lopez-Paz et al. 2016)
for outputs.
"""

from __future__ import annotations

from configs.recipes.unified import TRUNKS
from elk_jax.sweeps.settings import Row

FROM_C = {"stages.borrowed.init_from": ""}
"""B starts from its teacher, the detector of the other image."""
BELOW = {f"{recipe}.model.tap": "backbone" for recipe in ("fused", "bound")}
CONCAT = {f"{recipe}.model.join": "concat" for recipe in ("fused", "bound")}

LOSSES = (
    Row("mse", note="maps with mean 0 and deviation 1; B from A"),
    Row("sigmoid_l2, B from C", {"borrow.mode": "sigmoid_l2", **FROM_C}, note="modality hallucination"),
    Row("sigmoid_l2", {"borrow.mode": "sigmoid_l2"}),
    Row("pkd", {"borrow.mode": "pkd"}, note="mse, summed over levels, times 10"),
    Row("fgd", {"borrow.mode": "fgd"}, note="lesions and their surroundings, by attention"),
    Row("cwd", {"borrow.mode": "cwd"}, note="where each channel is active"),
    Row("contrastive", {"borrow.mode": "contrastive"}, note="images as a whole; needs no registration"),
    Row("hints", {"borrow.mode": "hints"}, note="FitNets: a learned regressor predicts the maps of C from those of B"),
    Row(
        "outputs",
        {"borrow.mode": "outputs", "borrow.best_metric": "mean_sensitivity"},
        note="generalised distillation: B learns to predict on SM what C predicts on FFDM, without boxes",
    ),
)

MADE_OF = (
    Row("mse, B from C", FROM_C),
    Row("B detects too", {"borrow.detection_weight": 1.0, "borrow.best_metric": "mean_sensitivity"}),
    Row("backbone", {"borrow.tap": "backbone", **BELOW}, note="maps of the backbone, joined below a single pyramid"),
    Row(
        "tuned trunks",
        {"fused.optimizer.frozen": (), "fused.optimizer.multipliers": ((TRUNKS, 0.1),)},
        note="both trunks are trained further, at a tenth of the rate",
    ),
    Row("concat", CONCAT, note="both maps are passed to wider heads with random initial weights"),
    Row("without B", {"stages.unified.other": "sm"}, note="A twice: the effect of the additional steps"),
    Row("without A", {"stages.unified.own": "borrowed"}, note="B twice"),
    Row(
        "others' partners",
        {"data.pairs.shuffled_partners": True},
        note="partners of other patients, for B and the bound",
    ),
)

ABSENT = (Row("classwise", not_run="needs no pairs: configs/comoto.py, mode classwise"),)
"""Published alternatives that are not run here."""

ROWS = (*LOSSES, *MADE_OF, *ABSENT)
