"""The unified regime where few synthetic mammograms have boxes, as a table for launch/sweep.py.

  python launch/sweep.py --config=configs/unified.py --list=configs/unified_scarce.py --seeds=5 --workdir=runs/scarce
A (sm) and everything that follows the trunks learn from the boxes of a share of the SM patients, drawn by the seed. C
(ffdm) has the boxes of all of its images, and B (borrowed) the pairs of all patients, without boxes: so B carries into
the SM what the boxes of the FFDM taught. The bound (base_ub) and dropout are shown both images of the few patients.
Lines, by the trunks of unified, of which the first gives the heads that it starts with:
  A, B: as the paper joins them. B, A: heads of C, which B kept; they are better where A knows little. C, A: C itself,
  shown SM, in the place of B, for what its weights bring without the similarity.
Compare unified with capacity, whose second trunk knows the few alone. B and C, shown SM, are evaluated alone as well.
The page draws every metric over the share.
For real pairs, a file with: from configs.unified_scarce import rows; ROWS = rows("partner")
"""

from __future__ import annotations

from typing import Any

from elk_jax.sweeps.settings import Row

SHARES = (0.05, 0.1, 0.25, 1.0)
AXIS = "share of the SM patients with boxes"
EVALUATED = ("sm", "unified", "base_ub", "capacity", "dropout", "borrowed", "ffdm")

TRUNKS: dict[str, tuple[str, str]] = {"A, B": ("sm", "borrowed"), "B, A": ("borrowed", "sm"), "C, A": ("ffdm", "sm")}
"""Line -> the two models whose trunks are joined."""


def rows(partner: str = "mammogram") -> tuple[Row, ...]:
    """Every pair of trunks with every share. partner: the field or modality that names the FFDM of an SM."""
    return tuple(
        Row(f"{line}, {share:g}", {**scarce(partner, share), **joined(*trunks)}, at=share, axis=AXIS, line=line)
        for line, trunks in TRUNKS.items()
        for share in SHARES
    )


def scarce(partner: str, share: float) -> dict[str, Any]:
    """Boxes of few patients, in the SM alone. B starts from C, as A knows little."""
    few = ("sm",)
    return {
        "data.sm.partner": partner,
        "data.sm.train_share": share,
        "stages.borrowed.init_from": "",
        "stages.base_ub.train_on": few,
        "stages.dropout.train_on": few,
        "stages.evaluate.models": EVALUATED,
    }


def joined(own: str, other: str) -> dict[str, Any]:
    """The trunks of unified."""
    return {"stages.unified.own": own, "stages.unified.other": other}


ROWS = rows()
