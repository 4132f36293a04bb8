"""The comparison of CoMoTo as a table for launch/sweep.py: distillation modes, ablations, baselines, other networks.

  python launch/sweep.py --config=configs/comoto.py:small --list=configs/comoto_table.py:small --seeds=5 \\
      --workdir=runs/comoto --config.data.mammo.spec=coco:/data/mammo.json --config.data.dbt.spec=coco:/data/dbt.json
Variants: the size of --config, which the rows of other networks need; without one they are left out. published, for a
GPU, has the published networks.
Each setting is compared with pretraining on the same number of slices (few, all) with the same teacher: without ImPA,
as published, for image and for LsKD alone; else with ImPA. Settings that only the student reads share a teacher.
If the teacher starts from weights (--config.stages.teacher.init_from), copy the table, set START to the same weights,
and give other networks theirs (STARTS).

Published (Alberb et al. 2024): with 10 % of the images, lesion with ImPA has a mean sensitivity 7 points above
pretraining and image-level distillation. The other values of its tables, including those of other detectors and
backbones, are not known here. Those of the alternatives are for COCO: AP of a RetinaNet with ResNet-50 taught by a
ResNeXt-101 (37.4 without a teacher; the teacher has 41.0).
"""

from __future__ import annotations

from typing import Any

from configs.comoto import SIZES
from elk_jax.sweeps.settings import Row

START = ""
"""Initial weights of a student without a teacher: a model folder, or "" for random weights."""
FEW, ALL = 0.1, 1.0
"""Shares of the training slices: as published 0.1, but of the patients instead of the images."""
UNTAUGHT = {
    "distill.mode": "none",
    "stages.student.init_from": START,
    "stages.student.teacher": "",
    "stages.student.beside": (),
}
"""A student without a teacher or mammograms, which is also recorded as independent of both."""
PLAIN = "pretraining without ImPA"
AGAINST = {"pretraining": "", PLAIN: "pretraining", "image": PLAIN, "lesion without ImPA": PLAIN}
"""Setting -> its baseline, with the same teacher; all others are compared with pretraining. "": the first row."""

COMPARED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("pretraining", {"distill.mode": "pretraining"}, "published baseline"),
    (PLAIN, {"distill.mode": "pretraining", "distill.intra_align": False}, "effect of aligning lesions"),
    ("none", UNTAUGHT, "slices only"),
    ("both sets", {**UNTAUGHT, "stages.student.train_on": ("mammo", "dbt")}, "one detector of mammograms and slices"),
    (
        "image",
        {"distill.mode": "image", "distill.intra_align": False},
        "published alternative: image-level distillation",
    ),
    ("lesion without ImPA", {"distill.mode": "lesion", "distill.intra_align": False}, "published ablation: LsKD"),
    ("lesion", {"distill.mode": "lesion"}, "published: 0.07 more than pretraining and image"),
    ("classwise", {"distill.mode": "classwise"}, "UMMKD, adapted to detection; published for CT and MR"),
    ("pkd", {"distill.mode": "pkd"}, "published on COCO: 40.8"),
    ("fgd", {"distill.mode": "fgd"}, "published on COCO: 40.7"),
    ("cwd", {"distill.mode": "cwd"}, "published on COCO with another detector only"),
    ("hints", {"distill.mode": "hints"}, "FitNets: a learned regressor between maps of the slices"),
    ("outputs", {"distill.mode": "outputs"}, "generalised distillation: the teacher's predictions on the slices"),
)
"""(name, settings, note), each with few slices and with all."""

ABLATED = (
    Row(
        "few,lesion,8 px a cell",
        {"distill.mode": "lesion", "distill.stride": 8, "data.dbt.train_share": FEW},
        note="the finest level of the pyramid, for LsKD and ImPA; the default has the published 32 px",
    ),
    Row("few,lesion,5 points", {"distill.mode": "lesion", "distill.points": 5, "data.dbt.train_share": FEW}),
    Row("few,lesion,4 points", {"distill.mode": "lesion", "distill.points": 4, "data.dbt.train_share": FEW}),
    Row(
        "few,lesion,cells",
        {"distill.mode": "lesion", "distill.sampling": "cell", "data.dbt.train_share": FEW},
        note="points as published: the cell that contains the point",
    ),
    Row(
        "few,lesion,with scale",
        {"distill.mode": "lesion", "distill.normalised": False, "data.dbt.train_share": FEW},
        note="unscaled features, as published: the weight of this loss depends on the level and the network",
    ),
    Row(
        "few,lesion,a third of the rate",
        {"distill.mode": "lesion", "distill.student_rate": 1 / 3, "data.dbt.train_share": FEW},
        note="the student starts from a trained detector",
    ),
    Row(
        "few,lesion,images",
        {"distill.mode": "lesion", "data.dbt.train_share": FEW, "data.dbt.train_share_of": "images"},
        note="10 % of the images, as published, so that most patients keep some",
    ),
)

