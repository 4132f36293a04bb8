"""The unified regime where few synthetic mammograms have boxes, as a table for launch/sweep.py.

  python launch/sweep.py --config=configs/unified.py:scarce --list=configs/unified_scarce.py --seeds=5 \\
      --workdir=runs/scarce
A (sm) and everything that follows the trunks learn from the boxes of a share of the SM patients, drawn by the seed. C
(ffdm) has the boxes of all of its images, and B (borrowed) the pairs of all patients, without boxes: so B carries into
the SM what the boxes of the FFDM taught. The bound (base_ub) and dropout are shown both images of the few patients.
Lines, by the trunks of unified, of which the first gives the heads that it starts with:
  A, B          as the paper joins them, at the rate of a detector that starts as a trained one
  A, B, faster  at the rate at which A was trained: where A knows little, it has little to lose
  B, A          it starts as B with the heads of C, which know more than those of A
  C, A          C itself, shown SM, in the place of B: what its weights bring without the similarity
Compare unified with capacity, whose second trunk knows the few alone. B and C, shown SM, are evaluated alone as well.
The page draws every metric over the share. scarce: A has its own recipe (--config.few.steps=200).
For real pairs, a file with: from configs.unified_scarce import rows; ROWS = rows("partner", rate=3e-4)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elk_jax.sweeps.settings import Row

SHARES = (0.05, 0.1, 0.25, 1.0)
AXIS = "share of the SM patients with boxes"
EVALUATED = ("sm", "unified", "base_ub", "capacity", "dropout", "borrowed", "ffdm")

RATE = 1.2e-3
"""At which A is trained in configs/unified.py, size quick."""
FASTER = "A, B, faster"
TRUNKS: dict[str, tuple[str, str]] = {
    "A, B": ("sm", "borrowed"),
    FASTER: ("sm", "borrowed"),
    "B, A": ("borrowed", "sm"),
    "C, A": ("ffdm", "sm"),
}
"""Line -> the two models whose trunks are joined."""


def rows(partner: str = "mammogram", rate: float = RATE, shares: Sequence[float] = SHARES) -> tuple[Row, ...]:
    """Every line with every share. partner: the field or modality that names the FFDM of an SM. rate: of FASTER."""
    found = []
    for line, (own, other) in TRUNKS.items():
        changes: dict[str, Any] = {"stages.unified.own": own, "stages.unified.other": other}
        if line == FASTER:
            changes |= {f"{recipe}.schedule.base": rate for recipe in ("fused", "bound")}
        found += [
            Row(f"{line}, {share:g}", {**scarce(partner, share), **changes}, at=share, axis=AXIS, line=line)
            for share in shares
        ]
    return tuple(found)


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


ROWS = rows()
