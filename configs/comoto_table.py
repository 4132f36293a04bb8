"""The comparison of CoMoTo as a table for launch/sweep.py: every way to distil, ablations, baselines.

  python launch/sweep.py --config=configs/comoto.py:small --list=configs/comoto_table.py --seeds=5 \\
      --workdir=runs/comoto --config.data.mammo.spec=coco:/data/mammo.json --config.data.dbt.spec=coco:/data/dbt.json
Each setting is compared with pretraining on as many slices (few, all), by the same teacher: one without ImPA, as
published, for image and LsKD alone, else one with it. Settings that only the student reads share a teacher.
With a teacher from weights (--config.stages.teacher.init_from), copy the table and give START the same ones.

Published (Alberb et al. 2024): lesion, with ImPA, has 7 points of mean sensitivity more than pretraining and
image-level distillation with 10 % of the images. The other values of its tables are not known here. Those of
the rivals are of COCO: AP of a RetinaNet with ResNet-50 that a ResNeXt-101 teaches, 37.4 without, its teacher 41.0.
"""

from __future__ import annotations

from typing import Any

from elk_jax.sweeps.settings import Row

START = ""
"""What a student without a teacher starts from: a model folder, or random weights."""
FEW, ALL = 0.1, 1.0
"""Shares of the training slices: published is 0.1 of the images; here of the patients."""
UNTAUGHT = {
    "distill.mode": "none",
    "stages.student.init_from": START,
    "stages.student.teacher": "",
    "stages.student.beside": (),
}
"""A student that has seen neither teacher nor mammograms, and is said to come from neither."""
PLAIN = "pretraining without ImPA"
AGAINST = {"pretraining": "", PLAIN: "pretraining", "image": PLAIN, "lesion without ImPA": PLAIN}
"""What settings are compared with, so that both have the same teacher; others with pretraining. "": the first row."""

COMPARED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("pretraining", {"distill.mode": "pretraining"}, "published baseline"),
    (PLAIN, {"distill.mode": "pretraining", "distill.intra_align": False}, "what aligning lesions costs or gains"),
    ("none", UNTAUGHT, "slices alone"),
    ("both sets", {**UNTAUGHT, "stages.student.train_on": ("mammo", "dbt")}, "one detector of mammograms and slices"),
    ("image", {"distill.mode": "image", "distill.intra_align": False}, "published rival: image-level distillation"),
    ("lesion without ImPA", {"distill.mode": "lesion", "distill.intra_align": False}, "published ablation: LsKD"),
    ("lesion", {"distill.mode": "lesion"}, "published: 0.07 more than pretraining and image"),
    ("classwise", {"distill.mode": "classwise"}, "UMMKD, adapted to detection; published for CT and MR"),
    ("pkd", {"distill.mode": "pkd"}, "published on COCO: 40.8"),
    ("fgd", {"distill.mode": "fgd"}, "published on COCO: 40.7"),
    ("cwd", {"distill.mode": "cwd"}, "published on COCO with another detector only"),
    ("hints", {"distill.mode": "hints"}, "FitNets: a learned regressor between maps of the slices"),
    ("outputs", {"distill.mode": "outputs"}, "generalised distillation: what the teacher says of the slices"),
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
        note="points as published: the cell that a point lies in",
    ),
    Row(
        "few,lesion,with scale",
        {"distill.mode": "lesion", "distill.normalised": False, "data.dbt.train_share": FEW},
        note="features as they are, as published: what this loss weighs depends on the level and the network",
    ),
    Row(
        "few,lesion,a third of the rate",
        {"distill.mode": "lesion", "distill.student_rate": 1 / 3, "data.dbt.train_share": FEW},
        note="the student starts from a trained detector",
    ),
    Row(
        "few,lesion,images",
        {"distill.mode": "lesion", "data.dbt.train_share": FEW, "data.dbt.train_share_of": "images"},
        note="10 % as published: of the images, so that most patients keep some",
    ),
)

ABSENT = (
    Row("few,lesion,1 point", not_run="the loss is 0: softmax of one point"),
    Row("few,lesion,Faster R-CNN", not_run="run it as its own sweep: --config=configs/comoto.py:small,faster_rcnn"),
    Row("few,mgd", not_run="no masked generation in elk_jax", note="published on COCO: 41.0"),
    Row("few,ld", not_run="needs edges as distributions (GFL), which no detector here has"),
    Row("few,crosskd", not_run="needs half of a teacher's head", note="published on COCO, another teacher: 39.7"),
    Row("few,freekd", not_run="needs prompts that are trained beforehand", note="published on COCO: 41.0"),
)
"""Of the published comparison and its rivals, what is not run here."""


def compared(name: str, share: float) -> tuple[Row, ...]:
    """The settings of COMPARED with a share of the slices."""
    rows = []
    for own, changes, note in COMPARED:
        other = AGAINST.get(own, "pretraining")
        against = f"{name},{other}" if other else ""
        rows.append(Row(f"{name},{own}", {**changes, "data.dbt.train_share": share}, note=note, against=against))
    return tuple(rows)


ROWS = (*compared("few", FEW), *compared("all", ALL), *ABLATED, *ABSENT)