NOT_OF_PUBLISHED = ("few,lesion,8 px a cell", "few,lesion,cells", "few,lesion,with scale", "few,lesion,images")
"""Rows of ABLATED that `published` already includes or cannot have, as its single map has 32 px per cell."""

Network = tuple[str, str, dict[str, Any], str]
"""(name, word of the variant, settings, note)."""
OTHERS: tuple[Network, ...] = (
    ("Faster R-CNN", "faster_rcnn", {}, "published detector; here with a pyramid"),
    ("EfficientDet", "efficientdet", {}, "not among the published detectors"),
    ("ResNet-34", "", {"distill.model.backbone.depth": 34}, "published backbone; the table's own is a ResNet-18"),
    ("half a ResNet-50", "half", {}, "half the width of the published backbone"),
    ("Lite0", "lite0", {}, "not among the published backbones"),
    ("Swin-T", "swin", {}, "the published Swin is smaller, with one map"),
)
PUBLISHED: tuple[Network, ...] = (
    ("ResNet-18", "", {"distill.model.backbone.depth": 18}, "one map of 512 channels, 19.3 M parameters in the heads"),
    ("ResNet-34", "", {"distill.model.backbone.depth": 34}, "one map of 512 channels, 19.3 M parameters in the heads"),
    ("Swin", "swin", {}, "one map of 576 channels, 24.4 M parameters in the heads; from random weights, as published"),
)
"""Networks besides RESNET_50, which is the configuration `published` itself."""
RESNET_50: Network = ("ResNet-50", "", {}, "one map of 2048 channels, 303.7 M parameters in the heads")
STARTS: dict[str, str] = {}
"""Name of a network -> model folder with the initial weights of its teacher. Others start from random weights."""
NO_SIZE = "depends on the size of --config, which the list must name too: --list=configs/comoto_table.py:small"
NO_GPU = "needs a GPU: --config=configs/comoto.py:published --list=configs/comoto_table.py:published"

ABSENT = (
    Row("few,lesion,1 point", not_run="the loss is 0: softmax of one point"),
    Row("few,mgd", not_run="no masked generation in elk_jax", note="published on COCO: 41.0"),
    Row("few,ld", not_run="needs box edges as distributions (GFL), which no detector here has"),
    Row("few,crosskd", not_run="needs half of a teacher's head", note="published on COCO, another teacher: 39.7"),
    Row("few,freekd", not_run="needs pretrained prompts", note="published on COCO: 41.0"),
)
"""Rows of the published comparison and its alternatives that are not run here."""


def compared(name: str, share: float) -> tuple[Row, ...]:
    """The settings of COMPARED for a share of the slices."""
    rows = []
    for own, changes, note in COMPARED:
        other = AGAINST.get(own, "pretraining")
        against = f"{name},{other}" if other else ""
        rows.append(Row(f"{name},{own}", {**changes, "data.dbt.train_share": share}, note=note, against=against))
    return tuple(rows)


def networks(size: str, chosen: tuple[Network, ...]) -> list[Row]:
    """Pretraining and LsKD with other detectors and backbones, each pair with its own teacher."""
    rows = []
    for name, word, own, note in chosen:
        settings = {**own, "data.dbt.train_share": FEW, "stages.teacher.init_from": STARTS.get(name, "")}
        config = f"configs/comoto.py:{size},{word}" if word else f"configs/comoto.py:{size}"
        for mode in ("pretraining", "lesion"):
            against = "few,pretraining" if mode == "pretraining" else f"few,pretraining,{name}"
            changes = {"distill.mode": mode, **settings}
            rows.append(Row(f"few,{mode},{name}", changes, note=note, against=against, config=config))
    return rows


def get_rows(variant: str = "") -> tuple[Row, ...]:
    """The rows for a size of configs/comoto.py; "" for those of any size, without other networks."""
    size = variant
    if size and size not in SIZES:
        raise ValueError(f"no variant '{size}'; choose from {', '.join(SIZES)}")
    common = (*compared("few", FEW), *compared("all", ALL))
    if not size:
        others = [Row(f"few,lesion,{name}", note=note, not_run=NO_SIZE) for name, _, _, note in OTHERS]
        return (*common, *ABLATED, *others, *ABSENT)
    if size == "published":
        ablated = [row for row in ABLATED if row.name not in NOT_OF_PUBLISHED]
        why = "`published` has RetinaNets: --config=configs/comoto.py:small"
        return (*common, *ablated, *networks(size, PUBLISHED), Row("few,lesion,Faster R-CNN", not_run=why), *ABSENT)
    absent = [Row(f"published: {name}", note=note, not_run=NO_GPU) for name, _, _, note in (RESNET_50, *PUBLISHED)]
    return (*common, *ABLATED, *networks(size, OTHERS), *absent, *ABSENT)
